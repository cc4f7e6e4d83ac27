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

from jvp_ops._parallel import accumulate
from jvp_ops.losses._chunks import Chunk

WIDEST = 16  # directions at a time: their intermediates over one chunk stay in a core's cache


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
    P: Tensor  # (rows, c)
    D: Tensor | None  # Δ  (rows, c); None for Gauss-Newton
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
        W2.view(h, c).addmm_(Z.mT, D)
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
        linearized.append(LinearizedChunk(chunk.inputs, chunk.live, Z, S, P, D, C2))
    return linearized


@dataclass(frozen=True)
class _Directions:
    """A few directions, laid out for the chunks' products: V1 (d, m·h), c1 (m·h,), V2 (h, m·c), its transpose, c2."""

    m: int
    V1: Tensor
    c1: Tensor
    V2: Tensor
    V2t: Tensor  # (c, m·h)
    c2: Tensor

    @classmethod
    def of(cls, V: Tensor, d: int, h: int, c: int) -> "_Directions":
        m = V.shape[1]
        V1, c1, V2, c2 = V.split([d * h, h, h * c, c])
        return cls(
            m,
            V1.reshape(d, h, m).transpose(1, 2).reshape(d, m * h),
            c1.mT.reshape(m * h),
            V2.reshape(h, c, m).transpose(1, 2).reshape(h, m * c),
            V2.reshape(h, c, m).permute(1, 2, 0).reshape(c, m * h),
            c2.mT.reshape(m * c),
        )


def product_sum(chunks: Sequence[LinearizedChunk], W2: Tensor, V: Tensor, d: int) -> Tensor:
    """Sum the product with V, shape (n, m), over all samples: k times H V, or k times G V."""
    h, c = W2.shape
    groups = [_Directions.of(part, d, h, c) for part in V.split(WIDEST, dim=1)]
    sizes = [_sum_size(group.m, d, h, c) for group in groups]

    def add(chunk: LinearizedChunk, total: Tensor) -> None:
        for group, part in zip(groups, total.split(sizes), strict=True):
            _add_product(chunk, W2, group, part)

    total = accumulate(add, chunks, V.new_zeros(sum(sizes)))
    parts = zip(groups, total.split(sizes), strict=True)
    return torch.cat([_gather(part, group.m, d, h, c) for group, part in parts], dim=1)


def _sum_size(m: int, d: int, h: int, c: int) -> int:
    return m * (d * h + h + 2 * h * c + c)


def _split_sum(total: Tensor, m: int, d: int, h: int, c: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Take a sum apart: XᵀQ (d, m·h), colsum Q (m·h,), ZᵀRΔ (h, m·c), RZᵀΔ (m·h, c), colsum RΔ (m·c,)."""
    W1, b1, W2, W2_other, b2 = total.split([d * m * h, m * h, h * m * c, m * h * c, m * c])
    return W1.view(d, m * h), b1, W2.view(h, m * c), W2_other.view(m * h, c), b2


def _add_product(chunk: LinearizedChunk, W2: Tensor, V: _Directions, total: Tensor) -> None:
    """Add one chunk's share of the product to a sum laid out as `_split_sum` says."""
    rows, m, d, (h, c) = len(chunk.Z), V.m, V.V1.shape[0], W2.shape
    sum_W1, sum_b1, sum_W2, sum_W2_other, sum_b2 = _split_sum(total, m, d, h, c)
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
        sum_W2_other.addmm_(RZ.view(rows, m * h).mT, chunk.D)
    else:
        Q.view(rows, m, h).mul_(chunk.S[:, None, :])
    sum_W1.index_add_(0, chunk.live, chunk.inputs.mT @ Q)
    sum_b1 += Q.sum(0)
    sum_W2.addmm_(chunk.Z.mT, RD.view(rows, m * c))
    sum_b2 += RD.sum(0).view(m * c)


def _gather(total: Tensor, m: int, d: int, h: int, c: int) -> Tensor:
    """Lay a sum out as θ is: shape (n, m)."""
    W1, b1, W2, W2_other, b2 = _split_sum(total, m, d, h, c)
    W2_all = W2.view(h, m, c).transpose(1, 2) + W2_other.view(m, h, c).permute(1, 2, 0)
    pieces = [
        W1.view(d, m, h).transpose(1, 2).reshape(d * h, m),
        b1.view(m, h).mT,
        W2_all.reshape(h * c, m),
        b2.view(m, c).mT,
    ]
    return torch.cat(pieces)
