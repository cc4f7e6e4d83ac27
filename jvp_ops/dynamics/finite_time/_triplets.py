"""Sweeps through a window: a basis forward by the Jacobians, what it has become backward by their transposes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._random import normal
from jvp_ops._sitting import Sitting
from jvp_ops.dynamics._frame import SAFE_SPREAD, Triangle, orthonormal, spread_of
from jvp_ops.dynamics._orbit import Orbit
from jvp_ops.dynamics._sweeps import frames
from jvp_ops.dynamics.finite_time._product_svd import product_svd

Floats = NDArray[np.float64]
NOISE = 8


@dataclass(frozen=True)
class Triplets:
    """Singular triplets of P in the span of a basis, best first, and what is known beside them.

    Attributes
    ----------
    logs : ndarray of float64, shape (m,)
        ln σ.
    right, left : Tensor of float64, shape (n, m)
    back : Tensor of float64, shape (n, block)
        Pᵀ times the leading left vectors, made orthonormal.
    residuals : ndarray of float64, shape (block,)
        ‖Pᵀu − σv‖ / σ.
    lost : ndarray of float64, shape (block,)
        The part of it inside of the basis, where P and Pᵀ disagree: no further sweep makes it smaller.
    strained : int
        Steps that spread the vectors by more than their precision tells apart.
    """

    logs: Floats
    right: Tensor
    left: Tensor
    back: Tensor
    residuals: Floats
    lost: Floats
    strained: int


def iterate(
    orbit: Orbit, window: range, V: Tensor, block: int, random: np.random.Generator, sitting: Sitting
) -> Triplets:
    """Sweep a basis V forward, decompose P V, and sweep the leading left vectors backward."""
    Q, triangles = _sweep(orbit, window, V, random, sitting, adjoint=False)
    small = product_svd(triangles)
    right, left = (side @ torch.from_numpy(part).to(V) for side, part in ((V, small.right), (Q, small.left)))
    return _checked(orbit, window, small.logs, right, left, block, random, sitting, _strained(triangles, orbit.dtype))


def extended(
    orbit: Orbit,
    window: range,
    found: Triplets,
    kept: Tensor,
    fresh: Tensor,
    block: int,
    random: np.random.Generator,
    sitting: Sitting,
) -> Triplets:
    """Sweep only new vectors forward, and decompose them with the images of the old ones, which are known."""
    Q, triangles = _sweep(orbit, window, fresh, random, sitting, adjoint=False)
    small = product_svd(triangles)
    left, right = (torch.from_numpy(part).to(fresh) for part in (small.left, small.right))
    image = (Q @ left) * torch.from_numpy(np.exp(small.logs)).to(fresh) @ right.mT
    known = found.left[:, : kept.shape[1]] * torch.from_numpy(np.exp(found.logs[: kept.shape[1]])).to(fresh)
    U, sigma, Zt = torch.linalg.svd(torch.cat([known, image], dim=1), full_matrices=False)
    basis = torch.cat([kept, fresh], dim=1)
    logs: Floats = sigma.clamp_min(torch.finfo(sigma.dtype).tiny).log().cpu().numpy()
    strained = max(found.strained, _strained(triangles, orbit.dtype))
    return _checked(orbit, window, logs, basis @ Zt.mT, U, block, random, sitting, strained)


def _checked(
    orbit: Orbit,
    window: range,
    logs: Floats,
    right: Tensor,
    left: Tensor,
    block: int,
    random: np.random.Generator,
    sitting: Sitting,
    strained: int,
) -> Triplets:
    """Sweep the leading left vectors backward, and see how far they come from the right ones."""
    back, triangles = _sweep(orbit, window[::-1], left[:, :block], random, sitting, adjoint=True)
    # Pᵀ U = back · R_last ⋯ R_first, and Pᵀu / σ should be v: what is apart from it is the residual
    found = back @ torch.from_numpy(_scaled(triangles, logs[:block], orbit.dtype)).to(back)
    inside, outside = right.mT @ found, found
    for _ in range(2):
        outside = outside - right @ (right.mT @ outside)
    lost = np.linalg.norm(_apart(inside.cpu().numpy(), logs, orbit.dtype), axis=0)
    residuals = np.hypot(torch.linalg.vector_norm(outside, dim=0).cpu().numpy(), lost)
    zero = logs[:block] == -np.inf
    return Triplets(logs, right, left, back, np.where(zero, 0.0, residuals), np.where(zero, 0.0, lost), strained)


def doubt(orbit: Orbit, window: range, found: Triplets, sitting: Sitting) -> Floats:
    """Measure by how much, relatively, singular values move when each product is `NOISE` times as inexact as it is.

    Where directions grow and shrink again inside of the window, P and Pᵀ can agree on a value that rounding made.
    """
    eps, random = torch.finfo(orbit.dtype).eps, np.random.default_rng(0)
    leading = found.right[:, : found.back.shape[1]]
    triangles = [frame.triangle for frame in frames(orbit, window, leading, random, sitting, noise=NOISE * eps)]
    again, logs = product_svd(triangles).logs, found.logs[: leading.shape[1]]
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.where(logs == -np.inf, 0.0, again - logs)  # what rounding hides whole stays hidden
        return np.abs(np.expm1(moved))


def _apart(inside: Floats, logs: Floats, dtype: torch.dtype) -> Floats:
    """Subtract the identity from VᵀPᵀU Σ⁻¹, and what rounding does along vectors that are stronger than u's."""
    apart = inside - np.eye(*inside.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        stronger = logs[:, None] - logs[: inside.shape[1]]
        rounding = 1e3 * torch.finfo(dtype).eps * np.exp(np.nan_to_num(stronger, nan=0.0))
    return np.where((stronger > 0) & (np.abs(apart) <= rounding), 0.0, apart)


def _strained(triangles: list[Triangle], dtype: torch.dtype) -> int:
    """Count the steps that spread the vectors by more than their precision tells apart."""
    spreads = [spread_of(R) for R in triangles]
    return sum(SAFE_SPREAD[dtype] < spread < np.inf for spread in spreads)


def _scaled(triangles: list[Triangle], logs: Floats, dtype: torch.dtype) -> Floats:
    """Multiply triangles, R_last ⋯ R_first, and divide column i by exp(logs_i), without overflow on the way.

    What lies along a stronger vector j is rounding up to about exp(logs_j − logs_i) times that of products, and is 0
    then.
    """
    product, scales = np.eye(len(logs)), np.zeros(len(logs))
    for R in triangles:
        product = R @ product
        norms = np.maximum(np.linalg.norm(product, axis=0), np.finfo(np.float64).tiny)
        product, scales = product / norms, scales + np.log(norms)
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.nan_to_num(product * np.exp(scales - logs), nan=0.0)
        rounding = 1e3 * torch.finfo(dtype).eps * np.exp(logs[:, None] - logs)
    return np.where((abs(found) <= rounding) & ~np.eye(len(logs), dtype=bool), 0.0, found)


def with_random(V: Tensor, more: int, random: np.random.Generator) -> Tensor:
    """Add random directions orthogonal to those of V."""
    fresh = normal(random, len(V), more, dtype=V.dtype, device=V.device)
    return orthonormal(torch.cat([V, fresh], dim=1), rounding=torch.finfo(V.dtype).eps, random=random).vectors


def widened(found: Triplets, most: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Give leading right vectors to keep, and what came back beside them: a block Krylov basis of PᵀP."""
    block = found.back.shape[1]
    kept = found.right[:, : most - block] if most > block else found.right[:, :0]
    fresh = found.back
    for _ in range(2):
        fresh = fresh - kept @ (kept.mT @ fresh)
        fresh = orthonormal(fresh, rounding=torch.finfo(torch.float64).eps, random=random).vectors
    return kept, fresh


def _sweep(
    orbit: Orbit, times: range, V: Tensor, random: np.random.Generator, sitting: Sitting, *, adjoint: bool
) -> tuple[Tensor, list[Triangle]]:
    """Move V through the window; the product is Q R_last ⋯ R_first."""
    triangles = []
    for frame in frames(orbit, times, V, random, sitting, adjoint=adjoint):
        triangles.append(frame.triangle)
    return frame.vectors, triangles
