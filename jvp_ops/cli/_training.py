"""Options that say which optimizer trains which network, and what they make."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jvp_ops.cli._options import load, show_progress, two_layer_loss
from jvp_ops.cli._output import run_folder
from jvp_ops.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from jvp_ops.data import Dataset
    from jvp_ops.losses import ModelLoss, TwoLayerLoss
    from jvp_ops.maps import MinibatchSGD
    from jvp_ops.maps._optimizer import OptimizerMap

RATES = {"gd": 0.1, "heavy-ball": 0.05, "nesterov": 0.05, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}
NETWORKS = ("two-layer", "tanh")


def add_training_options(parser: argparse.ArgumentParser, *, network: str) -> None:
    """Add the network, its optimizer, and what the optimizer takes beside the learning rate."""
    training = parser.add_argument_group("the network and its optimizer")
    training.add_argument(
        "--network",
        choices=NETWORKS,
        default=network,
        help="two-layer: sigmoid, cross-entropy, closed form; tanh: two hidden tanh layers, squared errors; "
        f"default: {network}",
    )
    training.add_argument("--optimizer", choices=tuple(RATES), default="gd", help="default: gd")
    training.add_argument("--momentum", type=float, metavar="β", help="of heavy-ball and nesterov; default: 0.9")
    training.add_argument("--dampening", type=float, metavar="τ", help="of heavy-ball; default: 0")
    training.add_argument(
        "--betas", type=float, nargs=2, metavar=("β₁", "β₂"), help="of adam and adamw; default: 0.9 0.999"
    )
    training.add_argument("--beta2", type=float, metavar="β₂", help="of rmsprop; default: 0.99")
    training.add_argument("--eps", type=float, metavar="ε", help="of rmsprop, adam and adamw; default: 1e-8")
    training.add_argument("--clip", type=float, metavar="C", help="clip the gradient to this norm; default: no")
    training.add_argument("--batch-size", type=int, metavar="N", help="train on batches of N; default: full batches")


def optimizer_of(arguments: argparse.Namespace, loss: "TwoLayerLoss | ModelLoss") -> "OptimizerMap | MinibatchSGD":
    """Make the map that was asked for; options of other optimizers are refused."""
    from jvp_ops.maps import Adam, AdamW, GradientDescent, HeavyBall, MinibatchSGD, Nesterov, RMSProp

    name = arguments.optimizer
    takes = {
        "momentum": ("heavy-ball", "nesterov"),
        "dampening": ("heavy-ball",),
        "betas": ("adam", "adamw"),
        "beta2": ("rmsprop",),
        "eps": ("rmsprop", "adam", "adamw"),
    }
    for option, owners in takes.items():
        if getattr(arguments, option) is not None and name not in owners:
            raise InputError(f"--{option} is of --optimizer {' and '.join(owners)}, not of {name}")
    given = {option: getattr(arguments, option) for option in takes if getattr(arguments, option) is not None}
    if name in ("heavy-ball", "nesterov"):
        given.setdefault("momentum", 0.9)
    if "beta2" in given:
        given["alpha"] = given.pop("beta2")
    makers: dict[str, Any] = {"gd": GradientDescent, "heavy-ball": HeavyBall, "nesterov": Nesterov}
    makers |= {"rmsprop": RMSProp, "adam": Adam, "adamw": AdamW}

    def made(loss: Any) -> "OptimizerMap":
        f: OptimizerMap = makers[name](
            loss, arguments.lr, clip=arguments.clip, weight_decay=arguments.weight_decay, **given
        )
        return f

    if arguments.batch_size is None:
        return made(loss)
    return MinibatchSGD(loss, arguments.batch_size, optimizer=made, rng=arguments.seed)


def network_of(data: "Dataset", arguments: argparse.Namespace) -> "tuple[TwoLayerLoss | ModelLoss, Tensor]":
    """Make the loss and the start θ that were asked for."""
    if arguments.network == "two-layer":
        loss = two_layer_loss(data, arguments)
        return loss, loss.initial(arguments.seed, scale=arguments.scale)
    import torch

    from jvp_ops._checks import positive_int, resolve_device, resolve_dtype
    from jvp_ops.losses import ModelLoss

    if arguments.scale is not None:
        raise InputError("--scale is of --network two-layer: the tanh network starts as torch's layers do")
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    inputs = torch.from_numpy(data.inputs_in(arguments.dtype)).to(device)
    targets = torch.nn.functional.one_hot(torch.tensor(data.labels).long(), data.classes).to(device, dtype)
    width, Linear, Tanh = positive_int(arguments.hidden, "--hidden"), torch.nn.Linear, torch.nn.Tanh
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        layers = [Linear(inputs.shape[1], width), Tanh(), Linear(width, width), Tanh(), Linear(width, data.classes)]
    model = torch.nn.Sequential(*layers).to(device, dtype)
    tanh = ModelLoss(model, torch.nn.functional.mse_loss, (inputs, targets), max_memory=arguments.max_memory)
    return tanh, tanh.initial()


@dataclass(frozen=True)
class Training:
    """What is trained, before the first step.

    Attributes
    ----------
    data, loss
    f : map
    theta : Tensor
        The parameters to start from.
    folder : Path
        Of the results.
    """

    data: "Dataset"
    loss: "TwoLayerLoss | ModelLoss"
    f: "OptimizerMap | MinibatchSGD"
    theta: "Tensor"
    folder: "Path"

    def losses(self, state: "Tensor") -> dict[str, float]:
        """Give L at the start and at a state."""
        return {"before": float(self.loss.value(self.theta)), "after": float(self.loss.value(self.f.theta(state)))}


def prepare_training(arguments: argparse.Namespace, rates: dict[str, float] = RATES) -> Training:
    """Reserve the run folder, take the optimizer's learning rate where none was given, and make what is trained."""
    folder = run_folder(arguments)
    if arguments.lr is None:
        arguments.lr = rates[arguments.optimizer]
    data = load(arguments)
    loss, theta = network_of(data, arguments)
    return Training(data, loss, optimizer_of(arguments, loss), theta, folder)


def described(made: Training, arguments: argparse.Namespace) -> str:
    """Say in one line what is trained on what."""
    data = made.data
    pixels = data.image_shape[0] * data.image_shape[1]
    depth = 1 if arguments.network == "two-layer" else 2
    widths = "-".join(map(str, [pixels, *[arguments.hidden] * depth, data.classes]))
    batch = "" if arguments.batch_size is None else f", batches of {arguments.batch_size}"
    return (
        f"{data.name}: {len(data)} samples; network {widths} ({arguments.network}); {arguments.optimizer} at lr "
        f"{arguments.lr:g}{batch}; state of {made.f.parameters.size} numbers; {arguments.dtype} on {arguments.device}"
    )


def add_start_option(parser: argparse.ArgumentParser) -> None:
    """Add --start, of commands that follow tangent vectors."""
    parser.add_argument(
        "--start",
        choices=("leading", "random"),
        help="tangent vectors to start from: the leading eigenvectors of the step's Jacobian, or random; default: "
        "leading for gd, heavy-ball and nesterov without --clip, and otherwise random",
    )


def starts_leading(arguments: argparse.Namespace) -> bool:
    """Say whether tangent vectors are to start from the leading directions."""
    closed = arguments.optimizer in ("gd", "heavy-ball", "nesterov") and arguments.clip is None
    return closed if arguments.start is None else bool(arguments.start == "leading")


def start_of(
    arguments: argparse.Namespace, f: "OptimizerMap | MinibatchSGD", state: "Tensor", step: int
) -> "int | Tensor":
    """Make the tangent vectors to start from at a state, or only count them where they are random."""
    from jvp_ops.dynamics import leading_frame

    k: int = arguments.k
    if not starts_leading(arguments):
        return k
    return leading_frame(f, state, k, step=step, rng=arguments.seed, progress=show_progress(arguments))
