"""Directions as people hold them (tensors of any batch shape, tensors by parameter name), multiplied as columns."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.parameters import Parameters

Multiply = Callable[[Tensor], Tensor]


def are_tensors(V: Any) -> bool:
    """Say whether something is a tensor, or tensors by name or in a sequence."""
    held = list(V.values()) if isinstance(V, Mapping) else V
    return isinstance(V, Tensor) or (
        isinstance(held, list | tuple) and len(held) > 0 and all(isinstance(tensor, Tensor) for tensor in held)
    )


def multiplied(multiply: Multiply, V: Any, given: Parameters, wanted: Parameters) -> Any:
    """Multiply V and give the image back as V came: (n,), (n, m), (…, n, m), or tensors of the parameters' shapes.

    Parameters
    ----------
    multiply : callable
        (n,) or (n, m) to (n', ) or (n', m).
    V : Tensor, mapping of str to Tensor, or sequence of Tensor
    given, wanted : Parameters
        The layouts of n and n'.

    Raises
    ------
    InputError
        Names or shapes that are not the parameters'.
    """
    if isinstance(V, Mapping):
        return wanted.unflatten(multiply(_flattened(V, given)))
    if isinstance(V, Sequence) and are_tensors(V):
        if len(V) != len(given):
            raise InputError(f"{len(V)} tensors were given for the {len(given)} parameters {', '.join(given.names)}")
        images = wanted.unflatten(multiply(_flattened(dict(zip(given.names, V, strict=True)), given)))
        return tuple(images.values()) if isinstance(V, tuple) else list(images.values())
    if isinstance(V, Tensor) and V.ndim > 2 and V.shape[-2] == given.size:
        stacked = V.movedim(-2, 0)
        image = multiply(stacked.reshape(len(stacked), prod(stacked.shape[1:])))
        return image.reshape(len(image), *stacked.shape[1:]).movedim(0, -2)
    return multiply(V)


def multiplied_along_last(multiply: Multiply, v: Any, given: Parameters, wanted: Parameters) -> Any:
    """Multiply vectors that lie along the last axis, (…, n), as scipy's ``matvec`` takes them; (n, 1) is one."""
    if not isinstance(v, Tensor) or v.ndim == 1 or tuple(v.shape) == (given.size, 1) or v.shape[-1:] != (given.size,):
        return multiplied(multiply, v, given, wanted)
    image = multiply(v.reshape(prod(v.shape[:-1]), given.size).mT)
    return image.mT.reshape(*v.shape[:-1], len(image))


def _flattened(tensors: Mapping[str, Tensor], layout: Parameters) -> Tensor:
    """Join tensors of the parameters' shapes, or of those shapes and one more axis, into (n,) or (n, m)."""
    if set(tensors) != set(layout.names):
        raise InputError(f"tensors were given for {', '.join(map(str, tensors))}; expected {', '.join(layout.names)}")
    tails = {tuple(tensors[entry.name].shape[len(entry.shape) :]) for entry in layout}
    for entry in layout:
        shape = tuple(tensors[entry.name].shape)
        if shape[: len(entry.shape)] != entry.shape or len(shape) > len(entry.shape) + 1 or len(tails) > 1:
            raise InputError(f"{entry.name} has shape {shape}; expected {entry.shape}, or with one more axis for all")
    (tail,) = tails
    return torch.cat([tensors[entry.name].reshape(entry.size, *tail) for entry in layout])
