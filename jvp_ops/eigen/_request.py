"""What is asked of `eigenpairs`, as one frozen record, and the method that serves it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jvp_ops._checks import finite_number, positive_int
from jvp_ops._memory import free_bytes, require
from jvp_ops._random import Rng
from jvp_ops.eigen._monitor import SolveStatus
from jvp_ops.eigen._proof import memory_for_proof
from jvp_ops.eigen._target import GENERAL, SYMMETRIC
from jvp_ops.errors import InputError
from jvp_ops.operators import TensorOperator

METHODS = ("auto", "lanczos", "krylov-schur", "dense", "scipy")
ITERATIVE = ("lanczos", "krylov-schur")
ITERATIVE_ONLY = (
    *("verify", "block", "start", "deflate", "basis_dtype", "max_products", "max_seconds"),
    *("callback", "checkpoint", "resume", "max_memory"),
)
DENSE_ORDER = 256
DEFAULT_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}
BLOCK = 8


@dataclass(frozen=True)
class Request:
    """The options of `eigenpairs`, under their own names; `checked` settles `method` and `tol`."""

    k: int
    which: str
    method: str = "auto"
    tol: Any = None
    float64: bool = True
    verify: bool | None = None
    prove_complete: bool = False
    condition: bool = False
    block: int | None = None
    start: Any = None
    deflate: Any = None
    basis_dtype: torch.dtype | str | None = None
    max_memory: int | str | None = None
    max_products: int | None = None
    max_seconds: float | None = None
    rng: Rng = 0
    progress: bool = False
    callback: Callable[[SolveStatus], object] | None = None
    checkpoint: str | Path | None = None
    resume: bool = False

    def iterative(self) -> list[str]:
        """Name the options that were given and only an iteration has."""
        unset = {"resume": False}
        given = {name: getattr(self, name) for name in ITERATIVE_ONLY}
        return [name for name, value in given.items() if value is not None and value is not unset.get(name)]

    def checked(self, operator: TensorOperator) -> "Request":
        """Check what is asked of an operator, and choose the method where it is ``auto``.

        ``auto`` is ``dense`` for n ≤ 256, or 4k ≥ n where that fits, unless an option was given that only an iteration
        has; else ``lanczos`` for a symmetric operator and ``krylov-schur`` for another.
        """
        rows, columns = operator.shape
        if rows != columns:
            raise InputError(
                f"eigenpairs needs a square operator, not one of shape {rows} × {columns}: jvp_ops.svd takes any"
            )
        choices = SYMMETRIC if operator.symmetric else GENERAL
        kind = "symmetric" if operator.symmetric else "non-symmetric"
        if self.which not in choices:
            raise InputError(f"which must be one of {', '.join(choices)} for a {kind} operator, not {self.which!r}")
        if self.method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        k, given = positive_int(self.k, "k"), self.iterative()
        if self.which == "BE" and k < 2:
            raise InputError("which='BE' takes half of k from each end: k must be at least 2, not 1")
        method, iteration = self._method(operator, k), "lanczos" if operator.symmetric else "krylov-schur"
        if method in ITERATIVE and method != iteration:
            raise InputError(f"method={method!r} is not for a {kind} operator: use {iteration!r}, or 'auto'")
        allowed = {"scipy": ["max_products"], "dense": []}.get(method, given)
        if wrong := [name for name in given if name not in allowed]:
            raise InputError(
                f"{wrong[0]} is an option of the iterative methods ({iteration!r}), not of method={method!r}: leave it "
                "out"
            )
        if "deflate" in given and not operator.symmetric:
            raise InputError(
                "deflate is for symmetric operators, whose other eigenvectors are orthogonal to those given"
            )
        if method == "scipy" and rows < 4 and not operator.symmetric:
            raise InputError(f"ARPACK does not take a non-symmetric matrix of order {rows}: use method='dense'")
        most = {"dense": rows, "scipy": rows - 1 if operator.symmetric else rows - 2}.get(method, rows - 1)
        if k > most:
            way_out = "" if method == "dense" else "; method='dense' finds all of them"
            raise InputError(
                f"k={k} is out of range: method={method!r} finds at most {most} eigenpairs of a matrix of order {rows}"
                + way_out
            )
        self._check_certificates(operator, method)
        tol = DEFAULT_TOL[operator.torch_dtype] if self.tol is None else finite_number(self.tol, "tol", least=0)
        return replace(self, k=k, method=method, tol=tol)

    def _method(self, operator: TensorOperator, k: int) -> str:
        if self.method != "auto":
            return self.method
        n = operator.shape[0]
        fits = 8 * 12 * n * n <= free_bytes(operator.device)
        if not self.iterative() and (n <= DENSE_ORDER or k == n or (4 * k >= n and fits)):
            return "dense"
        return "lanczos" if operator.symmetric else "krylov-schur"

    def _check_certificates(self, operator: TensorOperator, method: str) -> None:
        if self.condition and operator.symmetric:
            raise InputError(
                "condition=True is of a non-symmetric operator: a symmetric one's condition numbers are all 1"
            )
        if self.prove_complete and not operator.symmetric:
            raise InputError("prove_complete=True counts by inertia, which a non-symmetric operator does not have")
        if self.condition and method == "scipy":
            raise InputError("condition=True needs left eigenvectors, which method='scipy' does not find: use 'auto'")
        if self.prove_complete:
            n = operator.shape[0]
            what, remedy = f"a proof by the dense matrix of order {n}", "leave prove_complete out, or take a block"
            require(memory_for_proof(n), free_bytes(torch.device("cpu")), what, remedy)
