"""Scipy's side of an operator: numpy arrays in and out, and algebra that stays with us where it can."""

from collections.abc import Callable, Mapping
from numbers import Complex, Integral, Real
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.linear import Apply, LinearMap, power, product, shifted, summed
from jvp_ops.operators._directions import are_tensors, multiplied, multiplied_along_last


class ScipyContract(LinearOperator):  # type: ignore[misc]
    """What scipy asks of a LinearOperator, over torch products; `TensorOperator` is the class that users meet."""

    linear: LinearMap
    args: tuple[LinearOperator, ...] = ()  # scipy's attribute: the operands of a sum or product

    def _composed(self, linear: LinearMap, *operands: Any, recipe: Any) -> Any:
        """Make the operator of a composed map; given by `TensorOperator`."""
        raise NotImplementedError

    def _product(self, product: Apply, V: Tensor, size: int) -> Tensor:
        """Multiply and check, given by `TensorOperator`."""
        raise NotImplementedError

    # --- numpy arrays ------------------------------------------------------------------------------------------

    def _numpy(self, side: Callable[..., Any], how: Callable[..., Any], x: Any) -> Any:
        """Multiply an array as `side` and `how` multiply a tensor, in batches too, which scipy 1.18 hands on."""
        x = np.asarray(x)
        if np.iscomplexobj(x):
            return self._numpy(side, how, x.real) + 1j * self._numpy(side, how, x.imag)
        return side(torch.from_numpy(np.array(x, dtype=self.dtype)).to(self.linear.device), how).cpu().numpy()

    def _matvec(self, x: Any) -> Any:
        return self._numpy(self._forward, multiplied_along_last, x)

    def _rmatvec(self, x: Any) -> Any:
        return self._numpy(self._backward, multiplied_along_last, x)

    def _matmat(self, X: Any) -> Any:
        return self._numpy(self._forward, multiplied, X)

    def _rmatmat(self, X: Any) -> Any:
        return self._numpy(self._backward, multiplied, X)

    # --- tensors -----------------------------------------------------------------------------------------------

    def _forward(self, V: Any, how: Callable[..., Any] = multiplied) -> Any:
        linear = self.linear
        return how(lambda W: self._product(linear.apply, W, self.shape[1]), V, linear.columns, linear.rows)

    def _backward(self, U: Any, how: Callable[..., Any] = multiplied) -> Any:
        linear = self.linear
        return how(lambda W: self._product(linear.adjoint, W, self.shape[0]), U, linear.rows, linear.columns)

    def matvec(self, x: Any) -> Any:
        """Multiply a vector, or vectors along the last axis: numpy arrays, or torch tensors on the device."""
        return self._forward(x, multiplied_along_last) if are_tensors(x) else super().matvec(x)

    def rmatvec(self, x: Any) -> Any:
        """Multiply as `matvec` does, by the transpose."""
        return self._backward(x, multiplied_along_last) if are_tensors(x) else super().rmatvec(x)

    def matmat(self, X: Any) -> Any:
        """Multiply the columns of a numpy array, or of a torch tensor on the device."""
        return self._forward(X) if are_tensors(X) else super().matmat(X)

    def rmatmat(self, X: Any) -> Any:
        """Multiply the columns of a numpy array, or of a torch tensor on the device, by the transpose."""
        return self._backward(X) if are_tensors(X) else super().rmatmat(X)

    def rdot(self, x: Any) -> Any:
        """Multiply from the left, x A: rows of an array or tensor, shape (rows,) or (…, m, rows)."""
        if isinstance(x, Tensor) and x.ndim > 1:
            return self._backward(x.mT).mT
        if are_tensors(x):
            return self._backward(x)
        return super().rdot(x) if hasattr(LinearOperator, "rdot") else super().__rmul__(x)  # which scipy 1.18 has

    # --- algebra -----------------------------------------------------------------------------------------------

    def dot(self, x: Any) -> Any:
        """Multiply an array, a tensor, tensors by parameter name, a number, or another operator."""
        if isinstance(x, ScipyContract):
            return self._composed(product(self.linear, x.linear), self, x, recipe="__matmul__")
        if isinstance(x, str | bytes | Mapping) and not are_tensors(x):
            raise InputError(f"an operator multiplies arrays, tensors (by name too), numbers and operators, not {x!r}")
        if (number := _number(x)) is None:
            return self._forward(x) if are_tensors(x) else super().dot(x)
        if isinstance(number, float):
            if len(self.args) == 2 and isinstance(self.args[1], float):  # of a multiple, as scipy simplifies it
                return self.args[0] * (self.args[1] * number)
            return self._composed(shifted(self.linear, 0.0, number), self, number, recipe="__mul__")
        return super().dot(np.result_type(self.dtype, np.complex64).type(number))

    def __rmul__(self, x: Any) -> Any:
        return self.rdot(x) if _number(x) is None else self.dot(x)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, ScipyContract):
            return self._composed(summed(self.linear, other.linear), self, other, recipe="__add__")
        number = _number(other)
        if number == 0:
            return self
        if number is not None:
            raise InputError(f"an operator and the number {number:g} do not add: A.shifted({number:g}) is A + c·I")
        return super().__add__(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self + (-other)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __neg__(self) -> Any:
        return self * -1

    def __truediv__(self, x: Any) -> Any:
        if (number := _number(x)) is None:
            return super().__truediv__(x)
        if number == 0:
            raise InputError("an operator cannot be divided by zero")
        return self * (1 / number)

    def __pow__(self, exponent: Any) -> Any:
        if not isinstance(exponent, Integral) or exponent < 0:
            raise InputError(f"an operator has powers of integers of at least 0, not {exponent!r}")
        return self._composed(power(self.linear, int(exponent)), self, int(exponent), recipe="__pow__")

    def shifted(self, c: float) -> Any:
        """Give A + c·I, an operator of ours, symmetric where A is.

        Raises
        ------
        InputError
            A is not square, or its rows stand for something else than its columns; c is not a finite real number.

        Examples
        --------
        >>> from jvp_ops.testing import operator_of
        >>> operator_of([[2.0, 1.0], [1.0, 2.0]]).shifted(0.5).dense()
        tensor([[2.5000, 1.0000],
                [1.0000, 2.5000]], dtype=torch.float64)
        """
        number = _number(c)
        if not isinstance(number, float) or not np.isfinite(number):
            raise InputError(f"c must be a finite real number, not {c!r}")
        return self._composed(shifted(self.linear, number), self, number, recipe="shifted")


def _number(x: Any) -> float | complex | None:
    """Read a number, or a tensor or array of no dimensions; None of anything else."""
    if isinstance(x, Tensor | np.ndarray) and x.ndim == 0:
        x = x.item()
    if isinstance(x, Real):
        return float(x)
    return complex(x) if isinstance(x, Complex) else None
