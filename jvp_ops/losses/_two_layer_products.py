"""The closed form of the two-layer network: forward, gradient, Hessian and Gauss-Newton products over chunks.

Per sample x with one-hot target t: a = x W1 + b1, z = σ(a), p = softmax(z W2 + b2), δ = p − t, s = z (1 − z).
A direction (V1, c1, V2, c2) needs two large products only (R marks derivatives along it; capitals are rows of a
chunk, ⊙ is entrywise, C₂ = s (1 − 2z) ⊙ Δ W2ᵀ)::

    RA = X V1 + c1                     RZ = s ⊙ RA
    RB = RZ W2 + Z V2 + c2             RΔ = P ⊙ RB − P ⊙ rowsum(P ⊙ RB)
    Q  = C₂ ⊙ RA + s ⊙ (RΔ W2ᵀ + Δ V2ᵀ)
    H v = (1/k) Σ (Xᵀ Q, colsum Q, Zᵀ RΔ + RZᵀ Δ, colsum RΔ)

The Gauss-Newton product drops the terms with Δ and C₂. Everything that does not depend on the direction is
computed once. m directions are one wide product: their hidden units stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops._sums import accumulate
from jvp_ops.losses._chunks import Chunk

WIDEST = 16  # directions at a time: their intermediates over one chunk stay in a core's cache
LANES = 16  # float32 numbers in a vector register of 512 bits


@dataclass(frozen=True)
class Weights:
    """θ taken apart: W1 (d, h), b1 (h,), W2 (h, c), b2 (c,)."""

    W1: Tensor
    b1: Tensor
    W2: Tensor
    b2: Tensor


@dataclass(frozen=True)
class LinearizedChunk:
    """All that a product needs of one chunk and that does not depend on the direction."""

    inputs: Tensor  # X  (rows, live)
    live: Tensor  # (live,)
    Z: Tensor  # (rows, h)
    S: Tensor  # s = z (1 − z)  (rows, h)
    P: Tensor  # (rows, c), padded
    D: Tensor | None  # Δ  (rows, c), padded; None for Gauss-Newton
    C2: Tensor | None  # (rows, h); None for Gauss-Newton


def _hidden(chunk: Chunk, weights: Weights) -> Tensor:
    return torch.addmm(weights.b1, chunk.inputs, weights.W1.index_select(0, chunk.live)).sigmoid_()


def _residual(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Δ = P − T."""
    minus_one = probabilities.new_full((len(labels), 1), -1)
    return probabilities.scatter_add(1, labels[:, None], minus_one)


def value_sum(chunks: Sequence[Chunk], weights: Weights) -> Tensor:
    """Sum the cross-entropy over all samples."""

    def add(chunk: Chunk, total: Tensor) -> None:
        logits = torch.addmm(weights.b2, _hidden(chunk, weights), weights.W2)
        total += torch.nn.functional.cross_entropy(logits, chunk.labels, reduction="sum")

    return accumulate(add, chunks, weights.b2.new_zeros(()))


def gradient_sum(chunks: Sequence[Chunk], weights: Weights) -> Tensor:
    """Sum the gradient over all samples, in the order of θ."""
    d, h, c = *weights.W1.shape, weights.W2.shape[1]

    def add(chunk: Chunk, total: Tensor) -> None:
        Z = _hidden(chunk, weights)
        D = _residual(torch.softmax(torch.addmm(weights.b2, Z, weights.W2), 1), chunk.labels)
        Q = (D @ weights.W2.mT).mul_(Z).mul_(1 - Z)
        W1, b1, W2, b2 = total.split([d * h, h, h * c, c])
        W1.view(d, h).index_add_(0, chunk.live, chunk.inputs.mT @ Q)
        b1 += Q.sum(0)
        W2.view(h, c).add_((D.mT @ Z).mT)
        b2 += D.sum(0)

    return accumulate(add, chunks, weights.b2.new_zeros(d * h + h + h * c + c))


def linearize(chunks: Sequence[Chunk], weights: Weights, *, gauss_newton: bool) -> list[LinearizedChunk]:
    """Compute all that does not depend on the direction."""
    linearized = []
    for chunk in chunks:
        Z = _hidden(chunk, weights)
        P = torch.softmax(torch.addmm(weights.b2, Z, weights.W2), 1)
        S = Z * (1 - Z)
        D = C2 = None
        if not gauss_newton:
            D = _residual(P, chunk.labels)
            C2 = (D @ weights.W2.mT).mul_(S).mul_(1 - 2 * Z)
            D = pad_classes(D)
        linearized.append(LinearizedChunk(chunk.inputs, chunk.live, Z, S, pad_classes(P), D, C2))
    return linearized


def pad_classes(tensor: Tensor) -> Tensor:
    """Widen the last dimension with zeros to a multiple of LANES: ten columns take four times as long as sixteen."""
    return torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % LANES))


@dataclass(frozen=True)
class _Directions:
    """A few directions side by side, as the chunks' products want them; c is the padded number of classes."""

    m: int
    V1: Tensor | None  # (d, m·h); None where it is zero, which saves one of the two large products
    c1: Tensor  # (m·h,)
    V2: Tensor  # (h, m·c)
    V2t: Tensor  # (c, m·h)
    c2: Tensor  # (m·c,)

    @classmethod
    def of(cls, V: Tensor, d: int, h: int, c: int) -> "_Directions":
        m = V.shape[1]
        V1, c1, V2, c2 = V.split([d * h, h, h * c, c])
        wide_V1 = V1.reshape(d, h, m).transpose(1, 2).reshape(d, m * h) if bool(V1.any()) else None
        wide_V2 = pad_classes(V2.reshape(h, c, m).transpose(1, 2))  # (h, m, c)
        return cls(
            m,
            wide_V1,
            c1.mT.reshape(m * h),
            wide_V2.reshape(h, -1),
            wide_V2.permute(2, 1, 0).reshape(-1, m * h),
            pad_classes(c2.mT).reshape(-1),
        )


@dataclass(frozen=True)
class _Sums:
    """What the chunks add to, as views of one flat tensor; c is the padded number of classes."""

    XQ: Tensor  # Xᵀ Q  (d, m·h)
    Q: Tensor  # colsum Q  (m·h,)
    RZ: Tensor  # (Zᵀ RΔ)ᵀ  (m·c, h): this way round it is four times as fast, and more exact
    DZ: Tensor  # (RZᵀ Δ)ᵀ  (c, m·h)
    R: Tensor  # colsum RΔ  (m·c,)

    @staticmethod
    def size(m: int, d: int, h: int, c: int) -> int:
        return m * (d * h + h + 2 * h * c + c)

    @classmethod
    def of(cls, flat: Tensor, m: int, d: int, h: int, c: int) -> "_Sums":
        XQ, Q, RZ, DZ, R = flat.split([d * m * h, m * h, m * c * h, c * m * h, m * c])
        return cls(XQ.view(d, m * h), Q, RZ.view(m * c, h), DZ.view(c, m * h), R)

    def gathered(self, m: int, d: int, h: int, c: int, classes: int) -> Tensor:
        """Lay them out as θ is: shape (n, m)."""
        W2 = self.RZ.view(m, c, h).permute(2, 1, 0) + self.DZ.view(c, m, h).permute(2, 0, 1)
        pieces = [
            self.XQ.view(d, m, h).transpose(1, 2).reshape(d * h, m),
            self.Q.view(m, h).mT,
            W2[:, :classes].reshape(h * classes, m),
            self.R.view(m, c)[:, :classes].mT,
        ]
        return torch.cat(pieces)


def product_sum(chunks: Sequence[LinearizedChunk], W2: Tensor, V: Tensor, d: int) -> Tensor:
    """Sum the product with V, shape (n, m), over all samples: k times H V, or k times G V."""
    (h, classes), wide_W2 = W2.shape, pad_classes(W2)
    c = wide_W2.shape[1]
    images = []
    for part in V.split(WIDEST, dim=1):  # one group after another: each thread holds the sums of one
        directions = _Directions.of(part, d, h, classes)
        shape = (directions.m, d, h, c)

        def add(chunk: LinearizedChunk, flat: Tensor, directions: _Directions = directions) -> None:
            _add_product(chunk, wide_W2, directions, _Sums.of(flat, directions.m, d, h, c))

        total = accumulate(add, chunks, V.new_zeros(_Sums.size(*shape)))
        images.append(_Sums.of(total, *shape).gathered(*shape, classes))
    return torch.cat(images, dim=1)


def _add_product(chunk: LinearizedChunk, W2: Tensor, V: _Directions, sums: _Sums) -> None:
    """Add one chunk's share of the product."""
    rows, m, (h, c) = len(chunk.Z), V.m, W2.shape
    if V.V1 is None:
        RA = V.c1.view(1, m, h)
    else:
        RA = torch.addmm(V.c1, chunk.inputs, V.V1.index_select(0, chunk.live)).view(rows, m, h)
    RZ = RA * chunk.S[:, None, :]
    RB = torch.addmm(V.c2, chunk.Z, V.V2).view(rows * m, c).addmm_(RZ.view(rows * m, h), W2).view(rows, m, c)
    P = chunk.P[:, None, :]
    RB.mul_(P)
    RD = torch.addcmul(RB, P, RB.sum(2, keepdim=True), value=-1)
    Q = (RD.view(rows * m, c) @ W2.mT).view(rows, m * h)
    if chunk.D is not None and chunk.C2 is not None:
        Q.addmm_(chunk.D, V.V2t)
        Q.view(rows, m, h).mul_(chunk.S[:, None, :]).addcmul_(RA, chunk.C2[:, None, :])
        sums.DZ.addmm_(chunk.D.mT, RZ.view(rows, m * h))
    else:
        Q.view(rows, m, h).mul_(chunk.S[:, None, :])
    sums.XQ.index_add_(0, chunk.live, chunk.inputs.mT @ Q)
    sums.Q.add_(Q.sum(0))
    sums.RZ.addmm_(RD.view(rows, m * c).mT, chunk.Z)
    sums.R.add_(RD.sum(0).view(m * c))
