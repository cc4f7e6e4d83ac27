"""Operators that no loss made: the identity, diagonals, and what scipy and numpy hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from jvp_ops._checks import FLOATS, check_finite, positive_int, resolve_device, resolve_dtype
from jvp_ops.errors import InputError
from jvp_ops.linear import Apply, LinearMap, diagonal, identity_map, no_adjoint
from jvp_ops.operators._tensor_operator import TensorOperator
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of

PROBES = 2


def identity(
    parameters: Parameters | int,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
) -> TensorOperator:
    """Make the identity I on parameters, an operator of ours to compose with.

    Parameters
    ----------
    parameters : Parameters or int
        The layout, such as ``loss.parameters``; or a size.
    dtype, device
        Of the operators that it is to be composed with; by default float32 and the CPU.

    Raises
    ------
    InputError
        Neither a layout nor a size of at least 1; an unknown dtype or device.

    Examples
    --------
    >>> import jvp_ops as jo
    >>> (3 * jo.identity(2)).dense()
    tensor([[3., 0.],
            [0., 3.]])
    """
    layout = parameters
    if not isinstance(layout, Parameters):
        layout = Parameters.without_names(positive_int(layout, "parameters"))
    made = TensorOperator(identity_map(layout, resolve_dtype(dtype), resolve_device(device)))
    return made.made_by(partial(identity, dtype=dtype, device=device), layout)


def diagonal_operator(d: Tensor | Mapping[str, Tensor], parameters: Parameters | None = None) -> TensorOperator:
    """Make the operator v ↦ d v, entry by entry; symmetric.

    Parameters
    ----------
    d : Tensor, shape (n,), or mapping of str to Tensor
        The diagonal, in float32 or float64, on the device that it is to be multiplied on; or one tensor for each
        parameter, by name, in the parameters' order.
    parameters : Parameters, optional
        The layout of the n entries; without it they meet those of any operator of their size.

    Raises
    ------
    InputError
        Not a vector of float32 or float64, or not of the layout's size or names.
    NonFiniteError
        It holds NaN or Inf.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> D = jo.diagonal_operator(torch.tensor([1.0, 2.0]))
    >>> (D @ D + jo.identity(2)).dense().diagonal()
    tensor([2., 5.])
    """
    if isinstance(d, Mapping):
        shapes = {name: tuple(tensor.shape) for name, tensor in d.items()}
        parameters = Parameters.of(shapes) if parameters is None else parameters
        if {entry.name: entry.shape for entry in parameters} != shapes:
            raise InputError(f"d is of {Parameters.of(shapes)}, but parameters is {parameters}")
        d = parameters.flatten(d)
    if not isinstance(d, Tensor) or d.ndim != 1 or d.dtype not in FLOATS or d.numel() == 0:
        given = f"{d.dtype} of shape {tuple(d.shape)}" if isinstance(d, Tensor) else type(d).__name__
        raise InputError(f"d must be a vector of float32 or float64, not {given}")
    layout = Parameters.without_names(len(d)) if parameters is None else parameters
    if layout.size != len(d):
        raise InputError(f"d holds {len(d)} numbers, but the parameters are {layout.size}")
    check_finite(d, "d")
    kept = d.detach().clone()
    return TensorOperator(diagonal(kept, layout)).made_by(diagonal_operator, kept, layout)


def as_operator(operator: Any, *, symmetric: bool | None = None) -> TensorOperator:
    """Take any operator, sparse matrix or array as an operator of ours, on the CPU and in its own dtype.

    Parameters
    ----------
    operator : TensorOperator, scipy LinearOperator, sparse matrix or array, numpy array, or Tensor
        Real, of two dimensions. Products are its own (``A @ V`` and ``A.T @ U``); integers are taken in float64.
        Matrices and arrays are copied; a TensorOperator is given back as it is.
    symmetric : bool, optional
        Whether it equals its transpose. By default that is looked up in a matrix or array; of a LinearOperator it
        has to be said. What is said of a matrix is checked here, and of a LinearOperator when eigenpairs are found.

    Raises
    ------
    InputError
        It is none of these, or complex, or said to be symmetric and not square.

    Examples
    --------
    >>> import jvp_ops as jo, numpy as np, scipy.sparse.linalg as sla
    >>> jo.as_operator(np.diag([1.0, 2.0])).symmetric
    True
    >>> shift = sla.LinearOperator((3, 3), matvec=lambda x: np.roll(x, 1), rmatvec=lambda x: np.roll(x, -1))
    >>> jo.as_operator(shift).dense().tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    if isinstance(operator, TensorOperator):
        if symmetric is not None and symmetric != operator.symmetric:
            claimed = "symmetric" if operator.symmetric else "not symmetric"
            raise InputError(f"symmetric={symmetric} was said of {operator!r}, which is {claimed}")
        return operator
    if isinstance(operator, np.ndarray | Tensor) or scipy.sparse.issparse(operator):
        operator = operator.detach().clone() if isinstance(operator, Tensor) else operator.copy()
    return _adopted(operator, symmetric).made_by(partial(as_operator, symmetric=symmetric), operator)


def _adopted(operator: Any, symmetric: bool | None) -> TensorOperator:
    if isinstance(operator, Tensor):
        return _of_tensor(operator, symmetric)
    if not (isinstance(operator, LinearOperator | np.ndarray) or scipy.sparse.issparse(operator)):
        raise InputError(
            "operator must be a jvp_ops operator such as map.jacobian(theta), a scipy LinearOperator, a sparse matrix "
            f"or an array, not {type(operator).__name__}"
        )
    if len(operator.shape) != 2 or 0 in operator.shape:
        raise InputError(f"an operator has rows and columns, not the shape {tuple(operator.shape)}")
    given = np.dtype(operator.dtype if operator.dtype is not None else np.float64)
    if given.kind not in "fiub":
        raise InputError(f"operators here are real, not of dtype {given}: take the real and imaginary parts apart")
    if isinstance(operator, np.ndarray):
        whole = operator.astype(np.float32 if given == np.float32 else np.float64, copy=False)
        return _of_tensor(torch.from_numpy(whole), symmetric)
    if scipy.sparse.issparse(operator) and operator.shape[0] == operator.shape[1]:
        gap = abs(operator - operator.T).tocsr()
        largest = float(gap.max()) if gap.nnz else 0.0
        symmetric = _is_symmetric(symmetric, largest, float(abs(operator).tocsr().max()), given)
    return _of_scipy(operator, torch.float32 if given == np.float32 else torch.float64, bool(symmetric))


def dense(operator: Any, *, symmetric: bool | None = None, out: str | Path | None = None, **options: Any) -> Any:
    """Assemble any operator, sparse matrix or array, in memory or in a file: ``as_operator(A).dense(…)``.

    Parameters
    ----------
    operator, symmetric
        As in `as_operator`.
    out : str or Path, optional
        A new ``.npy`` file to write to.
    **options
        Of ``TensorOperator.dense``.

    Examples
    --------
    >>> import jvp_ops as jo, scipy.sparse
    >>> jo.dense(scipy.sparse.eye_array(2))
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    return as_operator(operator, symmetric=symmetric).dense(out=out, **options)


def _of_tensor(matrix: Tensor, symmetric: bool | None) -> TensorOperator:
    if matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_complex() or matrix.layout != torch.strided:
        raise InputError(f"an operator is a real dense matrix, not {matrix.dtype} of shape {tuple(matrix.shape)}")
    M = matrix.to(matrix.dtype if matrix.dtype in FLOATS else torch.float64)
    if M.shape[0] == M.shape[1]:
        gap = float((M - M.mT).abs().max())
        symmetric = _is_symmetric(symmetric, gap, float(M.abs().max()), M.dtype)
    like = _Like((M.shape[0], M.shape[1]), M.dtype, M.device, bool(symmetric))
    wide = (lambda: _of_tensor(M.double(), symmetric).linear) if M.dtype == torch.float32 else None
    return like.operator(lambda V: M @ V, lambda U: M.mT @ U, lambda: sha256_of(M), wide)


def _is_symmetric(said: bool | None, gap: float, largest: float, dtype: Any) -> bool:
    """Hold what was said of a matrix against its entries; or look it up."""
    if said and gap > float(np.finfo(np.float32 if "32" in str(dtype) else np.float64).eps) ** 0.5 * largest:
        raise InputError(
            f"symmetric=True was said of a matrix whose entries differ from their mirrors by up to {gap:.3g}: "
            "leave it out, or pass (A + A.T) / 2"
        )
    return gap == 0 if said is None else said


def _of_scipy(operator: Any, dtype: torch.dtype, symmetric: bool) -> TensorOperator:
    like = _Like((operator.shape[0], operator.shape[1]), dtype, torch.device("cpu"), symmetric)

    def multiply(multiplied: Any, V: Tensor) -> Tensor:
        # an array of its own: a user's product may give back what it was given
        return torch.from_numpy(np.array(multiplied @ V.numpy())).to(dtype).reshape(-1, V.shape[1])

    def seen() -> str:
        random = np.random.default_rng(0).standard_normal((operator.shape[1], PROBES))
        return f"{type(operator).__name__} {sha256_of(multiply(operator, torch.from_numpy(random).to(dtype)))}"

    wide: Callable[[], LinearMap] | None = None
    if scipy.sparse.issparse(operator) and dtype == torch.float32:

        def wide() -> LinearMap:
            return _of_scipy(operator.astype(np.float64), torch.float64, symmetric).linear

    try:
        multiply(operator.T, torch.zeros(operator.shape[0], 1, dtype=dtype))
    except (NotImplementedError, TypeError) as error:
        if isinstance(error, TypeError) and "'NoneType' object is not callable" not in str(error):
            raise  # what scipy 1.18 says where there is none
        return like.operator(lambda V: multiply(operator, V), no_adjoint, seen, wide)
    return like.operator(lambda V: multiply(operator, V), lambda U: multiply(operator.T, U), seen, wide)


@dataclass(frozen=True)
class _Like:
    """What an operator of somebody else's is like."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    symmetric: bool

    def operator(
        self, apply: Apply, adjoint: Apply, seen: Callable[[], str], wide: Callable[[], LinearMap] | None
    ) -> TensorOperator:
        if self.symmetric and self.shape[0] != self.shape[1]:
            raise InputError(f"symmetric=True was said of an operator of shape {self.shape[0]} × {self.shape[1]}")
        rows, columns = (Parameters.without_names(size) for size in self.shape)
        known = {"shape": list(self.shape), "dtype": str(self.dtype), "symmetric": self.symmetric}
        return TensorOperator(
            LinearMap(
                apply,
                adjoint,
                rows,
                columns,
                self.dtype,
                self.device,
                self.symmetric,
                identity=lambda: {"matrix": seen(), **known},
                in_float64=wide,
            )
        )
