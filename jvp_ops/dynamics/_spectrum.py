"""`lyapunov_spectrum`: mean growth along an orbit by repeated QR decomposition."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import finite_number, positive_int
from jvp_ops._progress import progress_bar
from jvp_ops._random import Rng
from jvp_ops.dynamics._orbit import step_identity
from jvp_ops.dynamics._pace import Pace
from jvp_ops.dynamics._spectrum_result import LyapunovSpectrum, batch_errors
from jvp_ops.dynamics._tangent import TangentSystem
from jvp_ops.errors import ConvergenceError, DataError, InputError, NonFiniteError
from jvp_ops.store import load_checkpoint, prepare_checkpoint, save_checkpoint, sha256_of

if TYPE_CHECKING:
    from jvp_ops.maps import Map

Floats = NDArray[np.float64]
_SAVE_EVERY = 30.0  # seconds


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
        How many exponents, at most n; or the tangent vectors to start from.
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
        for its seconds), on the same device with as many threads.

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
    if isinstance(transient, bool) or not isinstance(transient, Integral) or transient < 0:
        raise InputError(f"transient must be an integer of at least 0, not {transient!r}")
    if max_seconds is not None and finite_number(max_seconds, "max_seconds") <= 0:
        raise InputError(f"max_seconds must be above 0, not {max_seconds!r}")
    system = TangentSystem(f, state, k, first=first, rng=rng)
    measurement = _Measurement(system, int(steps), int(transient), Pace.begin(interval, f.dtype), checkpoint)
    if prepare_checkpoint(checkpoint, resume=resume):
        measurement.load()
    reason = measurement.run(callback=callback, max_seconds=max_seconds, progress=progress)
    return measurement.result(reason)


@dataclass(frozen=True)
class _Boundary:
    """Where the last stretch that counts ended; replaced as one, so that an interruption leaves it whole."""

    position: tuple[Any, ...]
    pace: Pace
    stretches: int


class _Measurement:
    """A run on its way: stretches of steps, each ended by an orthonormalization."""

    def __init__(
        self, system: TangentSystem, steps: int, transient: int, pace: Pace, checkpoint: str | Path | None
    ) -> None:
        self.system, self.steps, self.transient, self.checkpoint = system, steps, transient, checkpoint
        self.first, self.k = system.number, system.vectors.shape[1]
        self.growth: list[Floats] = []
        self.intervals: list[int] = []
        self.at = _Boundary(system.position(), pace, 0)
        request = {"steps": steps, "transient": transient, "interval": pace.asked}
        start = {"vectors": sha256_of(system.vectors), **step_identity(system.map, system.state, system.number)}
        self.identity = {"analysis": "lyapunov_spectrum", **request, **start}
        self.seconds_before = 0.0
        self.began = self.saved = time.monotonic()
        self.probe = [] if checkpoint is None else _probe(system)

    @property
    def done(self) -> int:
        """Steps taken up to the last boundary, the transient included."""
        return int(self.at.position[2]) - self.first

    def run(self, *, callback: Any, max_seconds: float | None, progress: bool) -> str:
        """Go on to the end, or until something stops it; say what."""
        reason = ""
        try:
            with progress_bar(self.steps + self.transient, show=progress, description="exponents", unit="step") as bar:
                bar.update(self.done)
                while self.done < self.steps + self.transient and not reason:
                    before = self.done
                    self._stretch()
                    bar.update(self.done - before)
                    reason = self._stopped_by(callback, max_seconds)
                    if self.checkpoint is not None and time.monotonic() - self.saved > _SAVE_EVERY:
                        self.save()
        except KeyboardInterrupt:
            self._end()
            if not self.intervals:
                raise  # there is nothing to give back yet
            return "Ctrl-C"
        except NonFiniteError as error:
            self._end()
            error.partial = self.result("divergence") if self.intervals else None
            raise
        self._end()
        if not self.intervals:
            raise ConvergenceError(
                f"max_seconds={max_seconds:g} ran out after {self.done} of {self.transient} steps of the transient: "
                "allow more time, or resume from a checkpoint="
            )
        return reason

    def result(self, reason: str) -> LyapunovSpectrum:
        """Make the result of what was measured up to now."""
        growth, intervals = np.array(self.growth), np.array(self.intervals, dtype=np.int64)
        measured, pace = int(intervals.sum()), self.at.pace
        stopped = [f"stopped by {reason} after {measured} of {self.steps} steps"] if reason else []
        return LyapunovSpectrum(
            values=growth.sum(axis=0) / measured,
            errors=batch_errors(growth, intervals),
            growth=growth,
            intervals=intervals,
            steps=measured,
            asked=self.steps,
            transient=self.transient,
            first=self.first,
            state=self.system.state,
            vectors=self.system.vectors,
            parameters=self.system.map.parameters,
            products=self.k * (self.done + pace.wasted),
            seconds=self.seconds_before + time.monotonic() - self.began,
            complete=measured == self.steps,
            notes=(*stopped, *pace.notes()),
            provenance=self.identity,
        )

    def save(self) -> None:
        """Write the checkpoint, as of the last boundary."""
        if self.checkpoint is None:
            return
        state, vectors, number, *_ = self.at.position
        arrays = {"state": state.cpu().numpy(), "vectors": vectors.cpu().numpy()}
        arrays |= {"growth": np.array(self.growth).reshape(-1, self.k), "intervals": np.array(self.intervals, int)}
        seconds = self.seconds_before + time.monotonic() - self.began
        record = {"number": number, "pace": asdict(self.at.pace), "seconds": seconds, "probe": self.probe}
        save_checkpoint(self.checkpoint, arrays, record, self.identity)
        self.saved = time.monotonic()

    def load(self) -> None:
        """Go to where a checkpoint ends."""
        assert self.checkpoint is not None
        arrays, record = load_checkpoint(self.checkpoint, self.identity)
        if not np.allclose(record["probe"], self.probe, rtol=1e-3, atol=1e-3 * float(np.max(np.abs(self.probe)))):
            raise DataError(
                f"the checkpoint {self.checkpoint} is of another run: the map's first step gives other numbers, by "
                "something that no fingerprint sees; resume with that map, or remove it"
            )
        self.growth, self.intervals = list(arrays["growth"]), arrays["intervals"].tolist()
        state, vectors = (torch.tensor(arrays[name], device=self.system.map.device) for name in ("state", "vectors"))
        position = (state, vectors, record["number"], self.system.frame, 0)
        self.at = _Boundary(position, Pace(**record["pace"]), len(self.intervals))
        self.seconds_before = record["seconds"]
        self._end(save=False)

    def _stretch(self) -> None:
        """Take steps until the vectors are to be made orthonormal, and count the growth, or do it over."""
        settling = self.transient - self.done
        left = settling if settling > 0 else self.transient + self.steps - self.done
        pace, taken = self.at.pace, min(self.at.pace.interval, left)
        try:
            for _ in range(taken):
                self.system.step()
            growth = self.system.orthonormalize()
            counts, pace = pace.judged(self.system.frame, taken, self.system.number - 1)
        except NonFiniteError:
            if taken == 1:
                raise
            counts, pace = False, pace.shortened(taken)
        if not counts:
            self.system.return_to(self.at.position)
            self.at = _Boundary(self.at.position, pace, self.at.stretches)
            return
        if settling <= 0:
            self.growth.append(growth)
            self.intervals.append(taken)
        self.at = _Boundary(self.system.position(), pace, len(self.intervals) if settling <= 0 else 0)

    def _end(self, *, save: bool = True) -> None:
        """Forget what came after the last boundary, and save."""
        self.system.return_to(self.at.position)
        del self.growth[self.at.stretches :], self.intervals[self.at.stretches :]
        if save:
            self.save()

    def _stopped_by(self, callback: Any, max_seconds: float | None) -> str:
        stop = False
        if callback is not None and self.intervals:
            measured = sum(self.intervals)
            stop = callback(measured, np.sum(self.growth, axis=0) / measured) is True
        if self.done == self.transient + self.steps:
            return ""
        if stop:
            return "the callback"
        late = max_seconds is not None and time.monotonic() - self.began > max_seconds
        return f"max_seconds={max_seconds:g}" if late else ""


def _probe(system: TangentSystem) -> list[float]:
    """Compute a few numbers from the first step: they see what no fingerprint does."""
    image = system.map(system.state, system.number) - system.state
    moved = system.map.jacobian(system.state, system.number).apply(system.vectors)
    return [float(part.double().sum()) for part in (*image.tensor_split(2), *moved.flatten().tensor_split(4))]
