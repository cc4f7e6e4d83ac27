"""The small projected problem: its eigenvalues, ranked, with an orthonormal basis of the best of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops.errors import ConvergenceError
from jvp_ops.krylov._inner import inner, small

Ranking = Callable[[NDArray[Any]], NDArray[np.intp]]  # the places of eigenvalues, best first; conjugates side by side


@dataclass(frozen=True)
class Ritz:
    """The partial Schur form T P = Q S of a projection T, best eigenvalues first.

    Attributes
    ----------
    values : ndarray, shape (p,)
        The diagonal of S; in conjugate pairs, both together, where T is not symmetric.
    Q : ndarray of float64, shape (size, p)
        Orthonormal columns: eigenvectors where T is symmetric, Schur vectors where it is not.
    S : ndarray of float64, shape (p, p)
        Diagonal where T is symmetric (but among values that rounding does not tell apart); else upper triangular but
        for 2 × 2 blocks of conjugate pairs.
    P : ndarray of float64, shape (size, p)
        Q, but in a singular value decomposition, where P is of the left basis.
    """

    values: NDArray[Any]
    Q: NDArray[np.float64]
    S: NDArray[np.float64]
    P: NDArray[np.float64]

    def first(self, p: int) -> "Ritz":
        """Take the first p columns."""
        return Ritz(self.values[:p], self.Q[:, :p], self.S[:p, :p], self.P[:, :p])

    def only(self, group: NDArray[np.intp]) -> "Ritz":
        """Take some columns of a diagonal S."""
        return Ritz(self.values[group], self.Q[:, group], self.S[np.ix_(group, group)], self.P[:, group])

    def splits_pair(self, p: int) -> bool:
        """Whether a cut after p columns would part a conjugate pair."""
        return 0 < p < len(self.values) and np.iscomplexobj(self.values) and bool(self.S[p, p - 1] != 0)

    def eigenvectors(self) -> NDArray[Any]:
        """Give the unit eigenvectors Z of S, shape (p, p): those of A's compression are V Q Z."""
        if not np.iscomplexobj(self.values):
            return np.eye(len(self.values))
        return _schur_eigenvectors(self.S)


def ritz(projection: NDArray[np.float64], ranking: Ranking, symmetric: bool, p: int) -> Ritz:
    """Solve the projected problem for the p best eigenvalues (p + 1 where the cut would split a pair)."""
    if symmetric:
        mean = torch.from_numpy((projection + projection.T) / 2)
        values, vectors = (part.numpy() for part in torch.linalg.eigh(mean))  # numpy's threads would fight torch's
        order = ranking(values)[:p]
        return Ritz(values[order], vectors[:, order], np.diag(values[order]), vectors[:, order])
    found = schur(projection, ranking, p)
    return found.first(min(p, len(found.values)) + found.splits_pair(p))


def schur(projection: NDArray[np.float64], ranking: Ranking, p: int) -> Ritz:
    """Compute the whole real Schur form, the p best eigenvalues first."""
    S, Q = scipy.linalg.schur(projection, output="real")
    S, Q, values = _ordered(S, Q, ranking, p)
    return Ritz(values, Q, S, Q)


def left_basis(whole: Ritz, p: int) -> NDArray[np.float64]:
    """Give an orthonormal basis of the left invariant subspace of the first p eigenvalues of a whole Schur form.

    Its coordinates are the rows of (I Z) with S₁₁ Z − Z S₂₂ = S₁₂.
    """
    S = whole.S
    if p == len(S):
        return whole.Q
    Z, scale, _ = scipy.linalg.lapack.dtrsyl(S[:p, :p], S[p:, p:], S[:p, p:], isgn=-1)
    basis = whole.Q @ np.vstack([scale * np.eye(p), Z.T])
    orthonormal: NDArray[np.float64] = scipy.linalg.qr(basis, mode="economic")[0]
    return orthonormal


def groups_within(values: NDArray[np.float64], width: float) -> list[NDArray[np.intp]]:
    """Group real values so that each group spans at most `width`; give their places, ascending in each group."""
    groups: list[list[int]] = []
    for i in np.argsort(values, kind="stable"):
        if groups and values[i] - values[groups[-1][0]] <= width:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    return [np.sort(np.array(group, dtype=np.intp)) for group in groups]


def scaled_gram(residuals: Tensor) -> tuple[float, NDArray[np.float64]]:
    """Give the largest entry u of R, and (R/u)ᵀ(R/u), whose squares do not underflow."""
    unit = float(residuals.abs().max()) or 1.0
    scaled = residuals / unit
    return unit, small(inner(scaled, scaled))


def residual_lengths(residuals: Tensor, wanted: Ritz, blur: float) -> NDArray[np.float64]:
    """Compute ‖A x − λ x‖ of the eigenpairs from A V Q − V Q S.

    Of a symmetric A, values within `blur` stand for any rotation among their vectors: theirs is the norm of all.
    """
    unit, gram = scaled_gram(residuals)
    if np.iscomplexobj(wanted.values):
        Z = wanted.eigenvectors()
        squares = np.einsum("ij,ik,kj->j", Z.conj(), gram, Z).real
    else:
        squares = np.diag(gram).copy()
        for group in groups_within(wanted.values, blur):
            squares[group] = np.linalg.norm(gram[np.ix_(group, group)], 2)
    root: NDArray[np.float64] = unit * np.sqrt(np.maximum(squares, 0))
    return root


def _ordered(S: NDArray[np.float64], Q: NDArray[np.float64], ranking: Ranking, p: int) -> tuple[Any, Any, Any]:
    """Move the blocks of the p best eigenvalues to the top, best first (LAPACK's trexc)."""
    blocks = _blocks(S)
    ranked = ranking(_eigenvalues(S))
    order = list(dict.fromkeys(next(b for b, rows in enumerate(blocks) if i in rows) for i in ranked))
    where = list(range(len(blocks)))
    done = 0
    for position, block in enumerate(order):
        if done >= p:
            break
        now = where.index(block)
        first = sum(len(blocks[b]) for b in where[:now])
        if first != done:
            S, Q, info = scipy.linalg.lapack.dtrexc(S, Q, first + 1, done + 1, overwrite_a=1, overwrite_q=1)
            if info < 0:
                raise ConvergenceError("the projected problem could not be reordered")
            if info > 0:
                break  # two blocks too close to swap: the order among them is rounding
            where.insert(position, where.pop(now))
        done += len(blocks[block])
    return S, Q, _eigenvalues(S)


def _blocks(S: NDArray[np.float64]) -> list[list[int]]:
    """List the rows of the diagonal blocks of a real Schur form."""
    blocks, row = [], 0
    while row < len(S):
        wide = row + 1 < len(S) and S[row + 1, row] != 0
        blocks.append([row, row + 1] if wide else [row])
        row += 1 + wide
    return blocks


def _eigenvalues(S: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Read the eigenvalues off the diagonal blocks, the upper one of a pair first."""
    values = np.diag(S).astype(np.complex128)
    for rows in _blocks(S):
        if len(rows) == 2:
            i, j = rows
            values[i] += 1j * np.sqrt(abs(S[i, j])) * np.sqrt(abs(S[j, i]))  # LAPACK makes both diagonals equal
            values[j] = np.conj(values[i])
    return values


def _schur_eigenvectors(S: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Solve (S − λ_j I) z = 0 by back substitution, so that z_j needs no column after λ_j's block."""
    p = len(S)
    triangle, U = scipy.linalg.rsf2csf(S, np.eye(p))
    least = max(np.finfo(float).eps * float(np.abs(triangle).max(initial=0.0)), np.finfo(float).tiny)
    Z = np.zeros((p, p), dtype=np.complex128)
    for j in range(p):
        z = np.zeros(p, dtype=np.complex128)
        z[j] = 1
        for i in range(j - 1, -1, -1):
            gap = triangle[i, i] - triangle[j, j]
            z[i] = -(triangle[i, i + 1 : j + 1] @ z[i + 1 : j + 1]) / (gap if abs(gap) > least else least)
            if abs(z[i]) > 1e100:
                z /= abs(z[i])
        Z[:, j] = U @ (z / np.linalg.norm(z))
    for rows in _blocks(S):
        if len(rows) == 2 and triangle[rows[0], rows[0]].imag < 0:
            Z[:, rows] = Z[:, rows[::-1]]
    return Z
