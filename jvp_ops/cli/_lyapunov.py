"""``jvp-ops lyapunov``: the leading Lyapunov exponents of training."""

import argparse
from typing import Any

from jvp_ops.cli._options import add_problem_options, add_sitting_options, check_positive, load, show_progress
from jvp_ops.cli._output import add_output_options, deliver, fail, run_folder
from jvp_ops.cli._training import (
    RATES,
    add_start_option,
    add_training_options,
    described,
    network_of,
    optimizer_of,
    start_of,
    starts_leading,
)
from jvp_ops.errors import InputError, NonFiniteError


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "lyapunov",
        help="the leading Lyapunov exponents of training, with standard errors",
        description="Train a network, and measure how fast nearby states of the optimizer part or meet along the steps "
        "that follow: the leading Lyapunov exponents, by repeated QR decomposition of tangent vectors.",
    )
    add_problem_options(parser, lr=None)
    add_training_options(parser, network="two-layer")
    parser.add_argument("--window", type=int, default=200, metavar="N", help="steps to measure over; default: 200")
    parser.add_argument("--transient", type=int, default=50, metavar="N", help="steps to settle before; default: 50")
    parser.add_argument("--interval", type=int, metavar="N", help="steps between decompositions; default: adapted")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="exponents; default: 5")
    add_start_option(parser)
    add_sitting_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, write the run folder, and print."""
    from jvp_ops._report import plain
    from jvp_ops.dynamics import LyapunovSpectrum, lyapunov_spectrum
    from jvp_ops.store import prepare_checkpoint

    for name in ("k", "window", *(["interval"] if arguments.interval is not None else [])):
        check_positive(getattr(arguments, name), f"--{name}")
    if arguments.transient < 0:
        raise InputError(f"--transient must be at least 0, not {arguments.transient}")
    prepare_checkpoint(arguments.checkpoint, resume=arguments.resume)  # before the training, not after it
    folder = run_folder(arguments)
    if arguments.lr is None:
        arguments.lr = RATES[arguments.optimizer]
    data = load(arguments)
    loss, theta = network_of(data, arguments)
    f, bars, error = optimizer_of(arguments, loss), show_progress(arguments), None
    state = f.run(f.initial(theta), steps=arguments.steps, progress=bars)
    transient, first = arguments.transient, arguments.steps
    if starts_leading(arguments):  # there, the vectors need no transient of their own
        state = f.run(state, steps=transient, first=first, progress=bars)
        transient, first = 0, first + transient
    start = start_of(arguments, f, state, first)
    try:
        found = lyapunov_spectrum(
            f,
            state,
            start,
            arguments.window,
            transient=transient,
            interval=arguments.interval,
            first=first,
            rng=arguments.seed,
            progress=bars,
            max_seconds=arguments.max_seconds,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
        )
    except NonFiniteError as diverged:
        if not isinstance(diverged.partial, LyapunovSpectrum):
            raise
        found, error = diverged.partial, diverged
    before, after = float(loss.value(theta)), float(loss.value(f.theta(found.state)))
    kept = found
    deliver(
        arguments,
        folder,
        text=f"{described(data, arguments, f)}; loss {before:.4f} → {after:.4f}\n\n{found}",
        record=found.record() | {"loss": {"before": plain(before), "after": plain(after)}},
        arrays=found.arrays(),
        result=found,
        identity=found.provenance,
        draw=lambda: kept.plot().figure,
    )
    if error is not None:
        return fail(error)
    return 130 if any("Ctrl-C" in note for note in found.notes) else 0
