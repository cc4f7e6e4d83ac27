"""`finite_time_exponents`: the true singular values of the product of Jacobians over a window."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import finite_number, positive_int, time_budget, whole_number
from jvp_ops._random import Rng, generator
from jvp_ops._sitting import Checkpoint, Sitting, Stop, as_certified
from jvp_ops.dynamics._frame import SAFE_SPREAD, check_frame, check_range, require_frame
from jvp_ops.dynamics._orbit import Orbit, check_orbit, probe, rounding_of
from jvp_ops.dynamics.finite_time._result import FiniteTimeExponents
from jvp_ops.dynamics.finite_time._search import MILD_BLOCKS, Search
from jvp_ops.store import sha256_of

Floats = NDArray[np.float64]
DOUBT = 10  # times what rounding was seen to do
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
    callback: Callable[[int, Floats], object] | None = None,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
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
    callback : callable, optional
        ``callback(iterations, exponents)`` after each pair of sweeps; True stops the search.
    max_seconds : float, optional
        Stop after so long, at the end of a pair of sweeps, in this sitting.
    checkpoint : str or Path, optional
        A file to keep the work in, every half minute and whenever the search ends or is stopped.
    resume : bool
        Go on from the checkpoint where there is one, bit for bit; `tol` and `max_iterations` may be others.

    Returns
    -------
    FiniteTimeExponents
        Also where `callback`, `max_seconds` or Ctrl-C stopped the search: then as of the last pair of sweeps.

    Raises
    ------
    InputError
        k above n, a window outside of the orbit, or an option out of range.
    MemoryBudgetError
        The basis does not fit; the message gives both sizes.
    NonFiniteError
        A product gave NaN or Inf; the message says at which step.
    DataError
        The checkpoint is of another search, or damaged.

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
    start, stop = check_range(start, stop, orbit.steps)
    random, n = generator(rng), orbit.parameters.size
    begin = check_frame(k, size=n, dtype=orbit.dtype, device=orbit.device, random=random)
    k = begin.shape[1]
    limit = _TOL[orbit.dtype] if tol is None else finite_number(tol, "tol", least=0)
    positive_int(max_iterations, "max_iterations")
    block = min(n, k + whole_number(oversampling, "oversampling"))
    require_frame(n, min(n, MILD_BLOCKS * block), orbit.device)
    window = range(start, stop)
    sitting = Sitting(
        "finite-time growth", unit="step", progress=progress, max_seconds=time_budget(max_seconds), callback=callback
    )
    request = {"analysis": "finite_time_exponents", "k": k, "window": [start, stop], "orbit": orbit.identity()}
    begun = {"start": sha256_of(begin), "block": block, "rng": random.bit_generator.state}
    sitting.checkpoint = Checkpoint.at(
        checkpoint,
        resume=resume,
        identity=lambda: {**request, **begun},
        probe=lambda: probe(orbit.map, orbit[start], orbit.first + start, begin.to(orbit.dtype)),
        close=rounding_of(orbit.dtype),
    )
    search = Search(orbit, window, begin, block, random, sitting, limit=limit, most=int(max_iterations))
    stopped, found, doubt = search.run()
    residuals = found.residuals[:k]
    lost = np.full(k, np.inf) if doubt is None else np.maximum(doubt, found.lost)[:k]
    converged = (residuals <= limit) & (lost <= limit)
    with np.errstate(divide="ignore"):
        moved = -np.log1p(-np.minimum(residuals, 1.0)) / 2 - np.log1p(-np.minimum(DOUBT * lost, 1.0))
    return FiniteTimeExponents(
        values=found.logs[:k] / len(window),
        log_singular_values=found.logs[:k],
        right=found.right[:, :k].to(orbit.dtype),
        left=found.left[:, :k].to(orbit.dtype),
        residuals=residuals,
        bounds=moved / len(window),
        converged=converged,
        start=start,
        stop=stop,
        first=orbit.first,
        tol=limit,
        iterations=len(search.at.worst),
        products=search.at.products + (0 if doubt is None else block * len(window)),
        seconds=sitting.seconds,
        stopped=as_certified(stopped, converged),
        parameters=orbit.parameters,
        notes=(
            *getattr(orbit.map, "notes", ()),
            *_notes(search, stopped, lost),
            *_strain_notes(found.strained, orbit.dtype),
            *sitting.notes,
        ),
        provenance=request,
    )


def _strain_notes(strained: int, dtype: torch.dtype) -> list[str]:
    if not strained:
        return []
    return [
        f"{strained} single steps spread the vectors by more than {SAFE_SPREAD[dtype]:g} e-folds: the least exponents "
        "have fewer than half of the digits there, which residuals and bounds do not tell; take a smaller k or float64"
    ]


def _notes(search: Search, stopped: Stop, lost: Floats) -> list[str]:
    worst, limit = search.at.worst, search.limit
    if np.isinf(lost).all():
        return [
            f"stopped by Ctrl-C after {len(worst)} iterations: what rounding does was not measured, so that no bound "
            "is known"
        ]
    if lost.max() > max(limit, torch.finfo(search.orbit.dtype).eps ** 0.5):
        return [
            f"rounding moves singular values by {lost.max():.1e} of their size: directions grow and shrink again "
            "inside of the window by more than it lets return; take a shorter window, or float64"
        ]
    if stopped == Stop.CONVERGED:
        return []
    if stopped == Stop.ROUNDING:
        return [f"the residuals stay at {worst[-1]:.1e}, where rounding hides them: tol={limit:.1e} cannot be met"]
    if stopped == Stop.MAX_ITERATIONS:
        return [
            f"not all residuals reached tol={limit:.1e} in {len(worst)} iterations (the largest is {worst[-1]:.1e}): "
            "raise max_iterations or oversampling, since singular values lie close together"
        ]
    return [
        f"stopped by {search.sitting.words(stopped)} after {len(worst)} iterations: the largest residual is "
        f"{worst[-1]:.1e}, above tol={limit:.1e}"
    ]
