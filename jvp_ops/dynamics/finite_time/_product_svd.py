"""The singular values of a product of small triangular matrices, however large or small they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ProductSVD:
    """S = left · diag(exp(logs)) · rightᵀ.

    Attributes
    ----------
    logs : ndarray, shape (k,)
        Logarithms of the singular values, falling; −inf for zero.
    left, right : ndarray, shape (k, k)
        Orthogonal; column i belongs to value i.
    """

    logs: Matrix
    left: Matrix
    right: Matrix


def product_svd(triangles: Sequence[Matrix], *, sweeps: int = 2) -> ProductSVD:
    """Decompose S = R_T ⋯ R_1 of upper triangular R_t (given in the order 1 to T) without ever forming it.

    The rows of S are carried as unit rows and logarithms of their norms, and one-sided Jacobi rotations make them
    orthogonal. Where the unit rows are well-conditioned this finds every singular value to high relative accuracy, in
    however wide a range. A QR sweep over vectors leaves them so; where not, up to `sweeps` QR sweeps through the
    transposed product first put the singular values in order on the diagonals.

    References
    ----------
    S. Oliveira, D. E. Stewart, "Exponential splittings of products of matrices and accurately computing singular
    values of long products", Linear Algebra and its Applications 309 (2000).

    J. Demmel, K. Veselić, "Jacobi's method is more accurate than QR", SIAM Journal on Matrix Analysis 13 (1992).
    """
    directions, logs = _rows_of_product(triangles)
    if sweeps and np.linalg.cond(directions) > 1e4:
        outer, transposed = _transposed(triangles)  # Sᵀ = outer · (product of the transposed)
        inner = product_svd(transposed, sweeps=sweeps - 1)
        return ProductSVD(inner.logs, inner.right, outer @ inner.left)
    columns, rotation, logs = _orthogonalized(directions.T.copy(), logs)
    order = np.argsort(-logs, kind="stable")
    return ProductSVD(logs[order], rotation[:, order], _completed(columns[:, order], logs[order]))


def _transposed(triangles: Sequence[Matrix]) -> tuple[Matrix, list[Matrix]]:
    """Write R_1ᵀ ⋯ R_Tᵀ as an orthogonal matrix times a product of triangular ones, given first to last."""
    basis, found = np.eye(len(triangles[0])), []
    for triangle in reversed(triangles):
        basis, upper = np.linalg.qr(triangle.T @ basis)
        found.append(upper)
    return basis, found


def _rows_of_product(triangles: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    """Multiply the rows of the identity by R_T, then R_{T−1}, …; return unit rows and the logarithms of their norms."""
    k = len(triangles[0])
    rows, logs = np.eye(k), np.zeros(k)
    for triangle in reversed(triangles):
        rows, logs = _normalized(rows @ triangle, logs, axis=1)
    return rows, logs


def _normalized(vectors: Matrix, logs: Matrix, *, axis: int) -> tuple[Matrix, Matrix]:
    scale = abs(vectors).max(axis=axis, keepdims=True)
    safe = np.where(scale > 0, scale, 1.0)
    vectors = vectors / safe
    norms = np.linalg.norm(vectors, axis=axis, keepdims=True)
    with np.errstate(divide="ignore"):
        logs = logs + np.where(scale > 0, np.log(norms) + np.log(safe), -np.inf).reshape(-1)
    return vectors / np.where(norms > 0, norms, 1.0), logs


def _orthogonalized(columns: Matrix, logs: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Rotate pairs of the columns exp(logs_i) columns_i until all are orthogonal; also return the rotation V."""
    k = len(logs)
    rotation = np.eye(k)
    order = np.argsort(-logs, kind="stable")
    for _ in range(60):
        largest = 0.0
        for a in range(k):
            for b in range(a + 1, k):
                i, j = order[a], order[b]
                if logs[j] > logs[i]:
                    i, j = j, i
                if logs[j] == -np.inf:
                    continue
                cosine = float(columns[:, i] @ columns[:, j])
                if abs(cosine) <= 4e-16:
                    continue
                largest = max(largest, abs(cosine))
                _rotate(columns, rotation, logs, int(i), int(j), cosine)
        if largest <= 1e-15:
            break
    return columns, rotation, logs


def _rotate(columns: Matrix, rotation: Matrix, logs: Matrix, i: int, j: int, cosine: float) -> None:
    """Make column j orthogonal to column i, which is the longer, by a rotation of tangent exp(logs_j − logs_i) · τ."""
    ratio = np.exp(logs[j] - logs[i])
    difference = -np.expm1(2 * (logs[j] - logs[i]))
    tau = 2 * cosine / (difference + np.hypot(difference, 2 * cosine * ratio))  # finite also where ratio underflows
    tangent = tau * ratio
    c = 1 / np.hypot(1.0, tangent)
    long = c * (columns[:, i] + tangent * ratio * columns[:, j])
    short = c * (columns[:, j] - tau * columns[:, i])
    for number, vector in ((i, long), (j, short)):
        unit, log = _normalized(vector[:, None], logs[number : number + 1], axis=0)
        columns[:, number], logs[number] = unit[:, 0], log[0]
    first, second = rotation[:, i].copy(), rotation[:, j].copy()
    rotation[:, i], rotation[:, j] = c * (first + tangent * second), c * (second - tangent * first)


def _completed(columns: Matrix, logs: Matrix) -> Matrix:
    """Replace the columns of zero singular values by any that complete the others to an orthogonal matrix."""
    rank = int((logs > -np.inf).sum())
    if rank == len(logs):
        return columns
    complement: Matrix = np.linalg.qr(np.hstack([columns[:, :rank], np.eye(len(logs))]))[0][:, rank:]
    return np.hstack([columns[:, :rank], complement])
