"""A run of a tangent system on its way: stretches that count or are done over, stops, and checkpoints."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jvp_ops._checks import says_stop
from jvp_ops._progress import progress_bar
from jvp_ops.dynamics._orbit import check_probe, probe, run_identity
from jvp_ops.dynamics._pace import Pace
from jvp_ops.dynamics._spectrum_result import FEWEST, LyapunovSpectrum, alignment_notes, batch_errors
from jvp_ops.dynamics._tangent import TangentSystem
from jvp_ops.errors import ConvergenceError, NonFiniteError
from jvp_ops.store import load_checkpoint, save_checkpoint, sha256_of

Floats = NDArray[np.float64]
_SAVE_EVERY = 30.0  # seconds


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
        checkpoint: str | Path | None,
        *,
        at_random: bool,
    ) -> None:
        self.system, self.steps, self.transient, self.checkpoint = system, steps, transient, checkpoint
        self.at_random = at_random
        self.first, self.k = system.number, system.vectors.shape[1]
        self.growth: list[Floats] = []
        self.intervals: list[int] = []
        self.at = _Boundary(system.position(), pace, 0)
        request = {"steps": steps, "transient": transient, "interval": pace.asked}
        start = {
            "vectors": sha256_of(system.vectors),
            "seed": system.seed,
            **run_identity(system.map, system.state, system.number, transient + steps),
        }
        self.identity = {"analysis": "lyapunov_spectrum", **request, **start}
        self.seconds_before = 0.0
        self.began = self.saved = time.monotonic()
        self.probe = [] if checkpoint is None else probe(system.map, system.state, system.number, system.vectors)

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
        except Exception as error:
            self._end()
            if isinstance(error, NonFiniteError):
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
        notes = [f"stopped by {reason} after {measured} of {self.steps} steps"] if reason else []
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
            seconds=self.seconds_before + time.monotonic() - self.began,
            complete=measured == self.steps,
            notes=(*getattr(self.system.map, "notes", ()), *notes, *pace.notes()),
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
        check_probe(record["probe"], self.probe, self.system.map.dtype, self.checkpoint)
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
            stop = says_stop(callback(measured, np.sum(self.growth, axis=0) / measured))
        if self.done == self.transient + self.steps:
            return ""
        if stop:
            return "the callback"
        late = max_seconds is not None and time.monotonic() - self.began > max_seconds
        return f"max_seconds={max_seconds:g}" if late else ""


def _diverges(system: TangentSystem) -> bool:
    """Say whether it is the state that becomes NaN or Inf in the next step, not the vectors."""
    try:
        return not bool(torch.isfinite(system.map(system.state, system.number)).all())
    except NonFiniteError:
        return True
