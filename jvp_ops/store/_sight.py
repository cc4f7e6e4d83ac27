"""What a fingerprint sees of a value: its content, through everything that it holds, and what it cannot see.

Nothing depends on addresses, on the order of sets, or on which of two equal objects is meant, so that two processes
see the same.
"""

import hashlib
import inspect
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jvp_ops.store._atoms import atom, bound_to, digest, name_of, title
from jvp_ops.store._code import Chain, instructions, is_library, is_ours, module_of, outer_names
from jvp_ops.store._hash import sha256_of

DEEPEST = 48  # values in one another
_PLAIN_MODULE = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_DATA = (tuple, list, dict, set, frozenset, Tensor, np.ndarray)
_ACTIVE: ContextVar["Sight | None"] = ContextVar("active sight", default=None)


class Sight:
    """Looks at values; what it cannot see is added to `unseen`, by type.

    Parameters
    ----------
    home : str
        A module whose functions are looked into although it may be an installed one.
    theta : iterable of Tensor
        Tensors that are varied, and so no part of what a function is.
    """

    def __init__(self, home: str = "", theta: Iterable[Tensor] = ()) -> None:
        self.unseen: set[str] = set()
        self._home, self._theta = home, {id(tensor): tensor for tensor in theta}
        self._known: dict[tuple[int, bool], tuple[Any, str]] = {}  # with the object, so that its id stays its own
        self._path: list[int] = []
        self._outer = _ACTIVE.get()  # who asked for an identity, of which this is a part

    def see(self, value: Any, *, inside: bool = False) -> str:
        """Give a text that is the same for the same content.

        Parameters
        ----------
        value
            Anything. One that holds itself is named by how far above it is.
        inside : bool
            Look at the attributes of an object of whatever class.
        """
        if (text := atom(value)) is not None:
            return text
        key = (id(value), inside)
        if key in self._known:
            return self._known[key][1]
        if id(value) in self._path:
            return f"{len(self._path) - self._path.index(id(value))} above"
        if len(self._path) == DEEPEST:
            return self.not_seen(f"what lies deeper than {DEEPEST}")
        self._path.append(id(value))
        try:
            text = digest(name_of(type(value)), *self._look(value, inside))
        finally:
            self._path.pop()
        self._known[key] = (value, text)
        return text

    def not_seen(self, what: str) -> str:
        """Take note of what cannot be seen."""
        self.unseen.add(what)
        if self._outer is not None:
            self._outer.not_seen(what)
        return f"unseen: {what}"

    def _all(self, values: Iterable[Any]) -> Iterator[str]:
        return (self.see(value) for value in values)

    def _items(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[str]:
        return self._all(part for pair in pairs for part in pair)

    def _look(self, value: Any, inside: bool) -> Iterator[str]:
        """Go through what a value is made of, as texts."""
        if isinstance(value, Tensor):
            yield self._tensor(value)
        elif isinstance(value, np.ndarray):
            yield from self._array(value)
        elif isinstance(value, Mapping):
            yield from self._items(value.items())
        elif isinstance(value, tuple | list | deque):
            yield from self._all(value)
        elif isinstance(value, set | frozenset):
            yield from sorted(self._all(value))
        elif isinstance(value, partial):
            yield from self._all((value.func, value.args))
            yield from self._items(sorted(value.keywords.items()))
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, MethodType):
            yield from (self.see(value.__func__), self.see(value.__self__, inside=True))
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, weakref.ReferenceType):
            yield self.see(value())
        else:
            yield from self._object(value, inside)

    def _object(self, value: Any, inside: bool) -> Iterator[str]:
        kind = type(value)
        if _has_identity(value):
            yield from (self.see(kind), self._identity_of(value))
        elif isinstance(value, ModuleType):
            yield value.__name__ if is_library(value.__name__) else self.not_seen(f"module {value.__name__}")
        elif callable(value) and bound_to(value) is not None:
            yield from (title(value), self.see(bound_to(value)))
        elif isinstance(value, np.ufunc):
            yield value.__name__ if _is_known_ufunc(value) else self.not_seen(f"ufunc {value.__name__}")
        elif callable(value) and kind.__module__.startswith("torch._ops"):
            yield title(value)  # it holds caches alone
        elif kind.__module__ in ("torch._C", "torch.jit"):
            yield self.not_seen(name_of(kind))
        elif inside or callable(value) or isinstance(value, SimpleNamespace) or hasattr(kind, "__dataclass_fields__"):
            yield from (title(value), self.see(kind))
            yield from self._items(_attributes(value))
        else:
            yield self.not_seen(name_of(kind))

    def _identity_of(self, value: Any) -> str:
        """Ask a loss or a map for its identity, unless that is what asks."""
        asking = self._outer
        while asking is not None:
            if id(value) in asking._path:
                return "what asks"
            asking = asking._outer
        token = _ACTIVE.set(self)
        try:
            return self.see(value.identity())
        finally:
            _ACTIVE.reset(token)

    def _tensor(self, tensor: Tensor) -> str:
        if id(tensor) in self._theta:
            return "θ"
        try:
            if tensor.layout == torch.sparse_coo:
                whole = tensor.detach().coalesce()
                return f"{tuple(whole.shape)} {sha256_of(whole.indices(), whole.values())}"
            return sha256_of(tensor)
        except (RuntimeError, TypeError, NotImplementedError):  # of another layout, or without values
            return self.not_seen(f"{name_of(type(tensor))} of {tensor.layout} on {tensor.device.type}")

    def _array(self, array: "np.ndarray[Any, Any]") -> Iterator[str]:
        yield from (array.dtype.str, str(array.shape))
        if array.dtype.hasobject:
            yield from self._all(array.ravel().tolist())
        else:
            yield hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()

    def _module(self, module: nn.Module) -> Iterator[str]:
        for name, part in module.named_modules():
            yield from (name, self.see(type(part)))
            yield from self._items((key, own) for key, own in sorted(vars(part).items()) if key not in _PLAIN_MODULE)
            yield from (text for key in _HOOKS for text in self._all(vars(part)[key].values()))
        yield from self._items((*module.named_parameters(), *module.named_buffers()))

    def _class(self, kind: type) -> Iterator[str]:
        """Look at the methods and plain attributes of a class of the user's; of others, at the code of `forward`."""
        for base in kind.__mro__:
            yield name_of(base)
            own: list[tuple[str, Any]] = sorted(vars(base).items())
            if is_library(base.__module__):
                yield from (self._code(m.__code__) for name, m in own if name == "forward" and hasattr(m, "__code__"))
                continue
            for name, member in own:
                if (inner := _functions_in(member)) is not None:
                    yield name
                    yield from self._all(inner)
                elif not _is_made_for(base, name, member):
                    yield from (name, self.see(member))

    def _function(self, function: FunctionType) -> Iterator[str]:
        code = function.__code__
        yield from (title(function), self._code(code), self.see(function.__defaults__))
        yield from self._items(sorted((function.__kwdefaults__ or {}).items()))
        names, own = outer_names(code), title(function)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                yield f"{name} is empty"
                continue
            changed = ("variable", name) in names.changed
            yield from self._named(name, value, own if changed else None, names.variables)
        module, outer = module_of(function), function.__globals__
        if is_ours(module) or (module != self._home and is_library(module)):
            return
        for name in dict.fromkeys(chain[0] for chain in names.globals):
            if name in outer and not name.startswith("__"):
                changed = ("global", name) in names.changed
                yield from self._named(name, outer[name], own if changed else None, names.globals)
        yield from self._items((key, held) for key, held in sorted(vars(function).items()) if key != "__wrapped__")

    def _named(self, name: str, value: Any, changed_by: str | None, chains: Iterable[Chain]) -> Iterator[str]:
        """Look at what a function knows by a name; of a module, at what the function takes of it."""
        yield name
        if changed_by is not None:
            yield self.not_seen(f"the variable {name} that {changed_by} changes")
        elif isinstance(value, ModuleType):
            yield from (self._attribute(value, chain) for chain in chains if chain[0] == name)
        else:
            yield self.see(value)

    def _attribute(self, value: Any, chain: Chain) -> str:
        """Follow names through modules as far as these are the user's, and look at what is found there."""
        for name in chain[1:]:
            if not isinstance(value, ModuleType):
                break
            if is_library(value.__name__):
                return ".".join(chain)
            value = getattr(value, name, None)
        return f"{'.'.join(chain)} {self.see(value)}"

    def _code(self, code: CodeType) -> str:
        constants = [self._code(part) if isinstance(part, CodeType) else self.see(part) for part in code.co_consts]
        return digest(*map(repr, instructions(code)), *constants)


def _has_identity(value: Any) -> bool:
    """Say whether a value is a loss, a map or an operator of this package, which name themselves."""
    ours = any(base.__module__.startswith("jvp_ops.") for base in type(value).__mro__)
    return ours and callable(getattr(value, "identity", None))


def _is_known_ufunc(value: np.ufunc) -> bool:
    """Say whether a ufunc is numpy's or scipy's own, rather than made of a function of the user's."""
    return any(getattr(sys.modules.get(home), value.__name__, None) is value for home in ("numpy", "scipy.special"))


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """List an object's attributes; what it has only computed once is no part of it."""
    bases = type(value).__mro__
    listed = [vars(base).get("__slots__", ()) for base in bases]
    slots = [name for names in listed for name in ((names,) if isinstance(names, str) else names)]
    held = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    computed = {name for base in bases for name, m in vars(base).items() if isinstance(m, cached_property)}
    return [(name, held[name]) for name in sorted(held) if name not in computed]


def _functions_in(member: Any) -> tuple[Any, ...] | None:
    """Give the functions behind what stands in a class: none where it was generated, None where it is no function."""
    if isinstance(member, FunctionType):
        return () if member.__code__.co_filename == "<string>" else (member,)
    if isinstance(member, staticmethod | classmethod):
        return (member.__func__,)
    if isinstance(member, property):
        return (member.fget, member.fset)
    return (member.func,) if isinstance(member, cached_property) else None


def _is_made_for(kind: type, name: str, member: Any) -> bool:
    """Say whether Python or a metaclass put an attribute into a class: descriptors, counters and caches among them."""
    if name.startswith("__") and name.endswith("__"):
        return True
    if inspect.isdatadescriptor(member) and is_library(type(member).__module__):
        return True
    return name.startswith("_") and type(kind) is not type and atom(member) is None and not isinstance(member, _DATA)
