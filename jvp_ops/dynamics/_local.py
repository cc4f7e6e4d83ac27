"""`local_growth`: growth step by step."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm

from jvp_ops._random import Rng, generator
from jvp_ops._sitting import Sitting
from jvp_ops.dynamics._frame import check_frame, check_range
from jvp_ops.dynamics._orbit import Orbit, check_orbit
from jvp_ops.dynamics._sweeps import frames
from jvp_ops.dynamics.covariant._result import CovariantVectors
from jvp_ops.errors import InputError


def local_growth(
    orbit: Orbit,
    vectors: int | Tensor | CovariantVectors,
    *,
    start: int = 0,
    stop: int | None = None,
    rng: Rng = 0,
    progress: bool = False,
) -> NDArray[np.float64]:
    r"""Tell how much vectors grow in each step of an orbit.

    .. math::  g_i(t) = \ln (R_{t+1})_{ii}, \quad Df(θ_t)\, Q_t = Q_{t+1} R_{t+1}, \qquad
               \text{or} \qquad g_i(t) = \ln \frac{\|Df(θ_t)\, v_i(θ_t)\|}{\|v_i(θ_t)\|} .

    Parameters
    ----------
    orbit : Orbit
        The states.
    vectors : int, Tensor of shape (n, k), or CovariantVectors
        k for a frame of k random directions at step `start`, or the directions: the frame is moved on and made
        orthonormal after each step. Covariant vectors are instead multiplied once at each of their states.
    start, stop : int, optional
        The window; by default the whole orbit.
    rng : int or numpy Generator
        Draws the random directions.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray of float64, shape (steps, k)
        Natural logarithms per step; −inf where a step's Jacobian is singular on the frame. For covariant vectors, a
        row for each of their states that is in the window and has a step after it.

    Raises
    ------
    InputError
        More directions than n, dependent ones, a window outside of the orbit, covariant vectors of another one.

    Notes
    -----
    The first column of a frame is the growth of one vector. Column i is the factor by which the frame's leading
    volume of i directions grows beyond that of i − 1: it depends on the scalar product, and on the start until a
    transient has passed.

    Examples
    --------
    >>> import jvp_ops as jo, torch
    >>> f = jo.FunctionMap(lambda s: torch.stack([3 * s[0], s[1] / 2]), size=2, dtype="float64")
    >>> orbit = jo.Orbit(f, torch.zeros(2, dtype=torch.float64), steps=2)
    >>> jo.local_growth(orbit, torch.eye(2, dtype=torch.float64)).round(6)
    array([[ 1.098612, -0.693147],
           [ 1.098612, -0.693147]])
    """
    check_orbit(orbit)
    start, stop = check_range(start, stop, orbit.steps)
    with Sitting("local growth", unit="step", progress=progress) as sitting:
        if isinstance(vectors, CovariantVectors):
            if vectors.provenance["orbit"] != orbit.identity():
                raise InputError("the covariant vectors are of another orbit: give the one that they were found on")
            return _of_covariant(orbit, vectors, range(start, stop), sitting)
        random, n = generator(rng), orbit.parameters.size
        V = check_frame(vectors, size=n, dtype=orbit.dtype, device=orbit.device, random=random)
        return np.array([frame.growth for frame in frames(orbit, range(start, stop), V, random, sitting)])


def _of_covariant(orbit: Orbit, found: CovariantVectors, window: range, sitting: Sitting) -> NDArray[np.float64]:
    rows = []
    for t, V in zip(found.at.tolist(), found.vectors, strict=True):
        if t in window:
            lengths = vector_norm(orbit.at(t).apply(V).double(), dim=0) / vector_norm(V.double(), dim=0)
            rows.append(lengths.log().cpu().numpy())
            sitting.advance()
            sitting.check()
    return np.array(rows).reshape(-1, len(found))
