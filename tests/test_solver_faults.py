"""Faults that were seen in other solvers, each shown on one of them, and not in ours."""

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigs, eigsh
from spectra import best, broken_groups, found

import jvp_ops as jo
from jvp_ops.testing import conjugated, spectrum, with_eigenvalues


def plain_lanczos(multiply, n, steps, seed=0):
    """Run the textbook's three-term recurrence, which keeps nothing orthogonal; return its Ritz values, ascending."""
    v = np.random.default_rng(seed).standard_normal(n)
    v, before, beta = v / np.linalg.norm(v), np.zeros(n), 0.0
    diagonal, side = [], []
    for _ in range(steps):
        w = multiply(v) - beta * before
        diagonal.append(v @ w)
        w = w - diagonal[-1] * v
        beta = np.linalg.norm(w)
        side.append(beta)
        before, v = v, w / beta
    return np.linalg.eigvalsh(np.diag(diagonal) + np.diag(side[:-1], 1) + np.diag(side[:-1], -1))


def test_no_ghosts_of_one_eigenvalue_come():
    values = np.r_[100.0, np.linspace(0, 1, 299)]
    case = conjugated(values)
    ghosts = plain_lanczos(lambda v: case.operator @ v, 300, 120)
    assert (np.abs(ghosts - 100) < 1e-6).sum() >= 2  # one eigenvalue, several times
    pairs = jo.eigenpairs(case.operator, 6, "LA", method="lanczos")
    assert (np.abs(pairs.values - 100) < 1e-6).sum() == 1
    np.testing.assert_allclose(found(pairs), best(values, 6, "LA"), atol=1e-8)


def test_too_few_products_are_told_by_bounds_and_flags():
    case = spectrum("indefinite", 400)
    rough = plain_lanczos(lambda v: case.operator @ v, 400, 10)
    assert abs(rough[-1] - 1.0) > 0.005  # no warning comes with it
    pairs = jo.eigenpairs(case.operator, 3, "LA", method="lanczos", max_products=16)
    assert not pairs.converged.any()
    assert "max_products=16 ran out" in pairs.notes[0]
    assert not broken_groups(pairs.values, pairs.bounds, case.values)


def test_tol_0_does_not_chase_the_rounding_of_a_float32_operator():
    case = spectrum("null space", 300, dtype="float32", float64=False)
    calls = {"claimed": 0, "known": 0}

    def counted(name):
        def multiply(x):
            calls[name] += 1
            return case.operator @ x

        return multiply

    size = case.operator.shape
    start = np.random.default_rng(0).standard_normal(300)
    claimed = LinearOperator(size, matvec=counted("claimed"), dtype=np.float64)  # what a wrapper of float32 may claim
    eigsh(claimed, 5, which="LA", tol=0, v0=start, maxiter=100000)
    eigsh(LinearOperator(size, matvec=counted("known"), dtype=np.float64), 5, which="LA", tol=1e-6, v0=start)
    assert calls["claimed"] > 1.3 * calls["known"]
    strict = jo.eigenpairs(case.operator, 5, "LA", method="lanczos", tol=0.0)
    loose = jo.eigenpairs(case.operator, 5, "LA", method="lanczos", tol=1e-6)
    assert strict.products <= 1.3 * loose.products + 16
    assert strict.stopped == "rounding"
    assert not strict.converged.any()


def test_a_triple_eigenvalue_is_not_missed():
    values = np.r_[np.full(3, 2.0), np.arange(197) / 197]
    missed = 0
    for seed in range(10):
        case = conjugated(values, rng=seed)
        start = np.random.default_rng(seed).standard_normal(200)
        theirs = eigsh(case.operator, 3, which="LA", tol=1e-2, v0=start, return_eigenvectors=False)
        missed += (theirs > 1.9).sum() < 3
        ours = jo.eigenpairs(case.operator, 3, "LA", method="lanczos", tol=1e-2, rng=seed)
        np.testing.assert_allclose(ours.values, [2, 2, 2], atol=0.04)
        for block in (1, 2):
            narrow = jo.eigenpairs(case.operator, 3, "LA", method="lanczos", tol=1e-2, block=block, rng=seed)
            assert (narrow.values > 1.9).all()
    assert missed >= 8  # theirs come without an error


def test_a_dominant_negative_eigenvalue_is_the_first_under_lm():
    values = np.r_[-5.0, np.linspace(-1, 1, 299)]
    case = conjugated(values)
    signed = plain_lanczos(lambda v: case.operator @ v, 300, 40)[::-1][:1]  # "the top" of signed values
    assert signed[0] > 0
    for block in (None, 1):
        pairs = jo.eigenpairs(case.operator, 2, "LM", method="lanczos", block=block)
        assert pairs.values[0] == pytest.approx(-5, abs=1e-9)
        assert abs(pairs.values[1]) == pytest.approx(1, abs=1e-9)


def test_conjugate_pairs_are_not_split_by_the_kth_cut():
    case = with_eigenvalues([*np.exp(1j * np.array([0.4, 1.1, 2.0])), *np.linspace(-0.5, 0.5, 120)])
    split = 0
    for k in (1, 3, 5):
        start = np.random.default_rng(k).standard_normal(126)
        theirs = eigs(case.operator, k, which="LM", v0=start, return_eigenvectors=False)
        split += np.abs(theirs[:, None].conj() - theirs).min(axis=1).max() > 1e-6
        ours = jo.eigenpairs(case.operator, k, "LM", method="krylov-schur").values
        assert len(ours) == k + 1
        np.testing.assert_array_equal(ours[::2], ours[1::2].conj())
    assert split >= 1
