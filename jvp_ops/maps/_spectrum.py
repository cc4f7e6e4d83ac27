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
