"""A map on a state of several equal parts: a few diagonals around one map that acts on the first part."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops.linear._combine import in_float64, shifted
from jvp_ops.linear._coupling import Coupling
from jvp_ops.linear._map import LinearMap
from jvp_ops.parameters import Parameters

Coefficient = Tensor | float | None  # (n, 1) of each entry, of all entries, or zero
Coefficients = Sequence[Coefficient]


@dataclass(frozen=True)
class Coupled:
    """A + b e₁ᵀ ⊗ base, its spectrum known from the base's where `coupling` says how."""

    base: LinearMap
    coupling: Coupling | None


def coupled(inside: Sequence[Coefficients], gain: Coefficients, base: LinearMap, state: Parameters) -> LinearMap:
    r"""Compose, on states of parts laid out as `state`, :math:`y_a = \sum_b A_{ab} x_b + b_a B x_1`.

    Parameters
    ----------
    inside : A, coefficients in rows
    gain : b
    base : B
        Multiplied once in each product, and once in each product with the transpose.

    Notes
    -----
    Of one part and numbers alone it is a shift of the base.
    """
    numbers = all(not isinstance(c, Tensor) for row in (*inside, gain) for c in row)
    if numbers and len(gain) == 1:
        return shifted(base, _number(inside[0][0]), _number(gain[0]))
    coupling = None
    if numbers and len(gain) == 2 and base.symmetric:
        matrix = [[_number(c) for c in row] for row in inside]
        coupling = Coupling((tuple(matrix[0]), tuple(matrix[1])), (_number(gain[0]), _number(gain[1])))  # type: ignore[arg-type]
    count, columns = len(gain), [list(column) for column in zip(*inside, strict=True)]

    def apply(V: Tensor) -> Tensor:
        parts = V.split(len(V) // count)
        bent = base.apply(parts[0].contiguous())
        return torch.cat([_combined([*row, b], [*parts, bent]) for row, b in zip(inside, gain, strict=True)])

    def adjoint(U: Tensor) -> Tensor:
        parts = U.split(len(U) // count)
        first, *others = (_combined(column, parts) for column in columns)
        return torch.cat([first.add_(base.adjoint(_combined(gain, parts))), *others])

    return LinearMap(
        apply,
        adjoint,
        state,
        state,
        base.dtype,
        base.device,
        symmetric=False,
        identity=base.identity,
        # diagonals were computed in their own dtype: whoever computed them knows how to do so in float64
        in_float64=in_float64((base,), lambda wide: coupled(inside, gain, wide, state)) if numbers else None,
        notes=base.notes,
        structure=Coupled(base, coupling),
    )


def _number(coefficient: Coefficient) -> float:
    return 0.0 if coefficient is None else float(coefficient)


def _combined(coefficients: Coefficients, parts: Sequence[Tensor]) -> Tensor:
    """Sum coefficient times part."""
    total: Tensor | None = None
    for coefficient, part in zip(coefficients, parts, strict=True):
        if coefficient is None:
            continue
        if total is None:
            total = coefficient * part
        elif isinstance(coefficient, Tensor):
            total.addcmul_(coefficient, part)
        else:
            total.add_(part, alpha=coefficient)
    return torch.zeros_like(parts[0]) if total is None else total
