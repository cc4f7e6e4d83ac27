"""``jvp-ops lyapunov``: the leading Lyapunov exponents of training."""

import argparse

from jvp_ops.cli._command import Command, complain, or_partial, status_of
from jvp_ops.cli._options import (
    add_problem_options,
    add_sitting_options,
    check_positive,
    show_progress,
    sitting_options,
)
from jvp_ops.cli._output import add_output_options, deliver
from jvp_ops.cli._training import (
    add_start_option,
    add_training_options,
    described,
    prepare_training,
    start_of,
    starts_leading,
)
from jvp_ops.errors import InputError


def _options(parser: argparse.ArgumentParser) -> None:
    add_problem_options(parser, lr=None)
    add_training_options(parser, network="two-layer")
    parser.add_argument("--window", type=int, default=200, metavar="N", help="steps to measure over; default: 200")
    parser.add_argument("--transient", type=int, default=50, metavar="N", help="steps to settle before; default: 50")
    parser.add_argument("--interval", type=int, metavar="N", help="steps between decompositions; default: adapted")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="exponents; default: 5")
    add_start_option(parser)
    add_sitting_options(parser)
    add_output_options(parser)


def _run(arguments: argparse.Namespace) -> int:
    """Train, measure, write the run folder, and print."""
    from jvp_ops._result import plain
    from jvp_ops.dynamics import LyapunovSpectrum, lyapunov_spectrum
    from jvp_ops.store import prepare_checkpoint

    check_positive(arguments, "k", "window", "interval")
    if arguments.transient < 0:
        raise InputError(f"--transient must be at least 0, not {arguments.transient}")
    prepare_checkpoint(arguments.checkpoint, resume=arguments.resume)  # before the training, not after it
    made, bars = prepare_training(arguments), show_progress(arguments)
    state = made.f.run(made.f.initial(made.theta), steps=arguments.steps, progress=bars)
    transient, first = arguments.transient, arguments.steps
    if starts_leading(arguments):  # there, the vectors need no transient of their own
        state = made.f.run(state, steps=transient, first=first, progress=bars)
        transient, first = 0, first + transient
    start = start_of(arguments, made.f, state, first)
    found, error = or_partial(
        lambda: lyapunov_spectrum(
            made.f,
            state,
            start,
            arguments.window,
            transient=transient,
            interval=arguments.interval,
            first=first,
            rng=arguments.seed,
            **sitting_options(arguments),
        ),
        LyapunovSpectrum,
    )
    losses = made.losses(found.state)
    deliver(
        arguments,
        made.folder,
        text=f"{described(made, arguments)}; loss {losses['before']:.4f} → {losses['after']:.4f}\n\n{found}",
        record=found.record() | {"loss": plain(losses)},
        arrays=found.arrays(),
        result=found,
        identity=found.provenance,
        draw=lambda: found.plot().figure,
    )
    if error is not None:
        complain(error)
    return status_of(found.stopped)


COMMAND = Command(
    "lyapunov",
    "the leading Lyapunov exponents of training, with standard errors",
    "Train a network, and measure how fast nearby states of the optimizer part or meet along the steps that follow: "
    "the leading Lyapunov exponents, by repeated QR decomposition of tangent vectors.",
    _options,
    _run,
)
