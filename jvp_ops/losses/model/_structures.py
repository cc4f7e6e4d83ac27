"""Tensors inside what people pass around: tuples, mappings, dataclasses, with None and other things among them."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from jvp_ops.errors import InputError

PLAIN = bool | int | float | complex | str | bytes | None


def map_tensors(structure: Any, function: Callable[[Tensor], Tensor], *, strict: bool = False) -> Any:
    """Apply a function to every tensor of a structure and return one of the same kind.

    Mappings, dataclasses, tuples, named tuples and lists are gone through; None, numbers and text stay. Anything else
    stays as it is too, unless `strict`, where it is refused.

    Raises
    ------
    InputError
        With `strict`: something that is neither a tensor nor plain.
    """

    def again(value: Any) -> Any:
        return map_tensors(value, function, strict=strict)

    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, Mapping):
        return _mapped(structure, again)
    if isinstance(structure, tuple | list):
        values = [again(value) for value in structure]
        return type(structure)(*values) if hasattr(structure, "_fields") else type(structure)(values)
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        made = copy.copy(structure)
        for field in dataclasses.fields(structure):
            object.__setattr__(made, field.name, again(getattr(structure, field.name)))
        return made
    if isinstance(structure, SimpleNamespace):
        return SimpleNamespace(**{name: again(value) for name, value in vars(structure).items()})
    if strict and not isinstance(structure, PLAIN):
        raise InputError(
            f"data must be made of torch tensors, not {type(structure).__name__}: torch.as_tensor(...) makes one of an "
            "array"
        )
    return structure


def _mapped(structure: Mapping[Any, Any], again: Callable[[Any], Any]) -> Any:
    values = {key: again(value) for key, value in structure.items()}
    if isinstance(structure, dict) and type(structure) is not dict:  # its own kind, whose attributes may be its items
        made = copy.copy(structure)
        for key, value in values.items():
            made[key] = value
        return made
    return values


def all_tensors(structure: Any, *, strict: bool = False) -> list[Tensor]:
    """List every tensor of a structure, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(structure, keep, strict=strict)
    return found


def layout_of(structure: Any) -> Any:
    """Say how tensors lie in a structure, and what else is in it: keys, numbers and text."""
    if isinstance(structure, Tensor):
        return "tensor"
    if isinstance(structure, Mapping):
        return {str(key): layout_of(value) for key, value in structure.items()}
    if isinstance(structure, tuple | list):
        return [layout_of(value) for value in structure]
    return repr(structure) if isinstance(structure, PLAIN) else type(structure).__name__


def put_together(structures: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Make one structure of several of the same kind, whose tensors are joined one by one."""
    joined = iter([join(list(tensors)) for tensors in zip(*map(all_tensors, structures), strict=True)])
    return map_tensors(structures[0], lambda _: next(joined))
