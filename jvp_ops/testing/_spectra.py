"""Matrices whose spectra are known by formula, symmetric and not."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from jvp_ops._random import Rng, generator
from jvp_ops.errors import InputError
from jvp_ops.testing._operators import Spectrum, conjugated, operator_of

Floats = NDArray[np.float64]


def spectrum(name: str, n: int = 200, *, rng: Rng = 0, **options: Any) -> Spectrum:
    """Make a symmetric operator of a named spectrum; `SPECTRA` lists the names.

    Parameters
    ----------
    name : str
        ``decaying`` (1, 1/4, 1/9, …), ``stepped`` (five levels, each n/5 times), ``clustered`` (near 0 but for 20
        values within 1e-8 of 1), ``double``, ``triple`` and ``fifty-fold`` (the top value so many times),
        ``null space`` (85.5 % zeros, as in the reference network: 3,401 of 3,978), ``indefinite`` (both signs, the
        largest magnitude negative), ``low rank`` (5 values, else 0), ``zero``, ``identity``.
    n : int
        The order.
    rng, **options
        As in `conjugated`.

    Raises
    ------
    InputError
        Another name.

    Examples
    --------
    >>> spectrum("triple", 6).values.tolist()
    [0.0, 0.25, 0.5, 2.0, 2.0, 2.0]
    """
    if name not in SPECTRA:
        raise InputError(f"name must be one of {', '.join(SPECTRA)}, not {name!r}")
    return conjugated(SPECTRA[name](n), rng=rng, **options)


def _multiple(n: int, times: int) -> Floats:
    times = min(times, n)
    return np.concatenate([np.full(times, 2.0), np.arange(n - times) / max(n - times, 4)])


def _clustered(n: int) -> Floats:
    tight = min(20, max(n // 2, 1))
    return np.concatenate([1 + 1e-8 * np.arange(tight) / tight, np.linspace(0, 0.01, n - tight)])


def _null_space(n: int) -> Floats:
    rank = max(n - round(n * 3401 / 3978), 1)
    signs = np.where(np.arange(rank) % 4 == 3, -1, 1)
    return np.concatenate([np.zeros(n - rank), signs * 2.0 ** -np.linspace(0, 20, rank)])


SPECTRA: dict[str, Callable[[int], Floats]] = {
    "decaying": lambda n: 1 / np.arange(1.0, n + 1) ** 2,
    "stepped": lambda n: np.floor(np.arange(n) * 5 / n) + 1,
    "clustered": _clustered,
    "double": lambda n: _multiple(n, 2),
    "triple": lambda n: _multiple(n, 3),
    "fifty-fold": lambda n: _multiple(n, 50),
    "null space": _null_space,
    "indefinite": lambda n: np.linspace(-1.1, 1.0, n),
    "low rank": lambda n: np.r_[[5.0, 4.0, -3.0, 2.0, 1.0][:n], np.zeros(max(n - 5, 0))],
    "zero": np.zeros,
    "identity": np.ones,
}


def mikota(n: int, **options: Any) -> Spectrum:
    r"""Make Mikota's vibrating chain, whose eigenvalues are exactly 1, 4, 9, …, n².

    .. math::  A = M^{-1/2} K M^{-1/2}, \qquad M = \operatorname{diag}(1/i),
               \quad K = \operatorname{tridiag}(-(n-i),\ 2(n-i)+1,\ -(n-i)).

    Parameters
    ----------
    n : int
        The order.
    **options
        Of `operator_of`.

    References
    ----------
    J. Mikota, "Frequency tuning of chain structure multibody oscillators to place the natural frequencies at Ω₁ and
    N−1 integer multiples Ω₂, …, Ω_N", Zeitschrift für Angewandte Mathematik und Mechanik 81 (2001).

    Examples
    --------
    >>> np.linalg.eigvalsh(mikota(3).operator.dense().numpy()).round(10).tolist()
    [1.0, 4.0, 9.0]
    """
    i = np.arange(1.0, n + 1)
    side = -(n - i[:-1]) * np.sqrt(i[:-1] * i[1:])
    matrix = np.diag((2 * (n - i) + 1) * i) + np.diag(side, 1) + np.diag(side, -1)
    return Spectrum(operator_of(matrix, **options), i**2)


def laplacian(n: int, **options: Any) -> Spectrum:
    """Make the second difference on a line with fixed ends, of eigenvalues 4 sin²(jπ / (2(n + 1))).

    Examples
    --------
    >>> laplacian(2).values.round(10).tolist()
    [1.0, 3.0]
    """
    matrix = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    angles = np.arange(1, n + 1) * np.pi / (2 * (n + 1))
    return Spectrum(operator_of(matrix, **options), 4 * np.sin(angles) ** 2)


def grcar(n: int, **options: Any) -> Spectrum:
    """Make the Grcar matrix, whose eigenvalues are sensitive: −1 below the diagonal, 1 on it and on three above.

    References
    ----------
    L. N. Trefethen and M. Embree, "Spectra and Pseudospectra" (2005), chapter 7.

    Examples
    --------
    >>> grcar(3).operator.dense().int().tolist()
    [[1, 1, 1], [-1, 1, 1], [0, -1, 1]]
    """
    matrix = np.triu(np.tril(np.ones((n, n)), 3)) - np.eye(n, k=-1)
    return Spectrum(operator_of(matrix, symmetric=False, **options), None)


def jordan(blocks: list[tuple[float, int]], **options: Any) -> Spectrum:
    """Make a direct sum of Jordan blocks (value, size).

    Examples
    --------
    >>> jordan([(2.0, 2), (1.0, 1)]).operator.dense().int().tolist()
    [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
    """
    matrix = scipy.linalg.block_diag(*[value * np.eye(size) + np.eye(size, k=1) for value, size in blocks])
    values = np.concatenate([np.full(size, value, dtype=np.complex128) for value, size in blocks])
    return Spectrum(operator_of(matrix, symmetric=False, **options), values)


def heavy_ball(h: ArrayLike, *, lr: float, momentum: float, rng: Rng | None = None, **options: Any) -> Spectrum:
    r"""Make the phase-space Jacobian of heavy ball on a quadratic loss of Hessian eigenvalues h.

    .. math::  \begin{pmatrix} I - αH & -αβ I \\ H & β I \end{pmatrix}, \qquad μ^2 - (1 + β - αh) μ + β = 0.

    It is defective at :math:`h = (1 - \sqrt β)^2 / α`, where the pair of roots meets at √β.

    Parameters
    ----------
    h : array_like, shape (p,)
    lr, momentum : float
        α and β.
    rng : int or numpy Generator, optional
        Rotates H by a random orthogonal matrix; by default it is diagonal.
    **options
        Of `operator_of`.

    Examples
    --------
    >>> heavy_ball([0.25], lr=1.0, momentum=0.25).values.tolist()
    [(0.5+0j), (0.5+0j)]
    """
    listed = np.array(h, dtype=np.float64)
    p = len(listed)
    Q = np.eye(p) if rng is None else np.linalg.qr(generator(rng).standard_normal((p, p)))[0]
    H = (Q * listed) @ Q.T
    matrix = np.block([[np.eye(p) - lr * H, -lr * momentum * np.eye(p)], [H, momentum * np.eye(p)]])
    half = (1 + momentum - lr * listed) / 2
    root = np.sqrt((half**2 - momentum).astype(np.complex128))
    values = np.concatenate([half + root, half - root])
    return Spectrum(operator_of(matrix, symmetric=False, **options), values)


def with_eigenvalues(
    values: ArrayLike, *, skew: float = 0.0, rng: Rng | None = 0, scale: float = 1.0, **options: Any
) -> Spectrum:
    """Make a real matrix of given eigenvalues, complex ones with their conjugates, as normal or not as one likes.

    Parameters
    ----------
    values : array_like
        Real ones, and one of each conjugate pair (the other is added): ``[np.exp(0.3j)]`` is a rotation by 0.3.
    skew : float
        The size of the strictly upper triangular part of the Schur form; 0 makes a normal matrix.
    rng : int or numpy Generator, optional
        Draws that part and an orthogonal similarity; None leaves the matrix block diagonal.
    scale : float
        Multiplies the matrix.
    **options
        Of `operator_of`.

    Examples
    --------
    >>> with_eigenvalues([2j, 1.0], rng=None).operator.dense().tolist()
    [[0.0, 2.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    listed = np.atleast_1d(np.asarray(values, dtype=np.complex128))
    blocks = [[[z.real, abs(z.imag)], [-abs(z.imag), z.real]] if z.imag else [[z.real]] for z in listed]
    S = scipy.linalg.block_diag(*blocks)
    n = len(S)
    if rng is not None:
        random = generator(rng)
        strict = np.triu(random.standard_normal((n, n)), 1)
        first = np.cumsum([0, *(len(block) for block in blocks)])
        for start, stop in pairwise(first):
            strict[start:stop, start:stop] = 0
        Q = np.linalg.qr(random.standard_normal((n, n)))[0]
        S = Q @ (S + skew * strict) @ Q.T
    exact = np.concatenate([[z, z.conj()] if z.imag else [z] for z in listed])
    return Spectrum(operator_of(scale * S, symmetric=False, **options), scale * exact)
