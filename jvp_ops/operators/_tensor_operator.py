"""A linear map as users hold it: checked products, blocks by name, dense assembly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from jvp_ops._checks import check_finite, check_tensor, numpy_dtype, resolve_dtype
from jvp_ops._random import generator, normal
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.linear import (
    Apply,
    Coupled,
    Coupling,
    LinearMap,
    Shifted,
    block_of,
    no_adjoint,
    numbers_of,
    selection_of,
    transposed,
)
from jvp_ops.operators._contract import ScipyContract
from jvp_ops.operators._copies import Copies
from jvp_ops.operators._dense import assemble, assemble_into
from jvp_ops.parameters import Parameters
from jvp_ops.store import fingerprint

Selection = str | Sequence[str] | slice | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Affine:
    """The identity A = shift·I + scale·B between an operator A and a symmetric `base` B."""

    shift: float
    scale: float
    base: "TensorOperator"


@dataclass(frozen=True)
class PhaseSpace:
    """The identity Df = A ⊗ I + b e₁ᵀ ⊗ H between an operator on (θ, v) and a symmetric `base` H on θ."""

    coupling: Coupling
    base: "TensorOperator"


class TensorOperator(Copies, ScipyContract):
    """A scipy LinearOperator whose products are torch products on a device.

    ``A @ x`` and scipy's solvers take numpy arrays; ``A @ tensor``, `apply` and `apply_adjoint` take torch
    tensors and stay on the device. ``A @ V`` takes tensors of shape (columns,) and (…, columns, m), and tensors of the
    parameters' shapes (or with one more axis, for m directions) by name in a dict or in order in a list; the image
    comes back as V came. Numbers from scipy are converted to the operator's own dtype, which is the dtype it
    computes in.

    ``A + B``, ``A - B``, ``2 * A``, ``A / 2``, ``-A``, ``A @ B``, ``A ** 2`` and ``A.shifted(c)`` of operators like
    this one are again operators like this one, in their dtype and on their device, each of which counts its own
    products; they are symmetric where that follows (``A.T @ A``, ``D @ H @ D``). Layouts that have names must be the
    same where operators meet. With any other operator of scipy's, or a complex factor, the result is scipy's.

    Parameters
    ----------
    linear : LinearMap
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

    _base_kind: ClassVar["type[TensorOperator] | None"] = None  # what the base of a composed one is, if it is told
    _original: "TensorOperator | None" = None  # that this is the transpose of

    def __init__(self, linear: LinearMap) -> None:
        self.linear = linear
        self._products = [0]  # a list, so that a transpose counts with its original
        super().__init__(numpy_dtype(linear.dtype), (linear.rows.size, linear.columns.size))

    @property
    def rows(self) -> Parameters:
        """What the rows stand for."""
        return self.linear.rows

    @property
    def columns(self) -> Parameters:
        """What the columns stand for."""
        return self.linear.columns

    @property
    def symmetric(self) -> bool:
        """Whether A = Aᵀ."""
        return self.linear.symmetric

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.linear.device

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the products are computed in."""
        return self.linear.dtype

    @property
    def products(self) -> int:
        """How many directions were multiplied so far, by A or by Aᵀ."""
        return self._products[0]

    @property
    def affine(self) -> Affine | None:
        """The identity A = shift·I + scale·base of a Jacobian and a symmetric `base`, where there is one."""
        form = self.linear.structure
        if not isinstance(form, Shifted) or not form.base.symmetric or self._base is None:
            return None
        return Affine(form.shift, form.scale, self._base)

    @property
    def phase_space(self) -> PhaseSpace | None:
        """The identity A = (2 × 2 numbers) ⊗ I + b e₁ᵀ ⊗ base of a Jacobian, where there is one."""
        form = self.linear.structure
        if not isinstance(form, Coupled) or form.coupling is None or self._base is None:
            return None
        return PhaseSpace(form.coupling, self._base)

    @cached_property
    def _base(self) -> "TensorOperator | None":
        """The operator that this one is composed around, always the same one, which counts its own products."""
        return None if self._base_kind is None else self._base_kind(self.linear.structure.base)

    def in_float64(self) -> "TensorOperator | None":
        """Make the same operator computed in float64, from the same state; None where there is none."""
        if self._original is not None:
            wide = self._original.in_float64()
            return None if wide is None else wide.T
        if self.linear.in_float64 is None:
            return None
        return type(self)(self.linear.in_float64()).made_by(self.in_float64)

    def identity(self) -> dict[str, Any]:
        """All that the operator depends on, as a JSON-able dict: what its fingerprint is made of."""
        return {"operator": type(self).__name__, **self.linear.identity()}

    def apply(self, V: Tensor) -> Tensor:
        """Multiply: A V. ``A @ V`` takes more: see `TensorOperator`.

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
        return self._product(self.linear.apply, V, self.shape[1])

    def apply_adjoint(self, U: Tensor) -> Tensor:
        """Multiply by the transpose: Aᵀ U, for U of shape (rows,) or (rows, m); otherwise as `apply`."""
        return self._product(self.linear.adjoint, U, self.shape[0])

    def _product(self, product: Apply, V: Tensor, size: int) -> Tensor:
        V = check_tensor(V, "the direction", rows=size, dtype=self.torch_dtype, device=self.device)
        wide = V if V.ndim == 2 else V[:, None]
        if wide.shape[1] == 0:
            return V.new_zeros(self.shape[0] + self.shape[1] - size, 0)
        with torch.inference_mode(False), torch.no_grad():
            result: Tensor = product(wide.clone() if wide.is_inference() else wide)
        self._products[0] += wide.shape[1]
        if not bool(torch.isfinite(wide).all() & torch.isfinite(result).all()):  # one wait for the device
            check_finite(V, "the direction")
            last = "" if wide.shape[1] == 1 else f" to {self.products}"
            first = self.products - wide.shape[1] + 1
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
        return type(self)(block_of(self.linear, rows, columns)).made_by(self.block, rows, columns)

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
        adjoint = no_adjoint if self.linear.adjoint is no_adjoint else self.apply_adjoint
        counted = replace(self.linear, apply=self.apply, adjoint=adjoint)
        with torch.inference_mode(False), torch.no_grad():
            if out is None:
                return assemble(counted, dtype=stored, max_memory=max_memory, progress=progress)
            return assemble_into(
                counted,
                out,
                dtype=stored,
                fingerprint=fingerprint(self.identity()),
                probe=self.probe(),
                max_memory=max_memory,
                progress=progress,
                resume=resume,
            )

    def probe(self) -> list[float]:
        """Compute four numbers from a product with a fixed direction: they see what no fingerprint does."""
        random = generator(0)
        v = normal(random, self.shape[1], dtype=self.torch_dtype, device=self.device)
        image = self.linear.apply(v[:, None])[:, 0].double()
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
        chosen = selection_of(self.linear, *numbers, same=torch.equal(*numbers))
        return TensorOperator(chosen).made_by(self.part, *(number.clone() for number in numbers))

    def _adjoint(self) -> "TensorOperator":
        if self.symmetric:
            return self
        if self._original is None:
            made = self._composed(transposed(self.linear), recipe="_adjoint")
            made._original, made._products = self, self._products
            return made
        return self._original

    _transpose = _adjoint

    def _composed(self, linear: LinearMap, *operands: Any, recipe: str) -> "TensorOperator":
        made = TensorOperator(linear)
        made.args = () if recipe == "shifted" else operands
        return made.made_by(_called, self, recipe, operands[1:])


def _called(operator: TensorOperator, method: str, args: tuple[Any, ...]) -> Any:
    """Compose an operator again."""
    return getattr(operator, method)(*args)


def _are_names(chosen: Selection) -> bool:
    if isinstance(chosen, str):
        return True
    return isinstance(chosen, Sequence) and len(chosen) > 0 and all(isinstance(name, str) for name in chosen)
