"""``jvp-ops dense``: assemble Df, or a block of it, in a file, and check it."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from jvp_ops.cli._options import add_problem_options, load, show_progress, two_layer_loss
from jvp_ops.errors import InputError

WRONG = 1e4  # units of the last place: the identity's own rounding comes to a few hundred of them


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "dense",
        help="the dense Jacobian of a training step, or a block of it, in an .npy file",
        description="Train a two-layer network by gradient descent, assemble the Jacobian Df = I − αH of the next step "
        "in an .npy file, and check the file against products with random directions.",
    )
    add_problem_options(parser)
    parser.add_argument("--block", metavar="ROW,COL", help="one block by parameter names, such as W1,b2; default: all")
    parser.add_argument("--out", metavar="FILE", help="the .npy file; default: Df-DATA.npy, or Df-DATA-ROW-COL.npy")
    parser.add_argument(
        "--store", choices=("float32", "float64"), metavar="DTYPE", help="of the file; default: --dtype"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted file")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, assemble, check, print."""
    import numpy as np

    from jvp_ops._memory import format_bytes
    from jvp_ops.maps import GradientDescent
    from jvp_ops.operators import product_error
    from jvp_ops.store import check_output

    names = _block_names(arguments.block)
    stem = "-".join(["Df", arguments.data, *(names or ())])
    out = Path(arguments.out or f"{stem}.npy")
    check_output(out)
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and not arguments.resume:
        raise InputError(f"{partial} is there from an interrupted run: go on with --resume, or remove it")
    data = load(arguments)
    loss = two_layer_loss(data, arguments)
    for name in names or ():
        loss.parameters.find(name)
    f = GradientDescent(loss, lr=arguments.lr, weight_decay=arguments.weight_decay)
    bars = show_progress(arguments)
    theta = f.run(loss.initial(arguments.seed, scale=arguments.scale), steps=arguments.steps, progress=bars)
    Df = f.jacobian(theta)
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
        print(f"jvp-ops: interrupted{kept}", file=sys.stderr)
        return 130
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
        print(f"jvp-ops: error: {out} is wrong: a relative error of {error:.1e} is more than rounding", file=sys.stderr)
        return 1
    return 0


def _block_names(block: str | None) -> tuple[str, str] | None:
    if block is None:
        return None
    names = [name.strip() for name in block.split(",")]
    if len(names) != 2 or not all(names):
        raise InputError(f"--block must name a row and a column parameter, such as W1,b2, not {block!r}")
    return names[0], names[1]
