"""`lyapunov_spectrum`: mean growth along an orbit by repeated QR decomposition."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import positive_int, time_budget, whole_number
from jvp_ops._random import Rng
from jvp_ops._sitting import Checkpoint, Sitting
from jvp_ops.dynamics._orbit import probe, rounding_of, run_identity
from jvp_ops.dynamics._tangent import TangentSystem
from jvp_ops.dynamics.lyapunov._measurement import Measurement
from jvp_ops.dynamics.lyapunov._pace import Pace
from jvp_ops.dynamics.lyapunov._result import LyapunovSpectrum
from jvp_ops.store import sha256_of

if TYPE_CHECKING:
    from jvp_ops.maps import Map

Floats = NDArray[np.float64]


def lyapunov_spectrum(
    f: "Map",
    state: Tensor,
    k: int | Tensor,
    steps: int,
    *,
    transient: int = 0,
    interval: int | None = None,
    first: int = 0,
    rng: Rng = 0,
    progress: bool = False,
    callback: Callable[[int, Floats], object] | None = None,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> LyapunovSpectrum:
    r"""Find the k leading Lyapunov exponents of a map along an orbit.

    .. math::  V_{t+1} = Df(θ_t)\, Q_t = Q_{t+1} R_{t+1}, \qquad λ_i = \frac{1}{T} \sum_{t=1}^{T} \ln (R_t)_{ii},

    in natural logarithms per step. The vectors move forward in time with Df, never with its transpose.

    Parameters
    ----------
    f : map
        Such as `GradientDescent` or `FunctionMap`.
    state : Tensor, shape (n,)
        θ at the start.
    k : int or Tensor, shape (n, k)
        How many exponents, at most n, from random directions; or the tangent vectors to start from, such as those
        of `leading_frame`.
    steps : int
        How many steps to measure over, after `transient`.
    transient : int
        Steps before them, in which the orbit and the vectors settle.
    interval : int, optional
        Steps between orthonormalizations; by default it adapts to the growth that is seen. A stretch in which the
        vectors come close to losing rank, (λ₁ − λ_k)·interval above 18 in float64 or 7 in float32, is done over
        with a shorter one, and a note says so where the interval was asked for.
    first : int
        The number of the first step, for maps that depend on it.
    rng : int or numpy Generator
        Draws the tangent vectors; the same seed gives the same result on one device.
    progress : bool
        Show a progress bar.
    callback : callable, optional
        ``callback(steps, exponents)`` after each measured stretch, with the steps measured so far and the running
        exponents; True stops the run.
    max_seconds : float, optional
        Stop after so long, in this sitting.
    checkpoint : str or Path, optional
        A file to keep the work in, every half minute and whenever the run ends or is stopped.
    resume : bool
        Go on from the checkpoint where there is one; the result is that of an uninterrupted run, bit for bit (but
        for its seconds), on the same device with as many threads, and, of `ModelLoss`, with the same ``max_memory=``
        (by default its batches are cut by what memory is free).

    Returns
    -------
    LyapunovSpectrum
        Also where `callback`, `max_seconds` or Ctrl-C stopped the run: then with a note, and not `complete`.

    Raises
    ------
    InputError
        More vectors than n, a count out of range, a checkpoint that is there without `resume`.
    NonFiniteError
        The run diverges, and the message says at which step; the error's ``partial`` is the spectrum until then,
        if any step was measured.
    DataError
        The checkpoint is of another run, or damaged.
    ConvergenceError
        `max_seconds` ran out in the transient.

    Notes
    -----
    These are asymptotic rates. The growth over a window of few steps is another number, the singular values of the
    product: `finite_time_exponents`. Gradient descent that converges has exponents ln|1 − αh| at the minimum.

    Random directions turn to the leading ones as fast as these outgrow the rest. In training that is slow: where
    growth is 0.005 per step, many hundred steps. Until then the exponents are those of the directions started from,
    and below the leading ones; a note says so where the growth that was seen is too small, or where a vector clearly
    outgrows the one before it. `leading_frame` gives directions that need no such time.

    References
    ----------
    G. Benettin, L. Galgani, A. Giorgilli, J.-M. Strelcyn, "Lyapunov characteristic exponents for smooth dynamical
    systems", Meccanica 15 (1980).

    Examples
    --------
    >>> import jvp_ops as jo, torch
    >>> henon = jo.FunctionMap(
    ...     lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2, dtype="float64"
    ... )
    >>> start = torch.tensor([0.1, 0.1], dtype=torch.float64)
    >>> spectrum = jo.lyapunov_spectrum(henon, start, k=2, steps=500, transient=100)
    >>> bool(abs(spectrum.values[0] - 0.41922) < 4 * spectrum.errors[0])
    True
    >>> round(float(spectrum.values.sum()), 6)            # ln 0.3, since det Df = −0.3 everywhere
    -1.203973
    """
    positive_int(steps, "steps")
    whole_number(transient, "transient")
    sitting = Sitting(
        "exponents",
        unit="step",
        total=int(steps + transient),
        progress=progress,
        max_seconds=time_budget(max_seconds),
        callback=callback,
    )
    system = TangentSystem(f, state, k, first=first, rng=rng)
    pace = Pace.begin(interval, f.dtype, int(steps))
    identity = {
        "analysis": "lyapunov_spectrum",
        **{"steps": int(steps), "transient": int(transient), "interval": pace.asked},
        **{"vectors": sha256_of(system.vectors), "seed": system.seed},
        **run_identity(f, system.state, system.number, int(transient + steps)),
    }
    sitting.checkpoint = Checkpoint.at(
        checkpoint,
        resume=resume,
        identity=lambda: identity,
        probe=lambda: probe(f, system.state, system.number, system.vectors),
        close=rounding_of(f.dtype),
    )
    random = not isinstance(k, Tensor)
    return Measurement(system, int(steps), int(transient), pace, sitting, identity=identity, at_random=random).run()
