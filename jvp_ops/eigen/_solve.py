"""One solve of one operator: find a basis of what is asked for, and certify it with the operator itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from jvp_ops._random import generator
from jvp_ops._sitting import Checkpoint, Sitting, Stop
from jvp_ops.eigen._certify import Certified, certify, certify_images
from jvp_ops.eigen._direct import by_arpack, by_lapack
from jvp_ops.eigen._iterate import (
    Found,
    check_deflated,
    columns_of,
    deflated_basis,
    iterate,
    request_identity,
    start_block,
)
from jvp_ops.eigen._iteration import Iteration
from jvp_ops.eigen._monitor import Monitor
from jvp_ops.eigen._outcome import are_converged, notes_on, outcome
from jvp_ops.eigen._proof import Proof, prove
from jvp_ops.eigen._request import BLOCK, Request
from jvp_ops.eigen._result import Eigenpairs
from jvp_ops.eigen._rounding import OutOfScaleError, Rounding, check_scale
from jvp_ops.eigen._size import Size, plan_of, size_of
from jvp_ops.eigen._target import Target
from jvp_ops.errors import ConvergenceError, InputError, JvpOpsError, NonFiniteError
from jvp_ops.krylov import BlockBasis, TwoSidedBasis, inner, small
from jvp_ops.operators import TensorOperator

PROBE = 1e5  # units of the last place that a product may differ by, of a vector that A shortens


def solve(operator: TensorOperator, request: Request, target: Target, sitting: Sitting) -> Eigenpairs:
    """Find what a checked request asks for; `target` says which, of this operator or of one around it."""
    before = operator.products
    try:
        return _solve(operator, request, target, sitting)
    except OutOfScaleError as met:
        unit = met.unit
    scaled: Any = operator * unit  # by a power of two, which changes no digit
    around = target if (target.shift, target.scale) == (0.0, 1.0) else replace(target, scale=target.scale / unit)
    pairs = _solve(scaled, request, around, sitting)
    sizes = {name: getattr(pairs, name) / unit for name in ("values", "residuals", "bounds", "norm")}
    clusters = tuple(replace(c, mean=c.mean / unit, bound=c.bound / unit) for c in pairs.clusters)
    products = pairs.products + operator.products - before
    return replace(pairs, **sizes, clusters=clusters, products=products, provenance=operator.identity())


def _solve(operator: TensorOperator, request: Request, target: Target, sitting: Sitting) -> Eigenpairs:
    before, random = operator.products, generator(request.rng)
    rounding = Rounding.unmeasured(operator, float64=request.float64)
    monitor = Monitor(sitting, request.max_products)
    found, left = find(rounding, request, target, random, monitor), None
    if request.condition:
        left, stopped = _left_basis(rounding, request, target, random, monitor, found)
        if stopped not in (Stop.CONVERGED, Stop.ROUNDING):
            found = replace(found, stopped=stopped)
    certified = certify(rounding.with_norm(found.progress.norm), found.basis, target, request.k, left=left)
    proof = _proof(certified, request, rounding, target) if request.prove_complete else Proof()
    if request.prove_complete and not proof.complete and sitting.obstacle() == Stop.INTERRUPTED:
        found = replace(found, stopped=Stop.INTERRUPTED)
    result = outcome(certified, request, found, rounding, proof)
    notes = notes_on(result, found, rounding, proof if request.prove_complete else None, monitor)
    if request.condition and left is None:
        notes += (
            "no condition numbers: the left eigenvectors were not found, or are of other eigenvalues (a tie at the "
            "cut): raise the budget, or ask for another k",
        )
    return replace(
        result,
        notes=(*operator.linear.notes, *notes),
        provenance=operator.identity(),
        products=operator.products - before,
        float64_products=0 if rounding.exact is None else rounding.exact.products,
        seconds=sitting.seconds,
    )


def sitting_of(request: Request, description: str) -> Sitting:
    """Make the sitting of a solve."""
    return Sitting(
        description,
        unit="product",
        progress=request.progress,
        max_seconds=request.max_seconds,
        callback=request.callback,
    )


def _proof(certified: Certified, request: Request, rounding: Rounding, target: Target) -> Proof:
    """Prove that none was missed; whatever keeps that from ending, the pairs stand."""
    converged = int(are_converged(certified, request).sum())
    if converged < request.k:
        return Proof(reason=f"only {converged} of {request.k} eigenpairs converged")
    try:
        operator = rounding.exact or rounding.operator
        return prove(operator, target, certified.values, certified.bounds, progress=request.progress)
    except KeyboardInterrupt:
        return Proof(reason="the proof was interrupted")
    except JvpOpsError as error:
        return Proof(reason=str(error))


def find(
    rounding: Rounding,
    request: Request,
    target: Target,
    rng: np.random.Generator,
    monitor: Monitor,
) -> Found:
    """Run the solver that was chosen; what it finds is not certified yet."""
    if request.method == "dense":
        return by_lapack(rounding, request, target, monitor)
    if request.method == "scipy":
        return by_arpack(rounding, request, target, rng, monitor)
    return iterated(rounding, request, target, rng, monitor, two_sided=False)


def iterated(
    rounding: Rounding,
    request: Request,
    target: Target,
    rng: np.random.Generator,
    monitor: Monitor,
    *,
    two_sided: bool,
) -> Found:
    """Iterate for eigenvalues of a square operator, or on two sides for singular values of one with n ≤ m columns."""
    operator = rounding.operator
    start = None if request.start is None else columns_of(operator, request.start, "start")
    known = None if request.deflate is None else columns_of(operator, request.deflate, "deflate")
    size = size_of(
        operator,
        request.k,
        block=request.block,
        start=0 if start is None else start.shape[1],
        deflated=0 if known is None else known.shape[1],
        basis_dtype=request.basis_dtype,
        max_memory=request.max_memory,
        two_sided=two_sided,
    )
    plan = plan_of(request, target, size, verify=request.verify is not False, refine=rounding.exact is not None)
    deflated = deflated_basis(known, size.dtype)
    if deflated is not None:
        check_deflated(operator, deflated, rng)
    seed = rng.bit_generator.state

    def identity() -> dict[str, Any]:
        analysis = "svd" if two_sided else "eigenpairs"
        return request_identity(analysis, operator, plan, size.dtype, start, deflated, seed)

    eps = torch.finfo(operator.torch_dtype).eps
    monitor.sitting.checkpoint = Checkpoint.at(
        request.checkpoint,
        resume=request.resume,
        identity=identity,
        probe=operator.probe,
        close=min(eps**0.5, PROBE * eps),
    )
    if monitor.sitting.checkpoint is not None:
        check_scale(max(map(abs, monitor.sitting.checkpoint.probe)))
    first = start_block(operator, start, size.block, rng)
    basis = _empty_basis(operator, size, rng, deflated, two_sided=two_sided)
    least = basis.cost * max(size.block, first.shape[1])
    if monitor.max_products is not None and monitor.max_products < least:
        raise InputError(f"max_products={monitor.max_products} is too few: the first block alone takes {least}")
    try:
        found = iterate(Iteration(operator, rounding, plan, basis, first, monitor))
    except NonFiniteError as error:
        error.partial = None if two_sided else _partial(error, rounding, request, target)
        raise
    if found.basis.shape[1] == 0 and found.stopped == Stop.INTERRUPTED:
        raise KeyboardInterrupt  # there is nothing to give back yet
    if found.basis.shape[1] == 0:
        raise ConvergenceError(f"the solve was stopped ({found.stopped}) before its first product")
    return found


def _empty_basis(
    operator: TensorOperator, size: Size, rng: np.random.Generator, deflated: Tensor | None, *, two_sided: bool
) -> BlockBasis:
    m, n = operator.shape
    if two_sided:
        return TwoSidedBasis(m, n, size.capacity, dtype=size.dtype, device=operator.device, rng=rng)
    return BlockBasis(
        n,
        size.capacity,
        hermitian=operator.symmetric,
        dtype=size.dtype,
        device=operator.device,
        rng=rng,
        deflated=deflated,
    )


def _left_basis(
    rounding: Rounding,
    request: Request,
    target: Target,
    rng: np.random.Generator,
    monitor: Monitor,
    right: Found,
) -> tuple[Tensor | None, Stop]:
    """Find the left invariant subspace of the eigenvalues found, that of the transpose; None if it fails; and how."""
    if request.method == "dense":
        return right.left, Stop.CONVERGED
    transposed = replace(
        rounding, operator=rounding.operator.T, exact=None if rounding.exact is None else rounding.exact.T
    )
    try:
        left = find(transposed, replace(request, start=None, checkpoint=None, resume=False), target, rng, monitor)
    except ConvergenceError:
        return None, monitor.obstacle(request.block or BLOCK) or Stop.CONVERGED
    except KeyboardInterrupt:
        return None, Stop.INTERRUPTED
    known = [np.linalg.eigvals(small(inner(part.basis, _image(part)))) for part in (right, left)]
    if left.stopped not in (Stop.CONVERGED, Stop.ROUNDING) or len(known[0]) != len(known[1]):
        return None, left.stopped
    distances = np.abs(known[0][:, None] - known[1])
    apart = float(distances[linear_sum_assignment(distances)].max())
    allowed = max(float(np.sqrt(max(right.reach, left.reach))), 1e-3) * right.progress.norm
    return left.basis if apart <= allowed else None, left.stopped


def _image(found: Found) -> Tensor:
    assert found.image is not None  # of an iteration, always
    return found.image


def _partial(error: NonFiniteError, rounding: Rounding, request: Request, target: Target) -> Eigenpairs | None:
    """Make a result of what was found before a product failed, without any further product."""
    found: Found | None = getattr(error, "found", None)
    if found is None or found.image is None or found.basis.shape[1] == 0:
        return None
    certified = certify_images(found.basis, found.image, rounding.operator, target, request.k)
    result = outcome(certified, request, found, rounding, Proof())
    return replace(result, converged=np.zeros(len(result), dtype=bool), notes=(str(error),))
