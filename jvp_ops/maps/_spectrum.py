"""Eigenvalues of a map's Jacobian from those of the Hessian, where a quadratic gives them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jvp_ops.errors import InputError


def curvatures(h: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Accept eigenvalues of a Hessian: finite real numbers."""
    values: Any = h.detach().cpu().numpy() if isinstance(h, Tensor) else np.asarray(h)
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(f"h must hold finite real eigenvalues of the Hessian, not {h!r}")
    return np.asarray(values, dtype=np.float64)


def roots(trace: NDArray[np.float64], product: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Solve μ² − trace μ + product = 0 without cancellation: shape (..., 2).

    The root of larger modulus stands first; of a complex pair, the one above the real axis.
    """
    half = trace / 2
    discriminant = half**2 - product
    spread = np.sqrt(np.abs(discriminant))
    first = np.where(discriminant < 0, half + 1j * spread, half + np.copysign(spread, half))
    with np.errstate(divide="ignore", invalid="ignore"):
        second = np.where(first == 0, 0, product / first)
    return np.stack([first, np.where(discriminant < 0, first.conj(), second)], axis=-1)
