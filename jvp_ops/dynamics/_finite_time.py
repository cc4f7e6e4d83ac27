"""`finite_time_exponents`: the true singular values of the product of Jacobians over a window."""

import time
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import finite_number, positive_int
from jvp_ops._progress import progress_bar
from jvp_ops._random import Rng, generator, normal
from jvp_ops.dynamics._finite_time_result import FiniteTimeExponents
from jvp_ops.dynamics._frame import (
    SAFE_SPREAD,
    Triangle,
    check_frame,
    check_range,
    orthonormal,
    require_frame,
    spread_of,
)
from jvp_ops.dynamics._orbit import Orbit, check_orbit
from jvp_ops.dynamics._product_svd import product_svd
from jvp_ops.dynamics._sweeps import frames
from jvp_ops.errors import InputError

Floats = NDArray[np.float64]
_BLOCKS, _MILD_BLOCKS = 4, 8  # in a basis before it is restarted
_MILD = 6.0  # e-folds between the values asked for, up to which images of a basis can be kept as plain numbers
_TOL = {torch.float32: 1e-4, torch.float64: 1e-8}


def finite_time_exponents(
    orbit: Orbit,
    k: int | Tensor,
    *,
    start: int = 0,
    stop: int | None = None,
    tol: float | None = None,
    max_iterations: int = 50,
    oversampling: int = 4,
    rng: Rng = 0,
    progress: bool = False,
) -> FiniteTimeExponents:
    r"""Find the k largest finite-time exponents of a window of an orbit, with both singular vectors of each.

    .. math::  P = Df(θ_{b-1}) \cdots Df(θ_a), \quad P v_i = σ_i u_i, \quad P^T u_i = σ_i v_i, \qquad
               λ_i = \frac{\ln σ_i}{b - a}

    for a = `start` and b = `stop`, in natural logarithms per step. Vectors are swept forward through the window by
    the Jacobians and backward by their transposes, made orthonormal after each step. What comes back widens the
    basis that goes out next (a block Krylov basis of PᵀP, restarted with its leading right vectors), until what goes
    out and what comes back agree. Only logarithms are accumulated: σᵢ may be far outside of the range of
    floating-point numbers.

    Parameters
    ----------
    orbit : Orbit
        The states.
    k : int or Tensor, shape (n, k)
        How many, at most n, from random directions; or directions to start from, such as those of `leading_frame`,
        which save sweeps; what is found is the same within `tol`.
    start, stop : int, optional
        The window; by default the whole orbit.
    tol : float, optional
        Residual ‖Pᵀu − σv‖ / σ to reach; by default 1e-8 in float64 and 1e-4 in float32.
    max_iterations : int
        Pairs of sweeps at most; what has not converged by then is returned, and marked.
    oversampling : int
        Directions that come back in a backward sweep, beyond k. The more, the fewer sweeps.
    rng : int or numpy Generator
        Draws the start.
    progress : bool
        Show a progress bar of sweeps.

    Returns
    -------
    FiniteTimeExponents

    Raises
    ------
    InputError
        k above n, a window outside of the orbit, or an option out of range.
    MemoryBudgetError
        The basis does not fit; the message gives both sizes.
    NonFiniteError
        A product gave NaN or Inf; the message says at which step.

    Notes
    -----
    These are not Lyapunov exponents over a short time. QR exponents (`lyapunov_spectrum`, `local_growth`) over the
    same window tell how vectors grow that happened to be there at its start, and the largest of them is never above
    the largest of these. Both agree only as the window grows without end.

    They depend on the scalar product of the state, so on the units of θ against those of momenta and averages. For
    `RMSProp` and `Adam` the largest tell of one step's ∂θ/∂v where v is nearly 0.

    References
    ----------
    K. Geist, U. Parlitz, W. Lauterborn, "Comparison of different methods for computing Lyapunov exponents", Progress
    of Theoretical Physics 83 (1990).

    Examples
    --------
    >>> import jvp_ops as jo, torch
    >>> shear = jo.FunctionMap(lambda s: torch.stack([s[0] + s[1], s[1]]), size=2, dtype="float64")
    >>> orbit = jo.Orbit(shear, torch.tensor([0.0, 1.0], dtype=torch.float64), steps=10)
    >>> growth = jo.finite_time_exponents(orbit, k=2)
    >>> growth.values.round(6)                            # of ((1, 10), (0, 1)): its eigenvalues are 1
    array([ 0.231244, -0.231244])
    """
    check_orbit(orbit)
    began = time.monotonic()
    start, stop = check_range(start, stop, orbit.steps)
    random, n = generator(rng), orbit.parameters.size
    begin = check_frame(k, size=n, dtype=orbit.dtype, device=orbit.device, random=random)
    k = begin.shape[1]
    limit = _TOL[orbit.dtype] if tol is None else finite_number(tol, "tol", least=0)
    positive_int(max_iterations, "max_iterations")
    if isinstance(oversampling, bool) or not isinstance(oversampling, Integral) or oversampling < 0:
        raise InputError(f"oversampling must be an integer of at least 0, not {oversampling!r}")
    block = min(n, k + oversampling)
    require_frame(n, min(n, _MILD_BLOCKS * block), orbit.device)
    V = _with_random(begin, block - k, random)
    window = range(start, stop)
    worst: list[float] = []
    with progress_bar(None, show=progress, description="finite-time growth", unit="step") as bar:
        found = _iterate(orbit, window, V, block, random, bar)
        products = (V.shape[1] + block) * len(window)
        while True:
            worst.append(float(found.residuals[:k].max()))
            stalled = _stalls(worst, orbit.dtype)
            if worst[-1] <= limit or stalled or len(worst) == max_iterations:
                break
            mild = found.logs[0] - found.logs[k - 1] <= _MILD and abs(found.logs[0]) < 300
            blocks = _MILD_BLOCKS if mild else _BLOCKS
            kept, fresh = _widened(found, min(n, blocks * block), random)
            if mild:
                found = _extended(orbit, window, found, kept, fresh, block, random, bar)
                products += (fresh.shape[1] + block) * len(window)
            else:
                V = torch.cat([kept, fresh], dim=1)
                found = _iterate(orbit, window, V, block, random, bar)
                products += (V.shape[1] + block) * len(window)
    residuals = found.residuals[:k]
    with np.errstate(divide="ignore"):
        bounds = -np.log1p(-np.minimum(residuals, 1.0)) / (2 * len(window))
    return FiniteTimeExponents(
        values=found.logs[:k] / len(window),
        log_singular_values=found.logs[:k],
        right=found.right[:, :k].to(orbit.dtype),
        left=found.left[:, :k].to(orbit.dtype),
        residuals=residuals,
        bounds=bounds,
        converged=residuals <= limit,
        start=start,
        stop=stop,
        first=orbit.first,
        tol=limit,
        iterations=len(worst),
        products=products,
        seconds=time.monotonic() - began,
        parameters=orbit.parameters,
        notes=(
            *getattr(orbit.map, "notes", ()),
            *_notes(worst, limit, stalled),
            *_strain_notes(found.strained, orbit.dtype),
        ),
        provenance={"analysis": "finite_time_exponents", "k": k, "window": [start, stop], "orbit": orbit.identity()},
    )


@dataclass(frozen=True)
class _Iteration:
    """Singular triplets of P in the span of a basis, and Pᵀ times the leading left vectors, made orthonormal."""

    logs: Floats
    right: Tensor
    left: Tensor
    back: Tensor
    residuals: Floats
    strained: int


def _iterate(orbit: Orbit, window: range, V: Tensor, block: int, random: np.random.Generator, bar: Any) -> _Iteration:
    """Sweep a basis V forward, decompose P V, and sweep the leading left vectors backward."""
    Q, triangles = _sweep(orbit, window, V, random, bar, adjoint=False)
    small = product_svd(triangles)
    right, left = (side @ torch.from_numpy(part).to(V) for side, part in ((V, small.right), (Q, small.left)))
    return _checked(orbit, window, small.logs, right, left, block, random, bar, _strained(triangles, orbit.dtype))


def _extended(
    orbit: Orbit,
    window: range,
    found: _Iteration,
    kept: Tensor,
    fresh: Tensor,
    block: int,
    random: np.random.Generator,
    bar: Any,
) -> _Iteration:
    """Sweep only new vectors forward, and decompose them with the images of the old ones, which are known."""
    Q, triangles = _sweep(orbit, window, fresh, random, bar, adjoint=False)
    small = product_svd(triangles)
    left, right = (torch.from_numpy(part).to(fresh) for part in (small.left, small.right))
    image = (Q @ left) * torch.from_numpy(np.exp(small.logs)).to(fresh) @ right.mT
    known = found.left[:, : kept.shape[1]] * torch.from_numpy(np.exp(found.logs[: kept.shape[1]])).to(fresh)
    U, sigma, Zt = torch.linalg.svd(torch.cat([known, image], dim=1), full_matrices=False)
    basis = torch.cat([kept, fresh], dim=1)
    logs: Floats = sigma.clamp_min(torch.finfo(sigma.dtype).tiny).log().cpu().numpy()
    strained = max(found.strained, _strained(triangles, orbit.dtype))
    return _checked(orbit, window, logs, basis @ Zt.mT, U, block, random, bar, strained)


def _checked(
    orbit: Orbit,
    window: range,
    logs: Floats,
    right: Tensor,
    left: Tensor,
    block: int,
    random: np.random.Generator,
    bar: Any,
    strained: int,
) -> _Iteration:
    """Sweep the leading left vectors backward, and see how far they come from the right ones."""
    back, triangles = _sweep(orbit, window[::-1], left[:, :block], random, bar, adjoint=True)
    # Pᵀu = σv + what lies outside of the basis, which is the residual; Pᵀ U = back · R_last ⋯ R_first
    outside = back
    for _ in range(2):
        outside = outside - right @ (right.mT @ outside)
    apart = torch.linalg.vector_norm(
        outside @ torch.from_numpy(_scaled(triangles, logs[:block], orbit.dtype)).to(back), dim=0
    )
    residuals = apart.cpu().numpy()
    return _Iteration(logs, right, left, back, np.where(logs[:block] == -np.inf, 0.0, residuals), strained)


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


def _with_random(V: Tensor, more: int, random: np.random.Generator) -> Tensor:
    """Add random directions orthogonal to those of V."""
    fresh = normal(random, len(V), more, dtype=V.dtype, device=V.device)
    return orthonormal(torch.cat([V, fresh], dim=1), rounding=torch.finfo(V.dtype).eps, random=random).vectors


def _widened(found: _Iteration, most: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Give leading right vectors to keep, and what came back beside them: a block Krylov basis of PᵀP."""
    block = found.back.shape[1]
    kept = found.right[:, : most - block] if most > block else found.right[:, :0]
    fresh = found.back
    for _ in range(2):
        fresh = fresh - kept @ (kept.mT @ fresh)
        fresh = orthonormal(fresh, rounding=torch.finfo(torch.float64).eps, random=random).vectors
    return kept, fresh


def _sweep(
    orbit: Orbit, times: range, V: Tensor, random: np.random.Generator, bar: Any, *, adjoint: bool
) -> tuple[Tensor, list[Triangle]]:
    """Move V through the window; the product is Q R_last ⋯ R_first."""
    triangles = []
    for frame in frames(orbit, times, V, random, bar, adjoint=adjoint):
        triangles.append(frame.triangle)
    return frame.vectors, triangles


def _stalls(worst: list[float], dtype: torch.dtype) -> bool:
    """Say whether the residuals no longer fall, at a level where rounding can be the reason."""
    small = worst[-1] < 10 * torch.finfo(dtype).eps ** 0.5
    return len(worst) > 3 and small and worst[-1] > 0.5 * worst[-4]


def _strain_notes(strained: int, dtype: torch.dtype) -> list[str]:
    if not strained:
        return []
    return [
        f"{strained} single steps spread the vectors by more than {SAFE_SPREAD[dtype]:g} e-folds: the least exponents "
        "have fewer than half of the digits there, which residuals and bounds do not tell; take a smaller k or float64"
    ]


def _notes(worst: list[float], limit: float, stalled: bool) -> list[str]:
    if worst[-1] <= limit:
        return []
    if stalled:
        return [f"the residuals stay at {worst[-1]:.1e}, where rounding hides them: tol={limit:.1e} cannot be met"]
    return [
        f"not all residuals reached tol={limit:.1e} in {len(worst)} iterations (the largest is {worst[-1]:.1e}): "
        "raise max_iterations or oversampling, since singular values lie close together"
    ]
