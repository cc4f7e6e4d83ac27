"""The scipy LinearOperator contract over torch products."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from jvp_ops._checks import check_finite, check_tensor, numpy_dtype, resolve_dtype
from jvp_ops._random import generator, normal
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.operators._dense import assemble, assemble_into
from jvp_ops.operators._linearization import Affine, Linearization, Product, block_of, numbers_of, selection_of
from jvp_ops.operators._phase_space import PhaseSpace
from jvp_ops.parameters import Parameters
from jvp_ops.store import fingerprint

Selection = str | Sequence[str] | slice | Sequence[int] | Tensor | None


class TensorOperator(LinearOperator):  # type: ignore[misc]
    """A scipy LinearOperator whose products are torch products on a device.

    ``A @ x`` and scipy's solvers take numpy arrays; ``A @ tensor``, `apply` and `apply_adjoint` take torch
    tensors and stay on the device. Numbers from scipy are converted to the operator's own dtype, which is the
    dtype it computes in, so ``2.0 * A`` of a float32 operator is float32.

    Parameters
    ----------
    linearization : Linearization
        The products and what is known of them.

    Attributes
    ----------
    rows, columns : Parameters
        What the rows and columns stand for.
    symmetric : bool
        Whether A = Aᵀ.
    device : torch.device
    torch_dtype : torch.dtype
    products : int
        Directions multiplied so far, by A or by Aᵀ.

    Raises
    ------
    NonFiniteError
        From any product, when NaN or Inf goes in or comes out.

    Examples
    --------
    >>> import jvp_ops as jo, numpy as np, torch
    >>> f = jo.FunctionMap(lambda x: torch.stack([x[0] * x[1], x[1]]), size=2, dtype="float64")
    >>> A = f.jacobian(torch.tensor([2.0, 3.0], dtype=torch.float64))
    >>> A @ np.array([1.0, 0.0]), A.T @ np.array([1.0, 0.0])
    (array([3., 0.]), array([3., 2.]))
    >>> A.apply(torch.tensor([0.0, 1.0], dtype=torch.float64))
    tensor([2., 1.], dtype=torch.float64)
    """

    args: tuple[LinearOperator, ...] = ()  # scipy's attribute: the operands of a sum or product, which this is not

    def __init__(self, linearization: Linearization) -> None:
        self.linearization = linearization
        self._products = [0]  # a list, so that a transpose counts with its original
        shape = (linearization.rows.size, linearization.columns.size)
        super().__init__(numpy_dtype(linearization.dtype), shape)

    @property
    def rows(self) -> Parameters:
        """What the rows stand for."""
        return self.linearization.rows

    @property
    def columns(self) -> Parameters:
        """What the columns stand for."""
        return self.linearization.columns

    @property
    def symmetric(self) -> bool:
        """Whether A = Aᵀ."""
        return self.linearization.symmetric

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.linearization.device

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the products are computed in."""
        return self.linearization.dtype

    @property
    def products(self) -> int:
        """How many directions were multiplied so far, by A or by Aᵀ."""
        return self._products[0]

    @property
    def affine(self) -> Affine | None:
        """The identity A = shift·I + scale·base, where there is one."""
        return self.linearization.affine

    @property
    def phase_space(self) -> PhaseSpace | None:
        """The identity A = (2 × 2 numbers) ⊗ I + b e₁ᵀ ⊗ base, where there is one."""
        return self.linearization.phase_space

    def identity(self) -> dict[str, Any]:
        """All that the operator depends on, as a JSON-able dict: what its fingerprint is made of."""
        return {"operator": type(self).__name__, **self.linearization.identity()}

    def apply(self, V: Tensor) -> Tensor:
        """Multiply: A V.

        Parameters
        ----------
        V : Tensor, shape (columns,) or (columns, m)
            One or m directions, in the operator's dtype and on its device.

        Returns
        -------
        Tensor, shape (rows,) or (rows, m)

        Raises
        ------
        InputError
            V is not a tensor, or of another length, dtype or device.
        NonFiniteError
            NaN or Inf in V or in the product.
        """
        return self._product(self.linearization.apply, V, self.shape[1])

    def apply_adjoint(self, U: Tensor) -> Tensor:
        """Multiply by the transpose: Aᵀ U, for U of shape (rows,) or (rows, m); otherwise as `apply`."""
        return self._product(self.linearization.adjoint, U, self.shape[0])

    def _product(self, product: Product, V: Tensor, size: int) -> Tensor:
        V = check_tensor(V, "the direction", rows=size, dtype=self.torch_dtype, device=self.device)
        wide = V if V.ndim == 2 else V[:, None]
        if wide.shape[1] == 0:
            return V.new_zeros(self.shape[0] + self.shape[1] - size, 0)
        first = self.products + 1
        with torch.inference_mode(False), torch.no_grad():
            result = product(wide.clone() if wide.is_inference() else wide)
        self._products[0] += wide.shape[1]
        if not bool(torch.isfinite(wide).all() & torch.isfinite(result).all()):  # one wait for the device
            check_finite(V, "the direction")
            last = "" if wide.shape[1] == 1 else f" to {self.products}"
            raise NonFiniteError(
                f"NaN or Inf came out of product {first}{last} of this {type(self).__name__}, from a finite state and "
                "finite directions: a step of the computation overflows or is not differentiable there"
            )
        return result if V.ndim == 2 else result[:, 0]

    def block(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> Self:
        """Take the block of the named rows and columns, itself an operator of the same kind.

        Names may be globs or groups (what stands before a dot: ``"theta"`` of a state, a module of a model), and
        lists of them; the order is always that of the parameters.

        Raises
        ------
        InputError
            A name matches nothing; the message lists the names.
        """
        return type(self)(block_of(self.linearization, rows, columns))

    def dense(
        self,
        *,
        rows: Selection = None,
        cols: Selection = None,
        out: str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        max_memory: int | str | None = None,
        progress: bool = False,
        resume: bool = False,
    ) -> Any:
        """Assemble the matrix, or some rows and columns of it, in memory or in a file.

        A structured assembly serves where the loss has one (`TwoLayerLoss`); else wide products with unit
        vectors, from the side that has fewer of them.

        Parameters
        ----------
        rows, cols : str, sequence of str, slice or sequence of int, optional
            Parameter names or globs, or numbers of rows and columns; by default all.
        out : str or Path, optional
            A new ``.npy`` file to write to, by row blocks. While it is unfinished it is called ``OUT.partial``,
            with a manifest beside it.
        dtype : torch.dtype or str, optional
            Of the result, float32 or float64; by default the operator's. The products are in the operator's.
        max_memory : int or str, optional
            Bytes it may take, such as ``"2GiB"``; by default half of what is free. With `out`, without the matrix.
        progress : bool
            Show a progress bar with the time left.
        resume : bool
            Go on with an interrupted ``OUT.partial`` of the same matrix; its blocks are verified first.

        Returns
        -------
        Tensor, shape (rows, cols), on the operator's device; or a read-only numpy.memmap where `out` is given

        Raises
        ------
        InputError
            An unknown name, numbers out of range or twice; `out` exists, is a folder, or cannot be written; the
            operator is declared symmetric, but entries differ from their mirrors by more than rounding (then
            nothing is left of `out`).
        DataError
            The partial file is of another matrix, or its manifest is damaged.
        MemoryBudgetError
            It does not fit the memory or the disk; the message states both sizes.

        Examples
        --------
        >>> import torch, jvp_ops as jo
        >>> f = jo.FunctionMap(lambda x: x.roll(1), size=3)
        >>> f.jacobian(torch.zeros(3)).dense(rows=slice(0, 2), cols=[2])
        tensor([[1.],
                [0.]])
        """
        part = self.part(rows, cols)
        if part is not self:
            return part.dense(out=out, dtype=dtype, max_memory=max_memory, progress=progress, resume=resume)
        if resume and out is None:
            raise InputError("resume=True goes on with a file, but no out= names one")
        stored = self.torch_dtype if dtype is None else resolve_dtype(dtype)
        counted = replace(self.linearization, apply=self.apply, adjoint=self.apply_adjoint)
        with torch.inference_mode(False), torch.no_grad():
            if out is None:
                return assemble(counted, dtype=stored, max_memory=max_memory, progress=progress)
            return assemble_into(
                counted,
                out,
                dtype=stored,
                fingerprint=fingerprint(self.identity()),
                probe=self._probe(),
                max_memory=max_memory,
                progress=progress,
                resume=resume,
            )

    def _probe(self) -> list[float]:
        """Compute four numbers from a product with a fixed direction: they see what no fingerprint does."""
        random = generator(0)
        v = normal(random, self.shape[1], dtype=self.torch_dtype, device=self.device)
        image = self.linearization.apply(v[:, None])[:, 0].double()
        return [float(part.sum()) for part in torch.tensor_split(image, 4)]

    def part(self, rows: Selection = None, cols: Selection = None) -> "TensorOperator":
        """Take some rows and columns, given as in `dense`, as an operator; by names it is a `block`."""
        if rows is None and cols is None:
            return self
        if all(chosen is None or _are_names(chosen) for chosen in (rows, cols)):
            return self.block("*" if rows is None else rows, "*" if cols is None else cols)  # type: ignore[arg-type]
        sides = ((self.rows, rows, "rows"), (self.columns, cols, "cols"))
        numbers = [
            side.index(chosen, self.device) if _are_names(chosen) else numbers_of(chosen, side.size, name, self.device)  # type: ignore[arg-type]
            for side, chosen, name in sides
        ]
        return TensorOperator(selection_of(self.linearization, *numbers))

    # --- scipy's side: numpy arrays in, numpy arrays out -------------------------------------------------------

    def _numpy(self, product: Product, x: Any, size: int) -> Any:
        x = np.asarray(x)
        if np.iscomplexobj(x):
            return self._numpy(product, x.real, size) + 1j * self._numpy(product, x.imag, size)
        values = torch.from_numpy(np.array(x, dtype=self.dtype)).to(self.device)
        return self._product(product, values, size).cpu().numpy()

    def _along_last_axis(self, product: Product, x: Any, size: int) -> Any:
        """Serve scipy ≤ 1.17, which hands (n,) or (n, 1), and ≥ 1.18, which hands (..., n), any of them 0."""
        x = np.asarray(x)
        if x.ndim == 1 or x.shape == (size, 1):
            return self._numpy(product, x, size)
        batch = x.shape[:-1]
        image = self._numpy(product, x.reshape(prod(batch), size).T, size)
        return image.T.reshape(*batch, len(image))

    def _along_rows(self, product: Product, X: Any, size: int) -> Any:
        X = np.asarray(X)
        if X.ndim == 2:
            return self._numpy(product, X, size)
        stacked = np.moveaxis(X, -2, 0)
        image = self._numpy(product, stacked.reshape(size, prod(stacked.shape[1:])), size)
        return np.moveaxis(image.reshape(len(image), *stacked.shape[1:]), 0, -2)

    def _matvec(self, x: Any) -> Any:
        return self._along_last_axis(self.linearization.apply, x, self.shape[1])

    def _rmatvec(self, x: Any) -> Any:
        return self._along_last_axis(self.linearization.adjoint, x, self.shape[0])

    def _matmat(self, X: Any) -> Any:
        return self._along_rows(self.linearization.apply, X, self.shape[1])

    def _rmatmat(self, X: Any) -> Any:
        return self._along_rows(self.linearization.adjoint, X, self.shape[0])

    def _adjoint(self) -> "TensorOperator":
        return self if self.symmetric else _TransposedOperator(self)

    def _transpose(self) -> "TensorOperator":
        return self._adjoint()

    # --- scipy's algebra stays scipy's: only tensors and real numbers are met before it ------------------------

    def matvec(self, x: Any) -> Any:
        """Multiply a numpy vector, or a torch tensor on the device."""
        return self.apply(x) if isinstance(x, Tensor) else super().matvec(x)

    def rmatvec(self, x: Any) -> Any:
        """Multiply a numpy vector, or a torch tensor on the device, by the transpose."""
        return self.apply_adjoint(x) if isinstance(x, Tensor) else super().rmatvec(x)

    def matmat(self, X: Any) -> Any:
        """Multiply the columns of a numpy array, or of a torch tensor on the device."""
        return self.apply(X) if isinstance(X, Tensor) else super().matmat(X)

    def rmatmat(self, X: Any) -> Any:
        """Multiply the columns of a numpy array, or of a torch tensor on the device, by the transpose."""
        return self.apply_adjoint(X) if isinstance(X, Tensor) else super().rmatmat(X)

    def dot(self, x: Any) -> Any:
        """Multiply an array, a tensor, a number or another operator."""
        return self.apply(x) if isinstance(x, Tensor) else super().dot(self._in_own_dtype(x))

    def __rmul__(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.apply_adjoint(x.mT if x.ndim == 2 else x).mT if x.ndim == 2 else self.apply_adjoint(x)
        return super().__rmul__(self._in_own_dtype(x))

    def __truediv__(self, x: Any) -> Any:
        if isinstance(x, Real) and x == 0:
            raise InputError("an operator cannot be divided by zero")
        return super().__truediv__(self._in_own_dtype(x))

    def __neg__(self) -> Any:
        return self * -1

    def _in_own_dtype(self, x: Any) -> Any:
        """Keep real factors in the operator's dtype: numpy's promotion would claim a precision it does not have."""
        return self.dtype.type(x) if isinstance(x, Real) else x


def _are_names(chosen: Selection) -> bool:
    if isinstance(chosen, str):
        return True
    return isinstance(chosen, Sequence) and len(chosen) > 0 and all(isinstance(name, str) for name in chosen)


class _TransposedOperator(TensorOperator):
    """Aᵀ of a non-symmetric A: products and their count go to A."""

    def __init__(self, original: TensorOperator) -> None:
        whole = original.linearization
        super().__init__(
            Linearization(
                apply=whole.adjoint,
                adjoint=whole.apply,
                rows=whole.columns,
                columns=whole.rows,
                dtype=whole.dtype,
                device=whole.device,
                symmetric=False,
                identity=lambda: {"transpose of": original.identity()},
                in_float64=None if whole.in_float64 is None else lambda: whole.in_float64().T,  # type: ignore[misc]
            )
        )

        self._original = original
        self._products = original._products

    def block(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> Any:
        return self._original.block(columns, rows).T

    def _adjoint(self) -> TensorOperator:
        return self._original
