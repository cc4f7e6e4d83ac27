"""What a loss or a map hands over: products with a fixed linear map, and where they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jvp_ops.parameters import Parameters

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


def block_of(whole: Linearization, rows: str | Sequence[str], columns: str | Sequence[str]) -> Linearization:
    """Cut the block of the named rows and columns out of a linearization."""
    row_parameters, column_parameters = whole.rows.find(rows), whole.columns.find(columns)
    diagonal = row_parameters == column_parameters
    row_index = whole.rows.index(rows, whole.device)
    column_index = whole.columns.index(columns, whole.device)

    def cut(product: Product, size: int, into: Tensor, out: Tensor) -> Product:
        def apply(V: Tensor) -> Tensor:
            padded = torch.zeros(size, V.shape[1], dtype=V.dtype, device=V.device)
            return product(padded.index_copy_(0, into, V)).index_select(0, out)

        return apply

    def identity() -> dict[str, Any]:
        names = [[p.name for p in row_parameters], [p.name for p in column_parameters]]
        return {"block": names, "of": whole.identity()}

    in_float64, affine = whole.in_float64, whole.affine
    return replace(
        whole,
        apply=cut(whole.apply, whole.columns.size, column_index, row_index),
        adjoint=cut(whole.adjoint, whole.rows.size, row_index, column_index),
        rows=Parameters.of({p.name: p.shape for p in row_parameters}),
        columns=Parameters.of({p.name: p.shape for p in column_parameters}),
        symmetric=whole.symmetric and diagonal,
        identity=identity,
        in_float64=None if in_float64 is None else lambda: in_float64().block(rows, columns),
        affine=replace(affine, base=affine.base.block(rows, columns)) if affine is not None and diagonal else None,
    )
