"""How many eigenvalues lie above a shift, without computing any."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import finite_number
from jvp_ops._memory import free_bytes, require
from jvp_ops.errors import InputError, NonFiniteError

ROWS = 512
STEPS = 3  # of inverse iteration: an eigenvalue that matters is far below the rest, or not decided in any case


@dataclass(frozen=True)
class Inertia:
    """The signs of the eigenvalues of A − shift·I.

    Attributes
    ----------
    shift : float
    above, below : int
        Eigenvalues above and below the shift.
    undecided : int
        Eigenvalues too near the shift for rounding to tell: where this is not 0, choose another shift.
    """

    shift: float
    above: int
    below: int
    undecided: int


def inertia(matrix: Tensor | NDArray[np.floating], shift: float = 0.0, *, overwrite: bool = False) -> Inertia:
    r"""Count the eigenvalues of a symmetric matrix on each side of a shift, by LDLᵀ.

    .. math::  P (A - σ I) P^T = L D L^T \;\Rightarrow\; A - σ I \text{ and } D \text{ have the same inertia}

    (Sylvester's law), and the blocks of D are 1 × 1 and 2 × 2 (Bunch and Kaufman; LAPACK's sytrf).

    Parameters
    ----------
    matrix : Tensor or ndarray, shape (n, n)
        Symmetric; the lower triangle is used, in float64.
    shift : float
        σ.
    overwrite : bool
        Factorize a C-contiguous float64 matrix on the CPU in place, which destroys it and takes no further memory.

    Raises
    ------
    InputError
        It is not square, or not symmetric.
    NonFiniteError
        It holds NaN or Inf.
    MemoryBudgetError
        A float64 copy of it does not fit the memory.

    Notes
    -----
    The computed L and D are exact for a matrix within about n·ε·‖A‖₁ of A − σI, ε of the matrix's own dtype, whose
    entries are no more exact than that. `undecided` counts the pivots that small; and since an eigenvalue that small
    need not make a small pivot, those that inverse iteration with the factors finds.

    References
    ----------
    J. R. Bunch and L. Kaufman, "Some stable methods for calculating inertia and solving symmetric linear systems",
    Mathematics of Computation 31 (1977).

    Examples
    --------
    >>> import numpy as np
    >>> inertia(np.diag([3.0, 1.0, -2.0]), shift=0.5)
    Inertia(shift=0.5, above=2, below=1, undecided=0)
    """
    sigma = finite_number(shift, "shift")
    n = matrix.shape[0] if matrix.ndim == 2 else -1
    if tuple(matrix.shape) != (n, n) or n == 0:
        raise InputError(f"inertia needs a square matrix, not one of shape {tuple(matrix.shape)}")
    plain = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else matrix
    in_place = overwrite and plain.dtype == np.float64 and plain.flags.c_contiguous and plain.flags.writeable
    needed = (0 if in_place else n * n * 8) + 4 * n * ROWS * 8
    require(needed, free_bytes(torch.device("cpu")), f"the factorization of a {n} × {n} matrix", "take a block")
    last_place = float(np.finfo(plain.dtype).eps if plain.dtype == np.float32 else np.finfo(np.float64).eps)
    size, asymmetry = size_and_asymmetry(plain)
    if not np.isfinite(size):
        raise NonFiniteError("the matrix holds NaN or Inf")
    size += abs(sigma)
    if asymmetry > n * last_place * size:
        raise InputError("inertia needs a symmetric matrix: the two triangles differ by more than rounding")
    symmetric = plain.T if in_place else np.array(plain.T, dtype=np.float64, order="F")
    symmetric[np.diag_indices(n)] -= sigma
    factor, pivots, _ = scipy.linalg.lapack.dsytrf(symmetric, lower=1, overwrite_a=1)
    values = _pivot_eigenvalues(factor, pivots)
    least = n * last_place * size
    above, below = int((values > least).sum()), int((values < -least).sum())
    if above + below == n:
        near = _least_eigenvalues(factor, pivots, least)
        above, below = above - int((near > 0).sum()), below - int((near < 0).sum())
    return Inertia(sigma, above, below, n - above - below)


def _least_eigenvalues(factor: NDArray[np.float64], pivots: NDArray[np.int32], least: float) -> NDArray[np.float64]:
    """Find the eigenvalues of a factorized matrix within ±least, by inverse iteration with a block that has room."""
    n, random = len(pivots), np.random.default_rng(0)
    width = min(n, 4)
    while True:
        block = random.standard_normal((n, width))
        for _ in range(STEPS):
            block = np.linalg.qr(block)[0]
            solved, _ = scipy.linalg.lapack.dsytrs(factor, pivots, block, lower=1)
            inverse = (block.T @ solved + solved.T @ block) / 2
            block = solved / np.abs(solved).max(axis=0)
        inverses = np.linalg.eigvalsh(inverse)
        near = inverses[np.abs(inverses) * least >= 1]
        if len(near) < width or width == n:
            return np.sign(near) / np.abs(near)
        width = min(n, 4 * width)


def size_and_asymmetry(matrix: NDArray[np.floating]) -> tuple[float, float]:
    """Compute ‖A‖₁ and max |A − Aᵀ|, some rows at a time."""
    sums, asymmetry = np.zeros(len(matrix)), 0.0
    for start in range(0, len(matrix), ROWS):
        rows = matrix[start : start + ROWS].astype(np.float64)
        sums += np.abs(rows).sum(axis=0)
        asymmetry = max(asymmetry, float(np.abs(rows - matrix[:, start : start + ROWS].T).max()))
    return float(sums.max()), asymmetry


def _pivot_eigenvalues(factor: NDArray[np.float64], pivots: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the eigenvalues of the 1 × 1 and 2 × 2 blocks of D; LAPACK marks the latter by negative pivots."""
    values, row = [], 0
    while row < len(pivots):
        if pivots[row] > 0:
            values.append(factor[row, row])
            row += 1
        else:
            a, b, c = factor[row, row], factor[row + 1, row], factor[row + 1, row + 1]
            spread = np.hypot((a - c) / 2, b)
            values += [(a + c) / 2 - spread, (a + c) / 2 + spread]
            row += 2
    return np.array(values)
