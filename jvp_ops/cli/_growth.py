"""``jvp-ops growth``: how much small changes grow over a window of training, as a whole and step by step."""

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from jvp_ops.cli._command import BAD_INPUT, INTERRUPTED, Command, complain, or_partial, status_of
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

if TYPE_CHECKING:
    from jvp_ops.dynamics import FiniteTimeExponents


def _options(parser: argparse.ArgumentParser) -> None:
    add_problem_options(parser, lr=None)
    add_training_options(parser, network="two-layer")
    parser.add_argument("--window", type=int, default=50, metavar="N", help="steps of the window; default: 50")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="exponents; default: 5")
    add_start_option(parser)
    parser.add_argument("--tol", type=float, default=2e-2, metavar="T", help="residual; default: 2e-2")
    parser.add_argument("--max-iterations", type=int, default=20, metavar="N", help="pairs of sweeps; default: 20")
    add_sitting_options(parser)
    add_output_options(parser)


def _run(arguments: argparse.Namespace) -> int:
    """Train, measure, write the run folder, and print; Ctrl-C keeps the growth step by step."""
    from jvp_ops._result import plain
    from jvp_ops._sitting import Stop
    from jvp_ops.dynamics import Orbit, finite_time_exponents, local_growth
    from jvp_ops.store import prepare_checkpoint

    check_positive(arguments, "k", "window")
    prepare_checkpoint(arguments.checkpoint, resume=arguments.resume)  # before the training, not after it
    made, bars = prepare_training(arguments), show_progress(arguments)
    state = made.f.run(made.f.initial(made.theta), steps=arguments.steps, progress=bars)
    orbit, error = or_partial(lambda: Orbit(made.f, state, arguments.window, first=arguments.steps), Orbit)
    if error is not None and orbit.steps == 0:
        raise error
    well = orbit.steps - (error is not None and orbit.steps > 1)  # the last step of all may have no derivative
    start = start_of(arguments, made.f, state, arguments.steps)
    local = local_growth(orbit, start, stop=well, rng=arguments.seed, progress=bars)
    found: FiniteTimeExponents | None = None
    with contextlib.suppress(KeyboardInterrupt):
        found = finite_time_exponents(
            orbit,
            start,
            stop=well,
            tol=arguments.tol,
            max_iterations=arguments.max_iterations,
            rng=arguments.seed,
            **sitting_options(arguments),
        )
    losses = made.losses(orbit[orbit.steps])
    steps = range(orbit.first, orbit.first + well)
    kind = "leading" if starts_leading(arguments) else "random"
    means = local.mean(axis=0)
    numbers = {
        "local_mean": plain(means),
        "loss": plain(losses),
        "complete": found is not None and found.stopped == Stop.CONVERGED and error is None,
    }
    shown = "  ".join(f"{mean:.6g}" for mean in means)
    table = "stopped by Ctrl-C before any exponent of the window was found" if found is None else str(found)
    deliver(
        arguments,
        made.folder,
        text=f"{described(made, arguments)}; loss {losses['before']:.4f} → {losses['after']:.4f}\n\n{table}\n\n"
        f"a frame of {kind} directions grows by, per step (mean over the window): {shown}",
        record=({} if found is None else found.record()) | numbers,
        arrays=({} if found is None else found.arrays()) | {"local_growth": local},
        result=found,
        identity={"command": "growth", "k": arguments.k, "start": kind, "orbit": orbit.identity()},
        draw=lambda: _figure(steps, local, found),
    )
    if error is not None:
        complain(error)
        return BAD_INPUT
    return INTERRUPTED if found is None else status_of(found.stopped)


def _figure(steps: range, local: Any, found: "FiniteTimeExponents | None") -> Any:
    from jvp_ops.plots import plot_growth

    return plot_growth(list(steps), local, None if found is None else found.values)[0].figure


COMMAND = Command(
    "growth",
    "finite-time exponents over a window of training, and growth step by step",
    "Train a network, and find by how much small changes of the optimizer's state can grow over a window of steps that "
    "follow: the leading singular values of the product of their Jacobians, as exponents per step; and how the frame "
    "that it starts from grows in each step.",
    _options,
    _run,
)
