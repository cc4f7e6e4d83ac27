"""A long run, sitting by sitting: its clock, its bar, what may stop it, and the checkpoint that it goes on from."""

import contextlib
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jvp_ops._checks import finite_number, says_stop
from jvp_ops._progress import progress_bar
from jvp_ops.errors import DataError, InputError, JvpOpsWarning
from jvp_ops.store import load_checkpoint, prepare_checkpoint, probes_agree, save_checkpoint

SAVE_SECONDS = 30.0  # between two checkpoints at least
TWICE = 2.0  # seconds between two presses that mean: at once
BACK_OFF = 20  # times as long as the last one took to write, so that writing takes a twentieth of the time at most
Snapshot = Callable[[], tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]]


class Stop(StrEnum):
    """Why a run ended; every result says it as ``stopped``.

    ``converged`` and ``finished`` are whole: all values asked for to their tolerance, all steps taken. ``rounding``
    and ``stagnation`` are as far as it goes. ``restarts``, ``max_iterations``, ``max_products`` and ``max_seconds``
    are limits; ``cancelled`` is a callback that said True, ``interrupted`` is Ctrl-C, ``failed`` is NaN or Inf in a
    state or a product.
    """

    CONVERGED = "converged"
    FINISHED = "finished"
    ROUNDING = "rounding"
    STAGNATION = "stagnation"
    RESTARTS = "restarts"
    MAX_ITERATIONS = "max_iterations"
    MAX_PRODUCTS = "max_products"
    MAX_SECONDS = "max_seconds"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    def __repr__(self) -> str:
        return repr(self.value)


def as_certified(stop: Stop, converged: NDArray[np.bool_]) -> Stop:
    """Call ``rounding`` what a search took for converged and its certificate does not."""
    return Stop.ROUNDING if stop == Stop.CONVERGED and not converged.all() else stop


BY_HAND = (Stop.CANCELLED, Stop.INTERRUPTED)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its state, and what it must be a run of.

    Attributes
    ----------
    path : Path
    identity : mapping
        All that the course of the run depends on, as far as a fingerprint sees it.
    probe : tuple of float
        A few numbers computed from the operator or map itself: they see what no fingerprint does.
    close : float
        How far the probe may differ, relative to its largest number: as other threads round otherwise.
    there : bool
        Whether there is one to go on from.
    """

    path: Path
    identity: Mapping[str, Any]
    probe: tuple[float, ...]
    close: float
    there: bool

    @classmethod
    def at(
        cls,
        path: str | Path | None,
        *,
        resume: bool,
        identity: Callable[[], Mapping[str, Any]],
        probe: Callable[[], Sequence[float]],
        close: float,
    ) -> "Checkpoint | None":
        """Check ``checkpoint=`` and ``resume=`` before any work is done."""
        there = prepare_checkpoint(path, resume=resume)
        return None if path is None else cls(Path(path), identity(), tuple(probe()), close, there)

    def load(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Read the state, and refuse that of another run."""
        arrays, record = load_checkpoint(self.path, self.identity)
        if not probes_agree(record["probe"], self.probe, rtol=self.close, atol=self.close):
            raise DataError(
                f"the checkpoint {self.path} is of another run or of another operator: a product, or the map's first "
                "step gives other numbers, by something that no fingerprint sees; resume with what it was begun with, "
                "or remove it"
            )
        return arrays, record


class Sitting:
    """One sitting of a long run; entered, it shows the bar, and Ctrl-C asks the run to end at its next whole piece.

    A second Ctrl-C, or one within `TWICE` seconds of the last one, interrupts at once, so that a loop of short runs can
    be ended. Runs inside of another one hear what the outermost hears; other threads than the main one hear nothing.
    No other signal is touched.

    Parameters
    ----------
    description, unit, total, progress
        Of the progress bar, and whether it is shown.
    max_seconds : float, optional
        Budget of this sitting.
    callback : callable, optional
        What `tell` calls; True from it stops the run.
    checkpoint : Checkpoint, optional
    """

    _outermost: "Sitting | None" = None
    _last_press = -math.inf

    def __init__(
        self,
        description: str,
        *,
        unit: str,
        total: int | None = None,
        progress: bool = False,
        max_seconds: float | None = None,
        callback: Callable[..., object] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        if callback is not None and not callable(callback):
            raise InputError(f"callback must be a function, not {callback!r}")
        self.max_seconds = None if max_seconds is None else finite_number(max_seconds, "max_seconds", least=0)
        self.description, self.callback, self.checkpoint = description, callback, checkpoint
        self._make_bar = partial(progress_bar, total, show=progress, description=description, unit=unit)
        self.earlier = 0.0  # seconds of the sittings before
        self.began = time.monotonic()
        self.unsaved = ""  # why the last checkpoint could not be written
        self._saved, self._next_save = False, self.began + SAVE_SECONDS
        self._cancelled = self._pressed = self._broken = self._leaving = False
        self._heard: Sitting = self

    def __enter__(self) -> Self:
        self.bar = self._make_bar()
        if threading.current_thread() is threading.main_thread():
            outer = Sitting._outermost
            if outer is not None and not outer._broken:
                self._heard = outer
            else:
                self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if Sitting._outermost is self:
                Sitting._outermost = None
                if signal.getsignal(signal.SIGINT) == self.press:
                    signal.signal(signal.SIGINT, self._before)
        finally:
            self.bar.close()

    def _listen(self) -> None:
        self._before = signal.getsignal(signal.SIGINT)
        Sitting._outermost = self
        try:
            if callable(self._before):  # a job in the background ignores it, and goes on ignoring it
                signal.signal(signal.SIGINT, self.press)
        except BaseException:
            Sitting._outermost = None
            raise

    def press(self, number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
        """Ask the run to end, as Ctrl-C does; the second time, interrupt it."""
        now, last = time.monotonic(), Sitting._last_press
        self._leaving = self._leaving or (not self._pressed and now - last < TWICE)  # the last one ended an earlier run
        again, Sitting._last_press, self._pressed = self._pressed or self._leaving, now, True
        if again:
            self._broken = True
            if callable(self._before):
                self._before(number, frame)
            else:
                raise KeyboardInterrupt

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, in all sittings."""
        return self.earlier + time.monotonic() - self.began

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know of the sitting."""
        return (f"the checkpoint is not up to date: {self.unsaved}",) if self.unsaved else ()

    def advance(self, count: int = 1) -> None:
        """Move the bar on."""
        self.bar.update(count)

    def tell(self, *what: Any) -> None:
        """Hand on to the callback."""
        if self.callback is not None and says_stop(self.callback(*what)):
            self._cancelled = True

    def obstacle(self) -> Stop | None:
        """Say what forbids to go on, if anything does."""
        if self._heard._pressed:
            return Stop.INTERRUPTED
        if self._cancelled:
            return Stop.CANCELLED
        if self.max_seconds is not None and time.monotonic() - self.began >= self.max_seconds:
            return Stop.MAX_SECONDS
        return None

    def check(self) -> None:
        """Leave by `KeyboardInterrupt`, between two pieces, a run that has nothing to give back."""
        if self._heard._pressed:
            raise KeyboardInterrupt

    def words(self, stop: Stop) -> str:
        """Name what stopped the run, for a note."""
        named = {Stop.CANCELLED: "the callback", Stop.INTERRUPTED: "Ctrl-C", Stop.FAILED: "divergence"}
        return f"max_seconds={self.max_seconds:g}" if stop == Stop.MAX_SECONDS else named.get(stop, str(stop))

    def resume(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Read the checkpoint, where there is one to go on from."""
        if self.checkpoint is None or not self.checkpoint.there:
            return None
        arrays, record = self.checkpoint.load()
        self.earlier = record["seconds"]
        return arrays, record["state"]

    def run(
        self,
        advance: Callable[[], Stop | None],
        *,
        snapshot: Snapshot | None = None,
        back: Callable[[], bool] | None = None,
    ) -> Stop:
        """Go on piece by piece until something stops the run; say what.

        Parameters
        ----------
        advance : callable
            Does the next piece; says why it was the last one, or None.
        snapshot : callable
            Gives arrays and record of the last whole piece, for the checkpoint.
        back : callable, optional
            Goes back to the last whole piece, and says whether there is one. Without it an error, or an interruption
            at once, leaves nothing.
        """
        stop = None
        try:
            while stop is None:
                stop = advance() or self.obstacle()
                if stop is None and snapshot is not None and time.monotonic() > self._next_save:
                    self.save(snapshot)
        except BaseException as error:
            if back is None or not back():
                raise
            if not isinstance(error, KeyboardInterrupt) or self._heard._leaving:
                self.save(snapshot)
                raise
            stop = Stop.INTERRUPTED
        self.save(snapshot)
        return stop

    def save(self, snapshot: Snapshot | None) -> None:
        """Write the checkpoint; one that cannot be written is told, and ends no run."""
        if self.checkpoint is None or snapshot is None:
            return
        began = time.monotonic()
        arrays, state = snapshot()
        record = {"state": state, "seconds": self.seconds, "probe": self.checkpoint.probe}
        try:
            new = not (self.checkpoint.there or self._saved)
            save_checkpoint(self.checkpoint.path, arrays, record, self.checkpoint.identity, new=new)
            self.unsaved, self._saved = "", True
        except InputError as error:
            self.unsaved = str(error)
            with contextlib.suppress(JvpOpsWarning):  # where warnings are errors, the note says it
                warnings.warn(f"{error}; the run goes on without", JvpOpsWarning, stacklevel=2)
        ended = time.monotonic()
        self._next_save = ended + max(SAVE_SECONDS, BACK_OFF * (ended - began))


def interrupt() -> None:
    """End the run that goes on in this process at its next whole piece, as Ctrl-C does; at once where there is none."""
    if Sitting._outermost is None:
        raise KeyboardInterrupt
    Sitting._outermost.press()
