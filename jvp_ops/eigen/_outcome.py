"""From certified pairs to the result: flags, the mapping from H to shift·I + scale·H, and notes for the reader."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from jvp_ops._sitting import Stop, as_certified
from jvp_ops.eigen._certify import Certified
from jvp_ops.eigen._iterate import Found
from jvp_ops.eigen._monitor import Monitor
from jvp_ops.eigen._proof import Proof, sharpened
from jvp_ops.eigen._request import Request
from jvp_ops.eigen._result import Eigenpairs
from jvp_ops.eigen._rounding import Rounding


def are_converged(certified: Certified, request: Request) -> NDArray[np.bool_]:
    """Tell whose residual and rounding are within the tolerance."""
    enough: NDArray[np.bool_] = certified.residuals + certified.errors <= request.tol * certified.norm
    return enough


CHANCE = 1e-6


def excluded_gap(n: int, steps: int) -> float:
    """Give the gap ε, relative to the spectrum's width, that Lanczos from a random vector would have seen beyond.

    References
    ----------
    J. Kuczyński and H. Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a
    random start", SIAM Journal on Matrix Analysis 13 (1992): the chance of an error larger than ε is at most
    1.648 √n exp(−√ε (2m − 1)) after m steps.
    """
    return float(min(1.0, (np.log(1.648 * np.sqrt(n) / CHANCE) / (2 * steps - 1)) ** 2))


def outcome(certified: Certified, request: Request, found: Found, rounding: Rounding, proof: Proof) -> Eigenpairs:
    """Put the result together, its counts still open."""
    operator = rounding.operator
    bounds, converged = certified.bounds, are_converged(certified, request)
    if certified.gram is not None:
        bounds = sharpened(certified.values, bounds, certified.gram, certified.errors, proof)
    return Eigenpairs(
        values=certified.values,
        vectors=certified.vectors,
        parameters=operator.columns,
        residuals=certified.residuals,
        bounds=bounds,
        converged=converged,
        which=request.which,
        k=request.k,
        tol=request.tol,
        method=request.method,
        rounding=certified.level,
        norm=certified.norm,
        products=0,
        float64_products=0,
        seconds=0.0,
        stopped=as_certified(found.stopped, converged),
        complete=proof.complete or (request.method == "dense" and operator.symmetric),
        gap=excluded_gap(operator.shape[0], found.progress.looked)
        if operator.symmetric and found.progress.verified and found.progress.looked
        else None,
        condition=certified.condition,
        clusters=certified.clusters,
        history=np.array(found.progress.history).reshape(-1, 3),
    )


def mapped(pairs: Eigenpairs, shift: float, scale: float) -> Eigenpairs:
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


def notes_on(
    pairs: Eigenpairs, found: Found, rounding: Rounding, proof: Proof | None, monitor: Monitor
) -> tuple[str, ...]:
    """Say what a reader should know beside the numbers."""
    notes = []
    budgets = {
        "max_products": f"the budget of max_products={monitor.max_products} ran out",
        "max_seconds": f"the budget of max_seconds={monitor.sitting.max_seconds} ran out",
        "cancelled": "the solve was cancelled",
        "interrupted": "the solve was stopped by Ctrl-C",
        "stagnation": "the residuals no longer shrink",
        "restarts": "ARPACK's own limit of restarts was reached",
    }
    if pairs.stopped in budgets:
        notes.append(
            f"{budgets[pairs.stopped]}: {int(pairs.converged.sum())} of {pairs.k} eigenpairs converged; the bounds "
            "hold for all that are listed, but they need not be the outermost"
        )
    level = max(found.progress.level, pairs.rounding)
    if pairs.tol < 2 * level:
        further = "; an operator in float64 reaches further" if rounding.operator.torch_dtype == torch.float32 else ""
        notes.append(
            f"tol {pairs.tol:.1e} is under twice the rounding level {level:.1e} of the products: the solver "
            f"stopped at that level{further}"
        )
    elif pairs.stopped == Stop.ROUNDING:
        notes.append(
            f"the residuals stay above tol {pairs.tol:.1e}, which is well above the rounding level {level:.1e} of the "
            "products: vectors to deflate that are not exact eigenvectors, or eigenvalues of large condition numbers, "
            "can be the reason"
        )
    if found.progress.gave_up and pairs.stopped in (Stop.CONVERGED, Stop.ROUNDING):
        notes.append(
            "fresh random directions found more each time until the solver gave up looking: some may be missing"
        )
    if rounding.exact is None and rounding.operator.torch_dtype == torch.float32:
        notes.append(
            "not certified in float64: the rounding of products is estimated, and bounds are of the operator as "
            "float32 has it"
        )
    if proof is not None and not proof.complete:
        notes.append(f"not proved complete: {proof.reason}")
    if pairs.clusters:
        sizes = ", ".join(f"{len(c.members)} with mean {c.mean:.8g} ± {c.bound:.1e}" for c in pairs.clusters)
        notes.append(f"near a defective point only the mean and the invariant subspace are determined: {sizes}")
    return (*notes, *monitor.sitting.notes)
