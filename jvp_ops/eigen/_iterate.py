"""Setting up the iteration: start vectors, deflation, checkpoints; and what it leaves behind."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import check_finite
from jvp_ops._random import normal
from jvp_ops.eigen._iteration import Iteration, Plan, Progress
from jvp_ops.errors import DataError, InputError, NonFiniteError
from jvp_ops.krylov import independent, inner, placed
from jvp_ops.operators import TensorOperator
from jvp_ops.store import load_checkpoint, prepare_checkpoint, save_checkpoint, sha256_of

PROBE = 1e3  # a product differs from run to run by a few rounding levels, and from another operator's by far more


@dataclass(frozen=True)
class Checkpoint:
    """Where a solve keeps its state, and what it must be of."""

    path: Path
    identity: dict[str, Any]
    there: bool


def checkpoint_at(
    path: str | Path | None, *, resume: bool, identity: Callable[[], dict[str, Any]]
) -> Checkpoint | None:
    """Check ``checkpoint=`` and ``resume=`` before anything is computed."""
    there = prepare_checkpoint(path, resume=resume)
    return None if path is None else Checkpoint(Path(path), identity(), there)


def start_block(operator: TensorOperator, given: Tensor | None, width: int, rng: np.random.Generator) -> Tensor:
    """Make the first block: the vectors that are given, or random ones."""
    if given is None:
        return normal(rng, operator.shape[0], width, dtype=torch.float64, device=operator.device)
    if not bool(given.any()):
        raise InputError("start holds nothing but zeros: give vectors near the eigenvectors, or leave it out")
    return given


def columns_of(operator: TensorOperator, vectors: Any, name: str) -> Tensor:
    """Read vectors, or the vectors of a result, as real columns of shape (n, m) on the operator's device."""
    tensor = getattr(vectors, "vectors", vectors)
    n = operator.shape[0]
    if not isinstance(tensor, Tensor) or tensor.ndim not in (1, 2) or tensor.shape[0] != n or tensor.shape[-1] == 0:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(vectors).__name__
        raise InputError(f"{name} must be a tensor of shape ({n},) or ({n}, m), or an Eigenpairs, not {shape}")
    wide = tensor if tensor.ndim == 2 else tensor[:, None]
    if wide.layout != torch.strided and name != "deflate":
        wide = wide.to_dense()
    if wide.is_complex():
        wide = torch.cat([wide.real, wide.imag[:, wide.imag.abs().amax(dim=0) > 0]], dim=1)
    wide = wide.detach().to(device=operator.device, dtype=torch.float64)
    check_finite(wide if wide.layout == torch.strided else wide.to_sparse_coo().coalesce().values(), name)
    return wide


def deflated_basis(X: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Make known eigenvectors orthonormal; sparse ones must be so already."""
    if X is None:
        return None
    if X.layout == torch.strided:
        Q = independent(X, ())
        if Q.shape[1] < X.shape[1]:
            raise InputError("deflate holds linearly dependent vectors: give each eigenvector once")
        return Q.to(dtype)
    listed = X.to_sparse_coo().coalesce().cpu()
    plain = scipy.sparse.csc_array((listed.values().numpy(), tuple(listed.indices().numpy())), shape=tuple(X.shape))
    defect = plain.T @ plain - scipy.sparse.eye_array(X.shape[1])
    if X.shape[1] > X.shape[0] or float(abs(defect).sum()) > 1e-9:
        raise InputError("a sparse deflate must have orthonormal columns: its Gram matrix is not the identity")
    return X.to(dtype)


def check_deflated(operator: TensorOperator, X: Tensor, rng: np.random.Generator) -> None:
    """Refuse vectors that do not span an invariant subspace, by one product with a random vector of their span."""
    c = normal(rng, X.shape[1], 1, dtype=X.dtype, device=X.device)
    y = X @ (c / torch.linalg.vector_norm(c))
    image = operator.apply(y.to(operator.torch_dtype)).to(X.dtype)
    left = float(torch.linalg.vector_norm(image - X @ inner(X, image)))
    z = normal(rng, len(y), 1, dtype=torch.float64, device=X.device)
    typical = float(
        torch.linalg.vector_norm(operator.apply((z / torch.linalg.vector_norm(z)).to(operator.torch_dtype)))
    )
    if left > 1e-2 * max(typical, float(torch.linalg.vector_norm(image))):
        raise InputError(
            "deflate does not span an invariant subspace: A times a vector of it leaves it by "
            f"{left:.1e}; give eigenvectors of this operator"
        )


@dataclass(frozen=True)
class Found:
    """What a solver leaves: an orthonormal basis of the wanted eigenspace, and how it ended.

    Attributes
    ----------
    basis : Tensor, shape (n, g)
    stopped : str
        ``converged``, ``rounding``, ``stagnation``, ``max_products``, ``max_seconds``, ``cancelled``,
        ``restarts`` or ``failed``.
    progress : Progress
    reach : float
        The residual that the solver went for, relative to ‖A‖.
    image : Tensor, shape (n, g), optional
        The basis's product with A, as an iteration computed it.
    """

    basis: Tensor
    stopped: str
    progress: Progress
    reach: float
    image: Tensor | None = None


def iterate(solver: Iteration, checkpoint: Checkpoint | None) -> Found:
    """Run the solver; a `NonFiniteError` from a product leaves with what was ``found`` before it."""
    if checkpoint is not None:
        solver.save = lambda: _save(solver, checkpoint)
        if checkpoint.there:
            _resume(solver, checkpoint)
    try:
        stopped = solver.run()
    except NonFiniteError as error:
        error.found = _found(solver, "failed")
        raise
    return _found(solver, stopped)


def _found(solver: Iteration, stopped: str) -> Found:
    Q = solver.found().Q if solver.basis.size else np.zeros((0, 0))
    image = solver.basis.image @ placed(Q, solver.basis.image)
    progress = solver.progress
    return Found(solver.basis.combine(Q), stopped, progress, max(solver.plan.tol, 2 * progress.level), image)


def _save(solver: Iteration, checkpoint: Checkpoint) -> None:
    solver.progress.products, solver.progress.seconds = solver.monitor.products, solver.monitor.seconds
    progress = {**asdict(solver.progress), "least": min(solver.progress.least, float(np.finfo(float).max))}
    record = {"progress": progress, "rng": solver.basis.rng.bit_generator.state}
    arrays: dict[str, NDArray[Any]] = {
        **solver.basis.arrays(),
        "block": solver.block.cpu().numpy(),
        "settled": solver.settled,
    }
    save_checkpoint(checkpoint.path, arrays, record, checkpoint.identity)


def _resume(solver: Iteration, checkpoint: Checkpoint) -> None:
    """Go back to a checkpoint, and see that a product is still the one it holds."""
    arrays, record = load_checkpoint(checkpoint.path, checkpoint.identity)
    solver.basis.restore(arrays)
    solver.block = torch.from_numpy(arrays["block"]).to(solver.basis.device)
    solver.settled = arrays["settled"]
    solver.progress = Progress(**record["progress"])
    solver.basis.rng.bit_generator.state = record["rng"]
    solver.monitor.products, solver.monitor.earlier = solver.progress.products, solver.progress.seconds
    if solver.basis.size == 0:
        return
    operator = solver.multiplied
    again = operator.apply(solver.basis.vectors[:, :1].to(operator.torch_dtype).contiguous())
    kept = solver.basis.image[:, :1]
    level = max(solver.progress.level, torch.finfo(operator.torch_dtype).eps)
    if float((again.double() - kept.double()).norm()) > PROBE * level * max(solver.progress.norm, float(kept.norm())):
        raise DataError(
            f"the checkpoint {checkpoint.path} is of another operator: its product with a kept vector differs; "
            "something that the fingerprint does not see has changed"
        )


def request_identity(
    operator: TensorOperator, plan: Plan, dtype: torch.dtype, start: Tensor | None, deflated: Tensor | None, rng: Any
) -> dict[str, Any]:
    """Name all that the course of a solve depends on."""
    plain = {**asdict(plan), "basis": str(dtype), "rng": rng}
    plain["start"] = None if start is None else sha256_of(start)
    if deflated is not None and deflated.layout != torch.strided:
        listed = deflated.to_sparse_coo().coalesce()
        plain["deflate"] = sha256_of(listed.indices(), listed.values())
    else:
        plain["deflate"] = None if deflated is None else sha256_of(deflated)
    return {"eigenpairs": plain, "operator": operator.identity()}
