"""How large the basis of an iteration is, and the plan of it."""

from dataclasses import dataclass

import torch

from jvp_ops._checks import positive_int, resolve_dtype
from jvp_ops._memory import format_bytes, resolve_budget
from jvp_ops.eigen._iteration import Plan
from jvp_ops.eigen._request import BLOCK, Request
from jvp_ops.eigen._target import Target
from jvp_ops.errors import InputError, MemoryBudgetError
from jvp_ops.operators import TensorOperator


@dataclass(frozen=True)
class Size:
    """How large the basis of an iteration is."""

    block: int
    capacity: int
    kept: int
    dtype: torch.dtype


def size_of(
    operator: TensorOperator,
    k: int,
    *,
    block: int | None,
    start: int,
    deflated: int,
    basis_dtype: torch.dtype | str | None,
    max_memory: int | str | None,
    two_sided: bool,
) -> Size:
    """Size the basis: about 2k + 12 blocks of 8 vectors or more, in float64, or as much of it as the memory allows."""
    m, n = operator.shape
    numbers = 2 * n + (m if two_sided else 0)  # of a vector with its image, and what stands beside it
    space = n - deflated
    if k > space:
        raise InputError(f"k={k} is out of range: deflate leaves {space} of {n} dimensions")
    budget = resolve_budget(max_memory, operator.device)
    dtypes = [torch.float64, torch.float32] if operator.torch_dtype == torch.float32 else [torch.float64]
    if basis_dtype is not None:
        dtypes = [resolve_dtype(basis_dtype)]
    wide = min(BLOCK if block is None else positive_int(block, "block"), space)
    best = min(space, max(2 * k + 12 * max(wide, BLOCK), start + 4 * wide))
    least = min(space, max(k + 3 * wide, start + 2 * wide))
    if block is None:
        narrow = min(2, space)
        least = min(space, max(k + 3 * narrow, start + 2 * narrow))
    for dtype in dtypes:
        vector = numbers * dtype.itemsize
        affordable = int(budget / (1.5 * vector))  # a restart copies half of it
        if affordable < least:
            continue
        capacity = min(best, affordable)
        while block is None and wide > 2 and capacity < min(space, max(k + 6 * wide, start + 2 * wide)):
            wide //= 2
        kept = min(capacity, max(k, k + min(2 * wide, capacity - k - 2 * wide), capacity // 2))
        return Size(wide, capacity, kept, dtype)
    needed = int(1.5 * least * numbers * dtypes[-1].itemsize)
    raise MemoryBudgetError(
        f"the smallest basis for k={k} of {n} unknowns needs {format_bytes(needed)}, more than the "
        f"{format_bytes(budget)} it may use: ask for a smaller k, or raise max_memory"
    )


def plan_of(request: Request, target: Target, size: Size, *, verify: bool, refine: bool) -> Plan:
    """Put a plan together; vectors that are kept in float32 cannot be refined in float64."""
    return Plan(
        k=request.k,
        target=target,
        tol=request.tol,
        block=size.block,
        capacity=size.capacity,
        kept=size.kept,
        verify=verify,
        refine=refine and size.dtype == torch.float64,
    )
