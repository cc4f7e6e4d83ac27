"""Certificates where they were wrong once: small values of large matrices, ties, zero, and an inertia on the edge."""

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops.eigen import Eigenpairs
from jvp_ops.eigen._target import Target
from jvp_ops.testing import conjugated, operator_of

METHODS = ("dense", "lanczos")


def two_by_two(seed, dtype):
    """Make ((a, b), (b, a)), of eigenvalues a − b and a + b; the first is as exact as longdouble has it."""
    random = np.random.default_rng(seed)
    large, small = random.uniform(0.5, 1), 10.0 ** random.uniform(-6, -1)
    a, b = (large + small) / 2, (large - small) / 2
    matrix = np.array([[a, b], [b, a]]).astype(dtype)
    return matrix, float(np.longdouble(matrix[0, 0]) - np.longdouble(matrix[0, 1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"dtype": "float32", "float64": False}, {}], ids=["float32 alone", "float64"])
def test_no_interval_misses_far_from_the_outer_end(options, method):
    for seed in range(100):
        matrix, exact = two_by_two(seed, options.get("dtype", "float64"))
        pairs = jo.eigenpairs(operator_of(matrix, **options), 1, "SA", method=method)
        assert abs(pairs.values[0] - exact) <= pairs.bounds[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("n", [20, 60, 200])
def test_small_values_of_a_large_matrix_converge_relative_to_its_norm(n, top, method):
    random = np.random.default_rng(n)
    Q = np.linalg.qr(random.standard_normal((n, n)))[0]
    values = np.r_[np.zeros(3), np.linspace(0.01, 0.1, 7), np.linspace(1, top, n - 10)]
    matrix = (Q * values) @ Q.T
    pairs = jo.eigenpairs(operator_of((matrix + matrix.T) / 2, symmetric=True), 3, "SA", method=method)
    assert (pairs.stopped, pairs.converged.all()) == ("converged", True)
    assert pairs.norm == pytest.approx(values.max(), rel=1e-6 if method == "dense" else 1e-2)
    assert pairs.rounding < 1e-14
    assert (np.abs(pairs.values) <= pairs.bounds + 1e-15 * top).all()
    assert pairs.complete == (method == "dense")
    tilted = operator_of(matrix + 1e-9 * np.triu(np.ones((n, n)), 1), symmetric=False)
    general = jo.eigenpairs(tilted, 3, "SR", method="dense")
    assert general.stopped == "converged"
    assert general.norm == pytest.approx(values.max(), rel=1e-6)


@pytest.mark.parametrize("c", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("method", METHODS)
def test_cancellation_inside_of_a_loss_is_no_asymmetry(c, method):
    random = np.random.default_rng(0)
    A = torch.from_numpy(random.standard_normal((40, 40)) / 40**0.5)
    A = (A + A.T) / 2
    loss = jo.FunctionLoss(
        lambda x: x @ (A @ x) / 2 + (c * x * x).sum() / 2 - (c * x).dot(x) / 2, size=40, dtype="float64"
    )
    pairs = jo.eigenpairs(loss.hessian(loss.initial()), 2, "LA", method=method)
    exact = np.linalg.eigvalsh(A.numpy())[::-1][:2]
    assert (np.abs(pairs.values - exact) <= pairs.bounds).all()


def tied(seed):
    """Make a matrix whose eigenvalues tie under the order that is asked for."""
    random = np.random.default_rng(seed)
    n = int(random.integers(3, 12))
    if seed % 3 == 0:
        return np.linalg.qr(random.standard_normal((n, n)))[0], "LM", int(random.integers(1, n + 1))
    if seed % 3 == 1:
        upper = np.triu(random.standard_normal((n, n))) * 0.3 + np.diag(np.arange(1.0, n + 1)) * 0.7
        return upper, "LI", int(random.integers(1, n + 1))
    X = np.eye(n) + 0.2 * random.standard_normal((n, n))
    values = np.r_[np.arange(1.0, n // 2 + 1), -np.arange(1.0, n - n // 2 + 1)]
    return X @ np.diag(values) @ np.linalg.inv(X), "LM", int(random.integers(1, n + 1))


@pytest.mark.parametrize("seed", range(90))
def test_condition_numbers_at_a_tie_are_those_of_the_values_shown(seed):
    import scipy.linalg

    matrix, which, k = tied(seed)
    pairs = jo.eigenpairs(operator_of(matrix, symmetric=False), k, which, condition=True)
    w, L, R = scipy.linalg.eig(matrix, left=True, right=True)
    known = np.array([1 / abs(L[:, i].conj() @ R[:, i]) for i in range(len(w))])
    nearest = [int(np.argmin(np.abs(w - value))) for value in pairs.values]
    assert pairs.condition is not None
    np.testing.assert_allclose(pairs.condition, known[nearest], rtol=1e-3)
    assert not pairs.clusters


def zero(n):
    return jo.FunctionMap(lambda x: 0 * x, size=n, dtype="float64").jacobian(torch.zeros(n, dtype=torch.float64))


@pytest.mark.parametrize("method", ["krylov-schur", "auto"])
@pytest.mark.parametrize("n", [5, 12, 40, 300])
def test_a_map_that_is_zero_has_zeros_for_eigenvalues(n, method):
    for operator in (operator_of(np.zeros((n, n)), symmetric=False), zero(n)):
        pairs = jo.eigenpairs(operator, 4, "LM", method=method)
        assert (pairs.stopped, pairs.converged.all()) == ("converged", True)
        np.testing.assert_array_equal(pairs.values, np.zeros(4))
        assert torch.isfinite(torch.view_as_real(pairs.vectors)).all()


@pytest.mark.parametrize("nilpotent", [False, True])
def test_a_rank_one_map_that_is_not_symmetric(nilpotent):
    u, v = np.random.default_rng(0).standard_normal((2, 300, 1))
    u = u - v * (v.T @ u) / (v.T @ v) if nilpotent else u
    pairs = jo.eigenpairs(operator_of(u @ v.T, symmetric=False), 4, "LM")
    assert isinstance(pairs, Eigenpairs)
    assert pairs.converged.all()
    close = 1e-6 if nilpotent else 1e-12  # √ε, of a Jordan block
    assert abs(pairs.values).max() == pytest.approx(float(np.abs(v.T @ u).item()), rel=1e-10, abs=close * pairs.norm)


@pytest.mark.parametrize("n", [30, 40])
@pytest.mark.parametrize("shift", [1e-20, 5e-17, 0.0])
def test_an_inertia_that_rounding_hides_is_undecided_though_no_pivot_is_small(n, shift):
    L = np.tril(-np.ones((n, n)), -1) + np.eye(n)  # integers: A is exact, all pivots are 1, the least value is 4⁻ⁿ
    found = jo.inertia(L @ L.T, shift)
    assert (found.above, found.below, found.undecided) == (n - 1, 0, 1)
    assert jo.inertia(L @ L.T, 1e-3).undecided == 0


def test_several_eigenvalues_at_the_shift_are_all_undecided():
    case = conjugated(np.r_[np.full(11, 0.5), np.linspace(1, 2, 20), np.linspace(-1, 0, 20)], rng=3)
    found = jo.inertia(case.operator.dense(), 0.5)
    assert (found.above, found.below, found.undecided) == (20, 20, 11)


def test_a_space_that_is_spanned_whole_hides_nothing_and_says_nothing():
    for seed in range(20):
        random = np.random.default_rng(seed)
        n = int(random.integers(20, 90))
        values = np.r_[np.full(n // 2, 1.0), random.uniform(-1, 0.9, n - n // 2)]
        k = int(random.integers(1, n))
        pairs = jo.eigenpairs(conjugated(values, rng=seed).operator, k, "LA", method="lanczos", rng=seed)
        np.testing.assert_allclose(np.sort(pairs.values), np.sort(values)[-k:], atol=1e-9)
        assert not pairs.notes


def test_a_solver_that_gives_up_looking_says_so(monkeypatch):
    monkeypatch.setattr(Target, "moved", lambda self, before, after: np.inf)
    operator = conjugated(np.linspace(0, 1, 1000) ** 4, rng=0).operator
    pairs = jo.eigenpairs(operator, 1, "LA", method="lanczos", tol=1e-4)
    assert "gave up looking" in pairs.notes[-1]


def test_residuals_that_a_vector_to_deflate_keeps_large_are_not_laid_to_rounding():
    A = np.random.default_rng(0).standard_normal((60, 60))
    A = (A + A.T) / 2
    X = np.linalg.eigh(A)[1]
    inexact = X[:, -1] + 1e-8 * X[:, -2]
    known = torch.from_numpy(inexact / np.linalg.norm(inexact))
    pairs = jo.eigenpairs(operator_of(A, symmetric=True), 3, "LA", deflate=known, method="lanczos")
    assert pairs.stopped == "rounding"
    assert "vectors to deflate that are not exact eigenvectors" in pairs.notes[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [-990, -540, 0, 515, 990])
def test_no_scale_over_or_underflows(power, method, tmp_path):
    scale = 2.0**power
    G = np.random.default_rng(0).standard_normal((300, 300))
    G = (G + G.T) / 2
    exact = np.sort(np.linalg.eigvalsh(G))[::-1][:2]
    pairs = jo.eigenpairs(operator_of(G * scale, symmetric=True), 2, "LA", method=method)
    np.testing.assert_allclose(pairs.values / scale, exact, rtol=1e-12)
    assert pairs.converged.all()
    assert (pairs.bounds / scale < 1e-8 * 25).all()
    if method == "lanczos":
        cut = jo.eigenpairs(
            operator_of(G * scale, symmetric=True), 2, "LA", method=method, max_products=24, verify=False
        )
        X = cut.vectors
        true = (torch.from_numpy(G) @ X - X * torch.from_numpy(cut.values / scale)).norm(dim=0).numpy()
        np.testing.assert_allclose(cut.residuals / scale, true, rtol=1e-6)
        assert not cut.converged.any()
        file = tmp_path / "work.npz"
        jo.eigenpairs(operator_of(G * scale, symmetric=True), 2, "LA", method=method, max_products=60, checkpoint=file)
        again = jo.eigenpairs(
            operator_of(G * scale, symmetric=True), 2, "LA", method=method, checkpoint=file, resume=True
        )
        assert again.values.tobytes() == pairs.values.tobytes()


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_scales_of_float32(scale):
    values = np.linspace(0.1, 1, 300)
    pairs = jo.eigenpairs(operator_of(np.diag(values * scale), dtype="float32"), 2, "LA", method="lanczos")
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values / scale, [1, values[-2]], rtol=1e-6)


def test_a_jacobian_around_a_huge_hessian():
    matrix = torch.from_numpy(np.diag(np.linspace(1, 2, 300)) * 1e200)
    loss = jo.FunctionLoss(lambda x: x @ (matrix @ x) / 2, size=300, dtype="float64", second_derivatives="unchecked")
    f = jo.GradientDescent(loss, lr=1e-200)
    pairs = jo.eigenpairs(f.jacobian(torch.zeros(300, dtype=torch.float64)), 2, "SA", method="lanczos")
    np.testing.assert_allclose(pairs.values, [-1, 1 - np.linspace(1, 2, 300)[-2]], atol=1e-9)
    np.testing.assert_allclose(pairs.hessian_values, np.linspace(1, 2, 300)[:-3:-1] * 1e200, rtol=1e-9)


@pytest.mark.parametrize("n", [300, 1500])
@pytest.mark.parametrize("gap", [0.01, 0.03, 0.1, 0.5])
def test_a_warm_start_hides_no_larger_eigenvalue(gap, n):
    for seed in range(3):
        values = np.r_[np.linspace(0, 1, n - 1), 1 + gap]
        np.random.default_rng(seed).shuffle(values)
        start = torch.zeros(n, 1, dtype=torch.float64)
        start[int(np.argsort(values)[-2])] = 1
        operator = jo.diagonal_operator(torch.from_numpy(values))
        pairs = jo.eigenpairs(operator, 1, "LA", start=start, tol=1e-6, rng=seed, method="lanczos")
        assert pairs.gap is not None
        assert pairs.values[0] == pytest.approx(1 + gap, abs=1e-6) or gap < pairs.gap * (1 + gap)


@pytest.mark.parametrize("n, times", [(300, 12), (300, 20), (1000, 12)])
@pytest.mark.parametrize("gap", [0.01, 0.1])
def test_copies_beyond_the_block_are_found(gap, n, times):
    for seed in range(2):
        case = conjugated(np.r_[np.linspace(0, 1, n - times), np.full(times, 1 + gap)], rng=seed)
        pairs = jo.eigenpairs(case.operator, times, "LA", rng=seed, method="lanczos")
        assert pairs.gap is not None
        missed = int((pairs.values < 1 + gap / 2).sum())
        assert missed == 0 or gap < pairs.gap * (1 + gap)
        assert missed == 0


def test_the_gap_that_is_excluded_is_that_of_the_theorem_and_is_saved(tmp_path):
    operator = conjugated(np.linspace(0, 1, 400) ** 2, rng=0).operator
    pairs = jo.eigenpairs(operator, 2, "LA", method="lanczos")
    chance = 1.648 * 20 * np.exp(-np.sqrt(pairs.gap) * (2 * 64 - 1))
    assert chance == pytest.approx(1e-6, rel=1e-9)
    assert jo.load(pairs.save(tmp_path / "run")).gap == pairs.gap == pairs.record()["gap"]
    assert jo.eigenpairs(operator, 2, "LA", method="lanczos", verify=False).gap is None
    assert jo.eigenpairs(operator, 2, "LA", method="dense").gap is None
