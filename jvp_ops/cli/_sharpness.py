"""``jvp-ops sharpness``: follow the largest curvatures along training, against the threshold of stability."""

import argparse

from jvp_ops.cli._command import Command, complain, or_partial, status_of
from jvp_ops.cli._options import add_problem_options, add_sitting_options, check_positive, sitting_options
from jvp_ops.cli._output import add_output_options, deliver
from jvp_ops.cli._training import add_training_options, described, prepare_training

RATES = {"gd": 0.5, "heavy-ball": 1.0, "nesterov": 0.35, "rmsprop": 1e-4, "adam": 1e-3, "adamw": 1e-3}


def _options(parser: argparse.ArgumentParser) -> None:
    add_problem_options(parser, lr=None, steps=2000, steps_are="to follow")
    parser.set_defaults(hidden=32, samples=None)
    add_training_options(parser, network="tanh")
    parser.add_argument("--every", type=int, default=20, metavar="N", help="steps between measurements; default: 20")
    parser.add_argument("--k", type=int, default=3, metavar="N", help="eigenvalues to follow; default: 3")
    parser.add_argument("--which", choices=("LA", "SA", "LM", "BE"), default="LA", help="which; default: LA, largest")
    parser.add_argument("--tol", type=float, default=1e-3, metavar="T", help="residual by ‖H‖; default: 1e-3")
    add_sitting_options(parser)
    add_output_options(parser)


def _run(arguments: argparse.Namespace) -> int:
    """Track, write the run folder, and print."""
    from jvp_ops.dynamics import Tracking, track_eigenpairs

    check_positive(arguments, "k")
    made = prepare_training(arguments, RATES)
    found, error = or_partial(
        lambda: track_eigenpairs(
            made.f,
            made.f.initial(made.theta),
            arguments.steps,
            every=arguments.every,
            k=arguments.k,
            which=arguments.which,
            tol=arguments.tol,
            rng=arguments.seed,
            **sitting_options(arguments),
        ),
        Tracking,
    )
    deliver(
        arguments,
        made.folder,
        text=f"{described(made, arguments)}\n\n{found}\n\n{found.stability()}",
        record=found.record(),
        arrays=found.arrays(),
        result=found,
        identity=found.provenance,
        draw=lambda: found.plot()[0].figure,
    )
    if error is not None:
        complain(error)
    return status_of(found.stopped)


COMMAND = Command(
    "sharpness",
    "the largest eigenvalues of the Hessian along training, against the threshold of stability",
    "Train a network, and follow the largest eigenvalues of its Hessian (of the preconditioned Hessian for rmsprop, "
    "adam and adamw) from step to step, each solve started from the last; say whether the largest has settled at the "
    "threshold, the edge of stability.",
    _options,
    _run,
)
