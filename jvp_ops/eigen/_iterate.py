"""Setting up the iteration: start vectors, deflation, checkpoints; and what it leaves behind."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from jvp_ops._checks import check_finite
from jvp_ops._random import normal
from jvp_ops._sitting import Stop
from jvp_ops.eigen._iteration import Iteration, Plan, Progress
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.krylov import Ritz, TwoSidedBasis, independent, inner, placed
from jvp_ops.operators import TensorOperator
from jvp_ops.store import sha256_of


def start_block(operator: TensorOperator, given: Tensor | None, width: int, rng: np.random.Generator) -> Tensor:
    """Make the first block: the vectors that are given, or random ones."""
    if given is None:
        return normal(rng, operator.shape[1], width, dtype=torch.float64, device=operator.device)
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
    stopped : Stop
    progress : Progress
    reach : float
        The residual that the solver went for, relative to ‖A‖.
    image : Tensor, shape (n, g), optional
        The basis's product with A, as an iteration computed it.
    left : Tensor, shape (m, g), optional
        Of a singular value decomposition, the basis on the side of A's rows; `image` is its product with Aᵀ. Of a whole
        Schur form, that of the left invariant subspace, where it was asked for.
    """

    basis: Tensor
    stopped: Stop
    progress: Progress
    reach: float
    image: Tensor | None = None
    left: Tensor | None = None


def iterate(solver: Iteration) -> Found:
    """Run the solver, from its checkpoint where there is one; an error of a product leaves with what was ``found``."""
    if kept := solver.monitor.sitting.resume():
        solver.restore(*kept)
    try:
        stopped = solver.run()
    except NonFiniteError as error:
        error.found = _found(solver, Stop.FAILED)
        raise
    return _found(solver, stopped)


def _found(solver: Iteration, stopped: Stop) -> Found:
    basis, progress = solver.basis, solver.progress
    none = np.zeros((0, 0))
    found = solver.found() if basis.size else Ritz(np.zeros(0), none, none, none)
    image = basis.image @ placed(found.P, basis.image)
    left = basis.combine_left(found.P) if isinstance(basis, TwoSidedBasis) else None
    return Found(basis.combine(found.Q), stopped, progress, max(solver.plan.tol, 2 * progress.level), image, left)


def request_identity(
    analysis: str,
    operator: TensorOperator,
    plan: Plan,
    dtype: torch.dtype,
    start: Tensor | None,
    deflated: Tensor | None,
    rng: Any,
) -> dict[str, Any]:
    """Name all that the course of a solve depends on."""
    plain = {**asdict(plan), "basis": str(dtype), "rng": rng}
    plain["start"] = None if start is None else sha256_of(start)
    if deflated is not None and deflated.layout != torch.strided:
        listed = deflated.to_sparse_coo().coalesce()
        plain["deflate"] = sha256_of(listed.indices(), listed.values())
    else:
        plain["deflate"] = None if deflated is None else sha256_of(deflated)
    return {analysis: plain, "operator": operator.identity()}
