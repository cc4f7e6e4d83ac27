"""The ``jvp-ops`` entry point: one parser, one place where errors become one line and an exit status."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jvp_ops._version import __version__
from jvp_ops.cli import _data, _dense, _growth, _lyapunov, _sharpness, _spectrum
from jvp_ops.cli._command import BAD_INPUT, INTERRUPTED, TERMINATED, complain, terminable
from jvp_ops.errors import JvpOpsError

COMMANDS = (
    *(_spectrum.COMMAND, _dense.COMMAND, _sharpness.COMMAND),
    *(_lyapunov.COMMAND, _growth.COMMAND, _data.COMMAND),
)


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line; its subparsers are of the same class."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"jvp-ops: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of every command; importing it imports no torch."""
    parser = _Parser(
        prog="jvp-ops", description="Look at the Jacobian of a training step without building the dense matrix."
    )
    parser.add_argument("--version", action="version", version=f"jvp-ops {__version__}")
    commands: Any = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 done, or at a limit that was set; 1 answered no; 2 bad input, or a run that diverged; 130 stopped by Ctrl-C, 143
    by SIGTERM, with what there was.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # α must not end a run on a terminal that has none
    with terminable() as terminated:
        try:
            arguments = build_parser().parse_args(argv)
            status: int = arguments.run(arguments)
            sys.stdout.flush()
        except JvpOpsError as error:
            complain(error)
            return BAD_INPUT
        except BrokenPipeError:  # the reader has gone, as of ``| head``
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as stop:
            print(f"jvp-ops: {'terminated' if terminated else 'interrupted'}{stop}", file=sys.stderr)
            status = INTERRUPTED
        return TERMINATED if terminated and status == INTERRUPTED else status
