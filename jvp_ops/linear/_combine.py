"""Maps that are composed of maps: shifted and scaled, sums, products, powers, transposes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.linear._elementary import identity_map
from jvp_ops.linear._map import Apply, LinearMap
from jvp_ops.parameters import Parameters


@dataclass(frozen=True)
class Shifted:
    """shift·I + scale·base."""

    shift: float
    scale: float
    base: LinearMap


@dataclass(frozen=True)
class Sum:
    """The sum of the parts."""

    parts: tuple[LinearMap, ...]


@dataclass(frozen=True)
class Product:
    """The product of the factors, the last of which is applied first."""

    factors: tuple[LinearMap, ...]


@dataclass(frozen=True)
class Transposed:
    """The transpose of base."""

    base: LinearMap


def shifted(base: LinearMap, shift: float, scale: float = 1.0) -> LinearMap:
    """Compose shift·I + scale·base; of a base that is itself shifted, with that one's base."""
    if shift:
        joined(base.rows, base.columns, "a shift needs a square operator whose rows and columns stand for the same")
    if isinstance(base.structure, Shifted):
        inner = base.structure
        flat = shifted(inner.base, shift + scale * inner.shift, scale * inner.scale)
    else:
        flat = replace(
            base,
            apply=_shifting(base.apply, shift, scale),
            adjoint=_shifting(base.adjoint, shift, scale),
            in_float64=in_float64((base,), lambda part: shifted(part, shift, scale)),
            panels=None if base.panels is None else base.panels.shifted(shift, scale),
            structure=Shifted(shift, scale, base),
        )
    return replace(flat, identity=lambda: {"shift": shift, "scale": scale, "of": base.identity()})


def summed(*maps: LinearMap) -> LinearMap:
    """Compose the sum of maps; symmetric where all are, or where two are each other's transposes."""
    alike(*maps)
    parts = tuple(part for each in maps for part in (each.structure.parts if _is(each, Sum) else (each,)))
    if len(parts) == 1:
        return parts[0]
    symmetric = all(part.symmetric for part in parts) or (len(parts) == 2 and are_transposes(*parts))
    rows, columns = maps[0].rows, maps[0].columns
    for other in maps[1:]:
        rows = joined(rows, other.rows, "the rows of two operators that are added must stand for the same")
        columns = joined(columns, other.columns, "the columns of two operators that are added must stand for the same")
    return LinearMap(
        apply=_adding([part.apply for part in parts]),
        adjoint=_adding([part.adjoint for part in parts]),
        rows=rows,
        columns=columns,
        dtype=parts[0].dtype,
        device=parts[0].device,
        symmetric=symmetric,
        identity=lambda: {"sum": [each.identity() for each in maps]},
        in_float64=in_float64(parts, summed),
        notes=_notes(parts),
        structure=Sum(parts),
    )


def product(*maps: LinearMap) -> LinearMap:
    """Compose the product of maps; symmetric where it reads as its own transpose, as AᵀA, D H D and A A of A = Aᵀ."""
    alike(*maps)
    factors = tuple(f for each in maps for f in (each.structure.factors if _is(each, Product) else (each,)))
    if len(factors) == 1:
        return factors[0]
    for left, right in pairwise(factors):
        joined(left.columns, right.rows, "the columns of the left operator must stand for the rows of the right one")
    symmetric = all(are_transposes(*ends) for ends in zip(factors, reversed(factors), strict=True))
    rows, columns = factors[0].rows, factors[-1].columns
    if symmetric:
        rows = columns = joined(rows, columns, "")
    return LinearMap(
        apply=_chaining([factor.apply for factor in reversed(factors)]),
        adjoint=_chaining([factor.adjoint for factor in factors]),
        rows=rows,
        columns=columns,
        dtype=factors[0].dtype,
        device=factors[0].device,
        symmetric=symmetric,
        identity=lambda: {"product": [each.identity() for each in maps]},
        in_float64=in_float64(factors, product),
        notes=_notes(factors),
        structure=Product(factors),
    )


def power(base: LinearMap, exponent: int) -> LinearMap:
    """Compose base to a power of at least 0."""
    joined(base.rows, base.columns, "a power needs a square operator whose rows and columns stand for the same")
    return product(*[base] * exponent) if exponent else identity_map(base.columns, base.dtype, base.device)


def transposed(base: LinearMap) -> LinearMap:
    """Compose the transpose; of a symmetric map, the map itself."""
    if base.symmetric:
        return base
    if isinstance(base.structure, Transposed):
        return base.structure.base
    if isinstance(base.structure, Product):  # factor by factor, so that PᵀP of a product reads as its own transpose
        flat = product(*(transposed(factor) for factor in reversed(base.structure.factors)))
        return replace(flat, identity=lambda: {"transpose of": base.identity()})
    return replace(
        base,
        apply=base.adjoint,
        adjoint=base.apply,
        rows=base.columns,
        columns=base.rows,
        identity=lambda: {"transpose of": base.identity()},
        in_float64=in_float64((base,), transposed),
        panels=None,
        structure=Transposed(base),
    )


def are_transposes(first: LinearMap, second: LinearMap) -> bool:
    """Say whether one map is made as the other's transpose: of the same map, not of one that happens to be equal."""
    return transposed(first) is second or first is transposed(second)


def in_float64(parts: Sequence[LinearMap], compose: Callable[..., LinearMap]) -> Callable[[], LinearMap] | None:
    """Compose the parts' counterparts in float64, each made once; None where one has none."""
    cores = [part.structure.base if _is(part, Transposed) else part for part in parts]
    if any(core.in_float64 is None for core in cores):
        return None

    def build() -> LinearMap:
        made = {id(core): core.in_float64() for core in {id(core): core for core in cores}.values()}  # type: ignore[misc]
        wide = [made[id(core)] for core in cores]
        return compose(
            *(w if core is part else transposed(w) for w, core, part in zip(wide, cores, parts, strict=True))
        )

    return build


def alike(*maps: LinearMap) -> None:
    """Refuse maps that cannot be composed because they are computed in different dtypes or on different devices."""
    for other in maps[1:]:
        if other.dtype != maps[0].dtype:
            raise InputError(
                f"an operator in {maps[0].dtype} and one in {other.dtype} do not compose: make both in one dtype, as "
                "by A.in_float64() or by loss.to(dtype=...)"
            )
        if other.device != maps[0].device:
            raise InputError(
                f"an operator on {maps[0].device} and one on {other.device} do not compose: make both on one device, "
                "as by loss.to(device=...)"
            )


def joined(first: Parameters, second: Parameters, rule: str) -> Parameters:
    """Give the layout of two sides that meet: the one that has names, where only one has."""
    if first.size != second.size:
        raise InputError(f"sizes {first.size} and {second.size} do not meet: {rule}")
    if first == second or second.unnamed:
        return first
    if first.unnamed:
        return second
    raise InputError(f"{first} and {second} do not meet: {rule}")


def _is(part: LinearMap, kind: type) -> bool:
    return isinstance(part.structure, kind)


def _notes(parts: Sequence[LinearMap]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def _shifting(multiply: Apply, shift: float, scale: float) -> Apply:
    def apply(V: Tensor) -> Tensor:
        if shift == 0:
            return multiply(V) * scale
        return torch.add(V if shift == 1 else shift * V, multiply(V), alpha=scale)

    return apply


def _adding(products: Sequence[Apply]) -> Apply:
    def apply(V: Tensor) -> Tensor:
        first, second, *others = products
        total = first(V) + second(V)  # a tensor of its own, whatever the first gave
        for multiply in others:
            total += multiply(V)
        return total

    return apply


def _chaining(products: Sequence[Apply]) -> Apply:
    def apply(V: Tensor) -> Tensor:
        for multiply in products:
            V = multiply(V)
        return V

    return apply
