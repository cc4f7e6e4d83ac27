"""Hashes of tensors."""

import hashlib

import torch
from torch import Tensor


def sha256_of(*tensors: Tensor) -> str:
    """Hash tensors' dtypes, shapes and values; the same wherever they live."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Give a tensor's values as bytes, of whatever dtype it is."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    flat = plain.contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one number may be called contiguous whatever its stride
    return flat.view(torch.uint8).numpy().data
