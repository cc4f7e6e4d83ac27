"""What a loss or a map hands over: products with a fixed linear map, and where they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.operators._phase_space import PhaseSpace
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of

if TYPE_CHECKING:
    from jvp_ops.operators._tensor_operator import TensorOperator

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Affine:
    """The identity A = shift·I + scale·B between an operator A and a symmetric `base` B."""

    shift: float
    scale: float
    base: "TensorOperator"


@dataclass(frozen=True)
class Panels:
    """A faster way than products to the leading principal block of a symmetric matrix.

    Parameters
    ----------
    size : int
        The order of the block.
    unit : int
        Panels begin and end at multiples of it.
    needed : int
        Bytes that `prepare` and a panel of `unit` rows take beside the panel itself.
    prepare : callable
        Returns ``panel(start, stop)``: rows `start` to `stop`, columns `start` to `size`.
    """

    size: int
    unit: int
    needed: int
    prepare: Callable[[], Callable[[int, int], Tensor]]


@dataclass(frozen=True)
class Linearization:
    """A linear map of `columns` to `rows`, fixed at one state.

    Parameters
    ----------
    apply : callable
        (columns.size, m) to (rows.size, m): the product A V. All that does not depend on V is done already.
    adjoint : callable
        (rows.size, m) to (columns.size, m): the product Aᵀ U; `apply` itself where A is symmetric.
    rows, columns : Parameters
        What the rows and columns stand for.
    dtype : torch.dtype
        The dtype that the products are computed in.
    device : torch.device
        Where they are computed.
    symmetric : bool
        Whether A = Aᵀ; chooses the solver.
    identity : callable
        Returns a JSON-able dict of all that the map depends on, for fingerprints; made only when asked for.
    in_float64 : callable, optional
        Returns the operator of the same map computed in float64; for measuring the rounding of this one.
    affine : Affine, optional
        How A follows from a simpler symmetric operator.
    phase_space : PhaseSpace, optional
        How A, on a state of two parts, follows from a symmetric operator on the first.
    notes : tuple of str
        What a reader of any result of A must know.
    panels : Panels, optional
        A faster way to the leading block, for dense assembly.
    """

    apply: Product
    adjoint: Product
    rows: Parameters
    columns: Parameters
    dtype: torch.dtype
    device: torch.device
    symmetric: bool
    identity: Callable[[], dict[str, Any]]
    in_float64: "Callable[[], TensorOperator] | None" = None
    affine: Affine | None = None
    panels: Panels | None = None
    phase_space: PhaseSpace | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def symmetric_of(
        cls, apply: Product, parameters: Parameters, dtype: torch.dtype, device: torch.device, **known: Any
    ) -> "Linearization":
        """Make the linearization of a symmetric map; `known` are the other fields."""
        return cls(apply, apply, parameters, parameters, dtype, device, symmetric=True, **known)


def block_of(whole: Linearization, rows: str | Sequence[str], columns: str | Sequence[str]) -> Linearization:
    """Cut the block of the named rows and columns out of a linearization."""
    row_parameters, column_parameters = whole.rows.find(rows), whole.columns.find(columns)
    diagonal = row_parameters == column_parameters
    in_float64, affine, panels = whole.in_float64, whole.affine, whole.panels
    leads = panels is not None and diagonal and any(p.start == 0 and p.size == panels.size for p in row_parameters)
    cut = selection_of(whole, whole.rows.index(rows, whole.device), whole.columns.index(columns, whole.device))
    names = [[p.name for p in row_parameters], [p.name for p in column_parameters]]
    return replace(
        cut,
        rows=Parameters.of({p.name: p.shape for p in row_parameters}),
        columns=Parameters.of({p.name: p.shape for p in column_parameters}),
        symmetric=whole.symmetric and diagonal,
        identity=lambda: {"block": names, "of": whole.identity()},
        in_float64=None if in_float64 is None else lambda: in_float64().block(rows, columns),
        affine=replace(affine, base=affine.base.block(rows, columns)) if affine is not None and diagonal else None,
        panels=panels if leads else None,
        phase_space=None,
    )


def selection_of(whole: Linearization, rows: Tensor, columns: Tensor) -> Linearization:
    """Cut the rows and columns of the given numbers out of a linearization."""

    def cut(product: Product, size: int, into: Tensor, out: Tensor) -> Product:
        def apply(V: Tensor) -> Tensor:
            padded = torch.zeros(size, V.shape[1], dtype=V.dtype, device=V.device)
            return product(padded.index_copy_(0, into, V)).index_select(0, out)

        return apply

    return replace(
        whole,
        apply=cut(whole.apply, whole.columns.size, columns, rows),
        adjoint=cut(whole.adjoint, whole.rows.size, rows, columns),
        rows=Parameters.of({"rows": (len(rows),)}),
        columns=Parameters.of({"columns": (len(columns),)}),
        symmetric=whole.symmetric and torch.equal(rows, columns),
        identity=lambda: {"rows": sha256_of(rows), "columns": sha256_of(columns), "of": whole.identity()},
        in_float64=None,
        affine=None,
        panels=None,
        phase_space=None,
    )


def numbers_of(chosen: Any, size: int, name: str, device: torch.device) -> Tensor:
    """Turn a slice or numbers into an index, and refuse what is out of range or there twice."""
    if chosen is None:
        return torch.arange(size, device=device)
    try:
        if isinstance(chosen, slice):
            chosen = range(*chosen.indices(size))
            if not chosen:
                raise InputError(f"{name} is a slice that holds none of the {size} there are")
        index = torch.as_tensor(chosen, dtype=torch.long if len(chosen) == 0 else None)
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool or index.is_complex():
            raise TypeError
        index = index.to(torch.long)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be parameter names, a slice or a list of integers, not {chosen!r}") from None
    if bool((index < 0).any() | (index >= size).any()):
        raise InputError(f"{name} must be 0 to {size - 1}; they run from {int(index.min())} to {int(index.max())}")
    if len(index.unique()) < len(index):
        raise InputError(f"{name} holds {len(index) - len(index.unique())} numbers twice: each may be there once")
    return index.to(device=device, dtype=torch.long)
