"""``jvp-ops sharpness``: follow the largest curvatures along training, against the threshold of stability."""

import argparse
from typing import Any

from jvp_ops.cli._options import add_problem_options, add_sitting_options, check_positive, load, show_progress
from jvp_ops.cli._output import add_output_options, deliver, fail, run_folder
from jvp_ops.cli._training import add_training_options, described, network_of, optimizer_of
from jvp_ops.errors import NonFiniteError

RATES = {"gd": 0.5, "heavy-ball": 1.0, "nesterov": 0.35, "rmsprop": 1e-4, "adam": 1e-3, "adamw": 1e-3}


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sharpness",
        help="the largest eigenvalues of the Hessian along training, against the threshold of stability",
        description="Train a network, and follow the largest eigenvalues of its Hessian (of the preconditioned Hessian "
        "for rmsprop, adam and adamw) from step to step, each solve started from the last; say whether the largest "
        "has settled at the threshold, the edge of stability.",
    )
    add_problem_options(parser, lr=None, steps=2000, steps_are="to follow")
    parser.set_defaults(hidden=32, samples=None)
    add_training_options(parser, network="tanh")
    parser.add_argument("--every", type=int, default=20, metavar="N", help="steps between measurements; default: 20")
    parser.add_argument("--k", type=int, default=3, metavar="N", help="eigenvalues to follow; default: 3")
    parser.add_argument("--which", choices=("LA", "SA", "LM", "BE"), default="LA", help="which; default: LA, largest")
    parser.add_argument("--tol", type=float, default=1e-3, metavar="T", help="residual by ‖H‖; default: 1e-3")
    add_sitting_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Track, write the run folder, and print."""
    from jvp_ops.dynamics import Tracking, track_eigenpairs

    check_positive(arguments.k, "--k")
    folder = run_folder(arguments)
    if arguments.lr is None:
        arguments.lr = RATES[arguments.optimizer]
    data = load(arguments)
    loss, theta = network_of(data, arguments)
    f = optimizer_of(arguments, loss)
    found, error = None, None
    try:
        found = track_eigenpairs(
            f,
            f.initial(theta),
            arguments.steps,
            every=arguments.every,
            k=arguments.k,
            which=arguments.which,
            tol=arguments.tol,
            rng=arguments.seed,
            progress=show_progress(arguments),
            max_seconds=arguments.max_seconds,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
        )
    except NonFiniteError as diverged:
        if not isinstance(diverged.partial, Tracking):
            raise
        found, error = diverged.partial, diverged
    kept = found
    deliver(
        arguments,
        folder,
        text=f"{described(data, arguments, f)}\n\n{found}\n\n{found.stability()}",
        record=found.record(),
        arrays=found.arrays(),
        result=found,
        identity=found.provenance,
        draw=lambda: kept.plot()[0].figure,
    )
    if error is not None:
        return fail(error)
    return 130 if any("Ctrl-C" in note for note in found.notes) else 0
