"""What a command is: a name, what it says of itself, its options and what it does; and how it ends."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jvp_ops.errors import NonFiniteError

if TYPE_CHECKING:
    from jvp_ops._sitting import Stop

BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """A command of ``jvp-ops``.

    Attributes
    ----------
    name, help, description : str
    options : callable
        Adds its options to a parser.
    run : callable
        Does it with what was parsed, and gives the exit status.
    long : bool
        Whether Ctrl-C and SIGTERM are heard by all of it as one run.
    """

    name: str
    help: str
    description: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    long: bool = True

    def add_to(self, commands: Any) -> None:
        """Make its parser."""
        parser = commands.add_parser(self.name, help=self.help, description=self.description)
        parser.set_defaults(run=self.held if self.long else self.run)
        self.options(parser)

    def held(self, arguments: argparse.Namespace) -> int:
        """Do it as one run: whichever part met the signal, the exit status says so."""
        from jvp_ops._sitting import Sitting

        with Sitting(self.name, unit="run") as sitting:
            status = self.run(arguments)
            return INTERRUPTED if status == 0 and sitting.obstacle() else status


def status_of(*stops: "Stop") -> int:
    """Give the exit status that follows from why results ended: 0 where whole, or at a limit that was set."""
    from jvp_ops._sitting import Stop

    if Stop.FAILED in stops:
        return BAD_INPUT
    return INTERRUPTED if Stop.INTERRUPTED in stops else 0


def or_partial(work: Callable[[], T], kind: type[T]) -> tuple[T, NonFiniteError | None]:
    """Do a piece of work; of a run that diverges, give the part that the error holds, and the error."""
    try:
        return work(), None
    except NonFiniteError as error:
        if not isinstance(error.partial, kind):
            raise
        return error.partial, error


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Take SIGTERM as Ctrl-C, so that a run ends with what it has; give a list that then holds the signal."""
    met: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        met.append(number)
        from jvp_ops._sitting import interrupt

        interrupt()

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield met
        return
    try:
        yield met
    finally:
        signal.signal(signal.SIGTERM, before)


def complain(what: object) -> None:
    """Print one line of error."""
    print(f"jvp-ops: error: {what}", file=sys.stderr)
