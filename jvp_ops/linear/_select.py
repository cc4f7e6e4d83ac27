"""Some rows and columns of a map, by the names of parameters or by numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.linear._combine import Shifted, Transposed, shifted, transposed
from jvp_ops.linear._map import Apply, LinearMap
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of


def block_of(whole: LinearMap, rows: str | Sequence[str], columns: str | Sequence[str]) -> LinearMap:
    """Cut the block of the named rows and columns out of a map; a diagonal block of B + s·I is one of B, shifted."""
    if isinstance(whole.structure, Transposed):
        return transposed(block_of(whole.structure.base, columns, rows))
    row_parameters, column_parameters = whole.rows.find(rows), whole.columns.find(columns)
    diagonal, form = row_parameters == column_parameters, whole.structure
    names = [[p.name for p in row_parameters], [p.name for p in column_parameters]]
    if isinstance(form, Shifted) and diagonal and whole.rows == whole.columns:
        cut = shifted(block_of(form.base, *names), form.shift, form.scale)
    else:
        numbers = whole.rows.index(rows, whole.device), whole.columns.index(columns, whole.device)
        cut = selection_of(whole, *numbers, same=diagonal)
        panels = whole.panels
        leads = panels is not None and diagonal and any(p.start == 0 and p.size == panels.size for p in row_parameters)
        cut = replace(
            cut,
            rows=Parameters.of({p.name: p.shape for p in row_parameters}),
            columns=Parameters.of({p.name: p.shape for p in column_parameters}),
            panels=panels if leads else None,
        )
    build = whole.in_float64
    return replace(
        cut,
        identity=lambda: {"block": names, "of": whole.identity()},
        in_float64=None if build is None else lambda: block_of(build(), rows, columns),
    )


def selection_of(whole: LinearMap, rows: Tensor, columns: Tensor, *, same: bool) -> LinearMap:
    """Cut the rows and columns of the given numbers out of a map; `same` says whether they are the same numbers."""

    def cut(product: Apply, size: int, into: Tensor, out: Tensor) -> Apply:
        def apply(V: Tensor) -> Tensor:
            padded = torch.zeros(size, V.shape[1], dtype=V.dtype, device=V.device)
            return product(padded.index_copy_(0, into, V)).index_select(0, out)

        return apply

    build = whole.in_float64
    return replace(
        whole,
        apply=cut(whole.apply, whole.columns.size, columns, rows),
        adjoint=cut(whole.adjoint, whole.rows.size, rows, columns),
        rows=Parameters.of({"rows": (len(rows),)}),
        columns=Parameters.of({"columns": (len(columns),)}),
        symmetric=whole.symmetric and same,
        identity=lambda: {"rows": sha256_of(rows), "columns": sha256_of(columns), "of": whole.identity()},
        in_float64=None if build is None else lambda: selection_of(build(), rows, columns, same=same),
        panels=None,
        structure=None,
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
