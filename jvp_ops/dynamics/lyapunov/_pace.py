"""How many steps the tangent vectors may take before they are made orthonormal again."""

from dataclasses import dataclass, replace

import torch

from jvp_ops._checks import positive_int
from jvp_ops.dynamics._frame import SAFE_SPREAD, Frame

_MOST = 16  # the decomposition is cheap beside k products from here on
_STRETCHES = 16  # of a run at least, for its standard errors
_MARGIN = 3.0  # an interval is set to use up this much less than is safe, since growth varies along an orbit
_RANGE = 40.0  # e-folds that the vectors may grow or shrink in one stretch, of float32's 87


@dataclass(frozen=True)
class Pace:
    """The interval in use and what it came from; `judged` makes the next one.

    Attributes
    ----------
    safe : float
        e-folds between the largest and the least vector that a stretch may use up.
    asked : int
        The interval that was asked for, or 0 to adapt it.
    most : int
        What an adapted one is at most.
    interval : int
        Steps of the next stretch.
    redone, wasted : int
        Stretches that were done over with a shorter interval, and the steps lost by it.
    strained : int
        Stretches of a single step that used up more than is safe.
    singular : int
        The number of the first step at which Df was singular to rounding, or −1.
    """

    safe: float
    asked: int
    most: int
    interval: int
    redone: int = 0
    wasted: int = 0
    strained: int = 0
    singular: int = -1

    @classmethod
    def begin(cls, interval: object, dtype: torch.dtype, steps: int) -> "Pace":
        """Start with an asked interval, or, for None, with one step; `steps` are to give some stretches in any case."""
        asked = 0 if interval is None else positive_int(interval, "interval")
        return cls(SAFE_SPREAD[dtype], asked, max(1, min(_MOST, steps // _STRETCHES)), asked or 1)

    def judged(self, frame: Frame, taken: int, number: int) -> "tuple[bool, Pace]":
        """Say whether a stretch of `taken` steps, the last of them `number`, may count; and set the next interval."""
        lost = bool(frame.lost.any())
        size = float("inf") if lost else float(abs(frame.growth).max()) / _RANGE * self.safe
        load = max(frame.spread, size)
        if load > self.safe and taken > 1:
            return False, self.shortened(taken, load)
        pace = replace(
            self,
            strained=self.strained + (frame.spread > self.safe and not lost),
            singular=number if lost and self.singular < 0 else self.singular,
        )
        if self.asked:
            return True, pace
        fitting = self.safe / _MARGIN * taken / max(load, 1e-3)
        return True, replace(pace, interval=int(max(1, min(fitting, 2 * self.interval, self.most))))

    def shortened(self, taken: int, load: float = float("inf")) -> "Pace":
        """Shorten the interval after a stretch of `taken` steps, of at least two, that does not count."""
        fitting = taken // 2 if load == float("inf") else int(taken * self.safe / _MARGIN / load)
        interval = max(1, min(taken // 2, fitting))
        return replace(self, interval=interval, redone=self.redone + 1, wasted=self.wasted + taken)

    def notes(self) -> list[str]:
        """Say what a reader should know."""
        found = []
        if self.asked and self.redone:
            found.append(
                f"an interval of {self.asked} steps lets the vectors lose rank (more than {self.safe:g} e-folds): "
                f"{self.redone} stretches were done over, and the interval is now {self.interval}"
            )
        if self.strained:
            found.append(
                f"{self.strained} single steps spread the vectors by more than {self.safe:g} e-folds: the least "
                "exponents have fewer than half of the digits there; a smaller k has not"
            )
        if self.singular >= 0:
            found.append(
                f"the Jacobian is singular on the vectors, to rounding, first at step {self.singular}: growth of "
                "exactly zero is an exponent of −inf, and new directions were drawn"
            )
        return found
