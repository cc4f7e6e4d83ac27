"""Options that several commands share, and what they make."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jvp_ops.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from jvp_ops.data import Dataset
    from jvp_ops.losses import TwoLayerLoss
    from jvp_ops.maps import GradientDescent

DATA = ("digits", "mnist", "fashion-mnist")


def add_problem_options(
    parser: argparse.ArgumentParser, *, lr: float | None = 0.1, steps: int = 100, steps_are: str = "of training first"
) -> None:
    """Add what says which network is trained on which data, and how."""
    problem = parser.add_argument_group("the training step")
    problem.add_argument("--data", choices=DATA, default="digits", help="default: digits, which come with the package")
    problem.add_argument("--samples", type=int, metavar="N", help="train on N samples drawn at random; default: all")
    problem.add_argument("--hidden", type=int, default=50, metavar="N", help="hidden units; default: 50")
    rate = "by optimizer" if lr is None else lr
    problem.add_argument("--lr", type=float, default=lr, metavar="α", help=f"learning rate; default: {rate}")
    problem.add_argument("--weight-decay", type=float, default=0.0, metavar="ω", help="default: 0")
    problem.add_argument("--steps", type=int, default=steps, metavar="N", help=f"steps {steps_are}; default: {steps}")
    problem.add_argument("--scale", type=float, metavar="S", help="start from S times standard normal numbers")
    problem.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    problem.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    problem.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    problem.add_argument("--max-memory", metavar="SIZE", help="such as 2GiB; default: half of what is free")


def load(arguments: argparse.Namespace) -> "Dataset":
    """Load the data set that was asked for."""
    if arguments.seed < 0:
        raise InputError(f"--seed must be at least 0, not {arguments.seed}")
    from jvp_ops.data import load_digits, load_fashion_mnist, load_mnist

    loaders = {"digits": load_digits, "mnist": load_mnist, "fashion-mnist": load_fashion_mnist}
    data = loaders[arguments.data]()
    if arguments.samples is None:
        return data
    if not 1 <= arguments.samples <= len(data):
        raise InputError(f"--samples must be 1 to {len(data)}, not {arguments.samples}")
    return data.subset(arguments.samples, rng=arguments.seed)


def add_budget_of_time(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Add --max-seconds."""
    parser.add_argument("--max-seconds", type=float, metavar="S", help=f"stop after so long{of}; default: no limit")


def add_sitting_options(parser: argparse.ArgumentParser) -> None:
    """Add what a long run that may take several sittings needs."""
    add_budget_of_time(parser)
    parser.add_argument("--checkpoint", metavar="FILE", help="keep the work in a file")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")


def sitting_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what `add_sitting_options` parsed as an analysis takes it, with the bar."""
    return {
        "max_seconds": arguments.max_seconds,
        "checkpoint": arguments.checkpoint,
        "resume": arguments.resume,
        "progress": show_progress(arguments),
    }


def two_layer_loss(data: "Dataset", arguments: argparse.Namespace) -> "TwoLayerLoss":
    """Make the loss that was asked for."""
    from jvp_ops.losses import TwoLayerLoss

    return TwoLayerLoss(
        data,
        hidden=arguments.hidden,
        device=arguments.device,
        dtype=arguments.dtype,
        max_memory=arguments.max_memory,
    )


def show_progress(arguments: argparse.Namespace) -> bool:
    """Show bars where a person looks on, unless told not to."""
    return sys.stderr.isatty() and not arguments.quiet


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse counts under 1 before anything is computed; those that were not given are well."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


@dataclass(frozen=True)
class Trained:
    """The reference network after some steps of gradient descent.

    Attributes
    ----------
    data, loss, f
    start, theta : Tensor
        Before and after training.
    seconds : float
        Of training.
    """

    data: "Dataset"
    loss: "TwoLayerLoss"
    f: "GradientDescent"
    start: "Tensor"
    theta: "Tensor"
    seconds: float


def trained(arguments: argparse.Namespace, check: "Callable[[TwoLayerLoss], None]") -> Trained:
    """Train the two-layer network by gradient descent; `check` may refuse the loss before."""
    from jvp_ops.maps import GradientDescent

    data = load(arguments)
    loss = two_layer_loss(data, arguments)
    check(loss)
    f = GradientDescent(loss, lr=arguments.lr, weight_decay=arguments.weight_decay)
    start = loss.initial(arguments.seed, scale=arguments.scale)
    began = time.perf_counter()
    theta = f.run(start, steps=arguments.steps, progress=show_progress(arguments))
    return Trained(data, loss, f, start, theta, time.perf_counter() - began)
