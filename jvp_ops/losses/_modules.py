"""What a torch module must be for its loss to be one fixed sum over samples, and how θ gets into it."""

import copy
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from jvp_ops._checks import FLOATS
from jvp_ops._random import Rng, generator
from jvp_ops.errors import InputError
from jvp_ops.parameters import Parameters


def refuse_training_mode(model: nn.Module) -> None:
    """Refuse modules whose output is random, or mixes the samples of a batch."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = f"module {name!r} ({kind})" if name else f"the model ({kind})"
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{where} keeps no running statistics, so its output mixes the samples of a batch and the loss is no "
                "sum over samples: use track_running_stats=True, or another norm"
            )
        if not module.training:
            continue
        drops = getattr(module, "p", 0) if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
        if isinstance(module, _BatchNorm | nn.RReLU) or (isinstance(drops, Real) and float(drops) > 0):
            raise InputError(
                f"{where} is in training mode, where its output is random or depends on the batch: call model.eval() "
                "first"
            )


def trainable(model: nn.Module, names: str | Sequence[str] | None) -> Parameters:
    """Lay out the parameters that require gradients, or those of them that match names or globs."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    if not shapes:
        raise InputError("the model has no parameter that requires a gradient: all are frozen, or there is none")
    everything = Parameters.of(shapes)
    if names is None:
        return everything
    return Parameters.of({entry.name: entry.shape for entry in everything.find(names)})


def common_dtype(model: nn.Module) -> torch.dtype:
    """Find the one floating dtype of a model's parameters."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= set(FLOATS):
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"the model's parameters are {found}: pass dtype=torch.float32 or torch.float64")
    return dtypes.pop()


def bind(model: nn.Module, parameters: Parameters, theta: Tensor) -> tuple[nn.Module, list[Tensor]]:
    """Copy the model with θ in it; return it with the parameters that θ holds, which alone record gradients.

    A copy, since swapping parameters in place would not be safe while several threads run the model.
    """
    bound = copy.deepcopy(model).requires_grad_(False)
    named = dict(bound.named_parameters())
    for name, values in parameters.unflatten(theta).items():
        named[name].data.copy_(values)
        named[name].requires_grad_(True)
    return bound, [named[name] for name in parameters.names]


def call(model: nn.Module, inputs: Any) -> Any:
    """Run the model: mappings as keywords, tuples as positional arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


def redraw(model: nn.Module, parameters: Parameters, rng: Rng) -> nn.Module:
    """Copy the model with its parameters drawn anew, as its modules' own ``reset_parameters`` draw them."""
    drawn = copy.deepcopy(model).cpu().requires_grad_(False)  # on the CPU: one seed, the same start everywhere
    covered: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator(rng).integers(2**63)))
        for prefix, module in drawn.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                covered |= {f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters()}
    if missed := [name for name in parameters.names if name not in covered]:
        raise InputError(
            f"{', '.join(missed)} cannot be drawn anew: the module has no reset_parameters(). "
            "loss.initial() without rng returns the model's own values"
        )
    return drawn
