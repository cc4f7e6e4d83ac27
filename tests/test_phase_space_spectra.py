"""Phase-space spectra by way of the Hessian's: against dense matrices, Krylov–Schur, and where they cannot serve."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops.eigen._phase_space import merits, peak
from jvp_ops.linear import Coupled, Coupling
from jvp_ops.operators import JacobianOperator

DOUBLE = torch.float64
KEYS = {"LM": np.abs, "LR": lambda z: z.real, "SR": lambda z: -z.real, "LI": lambda z: np.abs(z.imag)}
MAPS = {
    "heavy ball": lambda loss: jo.HeavyBall(loss, 0.5, 0.9, weight_decay=0.01),
    "damped": lambda loss: jo.HeavyBall(loss, 0.5, 0.9, dampening=0.3),
    "nesterov": lambda loss: jo.Nesterov(loss, 0.5, 0.9, weight_decay=0.01),
    "negative": lambda loss: jo.HeavyBall(loss, 0.5, -0.3),
}


def digits_loss(hidden=6, dtype="float64"):
    data = jo.load_digits().subset(100)
    return jo.TwoLayerLoss(data.inputs, data.labels, hidden=hidden, dtype=dtype)


def jacobian(name, **options):
    loss = digits_loss(**options)
    f = MAPS[name](loss)
    return f.jacobian(f.run(f.initial(loss.initial(rng=0)), steps=10))


def quadratic(h, make):
    """The Jacobian of a map on a quadratic loss whose Hessian has the eigenvalues h."""
    h = torch.as_tensor(h, dtype=DOUBLE)
    f = make(jo.FunctionLoss(lambda x: (h * x**2).sum() / 2, size=len(h), dtype="float64"))
    return f.jacobian(f.initial(torch.zeros(len(h), dtype=DOUBLE)))


@pytest.fixture(scope="module")
def matrices():
    return {name: jacobian(name).dense().numpy() for name in MAPS}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("which", ["LM", "LR", "SR"])
def test_they_are_the_extremes_of_the_dense_matrix(name, which, matrices):
    A, key = jacobian(name), KEYS[which]
    exact = np.linalg.eigvals(matrices[name])
    pairs = jo.eigenpairs(A, k=5, which=which, verify=True)  # an iteration's option: no dense matrix anywhere
    assert pairs.method == "lanczos on H"
    assert not pairs.notes
    assert pairs.converged.all()
    best = np.sort(key(exact))[::-1][: len(pairs)]
    np.testing.assert_allclose(np.sort(key(pairs.values))[::-1], best, rtol=0, atol=1e-11)
    nearest = np.abs(pairs.values[:, None] - exact).min(axis=1)
    assert (nearest <= pairs.bounds + 1e-12).all()
    X = pairs.vectors.numpy()
    np.testing.assert_allclose(np.linalg.norm(X, axis=0), 1, atol=1e-10)
    again = np.linalg.norm(matrices[name] @ X - X * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, again, rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("name", ["heavy ball", "nesterov"])
def test_krylov_schur_finds_the_same(name):
    A = jacobian(name)
    by_hessian = jo.eigenpairs(A, k=4, which="LR", verify=True)
    directly = jo.eigenpairs(A, k=4, which="LR", method="krylov-schur", verify=True)
    np.testing.assert_allclose(by_hessian.values, directly.values, rtol=0, atol=1e-8)
    overlaps = np.abs((by_hessian.vectors.conj() * directly.vectors).sum(dim=0).numpy())
    np.testing.assert_allclose(overlaps, 1, atol=1e-6)
    assert directly.hessian_values is None


def test_float32_is_certified_by_float64(matrices):
    pairs = jo.eigenpairs(jacobian("heavy ball", dtype="float32"), k=4, which="SR", verify=True)
    assert pairs.vectors.dtype == torch.complex64
    assert pairs.float64_products > 0
    exact = np.linalg.eigvals(jacobian("heavy ball").dense().numpy())
    assert np.abs(pairs.values[:, None] - exact).min(axis=1).max() < 1e-6
    assert pairs.bounds.max() < 1e-4


def test_a_small_one_is_solved_whole_and_proved():
    h = np.linspace(-0.5, 7, 12)
    A = quadratic(h, lambda loss: jo.HeavyBall(loss, 0.5, 0.9))
    pairs = jo.eigenpairs(A, k=24, which="SR")
    assert pairs.complete
    assert "none missed (proved)" in repr(pairs)
    expected = A.phase_space.coupling.eigenvalues(h).ravel()
    order = np.lexsort((expected.imag, expected.real.round(9)))
    found = pairs.values[np.lexsort((pairs.values.imag, pairs.values.real.round(9)))]
    np.testing.assert_allclose(found, expected[order], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.sort(np.unique(pairs.hessian_values)), h, atol=1e-12)


def test_pairs_are_never_split_and_vectors_go_with_them():
    pairs = jo.eigenpairs(quadratic(np.linspace(1, 3, 40), lambda loss: jo.Nesterov(loss, 0.3, 0.8)), k=3, which="LI")
    assert len(pairs) == 4
    np.testing.assert_array_equal(pairs.values[::2], pairs.values[1::2].conj())
    assert torch.equal(pairs.vectors[:, ::2], pairs.vectors[:, 1::2].conj())


@pytest.mark.parametrize("top, method", [(2.0, "lanczos on H"), (3.9, "lanczos on H"), (40.0, "krylov-schur")])
def test_the_largest_imaginary_part_is_looked_for_where_it_is(top, method):
    h = np.concatenate([np.linspace(0, 1.8, 60), [top]]) if top < 10 else np.linspace(0, top, 61)
    A = quadratic(h, lambda loss: jo.HeavyBall(loss, 1.0, 0.9))
    assert peak(A.phase_space.coupling) == pytest.approx(1.9)
    pairs = jo.eigenpairs(A, k=4, which="LI", verify=True)
    assert pairs.method == method
    assert any("inside" in note for note in pairs.notes) == (method == "krylov-schur")
    expected = np.sort(np.abs(A.phase_space.coupling.eigenvalues(h).imag).ravel())[::-1][:4]
    np.testing.assert_allclose(np.sort(np.abs(pairs.values.imag))[::-1], expected, atol=1e-8)


@pytest.mark.parametrize("which", ["LM", "LR", "SR"])
@pytest.mark.parametrize("beta", [-0.5, 0.0, 0.5, 0.9, 1.3])
def test_merits_fall_and_then_rise(which, beta):
    """So that the best k are over the ends of H's spectrum: no rise is followed by a fall."""
    h = np.linspace(-30, 60, 4001)
    loss = jo.FunctionLoss(lambda x: x.sum(), size=1)
    maps = [jo.HeavyBall(loss, 0.3, beta), jo.HeavyBall(loss, 0.3, beta, dampening=1.5)]
    for f in [*maps, jo.Nesterov(loss, 0.3, beta)] if beta >= 0 else maps:
        slopes = np.diff(merits(Coupling(*f._numbers(0.3)), h, which))
        rises, falls = np.flatnonzero(slopes > 1e-9), np.flatnonzero(slopes < -1e-9)
        assert len(rises) == 0 or len(falls) == 0 or falls.max() < rises.min()


def test_an_end_that_cannot_matter_is_not_solved():
    """At the edge of stability the smallest real parts are over the largest h, whatever the lowest may be."""
    h = np.concatenate([np.linspace(-0.1, 0.1, 300), [3.0, 3.4, 3.7]])
    A = quadratic(h, lambda loss: jo.HeavyBall(loss, 1.0, 0.9))
    pairs = jo.eigenpairs(A, k=4, which="SR", verify=False)
    assert (pairs.hessian_values > 2).all()
    assert pairs.products < 80
    lowest = jo.eigenpairs(A.phase_space.base, k=1, which="SA", verify=False)
    assert lowest.products > 2 * pairs.products


def test_complex_pairs_of_heavy_ball_tie_and_it_says_so():
    A = quadratic(np.linspace(0.5, 3, 30), lambda loss: jo.HeavyBall(loss, 1.0, 0.81))
    pairs = jo.eigenpairs(A, k=4, which="LM")
    assert "of the same modulus 0.9 as every other complex pair" in pairs.notes[0]
    np.testing.assert_allclose(np.abs(pairs.values), 0.9, rtol=1e-14)


def test_at_a_defective_point_only_the_mean_is_told():
    beta = 0.81
    A = quadratic([0.0, (1 - beta**0.5) ** 2, 1.0, 2.0], lambda loss: jo.HeavyBall(loss, 1.0, beta))
    pairs = jo.eigenpairs(A, k=8, which="LR")
    near = np.abs(pairs.values - 0.9) < 1e-6
    assert near.sum() == 2
    assert np.isnan(pairs.bounds[near]).all()
    assert np.isfinite(pairs.bounds[~near]).all()
    (cluster,) = pairs.clusters
    assert abs(cluster.mean - 0.9) <= cluster.bound + 1e-15
    assert "defective" in pairs.notes[0]


def test_bounds_hold_for_every_h_within_its_own():
    coupling, random = Coupling(((1.0, -0.45), (0.0, 0.9)), (-0.5, 1.0)), np.random.default_rng(0)
    h = random.uniform(-1, 9, 200)
    errors = 10.0 ** random.uniform(-9, -1, 200)
    for sign in (-1, 1):
        values, moved = coupling.eigenvalues(h), coupling.eigenvalues(h + sign * errors)
        for i in range(2):
            bounds = coupling.bounds(h, errors, values[:, i])
            told = np.isfinite(bounds)
            assert told.sum() > 150
            nearest = np.abs(moved - values[:, i, None]).min(axis=1)
            assert (nearest[told] <= bounds[told]).all()
            assert np.median((bounds / nearest)[told]) < 1.5


def test_condition_numbers_are_those_of_the_matrix():
    A = jacobian("nesterov", hidden=2)
    pairs = jo.eigenpairs(A, k=6, which="LR", verify=True)
    exact = jo.eigenpairs(A, k=6, which="LR", method="dense", condition=True)
    np.testing.assert_allclose(pairs.condition, exact.condition, rtol=1e-5)


def test_a_jacobian_that_is_not_what_it_says_is_seen():
    A = jacobian("heavy ball", hidden=2)
    wrong = Coupling(((1.0, -0.45), (0.01, 0.8)), A.phase_space.coupling.gain)
    B = JacobianOperator(replace(A.linear, structure=Coupled(A.phase_space.base.linear, wrong)))
    pairs = jo.eigenpairs(B, k=3, which="LR", verify=True)
    assert not pairs.converged.any()
    assert "do not agree" in pairs.notes[-1]


def test_a_clipped_step_and_a_part_of_a_jacobian_have_no_closed_form():
    loss = digits_loss(2)
    state = jo.HeavyBall(loss, 0.5, 0.9).initial(loss.initial(rng=0))
    assert jo.HeavyBall(loss, 0.5, 0.9, clip=1e-3).jacobian(state).phase_space is None
    assert jo.HeavyBall(loss, 0.5, 0.9, clip=1e3).jacobian(state).phase_space is not None
    A = jo.HeavyBall(loss, 0.5, 0.9).jacobian(state)
    assert A.block("theta", "theta").phase_space is None
    assert A.T.phase_space is None
    assert jo.Adam(loss, 0.1).jacobian(jo.Adam(loss, 0.1).initial(loss.initial(rng=0))).phase_space is None


def test_a_start_and_a_budget_reach_the_solves_of_h():
    A = jacobian("heavy ball")
    cold = jo.eigenpairs(A, k=3, which="LR", verify=False)
    warm = jo.eigenpairs(A, k=3, which="LR", verify=False, start=cold)
    assert warm.products < cold.products
    np.testing.assert_allclose(warm.values, cold.values, atol=1e-9)
    short = jo.eigenpairs(A, k=3, which="LM", verify=False, max_products=40)
    assert short.stopped == "max_products"
    assert short.products <= 60 < cold.products
    assert any("before both ends" in note for note in short.notes)


@pytest.mark.parametrize("make", [lambda loss: jo.HeavyBall(loss, 1.0, 0.3), lambda loss: jo.Nesterov(loss, 1.0, 0.3)])
@pytest.mark.parametrize("which", ["LM", "LR", "SR"])
@pytest.mark.parametrize("k", [7, 9, 11])
def test_ends_that_overlap_give_each_eigenvalue_once(make, which, k):
    p, random = 12, torch.Generator().manual_seed(0)
    h = 0.2 + 3.3 * torch.rand(p, generator=random, dtype=DOUBLE)
    Q = torch.linalg.qr(torch.randn(p, p, generator=random, dtype=DOUBLE))[0]
    f = make(jo.FunctionLoss(lambda x: (h * (Q.T @ x) ** 2).sum() / 2, size=p, dtype="float64"))
    A = f.jacobian(torch.zeros(2 * p, dtype=DOUBLE))
    pairs = jo.eigenpairs(A, k, which, verify=True)
    key, exact = KEYS[which], np.linalg.eigvals(A.dense().numpy())
    assert np.linalg.matrix_rank(pairs.vectors.numpy(), tol=1e-6) == len(pairs)
    expected = np.sort(key(exact))[::-1][: len(pairs)]
    np.testing.assert_allclose(np.sort(key(pairs.values))[::-1], expected, rtol=0, atol=1e-8)


def wide(n=400):
    return quadratic(torch.linspace(-1, 3, n), lambda loss: jo.HeavyBall(loss, 0.5, 0.9))


@pytest.mark.parametrize("which", ["LM", "LR", "SR"])
def test_a_budget_that_ends_in_the_first_end_gives_what_there_is(which):
    pairs = jo.eigenpairs(wide(), 20, which, max_products=8)
    assert 0 < len(pairs) <= 20
    assert pairs.stopped == "max_products"
    assert not pairs.converged.all()
    assert any("the budget ran out" in note for note in pairs.notes)


def test_no_budget_is_too_few_once_a_part_is_solved():
    for most in range(32, 120, 8):
        pairs = jo.eigenpairs(wide(), 4, "LM", block=32, max_products=most)
        assert pairs.products <= most + 32  # what certifies comes on top


def test_what_h_used_counts_where_df_itself_is_solved():
    A = quadratic(torch.linspace(0.0, 4.0, 1500), lambda loss: jo.HeavyBall(loss, 0.5, 0.5))
    before = A.phase_space.base.products
    pairs = jo.eigenpairs(A, 4, "LI", verify=True, tol=1e-2, max_products=4000)
    spent = A.phase_space.base.products - before
    assert pairs.method == "krylov-schur"
    assert pairs.products >= spent - 8 > 0
    assert pairs.products <= 4000 + 16
    with pytest.raises(jo.ConvergenceError, match="products of H left none for Df itself"):
        jo.eigenpairs(A, 4, "LI", verify=True, tol=1e-2, max_products=16)


def test_a_time_budget_that_is_over_at_once_is_told_as_on_h():
    for operator in (wide(), wide().phase_space.base):
        with pytest.raises(jo.ConvergenceError):
            jo.eigenpairs(operator, 4, "LI" if operator.phase_space else "LM", max_seconds=1e-9, verify=True)


def test_products_in_float64_are_counted_as_such():
    A = jacobian("heavy ball", dtype="float32")
    pairs = jo.eigenpairs(A, 5, "LM", verify=True)
    assert A.products == 0
    assert pairs.products == A.phase_space.base.products
    assert pairs.float64_products > 0


def test_pairs_that_have_not_converged_are_not_put_down_to_a_defective_point():
    pairs = jo.eigenpairs(wide(), 4, "LR", max_products=24)
    assert not pairs.converged.any()
    assert not any("defective" in note for note in pairs.notes)


@pytest.mark.parametrize("seed", range(4))
def test_no_vector_is_given_twice_where_copies_of_an_eigenvalue_were_missed(seed):
    p = 26
    random = torch.Generator().manual_seed(seed)
    h = torch.cat([torch.zeros(13, dtype=DOUBLE), 3 * torch.rand(13, generator=random, dtype=DOUBLE)])
    Q = torch.linalg.qr(torch.randn(p, p, generator=random, dtype=DOUBLE))[0]
    loss = jo.FunctionLoss(lambda x: (h * (Q.T @ x) ** 2).sum() / 2, size=p, dtype="float64")
    A = jo.Nesterov(loss, 0.5, 0.5).jacobian(torch.zeros(2 * p, dtype=DOUBLE))
    for most in range(60, 130, 14):
        pairs = jo.eigenpairs(A, 19, "SR", block=1, max_products=most, rng=seed)
        assert np.linalg.svd(pairs.vectors.numpy(), compute_uv=False)[-1] > 1e-6
