"""The GPU's form: few large chunks with all their inputs, one kernel after another, and no wait for the device.

Same mathematics as the chunks of the CPU (see `_products`), in plain matrix products: nothing depends on which inputs
are zero, and no value is asked for on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops.losses.two_layer._form import Panel, Weights
from jvp_ops.losses.two_layer._panels import InputPanels, pair_matrices, panel_bytes
from jvp_ops.losses.two_layer._samples import Samples

WIDEST = 32  # directions at a time
CHUNK_NUMBERS = 2**27  # in the largest intermediate of a product


@dataclass(frozen=True)
class PlainChunk:
    """Some samples: inputs (rows, d) and labels (rows,)."""

    X: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _At:
    """A chunk after one forward pass: Z and S (rows, h), P and Δ (rows, c)."""

    chunk: PlainChunk
    Z: Tensor
    S: Tensor
    P: Tensor
    D: Tensor

    @classmethod
    def of(cls, chunk: PlainChunk, weights: Weights) -> "_At":
        Z = torch.addmm(weights.b1, chunk.X, weights.W1).sigmoid_()
        P = torch.softmax(torch.addmm(weights.b2, Z, weights.W2), 1)
        D = P.scatter_add(1, chunk.labels.unsqueeze(1), P.new_full((1, 1), -1).expand(len(P), 1))
        return cls(chunk, Z, Z * (1 - Z), P, D)

    def value(self, weights: Weights) -> Tensor:
        logits = torch.addmm(weights.b2, self.Z, weights.W2)
        return torch.nn.functional.cross_entropy(logits, self.chunk.labels, reduction="sum")

    def gradient(self, weights: Weights) -> Tensor:
        Q = (self.D @ weights.W2.mT).mul_(self.S)
        parts = (self.chunk.X.mT @ Q, Q.sum(0), self.Z.mT @ self.D, self.D.sum(0))
        return torch.cat([part.reshape(-1) for part in parts])

    def curvature(self, weights: Weights) -> Tensor:
        """Compute C₂ = s (1 − 2z) ⊙ Δ W2ᵀ."""
        return (self.D @ weights.W2.mT).mul_(self.S).mul_(1 - 2 * self.Z)


@dataclass(frozen=True)
class PlainLinearized:
    """Chunks with what no direction changes."""

    at: Sequence[_At]
    weights: Weights

    def value(self) -> Tensor:
        """Sum the cross-entropy."""
        return torch.stack([at.value(self.weights) for at in self.at]).sum()

    def gradient(self) -> Tensor:
        """Sum the gradient, shape (n,)."""
        return _summed([at.gradient(self.weights) for at in self.at])

    def product(self, V: Tensor, *, gauss_newton: bool) -> Tensor:
        """Sum the products with V, shape (n, m)."""
        parts = V.split(WIDEST, dim=1)
        return torch.cat([self._product(part, gauss_newton=gauss_newton) for part in parts], dim=1)

    def panels(self, *, gauss_newton: bool) -> Panel:
        """Prepare row panels of the W1·W1 block."""
        (d, h), W2 = self.weights.W1.shape, self.weights.W2
        M = [pair_matrices(at.P, at.S, None if gauss_newton else at.curvature(self.weights), W2) for at in self.at]

        def pairs_of_input(i: int) -> Tensor:
            inputs = [at.chunk.X for at in self.at]
            return _summed([X[:, i:].mT @ (m * X[:, i : i + 1]) for X, m in zip(inputs, M, strict=True)])

        return InputPanels(pairs_of_input, d, h, W2.device)

    def _product(self, V: Tensor, *, gauss_newton: bool) -> Tensor:
        """Multiply a few directions, which stand side by side."""
        (d, h), c, m = self.weights.W1.shape, self.weights.W2.shape[1], V.shape[1]
        W2 = self.weights.W2
        V1, c1, V2, c2 = V.split([d * h, h, h * c, c])
        wide1 = V1.view(d, h, m).transpose(1, 2).reshape(d, m * h)
        wide2 = V2.view(h, c, m).transpose(1, 2).reshape(h, m * c)
        across2 = V2.view(h, c, m).permute(1, 2, 0).reshape(c, m * h)
        totals = []
        for at in self.at:
            rows, S = len(at.Z), at.S.unsqueeze(1)
            RA = torch.addmm(c1.mT.reshape(-1), at.chunk.X, wide1).view(rows, m, h)
            RZ = RA * S
            RB = torch.addmm(c2.mT.reshape(-1), at.Z, wide2).view(rows, m, c) + RZ @ W2
            PB = at.P.unsqueeze(1) * RB
            RD = PB - at.P.unsqueeze(1) * PB.sum(2, keepdim=True)
            Q = RD @ W2.mT
            G2 = (at.Z.mT @ RD.view(rows, m * c)).view(h, m, c)
            if gauss_newton:
                Q = Q * S
            else:
                Q = (Q + (at.D @ across2).view(rows, m, h)) * S + RA * at.curvature(self.weights).unsqueeze(1)
                G2 = G2 + (RZ.view(rows, m * h).mT @ at.D).view(m, h, c).transpose(0, 1)
            G1 = (at.chunk.X.mT @ Q.view(rows, m * h)).view(d, m, h)
            parts = (G1.transpose(1, 2), Q.sum(0).mT, G2.transpose(1, 2), RD.sum(0).mT)
            totals.append(torch.cat([part.reshape(-1, m) for part in parts]))
        return _summed(totals)


@dataclass(frozen=True)
class PlainForm:
    """Samples in few large chunks, in the dtype that is computed in."""

    X: Tensor
    labels: Tensor

    @classmethod
    def of(cls, samples: Samples, device: torch.device, dtype: torch.dtype) -> "PlainForm":
        """Convert the samples, from what is known exactly."""
        X, labels = samples.whole()
        X = X.to(dtype)
        if samples.maximum is not None:
            X.div_(samples.maximum)  # before it moves: CUDA multiplies by the reciprocal, which rounds otherwise
        return cls(X.to(device), labels.to(device))

    def value(self, weights: Weights) -> Tensor:
        """Sum the cross-entropy."""
        return torch.stack([_At.of(chunk, weights).value(weights) for chunk in self._chunks(weights)]).sum()

    def gradient(self, weights: Weights) -> Tensor:
        """Sum the gradient, shape (n,)."""
        return _summed([_At.of(chunk, weights).gradient(weights) for chunk in self._chunks(weights)])

    def linearize(self, weights: Weights, *, gradient: bool) -> PlainLinearized:
        """Go forward once, and keep all that no direction changes; the gradient is as cheap later."""
        return PlainLinearized([_At.of(chunk, weights) for chunk in self._chunks(weights)], weights)

    def bytes_needed(self, hidden: int, classes: int) -> int:
        """Count what a linearization keeps, and what one of its products works on."""
        samples, inputs = self.X.shape
        kept = samples * (2 * hidden + 2 * classes)
        size = inputs * hidden + hidden + hidden * classes + classes
        working = WIDEST * (min(samples, _rows(hidden, classes)) * (4 * hidden + 4 * classes) + 3 * size)
        return (kept + working) * self.X.element_size()

    def panel_bytes(self, hidden: int) -> int:
        """Count what panels keep and work on, beside the panel."""
        samples, inputs = self.X.shape
        return panel_bytes(samples, inputs, hidden, rows=samples, item=self.X.element_size(), threads=1)

    def _chunks(self, weights: Weights) -> list[PlainChunk]:
        rows = _rows(*weights.W2.shape)
        return [PlainChunk(X, t) for X, t in zip(self.X.split(rows), self.labels.split(rows), strict=True)]


def _rows(hidden: int, classes: int) -> int:
    return max(1024, CHUNK_NUMBERS // (WIDEST * (hidden + classes)))


def _summed(parts: Sequence[Tensor]) -> Tensor:
    total, *others = parts
    for part in others:
        total += part
    return total
