"""The one place that chooses a solver and sizes it."""

from dataclasses import dataclass
from typing import Any

import torch

from jvp_ops._checks import finite_number, positive_int, resolve_dtype
from jvp_ops._memory import format_bytes, free_bytes, resolve_budget
from jvp_ops.eigen._krylov import Plan
from jvp_ops.eigen._target import GENERAL, SYMMETRIC, Target
from jvp_ops.errors import InputError, MemoryBudgetError
from jvp_ops.operators import TensorOperator

METHODS = ("auto", "lanczos", "krylov-schur", "dense", "scipy")
ITERATIVE = ("lanczos", "krylov-schur")
DENSE_ORDER = 256
DEFAULT_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}
BLOCK = 8


@dataclass(frozen=True)
class Request:
    """What was asked for, checked."""

    k: int
    which: str
    method: str
    tol: float


def check_request(
    operator: TensorOperator, k: int, which: str, method: str, tol: float | None, iterative_only: dict[str, Any]
) -> Request:
    """Check what is asked of an operator, and choose the method where it is ``auto``.

    ``auto`` is ``dense`` for n ≤ 256, or 4k ≥ n where that fits, unless an option was given that only an iteration has;
    else ``lanczos`` for a symmetric operator and ``krylov-schur`` for another.
    """
    if not isinstance(operator, TensorOperator):
        raise InputError(
            f"operator must be a jvp_ops operator such as map.jacobian(theta), not {type(operator).__name__}"
        )
    rows, columns = operator.shape
    if rows != columns:
        raise InputError(f"eigenpairs needs a square operator, not one of shape {rows} × {columns}")
    choices = SYMMETRIC if operator.symmetric else GENERAL
    kind = "symmetric" if operator.symmetric else "non-symmetric"
    if which not in choices:
        raise InputError(f"which must be one of {', '.join(choices)} for a {kind} operator, not {which!r}")
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    k = positive_int(k, "k")
    if which == "BE" and k < 2:
        raise InputError("which='BE' takes half of k from each end: k must be at least 2, not 1")
    unset = {"resume": False}
    given = [name for name, value in iterative_only.items() if value is not None and value is not unset.get(name)]
    iteration = "lanczos" if operator.symmetric else "krylov-schur"
    if method == "auto":
        fits = 8 * 12 * rows * rows <= free_bytes(operator.device)
        dense = rows <= DENSE_ORDER or k == rows or (4 * k >= rows and fits)
        method = "dense" if dense and not given else iteration
    if method in ITERATIVE and method != iteration:
        raise InputError(f"method={method!r} is not for a {kind} operator: use {iteration!r}, or 'auto'")
    allowed = {"scipy": ["max_products"], "dense": []}.get(method, given)
    if wrong := [name for name in given if name not in allowed]:
        raise InputError(
            f"{wrong[0]} is an option of the iterative methods ({iteration!r}), not of method={method!r}: leave it out"
        )
    if "deflate" in given and not operator.symmetric:
        raise InputError("deflate is for symmetric operators, whose other eigenvectors are orthogonal to those given")
    if method == "scipy" and rows < 4 and not operator.symmetric:
        raise InputError(f"ARPACK does not take a non-symmetric matrix of order {rows}: use method='dense'")
    most = {"dense": rows, "scipy": rows - 1 if operator.symmetric else rows - 2}.get(method, rows - 1)
    if k > most:
        way_out = "" if method == "dense" else "; method='dense' finds all of them"
        raise InputError(
            f"k={k} is out of range: method={method!r} finds at most {most} eigenpairs of a matrix of order {rows}"
            + way_out
        )
    wanted = DEFAULT_TOL[operator.torch_dtype] if tol is None else finite_number(tol, "tol", least=0)
    return Request(k, which, method, wanted)


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
) -> Size:
    """Size the basis: about 2k + 12 blocks of 8 vectors or more, in float64, or as much of it as the memory allows."""
    n = operator.shape[0]
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
        vector = 2 * n * dtype.itemsize  # with its image
        affordable = int(budget / (1.5 * vector))  # a restart copies half of it
        if affordable < least:
            continue
        capacity = min(best, affordable)
        while block is None and wide > 2 and capacity < min(space, max(k + 6 * wide, start + 2 * wide)):
            wide //= 2
        kept = min(capacity, max(k, k + min(2 * wide, capacity - k - 2 * wide), capacity // 2))
        return Size(wide, capacity, kept, dtype)
    needed = int(1.5 * least * 2 * n * dtypes[-1].itemsize)
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
