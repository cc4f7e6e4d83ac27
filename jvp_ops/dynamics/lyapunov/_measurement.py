"""A run of a tangent system on its way: stretches that count, or are done over."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jvp_ops._sitting import Sitting, Stop
from jvp_ops.dynamics._batch_means import FEWEST, batch_errors
from jvp_ops.dynamics._tangent import TangentSystem
from jvp_ops.dynamics.lyapunov._alignment import alignment_notes
from jvp_ops.dynamics.lyapunov._pace import Pace
from jvp_ops.dynamics.lyapunov._result import LyapunovSpectrum
from jvp_ops.errors import ConvergenceError, NonFiniteError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Boundary:
    """Where the last stretch that counts ended; replaced as one, so that an interruption leaves it whole."""

    position: tuple[Any, ...]
    pace: Pace
    stretches: int


class Measurement:
    """A run on its way: stretches of steps, each ended by an orthonormalization."""

    def __init__(
        self,
        system: TangentSystem,
        steps: int,
        transient: int,
        pace: Pace,
        sitting: Sitting,
        *,
        identity: dict[str, Any],
        at_random: bool,
    ) -> None:
        self.system, self.steps, self.transient, self.sitting = system, steps, transient, sitting
        self.identity, self.at_random = identity, at_random
        self.first, self.k = system.number, system.vectors.shape[1]
        self.growth: list[Floats] = []
        self.intervals: list[int] = []
        self.at = _Boundary(system.position(), pace, 0)

    @property
    def done(self) -> int:
        """Steps taken up to the last boundary, the transient included."""
        return int(self.at.position[2]) - self.first

    def run(self) -> LyapunovSpectrum:
        """Go on to the end, or until something stops it, and make the result."""
        if kept := self.sitting.resume():
            self._restore(*kept)
        try:
            with self.sitting:
                self.sitting.advance(self.done)
                stop = self.sitting.run(self._advance, snapshot=self._snapshot, back=self._back)
        except NonFiniteError as error:
            error.partial = self.result(Stop.FAILED) if self.intervals else None
            raise
        if self.intervals:
            return self.result(stop)
        if stop == Stop.INTERRUPTED:
            raise KeyboardInterrupt  # there is nothing to give back yet
        raise ConvergenceError(
            f"{self.sitting.words(stop)} ran out after {self.done} of {self.transient} steps of the transient: "
            "allow more time, or resume from a checkpoint="
        )

    def result(self, stop: Stop) -> LyapunovSpectrum:
        """Make the result of what was measured up to now."""
        growth, intervals = np.array(self.growth), np.array(self.intervals, dtype=np.int64)
        measured, pace = int(intervals.sum()), self.at.pace
        notes = []
        if stop != Stop.FINISHED:
            notes.append(f"stopped by {self.sitting.words(stop)} after {measured} of {self.steps} steps")
        size, rounding = len(self.system.state) if self.at_random else 0, torch.finfo(self.system.map.dtype).eps
        notes += alignment_notes(growth, intervals, self.transient, size, rounding)
        if len(intervals) < FEWEST:
            notes.append(f"{len(intervals)} stretches are too few for standard errors: take more steps, or interval=1")
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
            seconds=self.sitting.seconds,
            stopped=stop,
            complete=measured == self.steps,
            notes=(*getattr(self.system.map, "notes", ()), *notes, *pace.notes(), *self.sitting.notes),
            provenance=self.identity,
        )

    def _snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Give the last boundary."""
        state, vectors, number, *_ = self.at.position
        arrays = {"state": state.cpu().numpy(), "vectors": vectors.cpu().numpy()}
        arrays |= {"growth": np.array(self.growth).reshape(-1, self.k), "intervals": np.array(self.intervals, int)}
        return arrays, {"number": number, "pace": asdict(self.at.pace)}

    def _restore(self, arrays: dict[str, NDArray[Any]], kept: dict[str, Any]) -> None:
        """Go to the boundary that was kept."""
        self.growth, self.intervals = list(arrays["growth"]), arrays["intervals"].tolist()
        state, vectors = (torch.tensor(arrays[name], device=self.system.map.device) for name in ("state", "vectors"))
        position = (state, vectors, kept["number"], self.system.frame, 0)
        self.at = _Boundary(position, Pace(**kept["pace"]), len(self.intervals))
        self._back()

    def _advance(self) -> Stop | None:
        if self.done == self.steps + self.transient:
            return Stop.FINISHED  # a finished run was resumed
        before = self.done
        self._stretch()
        self.sitting.advance(self.done - before)
        if self.intervals:
            measured = sum(self.intervals)
            self.sitting.tell(measured, np.sum(self.growth, axis=0) / measured)
        return Stop.FINISHED if self.done == self.steps + self.transient else None

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
            before = self.system.number - int(self.at.position[2])  # steps that were well
            ends = _diverges(self.system)
            cut = replace(pace, interval=max(1, before), wasted=pace.wasted + before)
            counts, pace = False, cut if ends else pace.shortened(taken)
        if not counts:
            self.system.return_to(self.at.position)
            self.at = _Boundary(self.at.position, pace, self.at.stretches)
            return
        if settling <= 0:
            self.growth.append(growth)
            self.intervals.append(taken)
        elif pace.singular >= 0:
            pace = replace(pace, singular=-1)  # what the transient met does not bear on the exponents
        self.at = _Boundary(self.system.position(), pace, len(self.intervals) if settling <= 0 else 0)

    def _back(self) -> bool:
        """Forget what came after the last boundary."""
        self.system.return_to(self.at.position)
        del self.growth[self.at.stretches :], self.intervals[self.at.stretches :]
        return True


def _diverges(system: TangentSystem) -> bool:
    """Say whether it is the state that becomes NaN or Inf in the next step, not the vectors."""
    try:
        return not bool(torch.isfinite(system.map(system.state, system.number)).all())
    except NonFiniteError:
        return True
