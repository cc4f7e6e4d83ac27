"""Randomness: one ``rng=`` option, drawn by numpy so that every device sees the same numbers."""

from typing import TYPE_CHECKING

import numpy as np

from jvp_ops.errors import InputError

if TYPE_CHECKING:
    import torch

Rng = int | np.random.Generator


def generator(rng: Rng) -> np.random.Generator:
    """Accept a seed or a numpy Generator."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        raise InputError(f"rng must be a seed (an integer, at least 0) or a numpy Generator, not {rng!r}")
    return np.random.default_rng(rng)


def normal(rng: np.random.Generator, *shape: int, dtype: "torch.dtype", device: "torch.device") -> "torch.Tensor":
    """Draw standard normal numbers of `shape`, the same on every device for one seed."""
    import torch  # here, since data sets draw without torch

    return torch.from_numpy(rng.standard_normal(shape)).to(device=device, dtype=dtype)
