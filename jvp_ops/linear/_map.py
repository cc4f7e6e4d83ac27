"""A linear map: products with it, and what is known of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.parameters import Parameters

Apply = Callable[[Tensor], Tensor]


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

    def shifted(self, shift: float, scale: float) -> "Panels":
        """Turn panels of B into panels of shift·I + scale·B."""

        def prepare() -> Callable[[int, int], Tensor]:
            panel = self.prepare()

            def rows_of(start: int, stop: int) -> Tensor:
                rows = panel(start, stop).mul_(scale)
                rows.diagonal().add_(shift)
                return rows

            return rows_of

        return replace(self, prepare=prepare)


@dataclass(frozen=True)
class LinearMap:
    """A linear map of `columns` to `rows`, fixed at one state.

    Parameters
    ----------
    apply : callable
        (columns.size, m) to (rows.size, m): the product A V, a tensor of its own. All that does not depend on V is
        done already, and nothing in it waits for the device.
    adjoint : callable
        (rows.size, m) to (columns.size, m): the product Aᵀ U; where A is symmetric, `apply` whatever is given.
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
        Returns the same map computed in float64; for measuring the rounding of this one.
    notes : tuple of str
        What a reader of any result of A must know.
    panels : Panels, optional
        A faster way to the leading block, for dense assembly.
    structure : object, optional
        How the map is composed of others, such as `Shifted`; None of one that is not.
    """

    apply: Apply
    adjoint: Apply
    rows: Parameters
    columns: Parameters
    dtype: torch.dtype
    device: torch.device
    symmetric: bool
    identity: Callable[[], dict[str, Any]]
    in_float64: "Callable[[], LinearMap] | None" = None
    notes: tuple[str, ...] = ()
    panels: Panels | None = None
    structure: Any = None

    def __post_init__(self) -> None:
        if self.symmetric and self.adjoint is not self.apply:
            object.__setattr__(self, "adjoint", self.apply)

    @classmethod
    def symmetric_of(
        cls, apply: Apply, parameters: Parameters, dtype: torch.dtype, device: torch.device, **known: Any
    ) -> "LinearMap":
        """Make a symmetric map; `known` are the other fields."""
        return cls(apply, apply, parameters, parameters, dtype, device, symmetric=True, **known)


def no_adjoint(U: Tensor) -> NoReturn:
    """Stand in for the adjoint of a map of which only its own products are known."""
    raise InputError(
        "this operator has no adjoint product, which is needed here: give the LinearOperator its rmatvec, or "
        "say symmetric=True where it equals its transpose"
    )
