"""Operators of given matrices and of given eigenvalues."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jvp_ops._checks import resolve_dtype
from jvp_ops._random import Rng, generator
from jvp_ops.errors import InputError
from jvp_ops.linear import LinearMap
from jvp_ops.operators import TensorOperator
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of


@dataclass(frozen=True, eq=False)
class Spectrum:
    """An operator with what is known of its eigenvalues.

    Attributes
    ----------
    operator : TensorOperator
    values : ndarray of float64 (ascending) or complex128, shape (n,), or None
        All eigenvalues of the matrix in exact arithmetic, with multiplicity; None where no formula is known.
    """

    operator: TensorOperator
    values: NDArray[Any] | None


def operator_of(
    matrix: ArrayLike | Tensor,
    *,
    symmetric: bool | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    float64: bool = True,
) -> TensorOperator:
    """Make an operator of a dense matrix.

    Parameters
    ----------
    matrix : array_like or Tensor, shape (m, n)
    symmetric : bool, optional
        What it claims to be, true or not; by default whether the matrix equals its transpose.
    dtype : torch.dtype or str, optional
        float32 or float64, to compute in; by default the matrix's own, or else float64.
    device : torch.device or str
    float64 : bool
        Give a float32 operator its counterpart in float64: that of the matrix before it was rounded to float32.

    Raises
    ------
    InputError
        It is no matrix, or said to be symmetric and not square, or the dtype is neither float32 nor float64.

    Examples
    --------
    >>> A = operator_of([[2.0, 1.0], [1.0, 2.0]], dtype="float32")
    >>> A.symmetric, A.torch_dtype, A.in_float64().torch_dtype
    (True, torch.float32, torch.float64)
    """
    given = matrix.detach() if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix))
    if given.ndim != 2 or given.numel() == 0 or (symmetric and given.shape[0] != given.shape[1]):
        kind = "square to be symmetric" if symmetric else "of two dimensions"
        raise InputError(f"matrix must be {kind}, not of shape {tuple(given.shape)}")
    own = given.dtype if given.dtype in (torch.float32, torch.float64) else torch.float64
    exact = given.to(device=device, dtype=torch.float64)
    claimed = given.shape[0] == given.shape[1] and torch.equal(exact, exact.mT) if symmetric is None else symmetric

    def in_dtype(stored: torch.dtype) -> TensorOperator:
        rounded = exact.to(stored)
        return _operator(
            lambda V: rounded @ V,
            lambda U: rounded.mT @ U,
            rounded,
            symmetric=claimed,
            columns=rounded.shape[1],
            in_float64=(lambda: in_dtype(torch.float64).linear) if float64 and stored == torch.float32 else None,
        ).made_by(partial(operator_of, symmetric=claimed, dtype=stored, device=device, float64=float64), exact)

    return in_dtype(own if dtype is None else resolve_dtype(dtype))


def conjugated(
    values: ArrayLike,
    *,
    dtype: torch.dtype | str = torch.float64,
    device: torch.device | str = "cpu",
    float64: bool = True,
    rng: Rng = 0,
) -> Spectrum:
    r"""Make a symmetric operator of any eigenvalues, with products of O(n) operations and no n × n matrix.

    .. math::  A = P \operatorname{diag}(λ) P, \qquad P = I - 2 u u^T,

    with a random unit vector u. Its eigenvectors are the columns of the reflection P.

    Parameters
    ----------
    values : array_like, shape (n,)
        λ.
    dtype, device, float64
        As in `operator_of`.
    rng : int or numpy Generator
        Draws u.

    Examples
    --------
    >>> conjugated([3.0, 1.0, 1.0]).values.tolist()
    [1.0, 1.0, 3.0]
    """
    listed = np.array(values, dtype=np.float64)
    u = generator(rng).standard_normal(len(listed))
    exact = torch.from_numpy(np.stack([listed, u / np.linalg.norm(u)])).to(device)

    def in_dtype(stored: torch.dtype) -> TensorOperator:
        diagonal, unit = exact.to(stored)[:, :, None]

        def apply(V: Tensor) -> Tensor:
            reflected = diagonal * (V - 2 * unit * (unit.mT @ V))
            mirrored: Tensor = reflected - 2 * unit * (unit.mT @ reflected)
            return mirrored

        wide = (lambda: in_dtype(torch.float64).linear) if float64 and stored == torch.float32 else None
        data = torch.cat([diagonal, unit], dim=1)
        return _operator(apply, apply, data, symmetric=True, columns=len(unit), in_float64=wide)

    return Spectrum(in_dtype(resolve_dtype(dtype)), np.sort(listed))


def _operator(
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    data: Tensor,
    *,
    symmetric: bool,
    columns: int,
    in_float64: Callable[[], LinearMap] | None,
) -> TensorOperator:
    rows, layout = Parameters.without_names(len(data)), Parameters.without_names(columns)

    def identity() -> dict[str, Any]:
        return {"testing": sha256_of(data), "dtype": str(data.dtype), "symmetric": symmetric}

    linear = LinearMap(apply, adjoint, rows, layout, data.dtype, data.device, symmetric, identity, in_float64)
    return TensorOperator(linear)
