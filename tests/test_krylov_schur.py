"""Krylov–Schur on non-normal, defective and rotating matrices, against LAPACK and exact eigenvalues."""

import numpy as np
import pytest
import scipy.linalg
import torch

import jvp_ops as jo
from jvp_ops.testing import grcar, heavy_ball, jordan, operator_of, with_eigenvalues

ENDS = ["LM", "LR", "SR", "LI"]
KEYS = {"LM": abs, "LR": lambda z: z.real, "SR": lambda z: -z.real, "LI": lambda z: abs(z.imag)}


def krylov_schur(operator, k, which, **options):
    return jo.eigenpairs(operator, k, which, method="krylov-schur", **options)


def random_operator(n, seed):
    return operator_of(np.random.default_rng(seed).standard_normal((n, n)), symmetric=False)


def check(pairs, values, k, close=1e-8):
    """Check that the k best are there, that pairs are whole, and that each is an eigenvalue to `close`."""
    size = np.abs(values).max()
    keys = np.sort([KEYS[pairs.which](z) for z in values])[::-1][:k]
    ours = [KEYS[pairs.which](z) for z in pairs.values]
    np.testing.assert_allclose(np.sort(ours)[::-1][:k], keys, rtol=0, atol=close * size)
    assert np.abs(pairs.values[:, None] - values).min(axis=1).max() <= close * size
    check_pairs_whole(pairs, k)


def check_pairs_whole(pairs, k):
    z = pairs.values
    assert k <= len(z) <= k + 1
    upper, lower = z[z.imag > 0], z[z.imag < 0]
    assert len(upper) == len(lower)
    places = np.flatnonzero(z.imag > 0)
    np.testing.assert_array_equal(z[places + 1], upper.conj())
    assert pairs.converged.all()
    assert pairs.stopped == "converged"


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("seed", range(3))
def test_random_matrices_agree_with_lapack(which, seed):
    operator = random_operator(130, seed)
    values = np.linalg.eigvals(operator.dense().numpy())
    for k in (1, 4):
        check(krylov_schur(operator, k, which, rng=seed), values, k)


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_pairs_of_one_modulus_are_never_split_by_the_cut(which, k):
    case = with_eigenvalues([*np.exp(1j * np.array([0.3, 0.9, 1.5, 2.1])), *np.linspace(-0.3, 0.3, 120)])
    check(krylov_schur(case.operator, k, which), case.values, k)


@pytest.mark.parametrize("block", [1, 2, 3, 8, 17])
def test_every_block_size_finds_the_same(block):
    case = with_eigenvalues(np.linspace(-0.9, 1, 60) + 1j * np.linspace(0.1, 1, 60), skew=0.02)
    for which in ("LR", "LI"):
        check(krylov_schur(case.operator, 4, which, block=block), case.values, 4)


@pytest.mark.parametrize("name, make", [("Grcar", lambda: grcar(100)), ("skewed", lambda: skewed(120))])
def test_sensitive_matrices_have_small_backward_errors(name, make):
    for which in ("LR", "SR", "LI") if name == "Grcar" else ("LR", "SR"):  # the other has real eigenvalues only
        operator = make().operator
        pairs = krylov_schur(operator, 4, which)
        A, X = operator.dense().numpy(), pairs.vectors.numpy()
        errors = np.linalg.norm(A @ X - X * pairs.values, axis=0)
        assert (errors <= 1e-10 * np.linalg.norm(A, 2)).all()
        np.testing.assert_allclose(pairs.residuals, errors, atol=1e-14 * np.linalg.norm(A, 2))
        check_pairs_whole(pairs, 4)


def skewed(n, **options):
    return with_eigenvalues(np.linspace(-1, 1, n), skew=0.05, **options)


def test_a_small_grcar_matrix_agrees_with_lapack():
    operator = grcar(30).operator
    check(krylov_schur(operator, 5, "LR"), np.linalg.eigvals(operator.dense().numpy()), 5, 1e-6)


@pytest.mark.parametrize("block", [1, 8])
def test_jordan_blocks_are_found_as_far_as_rounding_allows(block):
    case = jordan([(3.0, 3), (2.0, 2), *[(x, 1) for x in np.linspace(-1, 0.5, 115)]])
    pairs = krylov_schur(case.operator, 5, "LR", block=block, condition=True)
    np.testing.assert_allclose(np.sort(pairs.values.real), [2, 2, 3, 3, 3], atol=1e-3)
    assert sorted(len(cluster.members) for cluster in pairs.clusters) == [2, 3]
    for cluster in pairs.clusters:
        exact = 3 if len(cluster.members) == 3 else 2
        assert abs(cluster.mean - exact) <= cluster.bound + 1e-14
        assert cluster.bound < 1e-6
        assert np.isnan(pairs.bounds[list(cluster.members)]).all()


@pytest.mark.parametrize("distance", [0.0, 1e-14, -1e-14, 1e-10, -1e-10])
def test_near_the_defective_point_of_heavy_ball_the_mean_is_right_to_its_bound(distance):
    momentum = 0.81
    h = np.r_[(1 - np.sqrt(momentum)) ** 2 * (1 + distance), np.linspace(0.5, 3, 60)]
    case = heavy_ball(h, lr=1, momentum=momentum, rng=2)
    pairs = krylov_schur(case.operator, 2, "LR", condition=True)
    assert [len(cluster.members) for cluster in pairs.clusters] == [2]
    (cluster,) = pairs.clusters
    assert abs(cluster.mean - case.values.reshape(2, -1)[:, 0].mean()) <= cluster.bound + 1e-15
    assert cluster.bound < 1e-7
    assert "near a defective point" in pairs.notes[-1]


@pytest.mark.parametrize("distance", [1e-2, -1e-2, 1e-4])
def test_away_from_the_defective_point_members_are_told_apart_within_bounds(distance):
    h = np.r_[0.01 * (1 + distance), np.linspace(0.5, 3, 60)]
    case = heavy_ball(h, lr=1, momentum=0.81, rng=2)
    pairs = krylov_schur(case.operator, 2, "LR", condition=True)
    assert not pairs.clusters
    exact = case.values.reshape(2, -1)[:, 0]
    errors = np.abs(pairs.values[:, None] - exact).min(axis=1)
    assert (errors <= pairs.bounds + 1e-13 * pairs.condition).all()


@pytest.mark.parametrize(
    "make", [lambda: random_operator(130, 5), lambda: grcar(60).operator, lambda: skewed(120).operator]
)
@pytest.mark.parametrize("which", ["LR", "SR"])
def test_condition_numbers_are_those_of_lapack(make, which):
    operator = make()
    values, left, right = scipy.linalg.eig(operator.dense().numpy(), left=True, right=True)
    exact = 1 / np.abs((left.conj() * right).sum(axis=0))
    pairs = krylov_schur(operator, 4, which, condition=True)
    assert not pairs.clusters
    for value, bound, condition in zip(pairs.values, pairs.bounds, pairs.condition, strict=True):
        nearest = np.abs(values - value).argmin()
        assert condition == pytest.approx(exact[nearest], rel=1e-3)
        rounding = 1e-14 * np.abs(values).max() * exact[nearest]  # LAPACK's own
        assert abs(values[nearest] - value) <= bound + rounding
        assert bound <= 1e-9 * condition * pairs.norm


def test_a_normal_matrix_has_condition_numbers_of_one():
    case = with_eigenvalues(np.linspace(0.1, 1, 60) * np.exp(1j * np.linspace(0.1, 3, 60)))
    np.testing.assert_allclose(krylov_schur(case.operator, 4, "LM", condition=True).condition, 1, rtol=1e-6)


def test_a_tie_at_the_cut_does_not_pair_left_and_right_of_different_eigenvalues():
    operator = skewed(120).operator
    values, left, right = scipy.linalg.eig(operator.dense().numpy(), left=True, right=True)
    exact = 1 / np.abs((left.conj() * right).sum(axis=0))
    for seed in range(3):
        pairs = krylov_schur(operator, 3, "LM", condition=True, rng=seed)
        if pairs.condition is None:
            assert "a tie at the cut" in pairs.notes[-1]
            continue
        nearest = np.abs(values - pairs.values[:, None]).argmin(axis=1)
        np.testing.assert_allclose(pairs.condition, exact[nearest], rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-10, 1e10, 1e-100, 1e100])
def test_matrices_of_any_scale_are_solved(scale):
    for make in (
        lambda s: skewed(120, scale=s),
        lambda s: with_eigenvalues([1j, 0.9, *np.linspace(-0.8, 0.8, 60)], skew=0.1, scale=s),
    ):
        pairs, unit = (krylov_schur(make(s).operator, 3, "LR") for s in (scale, 1.0))
        np.testing.assert_allclose(pairs.values / scale, unit.values, atol=1e-7)
        assert pairs.converged.all()


def test_a_start_and_deflation_serve_here_too():
    case = with_eigenvalues([2.0, 1.5, *np.linspace(-1, 1, 130)], rng=None)
    cold = krylov_schur(case.operator, 2, "LR")
    warm = krylov_schur(case.operator, 2, "LR", start=cold, verify=False)
    assert warm.products < cold.products / 2
    check(warm, case.values, 2)
    with pytest.raises(jo.InputError, match="deflate is for symmetric operators"):
        krylov_schur(case.operator, 1, "LR", deflate=torch.eye(132, dtype=torch.float64)[:, :1])


def test_condition_numbers_come_with_a_resumed_solve_too(tmp_path):
    case = with_eigenvalues([2.0, 1.5, *np.linspace(-1, 1, 130)], rng=None)
    options = {"condition": True, "checkpoint": tmp_path / "c.npz"}
    first = krylov_schur(case.operator, 2, "LR", **options)
    again = krylov_schur(case.operator, 2, "LR", resume=True, **options)
    np.testing.assert_allclose(again.condition, first.condition, rtol=1e-9)
    with pytest.raises(jo.InputError, match="method='scipy' does not find"):
        jo.eigenpairs(case.operator, 2, "LR", method="scipy", condition=True)


def test_a_budget_leaves_what_there_is_with_its_backward_errors():
    operator = random_operator(200, 8)
    pairs = krylov_schur(operator, 4, "LM", max_products=40)
    assert pairs.stopped == "max_products"
    A, X = operator.dense().numpy(), pairs.vectors.numpy()
    np.testing.assert_allclose(np.linalg.norm(A @ X - X * pairs.values, axis=0), pairs.residuals, rtol=1e-9)
    assert not pairs.converged.all()


def test_a_budget_that_ends_before_the_left_vectors_keeps_the_right_ones():
    operator = random_operator(200, 8)
    pairs = krylov_schur(operator, 4, "LM", condition=True, max_products=40)
    assert len(pairs) >= 4
    assert pairs.stopped == "max_products"
    assert pairs.condition is None
    assert any("condition" in note for note in pairs.notes)


def test_an_end_that_nothing_belongs_to_stops_by_stagnation_and_says_so():
    operator = skewed(120).operator  # real eigenvalues only: which imaginary part is largest is rounding
    pairs = krylov_schur(operator, 4, "LI", tol=1e-13)
    assert pairs.stopped in ("stagnation", "rounding")
    assert pairs.stopped == "rounding" or "no longer shrink" in pairs.notes[0]
