"""Maps that are known entry by entry: the identity, a diagonal, a matrix of rank one."""

import torch
from torch import Tensor

from jvp_ops.linear._map import LinearMap
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of


def identity_map(parameters: Parameters, dtype: torch.dtype, device: torch.device) -> LinearMap:
    """Make I."""
    return LinearMap.symmetric_of(
        torch.clone,
        parameters,
        dtype,
        device,
        identity=lambda: {"identity of order": parameters.size, "dtype": str(dtype)},
        in_float64=lambda: identity_map(parameters, torch.float64, device),
    )


def diagonal(d: Tensor, parameters: Parameters) -> LinearMap:
    """Make the map v ↦ d v, entry by entry."""
    column = d.unsqueeze(1)
    return LinearMap.symmetric_of(
        lambda V: column * V,
        parameters,
        d.dtype,
        d.device,
        identity=lambda: {"diagonal": sha256_of(d), "dtype": str(d.dtype)},
        in_float64=lambda: diagonal(d.double(), parameters),
    )


def rank_one(u: Tensor, parameters: Parameters, *, shift: float = 0.0, scale: float = 1.0) -> LinearMap:
    """Make shift·I + scale·u uᵀ, multiplied in one pass."""
    return LinearMap.symmetric_of(
        lambda V: torch.addr(V, u, u @ V, beta=shift, alpha=scale),
        parameters,
        u.dtype,
        u.device,
        identity=lambda: {"rank one": sha256_of(u), "shift": shift, "scale": scale, "dtype": str(u.dtype)},
        in_float64=lambda: rank_one(u.double(), parameters, shift=shift, scale=scale),
    )
