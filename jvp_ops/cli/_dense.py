"""``jvp-ops dense``: assemble Df, or a block of it, in a file, and check it."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from jvp_ops.cli._command import Command, complain
from jvp_ops.cli._options import add_problem_options, show_progress, trained
from jvp_ops.cli._output import add_printing_options
from jvp_ops.errors import InputError

if TYPE_CHECKING:
    from jvp_ops.losses import TwoLayerLoss

WRONG = 1e4  # units of the last place: the identity's own rounding comes to a few hundred of them


def _options(parser: argparse.ArgumentParser) -> None:
    add_problem_options(parser)
    parser.add_argument("--block", metavar="ROW,COL", help="one block by parameter names, such as W1,b2; default: all")
    parser.add_argument("--out", metavar="FILE", help="the .npy file; default: Df-DATA.npy, or Df-DATA-ROW-COL.npy")
    parser.add_argument(
        "--store", choices=("float32", "float64"), metavar="DTYPE", help="of the file; default: --dtype"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted file")
    add_printing_options(parser)


def _run(arguments: argparse.Namespace) -> int:
    """Train, assemble, check, print."""
    import numpy as np

    from jvp_ops._memory import format_bytes
    from jvp_ops.operators import product_error
    from jvp_ops.store import check_output

    names = _block_names(arguments.block)
    stem = "-".join(["Df", arguments.data, *(names or ())])
    out = Path(arguments.out or f"{stem}.npy")
    check_output(out)
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and not arguments.resume:
        raise InputError(f"{partial} is there from an interrupted run: go on with --resume, or remove it")

    def named(loss: "TwoLayerLoss") -> None:
        for name in names or ():
            loss.parameters.find(name)

    made = trained(arguments, named)
    Df, bars = made.f.jacobian(made.theta), show_progress(arguments)
    operator = Df if names is None else Df.block(*names)
    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            matrix = operator.dense(
                out=out, dtype=arguments.store, max_memory=arguments.max_memory, progress=bars, resume=arguments.resume
            )
        for warning in met:
            print(f"jvp-ops: warning: {warning.message}", file=sys.stderr)
    except KeyboardInterrupt:
        kept = f"; {partial} is kept: the same command with --resume goes on" if partial.exists() else ""
        raise KeyboardInterrupt(kept) from None
    seconds = time.perf_counter() - began
    error = product_error(operator, matrix)
    size = out.stat().st_size
    if arguments.json:
        record = {"file": str(out), "shape": list(matrix.shape), "dtype": str(matrix.dtype), "bytes": size}
        print(json.dumps({**record, "seconds": seconds, "product_error": error}))
    else:
        rows, columns = matrix.shape
        print(f"{out}: {rows} × {columns}, {matrix.dtype}, {format_bytes(size)}, assembled in {seconds:.1f} s")
        print(f"against 4 random products: relative error {error:.1e}")
    if not error < WRONG * max(np.finfo(matrix.dtype).eps, np.finfo(operator.dtype).eps):
        complain(f"{out} is wrong: a relative error of {error:.1e} is more than rounding")
        return 1
    return 0


def _block_names(block: str | None) -> tuple[str, str] | None:
    if block is None:
        return None
    names = [name.strip() for name in block.split(",")]
    if len(names) != 2 or not all(names):
        raise InputError(f"--block must name a row and a column parameter, such as W1,b2, not {block!r}")
    return names[0], names[1]


COMMAND = Command(
    "dense",
    "the dense Jacobian of a training step, or a block of it, in an .npy file",
    "Train a two-layer network by gradient descent, assemble the Jacobian Df = I − αH of the next step in an .npy "
    "file, and check the file against products with random directions.",
    _options,
    _run,
)
