"""Where a command's results go: a run folder with figures, arrays and a picture, and what is printed."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jvp_ops.errors import MissingExtraError

if TYPE_CHECKING:
    from jvp_ops._result import Result


def add_printing_options(parser: argparse.ArgumentParser) -> None:
    """Add how results are shown."""
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_output_options(parser: argparse.ArgumentParser, *, figure: bool = True) -> None:
    """Add where results go and how they are shown."""
    name = parser.prog.split()[-1]
    parser.add_argument("--out", metavar="FOLDER", help=f"run folder; default: runs/{name}-DATA-TIME")
    if figure:
        parser.add_argument("--no-figure", action="store_true", help="draw no figure")
    add_printing_options(parser)


def run_folder(arguments: argparse.Namespace) -> Path:
    """Name the run folder, and refuse one that is taken before any work is done."""
    from jvp_ops.store import prepare_run_folder

    folder = _fresh(arguments.command, arguments.data) if arguments.out is None else Path(arguments.out)
    prepare_run_folder(folder)
    return folder


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what was asked for as a JSON-able dict."""
    return {k: v for k, v in vars(arguments).items() if k not in ("run", "out", "json", "quiet", "command")}


def deliver(
    arguments: argparse.Namespace,
    folder: Path,
    *,
    text: str,
    record: dict[str, Any],
    arrays: dict[str, Any],
    identity: dict[str, Any],
    draw: Callable[[], Any] | None = None,
    result: "Result | None" = None,
) -> None:
    """Write the run folder, from which `jvp_ops.load` makes the result again, and the figure; and print."""
    from jvp_ops.store import save_run

    record = {"command": arguments.command, "settings": settings_of(arguments), **record}
    whole = record if result is None else {**result.saved(), **record}
    save_run(folder, record=whole, arrays=arrays, identity=identity)
    figure = "" if draw is None or arguments.no_figure else _drawn(draw, folder / "figure.png")
    if arguments.json:
        print(json.dumps({**record, "folder": str(folder)}, indent=2, allow_nan=False))
    else:
        print(text)
        print(f"written to {folder}" + (f"; {figure}" if figure else ""))


def _drawn(draw: Callable[[], Any], file: Path) -> str:
    """Draw and save a figure where matplotlib is there; say what became of it."""
    try:
        import matplotlib

        matplotlib.use("Agg")  # a run may have no display
        from matplotlib import pyplot

        figure = draw()
        figure.savefig(file, dpi=200)
        pyplot.close(figure)
    except (ImportError, MissingExtraError):
        return "no figure, since matplotlib is not installed: pip install 'jvp-ops[plot]'"
    return f"figure in {file.name}"


def _fresh(command: str, data: str) -> Path:
    name = f"{command}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder
