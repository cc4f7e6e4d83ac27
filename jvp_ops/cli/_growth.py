"""``jvp-ops growth``: how much small changes grow over a window of training, as a whole and step by step."""

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from jvp_ops.cli._options import add_problem_options, check_positive, load, show_progress
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
from jvp_ops.errors import NonFiniteError

if TYPE_CHECKING:
    from jvp_ops.dynamics import FiniteTimeExponents


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "growth",
        help="finite-time exponents over a window of training, and growth step by step",
        description="Train a network, and find by how much small changes of the optimizer's state can grow over a "
        "window of steps that follow: the leading singular values of the product of their Jacobians, as exponents per "
        "step; and how the frame that it starts from grows in each step.",
    )
    add_problem_options(parser, lr=None)
    add_training_options(parser, network="two-layer")
    parser.add_argument("--window", type=int, default=50, metavar="N", help="steps of the window; default: 50")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="exponents; default: 5")
    add_start_option(parser)
    parser.add_argument("--tol", type=float, default=2e-2, metavar="T", help="residual; default: 2e-2")
    parser.add_argument("--max-iterations", type=int, default=20, metavar="N", help="pairs of sweeps; default: 20")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, write the run folder, and print; Ctrl-C keeps the growth step by step."""
    from jvp_ops._report import plain
    from jvp_ops.dynamics import Orbit, finite_time_exponents, local_growth

    for name in ("k", "window"):
        check_positive(getattr(arguments, name), f"--{name}")
    folder = run_folder(arguments)
    if arguments.lr is None:
        arguments.lr = RATES[arguments.optimizer]
    data = load(arguments)
    loss, theta = network_of(data, arguments)
    f, bars = optimizer_of(arguments, loss), show_progress(arguments)
    state = f.run(f.initial(theta), steps=arguments.steps, progress=bars)
    error: NonFiniteError | None = None
    try:
        orbit = Orbit(f, state, arguments.window, first=arguments.steps)
    except NonFiniteError as diverged:
        if not isinstance(diverged.partial, Orbit) or diverged.partial.steps == 0:
            raise
        orbit, error = diverged.partial, diverged
    well = orbit.steps - (error is not None and orbit.steps > 1)  # the last step of all may have no derivative
    start = start_of(arguments, f, state, arguments.steps)
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
            progress=bars,
        )
    before, after = float(loss.value(theta)), float(loss.value(f.theta(orbit[orbit.steps])))
    steps = range(orbit.first, orbit.first + well)
    kind = "leading" if starts_leading(arguments) else "random"
    means = plain(local.mean(axis=0))
    record = {} if found is None else found.record()
    numbers = {
        "local_mean": means,
        "loss": {"before": plain(before), "after": plain(after)},
        "complete": found is not None and error is None,
    }
    shown = "  ".join(f"{mean:.6g}" for mean in local.mean(axis=0))
    table = "stopped by Ctrl-C before any exponent of the window was found" if found is None else str(found)
    deliver(
        arguments,
        folder,
        text=f"{described(data, arguments, f)}; loss {before:.4f} → {after:.4f}\n\n{table}\n\n"
        f"a frame of {kind} directions grows by, per step (mean over the window): {shown}",
        record=record | numbers,
        arrays=({} if found is None else found.arrays()) | {"local_growth": local},
        result=found,
        identity={"command": "growth", "k": arguments.k, "start": kind, "orbit": orbit.identity()},
        draw=lambda: _figure(steps, local, found),
    )
    if error is not None:
        return fail(error)
    return 130 if found is None else 0


def _figure(steps: range, local: Any, found: "FiniteTimeExponents | None") -> Any:
    from jvp_ops.plots import plot_growth

    return plot_growth(list(steps), local, None if found is None else found.values)[0].figure
