"""Clipping a gradient to a norm, and its derivative."""

import warnings

import torch
from torch import Tensor

from jvp_ops._checks import finite_number
from jvp_ops.errors import InputError, JvpOpsWarning
from jvp_ops.linear import LinearMap, rank_one
from jvp_ops.parameters import Parameters

ADDED = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


def checked_clip(clip: float | None) -> float | None:
    """Accept None, or a norm above 0."""
    if clip is None:
        return None
    most = finite_number(clip, "clip")
    if most <= 0:
        raise InputError(f"clip must be a norm above 0, or None for no clipping, not {clip!r}")
    return most


def clip_to(g: Tensor, most: float | None) -> Tensor:
    """Clip g to the norm `most`, as torch.nn.utils.clip_grad_norm_ does."""
    if most is None:
        return g
    coefficient: Tensor = most / (torch.linalg.vector_norm(g) + ADDED)
    return g * coefficient.clamp(max=1.0)


def clipping_at(g: Tensor, most: float | None, parameters: Parameters) -> LinearMap | None:
    r"""Differentiate the clipping g ↦ c g/(‖g‖ + ε) at g; None where it changes nothing.

    It is s (I − ρ ĝĝᵀ), with s = c/(‖g‖ + ε), ρ = ‖g‖/(‖g‖ + ε) and ĝ = g/‖g‖.

    Exactly at the threshold, where the two one-sided derivatives differ, it warns and takes the unclipped side.
    """
    if most is None:
        return None
    norm = torch.linalg.vector_norm(g)
    scale = float(most / (norm + ADDED))
    if scale == 1:
        warnings.warn(
            f"the gradient's norm {float(norm):.6g} is exactly at the clipping threshold {most:g}, where the step has "
            "a kink: the derivative is that of the unclipped side",
            JvpOpsWarning,
            stacklevel=3,
        )
    if scale >= 1:
        return None
    unit = g / norm.clamp(min=torch.finfo(g.dtype).tiny)
    return rank_one(unit, parameters, shift=scale, scale=-scale * float(norm / (norm + ADDED)))
