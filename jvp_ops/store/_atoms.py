"""Plain values and names, written as texts that are the same in every process."""

import hashlib
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

_PLAIN = (bool, float, complex, str, Decimal, Fraction, range, slice)
_KINDS = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, PurePath)


def atom(value: Any) -> str | None:
    """Write a plain value with its type; None where it is not plain.

    >>> atom(0.1), atom(1), atom(True), atom([])
    ('float 0.1', 'int 0x1', 'bool True', None)
    """
    kind = type(value)
    if value is None or value is Ellipsis or value is NotImplemented:
        return repr(value)
    if isinstance(value, Enum):
        return f"{name_of(kind)}.{value.name} {atom(value.value)}"
    if isinstance(value, np.generic):
        return f"{value.dtype.str} {value.tobytes().hex()}"
    if kind is int:
        return f"int {value:#x}"
    if kind in (bytes, bytearray):
        return f"{kind.__name__} {hashlib.sha256(value).hexdigest()}"
    return f"{kind.__name__} {value!r}" if kind in _PLAIN or isinstance(value, _KINDS) else None


def digest(*parts: str) -> str:
    """Hash texts, each with its length, so that no two lists of them are the same to it."""
    whole = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        whole.update(f"{len(encoded)} ".encode())
        whole.update(encoded)
    return whole.hexdigest()


def name_of(kind: type) -> str:
    """Name a class by its module and its own name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def title(function: Any) -> str:
    """Name a callable by its module and its own name, or by its class where it has none.

    >>> title(abs), title([].append), title(nn.ReLU())
    ('builtins.abs', 'builtins.list.append', 'torch.nn.modules.activation.ReLU')
    """
    own = getattr(function, "__qualname__", None)
    if own is None or isinstance(function, nn.Module):
        return name_of(type(function))
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{own}"


def bound_to(function: Any) -> Any:
    """Give the object that a compiled method is bound to, or None: `[0.1, 0.01].__getitem__` holds a list."""
    owner = getattr(function, "__self__", None)
    compiled = isinstance(owner, type | ModuleType) or type(owner).__module__.startswith("pybind11")
    return None if compiled or type(owner).__name__ == "PyCapsule" else owner
