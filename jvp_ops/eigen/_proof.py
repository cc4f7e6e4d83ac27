"""Proof by inertia that no eigenvalue was missed."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._memory import free_bytes
from jvp_ops.eigen._inertia import ROWS, inertia, size_and_asymmetry
from jvp_ops.eigen._target import Target
from jvp_ops.operators import TensorOperator

Floats = NDArray[np.float64]


WIDE = 1e3  # times a bound: a gap of that size makes it a thousand times sharper


@dataclass(frozen=True)
class Proof:
    """What inertia says of a result.

    Attributes
    ----------
    low, high : float
        All eigenvalues that are not in the result lie in [low, high].
    complete : bool
        Whether the j-th best eigenvalue lies in the j-th interval, for all j.
    reason : str
        Why that is not proved.
    bounds : ndarray, optional
        The bounds with which it is: where the cut goes through intervals that overlap, theirs reach to the far edge.
    """

    low: float = -np.inf
    high: float = np.inf
    complete: bool = False
    reason: str = ""
    bounds: Floats | None = None


def prove(operator: TensorOperator, target: Target, values: Floats, bounds: Floats, *, progress: bool) -> Proof:
    """Count, by LDLᵀ of the dense matrix, the eigenvalues beyond the worst one found.

    First well on the near side of its interval, where a count of k proves a gap that sharpens its bound too; then just
    on the near side, where there may be none. Where the cut goes through a
    cluster, or a multiple eigenvalue, there are more: then on the far side of all intervals that overlap it, where
    those that lie beyond must all have been found. The Ritz values bound the best eigenvalues from the near side
    (Cauchy), so each interval that reaches to the far edge then holds the eigenvalue of its rank.
    """
    matrix = _dense(operator, progress)
    short = 2 * matrix.numel() * 8 > free_bytes(torch.device("cpu"))  # then each count takes the matrix it destroys
    last_place = torch.finfo(operator.torch_dtype).eps
    margin = 4 * len(matrix) * last_place * size_and_asymmetry(matrix.numpy())[0]
    reason = ""
    for low, high, widened in _intervals(target, values, bounds, margin):
        reason = ""
        for shift, above in ((high, True), (low, False)):
            if not np.isfinite(shift) or reason:
                continue
            if matrix.numel() == 0:
                matrix = _dense(operator, progress)
            counted = inertia(matrix, shift, overwrite=short)
            if short:
                matrix = matrix.new_empty(0, 0)
            there = counted.above if above else counted.below
            known = int((values - bounds > shift).sum() if above else (values + bounds < shift).sum())
            side = "above" if above else "below"
            if counted.undecided:
                reason = f"rounding hides on which side of {shift:.10g} {counted.undecided} eigenvalues lie"
            elif there != known:
                reason = f"{there} eigenvalues lie {side} {shift:.10g}, and {known} of them were found"
        if not reason:
            return Proof(low, high, True, bounds=widened)
    return Proof(reason=reason)


def memory_for_proof(n: int) -> int:
    """Say how many bytes a proof takes at least: one matrix in float64, and some rows."""
    return n * n * 8 + 8 * n * ROWS * 8


def _dense(operator: TensorOperator, progress: bool) -> Tensor:
    matrix: Tensor = operator.dense(max_memory=free_bytes(operator.device), progress=progress)
    return matrix.cpu()  # in its own dtype, by which inertia judges its entries


def _intervals(target: Target, values: Floats, bounds: Floats, margin: float) -> list[tuple[float, float, Floats]]:
    """Say where the eigenvalues that were not found should lie, by wide, near and far edge, and the bounds then."""
    if target.which == "LM":
        if target.scale == 0:
            return [(-np.inf, np.inf, bounds)]  # all of A's eigenvalues are the shift
        unit = abs(target.scale)
        keys = np.abs(target.shift + target.scale * values)
        *edges, reached = _edges(keys, unit * bounds, unit * margin)
        ends = [sorted((s * max(edge, 0.0) - target.shift) / target.scale for s in (-1, 1)) for edge in edges]
        return [(low, high, wide) for (low, high), wide in zip(ends, (bounds, bounds, reached / unit), strict=True)]
    k = len(values)
    lower = {"LA": 0, "SA": k, "BE": k // 2}[target.which] if target.sign > 0 else None
    if lower is None:
        lower = {"LA": k, "SA": 0, "BE": k - k // 2}[target.which]
    order = np.argsort(values, kind="stable")
    low, high, widened = order[:lower], order[lower:], bounds.copy()
    lows, highs = [-np.inf] * 3, [np.inf] * 3
    if len(low):
        *edges, widened[low] = _edges(-values[low], bounds[low], margin)
        lows = [-edge for edge in edges]
    if len(high):
        *highs, widened[high] = _edges(values[high], bounds[high], margin)
    return list(zip(lows, highs, (bounds, bounds, widened), strict=True))


def _edges(keys: Floats, bounds: Floats, margin: float) -> tuple[float, float, float, Floats]:
    """Give a wide, a near and a far edge of the worst interval and all that overlap it, where larger keys are better.

    And bounds by which the intervals of all these reach to the far edge.
    """
    order = np.argsort(keys)
    wide, near = float((keys - WIDE * bounds).min()), float((keys - bounds).min())
    far = float(keys[order[0]] + bounds[order[0]])
    members = []
    for i in order:
        if keys[i] - bounds[i] <= far + 2 * margin:
            far = max(far, float(keys[i] + bounds[i]))
            members.append(i)
    reached = bounds.copy()
    reached[members] = np.maximum(bounds[members], far + margin - keys[members])
    return wide - margin, near - margin, far + margin, reached


def sharpened(values: Floats, bounds: Floats, gram: Floats, errors: Floats, proof: Proof) -> Floats:
    """Sharpen simultaneous bounds by gaps that are proved: ‖R‖²/δ for a group at distance δ from all other eigenvalues.

    Parameters
    ----------
    values, bounds, errors : ndarray, shape (k,)
    gram : ndarray, shape (k, k)
        RᵀR of the residuals.
    proof : Proof
        Where the eigenvalues that were not found lie.

    References
    ----------
    B. N. Parlett, "The Symmetric Eigenvalue Problem" (1998), theorem 11.7.1; R. Mathias, "Quadratic residual bounds
    for the Hermitian eigenvalue problem", SIAM Journal on Matrix Analysis 19 (1998).
    """
    best = bounds.copy() if proof.bounds is None else proof.bounds.copy()
    if not proof.complete:
        return best
    for group in _groups(values, best):
        size = float(np.sqrt(np.linalg.norm(gram[np.ix_(group, group)], 2)) + np.linalg.norm(errors[group]))
        low, high = values[group].min(), values[group].max()
        others = [i for i in range(len(values)) if i not in group]
        gaps = [max(values[i] - best[i] - high, low - values[i] - best[i]) for i in others]
        if np.isfinite(proof.low) or np.isfinite(proof.high):
            gaps.append(max(proof.low - high, low - proof.high))
        gap = min(gaps, default=0.0) - size  # the complement's spectrum is within ‖R‖ of the other eigenvalues
        if gap > 0:
            best[group] = np.minimum(best[group], size * size / gap + errors[group])
    return best


def _groups(values: Floats, bounds: Floats) -> list[list[int]]:
    """List the sets of values whose intervals overlap."""
    groups: list[list[int]] = []
    for i in np.argsort(values, kind="stable"):
        if groups and values[i] - bounds[i] <= (values + bounds)[groups[-1]].max():
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    return groups
