"""`eigenpairs`: choose what to solve, solve it, and check what came out with the operator itself."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import finite_number, positive_int
from jvp_ops._progress import progress_bar
from jvp_ops._random import Rng, generator
from jvp_ops.eigen._arpack import Approximation, arpack, basis_size
from jvp_ops.eigen._dense import lapack
from jvp_ops.eigen._result import Eigenpairs
from jvp_ops.eigen._rounding import Rounding
from jvp_ops.errors import ConvergenceError, InputError
from jvp_ops.operators import TensorOperator

SYMMETRIC = ("LA", "SA", "LM", "BE")
GENERAL = ("LM", "LR", "SR", "LI")
DEFAULT_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}
MIRRORED = {"LA": "SA", "SA": "LA", "BE": "BE"}


def eigenpairs(
    operator: TensorOperator,
    k: int = 6,
    which: str = "LM",
    *,
    method: str = "scipy",
    tol: float | None = None,
    rng: Rng = 0,
    max_products: int | None = None,
    progress: bool = False,
) -> Eigenpairs:
    r"""Find some eigenpairs of an operator, and check each with the operator itself.

    .. math::  A x = λ x, \qquad |λ_{\text{true}} - λ| \le \|A x - λ x\| + \text{rounding} \quad (A = A^T, \|x\| = 1).

    Parameters
    ----------
    operator : JacobianOperator, HessianOperator or GaussNewtonOperator
        Square. `symmetric` chooses the solver. Where it is shift·I + scale·H, H is solved for and mapped.
    k : int
        How many; with ``method="scipy"`` below n for a symmetric operator, below n − 1 for another.
    which : str
        Symmetric: ``LA`` (largest), ``SA`` (smallest), ``LM`` (largest magnitude), ``BE`` (half from each end).
        Non-symmetric: ``LM``, ``LR``, ``SR`` (largest, smallest real part), ``LI`` (largest imaginary part).
    method : str
        ``scipy`` (ARPACK, matrix-free) or ``dense`` (LAPACK on the dense matrix in float64, where that fits: no
        eigenvalue of the matrix is missed).
    tol : float, optional
        Residual relative to ‖A‖ to reach; by default 1e-5 in float32 and 1e-10 in float64. The solver stops at
        the operator's rounding level where that is larger, and says so.
    rng : int or numpy Generator
        Draws the start vector; the same seed gives the same result on one device.
    max_products : int, optional
        A budget of products for the solver at each end, to which a dozen to measure rounding and two for each pair
        to check it are added. What has converged when it runs out is returned.
    progress : bool
        Show a count of products on standard error.

    Returns
    -------
    Eigenpairs
        Values, vectors, residuals, bounds, converged, products used.

    Raises
    ------
    InputError
        A rectangular operator, k or which out of range.
    ConvergenceError
        Not one pair converged within `max_products`, or ARPACK gave up.
    NonFiniteError
        A product gave NaN or Inf.

    Notes
    -----
    ARPACK (implicitly restarted Lanczos and Arnoldi) through scipy. A single-vector method can miss members of a
    tight cluster or of a multiple eigenvalue; that a value is there is certain within its bound, that none was
    missed is not. In float32 the error of a product is measured against the same product in float64, where the
    loss or map can be evaluated in it, so bounds are bounds on the exact operator's eigenvalues; where it cannot, the
    rounding of products is estimated, that of what is computed once at θ is not seen, and a note says so.

    References
    ----------
    B. N. Parlett, "The Symmetric Eigenvalue Problem" (1998), section 4.5. R. B. Lehoucq, D. C. Sorensen and
    C. Yang, "ARPACK Users' Guide" (1998).

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> ramp = torch.arange(1.0, 51.0, dtype=torch.float64)
    >>> loss = jo.FunctionLoss(lambda x: (ramp * x**2).sum() / 2, size=50, dtype="float64")
    >>> pairs = jo.eigenpairs(loss.hessian(loss.initial()), k=3, which="LA")
    >>> pairs.values.round(8).tolist(), bool(pairs.converged.all())
    ([50.0, 49.0, 48.0], True)
    """
    began = time.perf_counter()
    k, which = _checked_request(operator, k, which, method)
    asked = min(k + 1, operator.shape[0] - 1) if which == "BE" and k % 2 else k  # the odd one is of the mapped end
    if max_products is not None and method == "dense":
        raise InputError("max_products is a budget of the matrix-free method; method='dense' takes as many as columns")
    if max_products is not None:
        least = basis_size(operator.shape[0], asked) + 1
        if positive_int(max_products, "max_products") < least:
            raise InputError(f"max_products={max_products} is too few: the solver's first pass alone takes {least}")
    affine = operator.affine
    solved = affine.base if affine is not None else operator
    random = generator(rng)
    before = solved.products
    rounding = Rounding.of(solved, random)
    start = random.standard_normal(operator.shape[0])
    wanted = DEFAULT_TOL[operator.torch_dtype] if tol is None else finite_number(tol, "tol", least=0)
    reachable = max(wanted, 2 * rounding.level)
    if method == "dense":
        found = [lapack(solved, progress=progress)]
    else:
        with progress_bar(None, show=progress, description=f"eigenpairs {which}", unit="product") as bar:
            found = [
                arpack(
                    solved,
                    k=asked,
                    which=end,
                    tol=reachable,
                    norm=rounding.norm,
                    start=start,
                    max_products=max_products,
                    rng=random,
                    on_product=bar.update,
                )
                for end in _ends(operator, which)
            ]
    approximation = _cut(_joined(found), operator, which, k)
    if approximation.values.size == 0:
        raise ConvergenceError(
            f"none of {k} eigenpairs ({which}) converged to a residual of {reachable:.1e} relative to the norm within "
            f"max_products={max_products}: raise max_products or tol"
        )
    result = _checked_pairs(solved, approximation, rounding, which=which, k=k, tol=wanted)
    result = replace(result, provenance=operator.identity(), complete=all(part.complete for part in found))
    if affine is not None:
        result = _mapped(result, affine.shift, affine.scale)
    return replace(
        result,
        products=solved.products - before,
        seconds=time.perf_counter() - began,
        notes=_notes(result, max_products, rounding),
    )


def _checked_request(operator: TensorOperator, k: int, which: str, method: str) -> tuple[int, str]:
    if not isinstance(operator, TensorOperator):
        raise InputError(
            f"operator must be a jvp_ops operator such as map.jacobian(theta), not {type(operator).__name__}"
        )
    rows, columns = operator.shape
    if rows != columns:
        raise InputError(f"eigenpairs needs a square operator, not one of shape {rows} × {columns}")
    choices = SYMMETRIC if operator.symmetric else GENERAL
    if which not in choices:
        kind = "symmetric" if operator.symmetric else "non-symmetric"
        raise InputError(f"which must be one of {', '.join(choices)} for a {kind} operator, not {which!r}")
    if method not in ("scipy", "dense"):
        raise InputError(f"method must be 'scipy' or 'dense', not {method!r}")
    k = positive_int(k, "k")
    if which == "BE" and k < 2:
        raise InputError("which='BE' takes half of k from each end: k must be at least 2, not 1")
    most = rows if method == "dense" else rows - 1 if operator.symmetric else rows - 2
    if k > most:
        raise InputError(
            f"k={k} is out of range: method={method!r} finds at most {most} eigenpairs of a matrix of order {rows}"
            + ("" if method == "dense" else "; method='dense' finds all of them")
        )
    return k, which


def _ends(operator: TensorOperator, which: str) -> list[str]:
    """Say what to ask of the solved operator: the mirrored end under a negative scale, both for a mapped LM."""
    if operator.affine is None:
        return [which]
    if which == "LM":
        return ["LA", "SA"]
    return [MIRRORED[which] if operator.affine.scale <= 0 else which]


def _cut(found: Approximation, operator: TensorOperator, which: str, k: int) -> Approximation:
    """Put what a solver found in order, best first, and keep k.

    Of shift·I + scale·H, ends are told by H's eigenvalues, since the mapped ones may coincide by rounding.
    """
    affine, values = operator.affine, found.values
    if affine is not None:
        values = affine.shift + affine.scale * values if which == "LM" else values * (1 if affine.scale > 0 else -1)
    kept = _order(values, which, k)
    return Approximation(found.values[kept], found.vectors[:, kept], found.complete and len(kept) >= k)


def _joined(parts: list[Approximation]) -> Approximation:
    values = np.concatenate([part.values for part in parts])
    vectors = np.concatenate([part.vectors for part in parts], axis=1)
    return Approximation(values, vectors, all(part.complete for part in parts))


def _checked_pairs(
    solved: TensorOperator, found: Approximation, rounding: Rounding, *, which: str, k: int, tol: float
) -> Eigenpairs:
    """Recompute Rayleigh quotients and residuals with the operator's own products, in float64."""
    complex_dtype = torch.complex64 if solved.torch_dtype == torch.float32 else torch.complex128
    dtype = complex_dtype if np.iscomplexobj(found.vectors) else solved.torch_dtype
    X = torch.from_numpy(np.ascontiguousarray(found.vectors)).to(device=solved.device, dtype=dtype)
    wide = torch.complex128 if X.is_complex() else torch.float64
    image = _apply(solved, X).to(wide)
    exact_X = X.to(wide)
    squares = (exact_X.conj() * exact_X).real.sum(0)
    quotients = (exact_X.conj() * image).sum(0) / squares
    residuals = (torch.linalg.vector_norm(image - quotients * exact_X, dim=0) / squares.sqrt()).cpu().numpy()
    errors = residuals + _product_errors(rounding, X)
    norm = max(rounding.norm, float(quotients.abs().max()))
    return Eigenpairs(
        values=quotients.cpu().numpy(),
        vectors=X,
        parameters=solved.columns,
        residuals=residuals,
        bounds=errors if solved.symmetric else np.full_like(errors, np.nan),
        converged=errors <= tol * norm,
        which=which,
        k=k,
        tol=tol,
        rounding=rounding.level,
        norm=norm,
        products=0,
        seconds=0.0,
        complete=True,
    )


def _apply(operator: TensorOperator, X: Tensor) -> Tensor:
    if not X.is_complex():
        return operator.apply(X)
    return torch.complex(operator.apply(X.real.contiguous()), operator.apply(X.imag.contiguous()))


def _product_errors(rounding: Rounding, X: Tensor) -> NDArray[np.float64]:
    if not X.is_complex():
        return rounding.errors(X).cpu().numpy()
    parts = [part.contiguous() for part in (X.real, X.imag)]
    lengths = [torch.linalg.vector_norm(part.double(), dim=0).cpu().numpy() for part in parts]
    errors = [
        np.nan_to_num(rounding.errors(part).cpu().numpy()) * length for part, length in zip(parts, lengths, strict=True)
    ]
    total: NDArray[np.float64] = np.hypot(*errors) / np.hypot(*lengths)
    return total


def _mapped(pairs: Eigenpairs, shift: float, scale: float) -> Eigenpairs:
    """Map the eigenpairs of H to those of shift·I + scale·H; the two share their vectors."""
    last_place = np.finfo(np.float64).eps * np.abs(shift + scale * pairs.values)
    return replace(
        pairs,
        values=shift + scale * pairs.values,
        residuals=abs(scale) * pairs.residuals,
        bounds=abs(scale) * pairs.bounds + last_place,
        hessian_values=pairs.values,
        hessian_bounds=pairs.bounds,
    )


def _order(values: NDArray[Any], which: str, k: int) -> NDArray[np.intp]:
    """Rank the k values that `which` asks for, best first; k + 1 where the cut would split a conjugate pair."""
    keys: dict[str, Any] = {
        "LA": -values.real,
        "SA": values.real,
        "LM": -np.abs(values),
        "LR": -values.real,
        "SR": values.real,
        "LI": -np.abs(values.imag),
    }
    if which == "BE":
        order = np.argsort(values)
        return order if k >= len(order) else np.r_[order[: k // 2], order[len(order) - (k - k // 2) :]]
    if not np.iscomplexobj(values):
        return np.argsort(keys[which], kind="stable")[:k]
    units = _conjugate_pairs(values)
    kept: list[int] = []
    for unit in sorted(units, key=lambda unit: float(keys[which][unit[0]])):
        if len(kept) >= k:
            break
        kept += unit
    return np.array(kept, dtype=np.intp)


def _conjugate_pairs(values: NDArray[np.complex128]) -> list[list[int]]:
    """Group each complex value with its conjugate, the upper one first; a real one stands alone."""
    free, units = set(range(len(values))), []
    for i in sorted(free, key=lambda i: -values[i].imag):
        if i not in free or values[i].imag <= 0:
            continue
        others = [j for j in free if values[j].imag < 0]
        partner = min(others, key=lambda j: abs(values[j].conj() - values[i]), default=None)
        unit = [i] if partner is None else [i, partner]
        free -= set(unit)
        units.append(unit)
    return units + [[i] for i in sorted(free)]


def _notes(pairs: Eigenpairs, max_products: int | None, rounding: Rounding) -> tuple[str, ...]:
    notes = []
    if pairs.tol < 2 * pairs.rounding:
        notes.append(
            f"tol {pairs.tol:.1e} is under twice the rounding level {pairs.rounding:.1e} of the products: the solver "
            "stopped at that level; an operator in float64 reaches further"
        )
    if not pairs.complete:
        budget = (
            "ARPACK's own limit of restarts" if max_products is None else f"the budget of max_products={max_products}"
        )
        notes.append(
            f"{budget} ran out: {len(pairs)} of {pairs.k} eigenpairs are returned, and they need not be the outermost"
        )
    if rounding.exact is None and rounding.operator.torch_dtype == torch.float32:
        notes.append(
            "this operator could not be computed in float64 to compare with: the rounding of products is estimated, "
            "and bounds are of the operator as float32 has it"
        )
    return tuple(notes)
