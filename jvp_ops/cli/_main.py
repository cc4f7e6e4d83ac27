"""The ``jvp-ops`` entry point: one parser, one place where errors become one line and exit status 2."""

import argparse
import sys
from collections.abc import Sequence

from jvp_ops._version import __version__
from jvp_ops.cli import _data, _dense, _spectrum
from jvp_ops.errors import JvpOpsError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of every command; importing it imports no torch."""
    parser = argparse.ArgumentParser(
        prog="jvp-ops",
        description="Look at the Jacobian of a training step without building the dense matrix.",
    )
    parser.add_argument("--version", action="version", version=f"jvp-ops {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _spectrum.add_parser(commands)
    _dense.add_parser(commands)
    _data.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 answered no, 2 bad input, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except JvpOpsError as error:
        print(f"jvp-ops: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jvp-ops: interrupted", file=sys.stderr)
        return 130
    return status
