"""`covariant_vectors`: Ginelli's algorithm."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor

from jvp_ops._checks import time_budget, whole_number
from jvp_ops._memory import require, resolve_budget
from jvp_ops._random import Rng, generator
from jvp_ops._sitting import Checkpoint, Sitting, Stop
from jvp_ops.dynamics._batch_means import batch_errors
from jvp_ops.dynamics._frame import Triangle, check_count, check_frame
from jvp_ops.dynamics._orbit import Orbit, check_orbit, probe, rounding_of
from jvp_ops.dynamics.covariant._forward import Forward
from jvp_ops.dynamics.covariant._result import CovariantVectors
from jvp_ops.errors import InputError
from jvp_ops.store import sha256_of

Floats = NDArray[np.float64]


def covariant_vectors(
    orbit: Orbit,
    k: int,
    *,
    forward_transient: int | None = None,
    backward_transient: int | None = None,
    at: Sequence[int] | None = None,
    max_memory: int | str | None = None,
    rng: Rng = 0,
    progress: bool = False,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> CovariantVectors:
    r"""Find the k leading covariant Lyapunov vectors along an orbit, by Ginelli's algorithm.

    .. math::  Df(θ_t)\, v_j(θ_t) = e^{g_j(t)}\, v_j(θ_{t+1}), \qquad \overline{g_j} = λ_j .

    An orthonormal frame moves forward, Df(θ_t) Q_t = Q_{t+1} R_{t+1}. The vectors are V_t = Q_t C_t with C_t upper
    triangular, and C_t = R_{t+1}⁻¹ C_{t+1}, columns made unit, runs backward from any start. Both directions need a
    transient, which the orbit must leave room for: the window that is reported lies between the two.

    Parameters
    ----------
    orbit : Orbit
        The states, over transients and window.
    k : int
        How many, at most n.
    forward_transient, backward_transient : int, optional
        Steps at the orbit's start in which the frame settles, and at its end in which the coefficients do; by
        default a quarter of the orbit each.
    at : sequence of int, optional
        The steps of the orbit whose vectors to return, inside of the window; by default all of them.
    max_memory : int or str, optional
        Bytes for the vectors and the triangles, such as ``"2GiB"``; by default half of what is free.
    rng : int or numpy Generator
        Draws both starts.
    progress : bool
        Show a progress bar.
    max_seconds : float, optional
        Stop the forward pass after so long, in this sitting; there is no part of a result then.
    checkpoint : str or Path, optional
        A file to keep the forward pass in, every half minute and whenever it ends or is stopped.
    resume : bool
        Go on from the checkpoint where there is one, bit for bit.

    Returns
    -------
    CovariantVectors

    Raises
    ------
    InputError
        k above n, transients that leave no step between them, or `at` outside of the window.
    MemoryBudgetError
        The vectors asked for do not fit; the message gives both sizes.
    NonFiniteError
        A Jacobian is singular on the frame, so that a vector of no growth has no past; use a smaller k.
    ConvergenceError
        `max_seconds` ran out in the forward pass.
    DataError
        The checkpoint is of another run, or damaged.

    Notes
    -----
    Unlike the orthonormal frame they do not depend on a scalar product, and each grows at its own exponent forward
    and backward in time. Vectors of equal exponents are not unique; their common span is.

    References
    ----------
    F. Ginelli et al., "Characterizing dynamics with covariant Lyapunov vectors", Physical Review Letters 99 (2007).

    Examples
    --------
    >>> import jvp_ops as jo, torch
    >>> cat = jo.FunctionMap(lambda s: torch.stack([2 * s[0] + s[1], s[0] + s[1]]) % 1, size=2, dtype="float64")
    >>> orbit = jo.Orbit(cat, torch.tensor([0.1, 0.2], dtype=torch.float64), steps=80)
    >>> found = jo.covariant_vectors(orbit, k=2)
    >>> found.values.round(6)
    array([ 0.962424, -0.962424])
    >>> (found.vectors[0, 0] / found.vectors[0, 1]).numpy().round(6)     # slopes (±√5 + 1) / 2
    array([ 1.618034, -0.618034])
    """
    check_orbit(orbit)
    n, k = orbit.parameters.size, check_count(k, orbit.parameters.size)
    start, stop = _window(orbit.steps, forward_transient, backward_transient)
    asked = _asked(at, start, stop)
    needed = (len(asked) + 1) * n * k * orbit.dtype.itemsize + (orbit.steps - start) * k * k * 8
    budget = resolve_budget(max_memory, orbit.device)
    require(needed, budget, f"{k} covariant vectors at {len(asked)} states", "name fewer steps in at=, or a smaller k")
    random = generator(rng)
    sitting = Sitting(
        "covariant vectors", unit="step", total=orbit.steps, progress=progress, max_seconds=time_budget(max_seconds)
    )
    Q = check_frame(k, size=n, dtype=orbit.dtype, device=orbit.device, random=random)
    request = {"analysis": "covariant_vectors", "k": k, "window": [start, stop], "orbit": orbit.identity()}
    sitting.checkpoint = Checkpoint.at(
        checkpoint,
        resume=resume,
        identity=lambda: {**request, "at": asked, "start": sha256_of(Q)},
        probe=lambda: probe(orbit.map, orbit[0], orbit.first, Q.to(orbit.dtype)),
        close=rounding_of(orbit.dtype),
    )
    forward = Forward(orbit, Q, start, asked, random, sitting)
    forward.run()
    vectors = forward.bases
    coefficients, growth, uncertainty = _backward(forward.triangles, stop - start, random)
    for row, t in enumerate(asked):
        vectors[row] = _combined(vectors[row], coefficients[t - start])
    ones = np.ones(stop - start, dtype=np.int64)
    loose = bool((uncertainty > 1e-3).any())
    return CovariantVectors(
        at=np.array(asked),
        vectors=vectors,
        growth=growth,
        values=growth.mean(axis=0),
        errors=batch_errors(growth, ones),
        angles=np.stack([_angles(coefficients[t - start]) for t in asked]),
        uncertainty=uncertainty,
        start=start,
        stop=stop,
        first=orbit.first,
        products=k * orbit.steps,
        seconds=sitting.seconds,
        stopped=Stop.FINISHED,
        parameters=orbit.parameters,
        notes=(
            *getattr(orbit.map, "notes", ()),
            *([f"the backward transient of {orbit.steps - stop} steps is short: see uncertainty"] if loose else []),
            *sitting.notes,
        ),
        provenance=request,
    )


def _window(steps: int, forward: int | None, backward: int | None) -> tuple[int, int]:
    """Find the steps between the transients."""
    given = [steps // 4 if value is None else value for value in (forward, backward)]
    for name, value in zip(("forward_transient", "backward_transient"), given, strict=True):
        whole_number(value, name)
    start, stop = int(given[0]), steps - int(given[1])
    if start >= stop:
        raise InputError(
            f"transients of {given[0]} and {given[1]} steps leave none of the orbit's {steps}: make it longer"
        )
    return start, stop


def _asked(at: Sequence[int] | None, start: int, stop: int) -> list[int]:
    """Find the steps to give vectors at, in rising order."""
    asked: list[Any] = list(range(start, stop + 1)) if at is None else list(at)
    whole = all(isinstance(t, Integral) and not isinstance(t, bool) for t in asked)
    if not asked or not whole or min(asked) < start or max(asked) > stop or len(set(asked)) < len(asked):
        raise InputError(f"at must be different steps from {start} to {stop}, between the transients, not {at!r}")
    return sorted(int(t) for t in asked)


def _backward(
    triangles: list[Triangle], window: int, random: np.random.Generator
) -> tuple[list[Floats], Floats, Floats]:
    """Run coefficients backward from two starts; give those of the window's states, the growth, and how both differ."""
    k = len(triangles[0])
    one, other = (_unit(np.eye(k) + np.triu(random.standard_normal((k, k)), 1))[0] for _ in range(2))
    found: list[Floats] = []
    growth: list[Floats] = []
    for number in range(len(triangles), -1, -1):
        if number == window:
            uncertainty = _between_lines(one, other)
        if number <= window:
            found.append(one)
        if number > 0:
            one, shrinking = _unit(solve_triangular(triangles[number - 1], one))
            other = _unit(solve_triangular(triangles[number - 1], other))[0]
            growth.append(-shrinking)
    return found[::-1], np.array(growth[::-1][:window]), uncertainty


def _unit(columns: Floats) -> tuple[Floats, Floats]:
    """Make columns unit, and give the logarithms of their norms."""
    scale = abs(columns).max(axis=0)
    norms = np.linalg.norm(columns / scale, axis=0)
    return columns / scale / norms, np.log(scale) + np.log(norms)


def _combined(Q: Tensor, C: Floats) -> Tensor:
    return Q @ torch.from_numpy(C).to(Q)


def _between_lines(one: Floats, other: Floats) -> Floats:
    """Find the angles between the lines of unit columns, shape (columns,), accurate also where they are small."""
    apart = np.minimum(np.linalg.norm(one - other, axis=0), np.linalg.norm(one + other, axis=0))
    angles: Floats = 2 * np.arcsin(np.minimum(apart / 2, 1.0))
    return angles


def _angles(C: Floats) -> Floats:
    """Find the angles between the lines of each pair of columns, shape (k, k)."""
    return np.stack([_between_lines(C, C[:, [j]]) for j in range(C.shape[1])])
