"""LAPACK on the dense matrix: the solver for operators that fit, and the reference for the others."""

import torch

from jvp_ops._memory import free_bytes, require
from jvp_ops.eigen._arpack import Approximation
from jvp_ops.operators import TensorOperator


def lapack(operator: TensorOperator, *, progress: bool) -> Approximation:
    """Find all eigenpairs in float64."""
    n = operator.shape[0]
    remedy = "use the matrix-free method, or a block"
    require(
        (6 if operator.symmetric else 12) * n * n * 8,
        free_bytes(operator.device),
        f"all eigenvectors of a {n} × {n} matrix",
        remedy,
    )
    matrix = operator.dense(progress=progress).double()
    if operator.symmetric:
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    else:
        values, vectors = torch.linalg.eig(matrix)
    return Approximation(values.cpu().numpy(), vectors.cpu().numpy(), True)
