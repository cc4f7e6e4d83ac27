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
from jvp_ops.losses.two_layer._chunks import Chunk
from jvp_ops.losses.two_layer._form import Weights

WIDEST = 16  # directions at a time: their intermediates over one chunk stay in a core's cache
LANES = 16  # float32 numbers in a vector register of 512 bits


@dataclass(frozen=True)
class LinearizedChunk:
    """All that a product needs of one chunk and that does not depend on the direction."""

    chunk: Chunk
    Z: Tensor  # (rows, h)
    S: Tensor  # s = z (1 − z)  (rows, h)
    P: Tensor  # (rows, c), padded
    D: Tensor  # Δ  (rows, c), padded
    C2: Tensor  # (rows, h)


def _hidden(chunk: Chunk, weights: Weights) -> Tensor:
    return torch.addmm(weights.b1, chunk.inputs, weights.W1.index_select(0, chunk.live)).sigmoid_()


def _residual(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Δ = P − T."""
    minus_one = probabilities.new_full((len(labels), 1), -1)
    return probabilities.scatter_add(1, labels[:, None], minus_one)


def value_sum(chunks: Sequence[Chunk], weights: Weights) -> Tensor:
    """Sum the cross-entropy over all samples."""

    def add(chunk: Chunk, total: Tensor) -> None:
        total += _cross_entropy(_hidden(chunk, weights), chunk.labels, weights)

    return accumulate(add, chunks, weights.b2.new_zeros(()))


def gradient_sum(chunks: Sequence[Chunk], weights: Weights) -> Tensor:
    """Sum the gradient over all samples, in the order of θ, chunk by chunk."""
    W2 = pad_classes(weights.W2)

    def add(chunk: Chunk, total: Tensor) -> None:
        Z = _hidden(chunk, weights)
        D = pad_classes(_residual(_probabilities(Z, weights), chunk.labels))
        _add_gradient(chunk, Z, D, (D @ W2.mT).mul_((1 - Z).mul_(Z)), total, weights)

    return accumulate(add, chunks, _zeros(weights))


def linearize(chunks: Sequence[Chunk], weights: Weights) -> list[LinearizedChunk]:
    """Compute all that does not depend on the direction."""
    made = []
    for chunk in chunks:  # one after another: memory that other threads allocate was measured to be slow to come by
        at = _linearized(chunk, weights)
        at.C2.mul_(1 - 2 * at.Z)
        made.append(at)
    return made


def linearize_with_gradient(chunks: Sequence[Chunk], weights: Weights) -> tuple[list[LinearizedChunk], Tensor]:
    """Do so, and sum the gradient on the way; the same bits as `gradient_sum`."""
    made = [_linearized(chunk, weights) for chunk in chunks]

    def add(at: LinearizedChunk, total: Tensor) -> None:
        _add_gradient(at.chunk, at.Z, at.D, at.C2, total, weights)
        at.C2.mul_(1 - 2 * at.Z)

    return made, accumulate(add, made, _zeros(weights))


def _linearized(chunk: Chunk, weights: Weights) -> LinearizedChunk:
    """Linearize one chunk, with s ⊙ Δ W2ᵀ in the place of C₂, whose factor 1 − 2z is still to come."""
    Z = _hidden(chunk, weights)
    P = _probabilities(Z, weights)
    S, D = (1 - Z).mul_(Z), pad_classes(_residual(P, chunk.labels))
    return LinearizedChunk(chunk, Z, S, pad_classes(P), D, (D @ pad_classes(weights.W2).mT).mul_(S))


def value_at(linearized: Sequence[LinearizedChunk], weights: Weights) -> Tensor:
    """Sum the cross-entropy from what was linearized; the same bits as `value_sum`."""

    def add(at: LinearizedChunk, total: Tensor) -> None:
        total += _cross_entropy(at.Z, at.chunk.labels, weights)

    return accumulate(add, linearized, weights.b2.new_zeros(()))


def gradient_at(linearized: Sequence[LinearizedChunk], weights: Weights) -> Tensor:
    """Sum the gradient from what was linearized; the same bits as `gradient_sum`."""
    W2 = pad_classes(weights.W2)

    def add(at: LinearizedChunk, total: Tensor) -> None:
        _add_gradient(at.chunk, at.Z, at.D, (at.D @ W2.mT).mul_(at.S), total, weights)

    return accumulate(add, linearized, _zeros(weights))


def _probabilities(Z: Tensor, weights: Weights) -> Tensor:
    return torch.softmax(torch.addmm(weights.b2, Z, weights.W2), 1)


def _cross_entropy(Z: Tensor, labels: Tensor, weights: Weights) -> Tensor:
    logits = torch.addmm(weights.b2, Z, weights.W2)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def _zeros(weights: Weights) -> Tensor:
    return weights.b2.new_zeros(sum(part.numel() for part in (weights.W1, weights.b1, weights.W2, weights.b2)))


def _add_gradient(chunk: Chunk, Z: Tensor, D: Tensor, Q: Tensor, total: Tensor, weights: Weights) -> None:
    """Add one chunk's share of the gradient, with Q = s ⊙ Δ W2ᵀ; D is padded."""
    (d, h), c = weights.W1.shape, weights.W2.shape[1]
    G1, g1, G2, g2 = total.split([d * h, h, h * c, c])
    G1.view(d, h).index_add_(0, chunk.live, chunk.inputs.mT @ Q)
    g1 += Q.sum(0)
    G2.view(h, c).add_((D.mT @ Z)[:c].mT)
    g2 += D.sum(0)[:c]


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


def product_sum(linearized: Sequence[LinearizedChunk], W2: Tensor, V: Tensor, d: int, *, gauss_newton: bool) -> Tensor:
    """Sum the product with V, shape (n, m), over all samples: k times H V, or k times G V."""
    (h, classes), wide_W2 = W2.shape, pad_classes(W2)
    c = wide_W2.shape[1]
    images = []
    for part in V.split(WIDEST, dim=1):  # one group after another: each thread holds the sums of one
        directions = _Directions.of(part, d, h, classes)
        shape = (directions.m, d, h, c)

        def add(at: LinearizedChunk, flat: Tensor, directions: _Directions = directions) -> None:
            sums = _Sums.of(flat, directions.m, d, h, c)
            _add_product(at, wide_W2, directions, sums, gauss_newton=gauss_newton)

        total = accumulate(add, linearized, V.new_zeros(_Sums.size(*shape)))
        images.append(_Sums.of(total, *shape).gathered(*shape, classes))
    return torch.cat(images, dim=1)


def _add_product(at: LinearizedChunk, W2: Tensor, V: _Directions, sums: _Sums, *, gauss_newton: bool) -> None:
    """Add one chunk's share of the product."""
    rows, m, (h, c) = len(at.Z), V.m, W2.shape
    if V.V1 is None:
        RA = V.c1.view(1, m, h)
    else:
        RA = torch.addmm(V.c1, at.chunk.inputs, V.V1.index_select(0, at.chunk.live)).view(rows, m, h)
    RZ = RA * at.S[:, None, :]
    RB = torch.addmm(V.c2, at.Z, V.V2).view(rows * m, c).addmm_(RZ.view(rows * m, h), W2).view(rows, m, c)
    P = at.P[:, None, :]
    RB.mul_(P)
    RD = torch.addcmul(RB, P, RB.sum(2, keepdim=True), value=-1)
    Q = (RD.view(rows * m, c) @ W2.mT).view(rows, m * h)
    if not gauss_newton:
        Q.addmm_(at.D, V.V2t)
        Q.view(rows, m, h).mul_(at.S[:, None, :]).addcmul_(RA, at.C2[:, None, :])
        sums.DZ.addmm_(at.D.mT, RZ.view(rows, m * h))
    else:
        Q.view(rows, m, h).mul_(at.S[:, None, :])
    sums.XQ.index_add_(0, at.chunk.live, at.chunk.inputs.mT @ Q)
    sums.Q.add_(Q.sum(0))
    sums.RZ.addmm_(RD.view(rows, m * c).mT, at.Z)
    sums.R.add_(RD.sum(0).view(m * c))
