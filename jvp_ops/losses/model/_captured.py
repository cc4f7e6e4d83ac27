"""What a loss function can reach: the modules and tensors it closes over, holds, or names as globals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEEPEST = 6  # functions within functions, lists within objects
LIBRARIES = ("torch", "numpy", "scipy", "builtins", "transformers")
OWN_KEYS = frozenset(vars(nn.Module()))  # what every module has


@dataclass
class Captured:
    """Modules and tensors found, each once and in order, and the name that each tensor was met under."""

    modules: list[nn.Module] = field(default_factory=list)
    tensors: dict[int, tuple[Tensor, str]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # of the modules
    _seen: set[int] = field(default_factory=set)
    _held: list[Any] = field(default_factory=list)  # so that no number in `_seen` is given out twice

    def visit(self, value: Any, name: str, depth: int = 0) -> None:
        """Look at a value and at what it holds."""
        if depth > DEEPEST or id(value) in self._seen or isinstance(value, type | ModuleType | str | int | float):
            return
        self._seen.add(id(value))
        self._held.append(value)
        if isinstance(value, Tensor):
            self.tensors[id(value)] = (value, name)
        elif isinstance(value, nn.Module):
            self._module(value, name, depth)
        else:
            for inner, inside in _held_by(value):
                self.visit(inside, inner if inner.isidentifier() else f"{name}{inner}", depth + 1)

    def _module(self, module: nn.Module, name: str, depth: int) -> None:
        for path, part in module.named_modules(remove_duplicate=True):
            if any(part is known for known in self.modules):
                continue
            self.modules.append(part)
            self.names[id(part)] = ".".join(filter(None, (name, path)))
            self._seen.add(id(part))
            for key, value in vars(part).items():
                if key not in OWN_KEYS:  # plain attributes: constants, lists of modules that are not registered
                    self.visit(value, ".".join(filter(None, (name, path, key))), depth + 1)


def _held_by(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, partial):
        return [("func", value.func), *((f"[{n}]", v) for n, v in enumerate(value.args)), *value.keywords.items()]
    if isinstance(value, MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, FunctionType):
        return _named_by(value)
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", inside) for key, inside in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{number}]", inside) for number, inside in enumerate(value)]
    if _is_library(type(value)):
        return []
    return [(str(key), inside) for key, inside in getattr(value, "__dict__", {}).items()]


def _named_by(function: FunctionType) -> list[tuple[str, Any]]:
    if _is_library(function):
        return []
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = [(name, cell.cell_contents) for name, cell in cells if _is_filled(cell)]
    found += [("default", value) for value in function.__defaults__ or ()]
    found += list((function.__kwdefaults__ or {}).items())
    known = function.__globals__
    return found + [(name, known[name]) for name in _names_in(function.__code__) if name in known]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False


def _names_in(code: CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _names_in(constant)
    return names


def _is_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", None)).split(".")[0] in LIBRARIES
