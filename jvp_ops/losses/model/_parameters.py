"""Which parameters of a model and its loss function make up θ."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops._checks import FLOATS
from jvp_ops.errors import InputError
from jvp_ops.parameters import Parameters

PREFIX = "loss_function."


def trainable(model: nn.Module, loss_function: Any, names: str | Sequence[str] | None) -> dict[str, Tensor]:
    """Find the parameters that require gradients, or those of them that match names or globs, in order."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if isinstance(loss_function, nn.Module):
        known = {id(p) for p in model.parameters()}
        own = {PREFIX + name: p for name, p in loss_function.named_parameters() if p.requires_grad}
        named |= {name: p for name, p in own.items() if id(p) not in known}
    if not named:
        raise InputError("the model has no parameter that requires a gradient: all are frozen, or there is none")
    if names is None:
        return named
    layout = Parameters.of({name: real_shape(p) for name, p in named.items()})
    return {entry.name: named[entry.name] for entry in layout.find(names)}


def real_shape(tensor: Tensor) -> tuple[int, ...]:
    """Give the shape of a parameter in θ: of a complex one, that of its real and imaginary parts."""
    if nn.parameter.is_lazy(tensor):
        raise InputError(
            "a parameter is lazy and has no shape yet: run the model once on a batch first (LazyLinear, ...)"
        )
    return (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)


def common_dtype(model: nn.Module) -> torch.dtype:
    """Find the one precision of a model's parameters."""
    floating = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    dtypes = {p.dtype.to_real() if p.is_complex() else p.dtype for p in floating}
    if len(dtypes) != 1 or not dtypes <= set(FLOATS):
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"the model's parameters are {found}: pass dtype=torch.float32 or torch.float64")
    return dtypes.pop()
