"""Fingerprints: a result says what it was computed from, and what does not match is refused."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import nn

from jvp_ops._version import __version__
from jvp_ops.store._atoms import bound_to, title
from jvp_ops.store._code import module_of
from jvp_ops.store._sight import Sight


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash an identity (see ``TensorOperator.identity``) together with the version of jvp_ops.

    >>> fingerprint({"lr": 0.1}) == fingerprint({"lr": 0.1}), fingerprint({"lr": 0.1}) == fingerprint({"lr": 0.2})
    (True, False)
    """
    text = json.dumps({"jvp_ops": __version__, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def callable_identity(function: Callable[..., Any]) -> str:
    """Name a function and hash what it does: its code, and the values that it holds.

    Seen are defaults, what it closes over, the attributes of callable objects, the arguments of a `partial`, the
    globals that it names, and the functions that it calls, with theirs: numbers, text, containers, arrays, tensors,
    modules with their parameters and buffers, classes, dataclasses. Of installed code, only the function itself is
    looked at. What cannot be seen (files, arbitrary objects, a variable that the function itself changes) is named by
    its type. A list or dict that the function fills as it runs makes it another function.

    >>> def scaled(factor, held):
    ...     return lambda x: (factor * x, held)
    >>> callable_identity(scaled(2, None)) == callable_identity(scaled(3, None))
    False
    >>> callable_identity(scaled(2, object())).partition(" ")[2]
    '(unseen: builtins.object)'
    >>> callable_identity(abs)
    'builtins.abs'
    """
    if isinstance(function, BuiltinFunctionType) and bound_to(function) is None:
        return title(function)
    sight = Sight(_home(function))
    name = f"partial({title(function.func)})" if isinstance(function, partial) else title(function)
    return _identity(name, sight.see(function), sight)


def module_identity(module: nn.Module) -> str:
    """Hash a module's classes, code, settings and constants, without the parameters that require gradients: θ."""
    sight = Sight(type(module).__module__, (p for p in module.parameters() if p.requires_grad))
    return _identity(type(module).__qualname__, sight.see(module), sight)


def _identity(name: str, seen: str, sight: Sight) -> str:
    unseen = f" (unseen: {', '.join(sorted(sight.unseen))})" if sight.unseen else ""
    return f"{name}:{seen[:24]}{unseen}"


def _home(function: Any) -> str:
    """Name the module that a callable comes from."""
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    return module_of(function) if isinstance(function, FunctionType) else type(function).__module__
