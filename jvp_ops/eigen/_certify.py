"""Certificates: what the operator itself says of a basis that a solver found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops.eigen._rounding import SAFETY, Rounding
from jvp_ops.eigen._target import Target
from jvp_ops.krylov import defect, inner, placed, small
from jvp_ops.operators import TensorOperator


@dataclass(frozen=True)
class Cluster:
    """Eigenvalues of a non-symmetric operator that rounding does not tell apart: near a defective point, say.

    Attributes
    ----------
    members : tuple of int
        Their places in the result; their vectors span the invariant subspace.
    mean : complex
        Their mean, which is well determined where they are not.
    bound : float
        A bound on the error of the mean, to first order: ‖P‖ times the backward error, P the spectral projector.
    """

    members: tuple[int, ...]
    mean: complex
    bound: float


@dataclass(frozen=True)
class Certified:
    """Eigenpairs with what was measured of them; see `Eigenpairs` for the fields."""

    values: NDArray[Any]
    vectors: Tensor
    residuals: NDArray[np.float64]
    errors: NDArray[np.float64]
    bounds: NDArray[np.float64]
    norm: float
    level: float
    gram: NDArray[np.float64] | None = None  # RᵀR, of a symmetric operator
    condition: NDArray[np.float64] | None = None
    clusters: tuple[Cluster, ...] = ()


def certify(rounding: Rounding, X: Tensor, target: Target, k: int, *, left: Tensor | None = None) -> Certified:
    """Do a Rayleigh–Ritz pass over orthonormal columns X with the operator itself, in float64 where there is that.

    Parameters
    ----------
    rounding : Rounding
        Its `exact` operator does the pass where it has one.
    X : Tensor, shape (n, g)
        Orthonormal, in float64 or the operator's dtype.
    target, k
        What is kept of the g pairs, and in which order.
    left : Tensor, shape (n, g), optional
        An orthonormal basis of the left invariant subspace, for condition numbers.
    """
    operator = rounding.exact or rounding.operator
    rounded = X.to(operator.torch_dtype)
    image = operator.apply(rounded.contiguous()).double()
    errors, level = product_errors(rounding, operator, rounded, image)
    errors = errors + level[1] * torch.linalg.vector_norm(X.double() - rounded.double(), dim=0).cpu().numpy()
    args = (X.double(), image, errors)
    found = _symmetric(*args) if operator.symmetric else _general(*args, left)
    chosen = target.best(found.values, k)
    return _chosen(found, chosen, rounding.operator, norm=level[1], level=level[0])


def certify_images(X: Tensor, image: Tensor, operator: TensorOperator, target: Target, k: int) -> Certified:
    """Do the same from products that were made before, for an operator that cannot be multiplied any more."""
    errors = np.full(X.shape[1], SAFETY * torch.finfo(operator.torch_dtype).eps * float(image.norm(dim=0).max()))
    args = (X.double(), image.double(), errors)
    found = _symmetric(*args) if operator.symmetric else _general(*args, None)
    return _chosen(found, target.best(found.values, k), operator, norm=float(image.norm(dim=0).max()), level=0.0)


def _chosen(
    found: Certified, chosen: NDArray[np.intp], operator: TensorOperator, *, norm: float, level: float
) -> Certified:
    vectors = found.vectors[:, torch.from_numpy(chosen).to(found.vectors.device)]
    narrow = torch.complex64 if vectors.is_complex() else torch.float32
    places = {int(old): new for new, old in enumerate(chosen)}
    return Certified(
        values=found.values[chosen],
        vectors=vectors.to(narrow) if operator.torch_dtype == torch.float32 else vectors,
        residuals=found.residuals[chosen],
        errors=found.errors[chosen],
        bounds=found.bounds[chosen],
        norm=max(norm, float(np.abs(found.values).max(initial=0.0))),
        level=level,
        gram=None if found.gram is None else found.gram[np.ix_(chosen, chosen)],
        condition=None if found.condition is None else found.condition[chosen],
        clusters=tuple(
            Cluster(tuple(sorted(places[i] for i in cluster.members)), cluster.mean, cluster.bound)
            for cluster in found.clusters
            if all(i in places for i in cluster.members)
        ),
    )


def product_errors(
    rounding: Rounding, operator: TensorOperator, X: Tensor, image: Tensor
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Measure the rounding of each product, its level, and ‖A‖ from below."""
    lengths = torch.linalg.vector_norm(image, dim=0)
    norm = max(rounding.norm, float(lengths.max()))
    if operator is rounding.operator:
        errors = rounding.with_norm(norm).errors(X).cpu().numpy()
        return errors, (max(rounding.level, float(errors.max()) / norm if norm > 0 else 0.0), norm)
    leading = X[:, int(lengths.argmax())][:, None]  # in float64, far under the residuals: one vector tells for all
    error = SAFETY * float(Rounding(operator, None, norm, 0.0).errors(leading).max())
    return np.full(X.shape[1], error), (error / norm if norm > 0 else 0.0, norm)


def _symmetric(X: Tensor, image: Tensor, errors: NDArray[np.float64]) -> Certified:
    H = small(inner(X, image))
    values, Y = np.linalg.eigh((H + H.T) / 2)
    turn = placed(Y, X)
    vectors = X @ turn
    R = image @ turn - vectors * torch.from_numpy(values).to(X.device)
    gram = small(inner(R, R))
    mixed = np.abs(Y).T @ errors  # the rounding of a combination of products is at most this
    mixed += 2 * defect(X) * np.abs(values).max(initial=0.0)
    residuals = torch.linalg.vector_norm(R, dim=0).cpu().numpy()
    bounds = simultaneous_bounds(values, residuals, gram, mixed)
    return Certified(values, vectors, residuals, mixed, bounds, 0.0, 0.0, gram)


def simultaneous_bounds(
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    gram: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Bound all values at once: as many eigenvalues, counted with multiplicity, as intervals that overlap.

    For orthonormal X of g columns, g eigenvalues of A lie within ‖AX − XΘ‖₂ of the θ, one to one. Values whose
    intervals overlap are taken as one X; groups that do not overlap have different eigenvalues.

    Parameters
    ----------
    values : ndarray, shape (k,)
        Ascending.
    residuals, errors : ndarray, shape (k,)
        ‖r_j‖, and the rounding that r_j does not show.
    gram : ndarray, shape (k, k)
        RᵀR.

    References
    ----------
    B. N. Parlett, "The Symmetric Eigenvalue Problem" (1998), theorem 11.5.1 (Kahan).
    """
    return grouped_bounds(values, residuals, errors, lambda group: gram[np.ix_(group, group)])


def grouped_bounds(
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    errors: NDArray[np.float64],
    *grams: Callable[[list[int]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Widen intervals until those that overlap are bounded together; see `simultaneous_bounds`.

    ``gram(group)`` gives RᵀR of a group's residuals; of several kinds of residual, the largest norm counts.
    """
    k = len(values)
    groups = [[j] for j in range(k)]
    while True:
        bounds = np.empty(k)
        for group in groups:
            if len(group) == 1:
                bounds[group] = residuals[group] + errors[group]
            else:
                size = max(float(np.linalg.norm(gram(group), 2)) for gram in grams)
                bounds[group] = np.sqrt(size) + np.linalg.norm(errors[group])
        merged: list[list[int]] = []
        for group in groups:
            low = (values - bounds)[group].min()
            if merged and low <= (values + bounds)[merged[-1]].max():
                merged[-1] = merged[-1] + group
            else:
                merged.append(group)
        if len(merged) == len(groups):
            return bounds
        groups = merged


def _general(X: Tensor, image: Tensor, errors: NDArray[np.float64], left: Tensor | None) -> Certified:
    S = small(inner(X, image))
    values, Z = np.linalg.eig(S)
    values, Z = values.astype(np.complex128), Z.astype(np.complex128)
    turn = torch.from_numpy(np.ascontiguousarray(Z)).to(X.device)
    vectors = X.to(turn.dtype) @ turn
    R = image.to(turn.dtype) @ turn - vectors * torch.from_numpy(values).to(X.device)
    residuals = torch.linalg.vector_norm(R, dim=0).cpu().numpy()
    mixed = np.abs(Z).T @ errors
    bounds, condition = np.full(len(values), np.nan), None
    clusters: tuple[Cluster, ...] = ()
    if left is not None:
        E = float((image - X @ placed(S, X)).norm()) + float(np.linalg.norm(errors))
        overlap = small(inner(left.double(), X))
        condition, bounds, clusters = _sensitivity(values, Z, overlap, residuals + mixed, E)
    return Certified(values, vectors, residuals, mixed, bounds, 0.0, 0.0, None, condition, clusters)


def _sensitivity(
    values: NDArray[Any], Z: NDArray[Any], overlap: NDArray[np.float64], errors: NDArray[np.float64], E: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[Cluster, ...]]:
    """Compute condition numbers, first-order bounds, and the clusters that no member can be told in.

    The rows of D = Z⁻¹ (YᵀX)⁻¹ Yᵀ are the left eigenvectors dual to the columns of X Z, so 1 / |yᴴx| is their
    length; both X and Y are orthonormal, so lengths and norms are those of the small factors.
    """
    try:
        D = np.linalg.solve(Z, np.linalg.inv(overlap).astype(np.complex128))
    except np.linalg.LinAlgError:
        D = np.full(Z.shape, np.inf, dtype=np.complex128)
    condition = np.linalg.norm(D, axis=1)
    bounds = np.where(np.isfinite(condition), condition * errors, np.inf)
    clusters, free = [], set(range(len(values)))
    while free:
        group = [free.pop()]
        for i in group:
            near = {j for j in free if abs(values[i] - values[j]) <= bounds[i] + bounds[j]}
            free -= near
            group += sorted(near)
        if len(group) > 1:
            with np.errstate(invalid="ignore"):
                projector = np.linalg.norm(np.nan_to_num(Z[:, group] @ D[group], posinf=np.inf), "fro")
            clusters.append(Cluster(tuple(sorted(group)), complex(values[group].mean()), float(projector * E)))
            bounds[group] = np.nan
    return condition, bounds, tuple(clusters)
