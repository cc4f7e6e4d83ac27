"""Fingerprints: a result says what it was computed from, and what does not match is refused."""

import hashlib
import json
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor

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
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash an identity (see ``TensorOperator.identity``) together with the version of jvp_ops.

    >>> fingerprint({"lr": 0.1}) == fingerprint({"lr": 0.1}), fingerprint({"lr": 0.1}) == fingerprint({"lr": 0.2})
    (True, False)
    """
    text = json.dumps({"jvp_ops": __version__, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def callable_identity(function: Callable[..., Any]) -> str:
    """Name a function and hash its compiled code; values it closes over are not seen.

    >>> callable_identity(abs)
    'builtins.abs'
    """
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None)
    if name is None:  # a callable object, such as nn.CrossEntropyLoss()
        return f"{type(function).__module__}.{function!r}"
    return f"{function.__module__}.{name}" + (f":{_code_sha256(code)[:16]}" if code is not None else "")


def _code_sha256(code: CodeType) -> str:
    digest = hashlib.sha256(code.co_code + repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        nested = isinstance(constant, CodeType)  # whose own repr holds an address
        digest.update((_code_sha256(constant) if nested else repr(constant)).encode())
    return digest.hexdigest()
