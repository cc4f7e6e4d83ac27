"""Fingerprints: a result says what it was computed from, and what does not match is refused."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops._version import __version__


def sha256_of(*tensors: Tensor) -> str:
    """Hash tensors' dtypes, shapes and values; the same wherever they live."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Give a tensor's values as bytes, of whatever dtype it is."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one number may be called contiguous whatever its stride
    return flat.view(torch.uint8).numpy().data


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash an identity (see ``TensorOperator.identity``) together with the version of jvp_ops.

    >>> fingerprint({"lr": 0.1}) == fingerprint({"lr": 0.1}), fingerprint({"lr": 0.1}) == fingerprint({"lr": 0.2})
    (True, False)
    """
    text = json.dumps({"jvp_ops": __version__, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def callable_identity(function: Callable[..., Any]) -> str:
    """Name a function and hash its compiled code, defaults and settings; values it closes over are not seen.

    >>> callable_identity(abs)
    'builtins.abs'
    """
    if isinstance(function, partial):
        bound = [repr(value) for value in (*function.args, *sorted(function.keywords.items()))]
        return f"partial({callable_identity(function.func)}, {', '.join(bound)})"
    if isinstance(function, nn.Module):
        return module_identity(function)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None)
    if name is None:
        return f"{type(function).__module__}.{_without_address(repr(function))}"
    if code is None:
        return f"{function.__module__}.{name}"
    defaults = _without_address(repr((function.__defaults__, function.__kwdefaults__)))
    return f"{function.__module__}.{name}:{_code_sha256(code)[:16]}:{hashlib.sha256(defaults.encode()).hexdigest()[:8]}"


def module_identity(module: nn.Module) -> str:
    """Hash a module's classes, code and plain settings; its parameters and buffers are hashed elsewhere."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        forward = getattr(type(part).forward, "__code__", None)
        plain = {k: v for k, v in sorted(vars(part).items()) if isinstance(v, bool | int | float | str | tuple | None)}
        digest.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {plain}".encode())
        digest.update((_code_sha256(forward) if forward is not None else "").encode())
    tensors = [t for t in (*module.parameters(), *module.buffers()) if not t.requires_grad]
    return f"{type(module).__qualname__}:{digest.hexdigest()[:16]}:{sha256_of(*tensors)[:8]}"


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _code_sha256(code: CodeType) -> str:
    digest = hashlib.sha256(code.co_code + repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        nested = isinstance(constant, CodeType)  # whose own repr holds an address
        digest.update((_code_sha256(constant) if nested else repr(constant)).encode())
    return digest.hexdigest()
