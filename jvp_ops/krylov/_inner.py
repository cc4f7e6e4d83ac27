"""The inner product of tall blocks, and what is read from it on the CPU."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """Compute XᵀY of X (n, p) and Y (n, q), on their device: all sums over the n unknowns are made here."""
    return X.mT @ Y


def small(block: Tensor) -> NDArray[np.float64]:
    """Fetch a small matrix: the one wait for the device that a step of a basis makes."""
    return block.to(device="cpu", dtype=torch.float64).numpy()


def placed(matrix: NDArray[np.float64], like: Tensor) -> Tensor:
    """Put a small matrix beside a block, in its dtype."""
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(device=like.device, dtype=like.dtype)


def defect(X: Tensor) -> float:
    """Compute ‖XᵀX − I‖ in the Frobenius norm, in float64: how far columns are from orthonormal."""
    wide = X.double()
    return float(np.linalg.norm(small(inner(wide, wide)) - np.eye(X.shape[1])))
