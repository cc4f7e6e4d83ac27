"""`eigenpairs` against LAPACK: values, bounds, convergence, mapping, and what happens when it cannot finish."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jvp_ops as jo
from jvp_ops.linear import LinearMap
from jvp_ops.operators import TensorOperator
from jvp_ops.parameters import Parameters


def symmetric_operator(values, dtype="float64", rng=0):
    """Build Q diag(values) Qᵀ as a Hessian operator."""
    values = np.asarray(values, dtype=float)
    q, _ = np.linalg.qr(np.random.default_rng(rng).standard_normal((len(values), len(values))))
    matrix = torch.from_numpy(q * values @ q.T)
    matrix = ((matrix + matrix.T) / 2).to(getattr(torch, dtype))
    loss = jo.FunctionLoss(lambda x: x @ (matrix @ x) / 2, size=len(values), dtype=dtype)
    return loss.hessian(loss.initial()), np.linalg.eigvalsh(matrix.double().numpy())


@pytest.fixture(scope="module")
def digits_step():
    data = jo.load_digits()
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=8)
    f = jo.GradientDescent(loss, lr=0.1)
    theta = f.run(loss.initial(rng=0), steps=30)
    exact = torch.linalg.eigvalsh(loss.to(dtype="float64").hessian(theta.double()).dense()).numpy()
    return f, theta, exact


@pytest.mark.parametrize(
    "which, expected",
    [("LA", [8, 7, 6, 5]), ("SA", [-12, -11, -10, -9]), ("LM", [-12, -11, -10, -9]), ("BE", [-12, -11, 7, 8])],
)
def test_each_end_of_the_spectrum_is_the_one_asked_for(which, expected):
    operator, _ = symmetric_operator(np.r_[np.arange(-12.0, 9.0), np.zeros(20)])
    pairs = jo.eigenpairs(operator, 4, which)
    np.testing.assert_allclose(pairs.values, expected, atol=1e-9)
    assert pairs.converged.all()
    assert pairs.complete


def test_a_dominant_negative_eigenvalue_is_not_dropped_under_lm():
    operator, exact = symmetric_operator(np.r_[-5.0, np.linspace(-1, 1, 40)])
    assert jo.eigenpairs(operator, 1, "LM").values[0] == pytest.approx(exact[0], abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    which=st.sampled_from(["LA", "SA", "LM", "BE"]),
    dtype=st.sampled_from(["float32", "float64"]),
    spread=st.floats(0.01, 100),
)
def test_an_eigenvalue_lies_within_the_bound_of_each_value(seed, which, dtype, spread):
    random = np.random.default_rng(seed)
    operator, exact = symmetric_operator(random.standard_normal(40) * spread ** random.uniform(0, 1, 40), dtype, seed)
    pairs = jo.eigenpairs(operator, 5, which, rng=seed)
    for value, bound in zip(pairs.values, pairs.bounds, strict=True):
        assert np.abs(exact - value).min() <= bound


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_float32_bounds_hold_for_the_exact_jacobian(digits_step, which):
    f, theta, h = digits_step
    pairs = jo.eigenpairs(f.jacobian(theta), 6, which)
    mu = 1 - 0.1 * h
    for value, bound in zip(pairs.values, pairs.bounds, strict=True):
        assert np.abs(mu - value).min() <= bound
        assert bound < 1e-5
    best = {"LA": np.sort(mu)[::-1][:6], "SA": np.sort(mu)[:6], "LM": mu[np.argsort(-np.abs(mu))][:6]}
    if which in best:
        np.testing.assert_allclose(pairs.values, best[which], atol=2e-6)


def test_a_jacobian_is_solved_through_its_hessian_and_mapped(digits_step):
    f, theta, h = digits_step
    Df = f.jacobian(theta)
    pairs = jo.eigenpairs(Df, 3, "SA")
    np.testing.assert_allclose(pairs.hessian_values, h[::-1][:3], atol=1e-5)
    np.testing.assert_allclose(pairs.values, 1 - 0.1 * pairs.hessian_values, rtol=1e-15)
    np.testing.assert_allclose(pairs.bounds, 0.1 * pairs.hessian_bounds, rtol=1e-6)
    assert Df.products == 0
    assert Df.affine.base.products == pairs.products > 0


def test_weight_decay_shifts_what_is_mapped(digits_step):
    f, theta, h = digits_step
    decaying = jo.GradientDescent(f.loss, lr=0.5, weight_decay=0.2)
    pairs = jo.eigenpairs(decaying.jacobian(theta), 2, "SA")
    np.testing.assert_allclose(pairs.values, 1 - 0.5 * 0.2 - 0.5 * h[::-1][:2], atol=1e-5)


def test_a_diagonal_block_is_mapped_too(digits_step):
    f, theta, _ = digits_step
    block = f.jacobian(theta).block("W2", "W2")
    exact = torch.linalg.eigvalsh(block.dense().double()).numpy()
    pairs = jo.eigenpairs(block, 3, "SA")
    np.testing.assert_allclose(pairs.values, exact[:3], atol=1e-5)
    assert pairs.hessian_values is not None


def test_residuals_are_those_of_the_operator_and_the_vectors(digits_step):
    f, theta, _ = digits_step
    H = f.loss.to(dtype="float64").hessian(theta.double())
    pairs = jo.eigenpairs(H, 4, "LA", tol=1e-6)
    X = pairs.vectors
    expected = torch.linalg.vector_norm(H.apply(X) - X * torch.from_numpy(pairs.values), dim=0)
    np.testing.assert_allclose(pairs.residuals, expected.numpy(), rtol=1e-4)
    assert jo.eigenpairs(f.loss.hessian(theta), 4, "LA").vectors.dtype == torch.float32
    np.testing.assert_allclose(torch.linalg.vector_norm(X, dim=0).numpy(), 1, atol=1e-6)


def test_converged_is_not_claimed_under_the_rounding_level(digits_step):
    f, theta, _ = digits_step
    pairs = jo.eigenpairs(f.loss.hessian(theta), 4, "LA", tol=1e-12, float64=False)
    assert not pairs.converged.any()
    assert pairs.rounding > 1e-9
    assert pairs.stopped == "rounding"
    assert "rounding level" in pairs.notes[0]


def test_a_float32_solve_goes_on_in_float64_to_a_tolerance_under_its_rounding(digits_step):
    f, theta, h = digits_step
    pairs = jo.eigenpairs(f.loss.hessian(theta), 4, "LA", tol=1e-12)
    assert pairs.converged.all()
    assert pairs.stopped == "converged"
    assert pairs.float64_products > 0
    np.testing.assert_allclose(pairs.values, h[::-1][:4], atol=1e-11)
    assert (pairs.bounds < 1e-11).all()


def test_a_float32_operator_does_not_chase_rounding_noise(digits_step):
    f, theta, _ = digits_step
    strict = jo.eigenpairs(f.loss.hessian(theta), 4, "LA", tol=0, float64=False)
    loose = jo.eigenpairs(f.loss.hessian(theta), 4, "LA", tol=1e-6, float64=False)
    assert strict.products <= 2 * loose.products


def test_the_rounding_of_float32_products_is_measured_against_float64(digits_step):
    f, theta, _ = digits_step
    single = jo.eigenpairs(f.loss.hessian(theta), 2, "LA", float64=False)
    double = jo.eigenpairs(f.loss.to(dtype="float64").hessian(theta.double()), 2, "LA")
    assert 1e-8 < single.rounding < 1e-5
    assert double.rounding < 1e-13


def test_the_same_seed_gives_the_same_bits(digits_step):
    f, theta, _ = digits_step
    first, second = (jo.eigenpairs(f.jacobian(theta), 3, "LA", rng=5) for _ in range(2))
    assert np.array_equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)


def test_what_has_converged_survives_a_budget_that_runs_out():
    operator, exact = symmetric_operator(np.r_[100.0, 50.0, np.linspace(0, 1, 400)])
    pairs = jo.eigenpairs(operator, 6, "LA", method="scipy", max_products=60)
    assert 0 < len(pairs) < 6
    assert pairs.stopped == "max_products"
    assert "2 of 6" in pairs.notes[-1]
    np.testing.assert_allclose(pairs.values, exact[::-1][: len(pairs)], atol=1e-6)
    assert pairs.products <= 60 + 30  # the solver's budget, then measuring and checking


def test_nothing_converged_is_an_error_that_says_so():
    operator, _ = symmetric_operator(np.linspace(0, 1, 500))
    with pytest.raises(jo.ConvergenceError, match=r"none of 3 eigenpairs .* max_products=25"):
        jo.eigenpairs(operator, 3, "SA", method="scipy", max_products=25)
    with pytest.raises(jo.InputError, match=r"max_products=24 is too few: .* takes 25"):
        jo.eigenpairs(operator, 3, "SA", method="scipy", max_products=24)


@pytest.mark.parametrize("lr", [0.0, 1e-17, 0.1])
@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_the_ends_of_a_jacobian_are_told_by_its_hessian_however_small_the_step(digits_step, which, lr):
    f, theta, h = digits_step
    pairs = jo.eigenpairs(jo.GradientDescent(f.loss, lr=lr).jacobian(theta), 3, which)
    expected = {"LA": h[:3], "SA": h[::-1][:3], "BE": np.r_[h[-1], h[1], h[0]]}[which]
    np.testing.assert_allclose(pairs.hessian_values, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_operators_of_any_size_are_solved(scale):
    values = torch.arange(1.0, 31.0)
    loss = jo.FunctionLoss(lambda x: (values.to(x) * scale * x**2).sum() / 2, size=30)
    pairs = jo.eigenpairs(loss.hessian(torch.ones(30)), 2, "LA")
    np.testing.assert_allclose(pairs.values, [30 * scale, 29 * scale], rtol=1e-5)


def test_rounding_of_what_is_cached_is_seen_in_a_function_too():
    loss = jo.FunctionLoss(lambda x: (((x + 1e4) - 1e4) ** 4).sum(), size=30)
    theta = torch.linspace(0.5, 0.95, 30)
    pairs = jo.eigenpairs(loss.hessian(theta), 1, "LA")
    exact = float(12 * theta.double().square().max())
    assert abs(pairs.values[0] - exact) <= pairs.bounds[0]


def test_a_float32_operator_without_a_float64_counterpart_says_so():
    constant = torch.arange(1.0, 31.0).diag()
    loss = jo.FunctionLoss(lambda x: x @ (constant @ x) / 2, size=30)
    pairs = jo.eigenpairs(loss.hessian(torch.ones(30)), 2, "LA")
    assert "not certified in float64" in pairs.notes[-1]
    np.testing.assert_allclose(pairs.values, [30, 29], rtol=1e-5)


def test_be_needs_an_eigenvalue_for_each_end():
    operator, _ = symmetric_operator(np.arange(8.0))
    with pytest.raises(jo.InputError, match="k must be at least 2"):
        jo.eigenpairs(operator, 1, "BE")


def test_complex_pairs_of_a_non_symmetric_map_are_never_split():
    blocks = [torch.tensor([[0.0, -r], [r, 0.0]]) for r in (5.0, 4.0, 3.0)]
    matrix = torch.block_diag(*blocks, torch.diag(torch.linspace(0.1, 1, 30))).double()
    f = jo.FunctionMap(lambda x: matrix @ x, size=36, dtype="float64")
    Df = f.jacobian(torch.zeros(36, dtype=torch.float64))
    pairs = jo.eigenpairs(Df, 3, "LM")
    np.testing.assert_allclose(sorted(pairs.values.imag), [-5, -4, 4, 5], atol=1e-9)
    assert np.isnan(pairs.bounds).all()
    assert pairs.converged.all()
    assert (pairs.residuals < 1e-9).all()


def rotations(*angles, radius=1.0, rest=30):
    """Build a map whose pairs of eigenvalues are radius·exp(± i angle), beside small real ones."""
    blocks = [radius * torch.tensor([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles]
    matrix = torch.block_diag(*blocks, torch.diag(radius * torch.linspace(0.01, 0.3, rest, dtype=torch.float64)))
    f = jo.FunctionMap(lambda x: matrix @ x, size=len(matrix), dtype="float64")
    return f.jacobian(torch.zeros(len(matrix), dtype=torch.float64))


@pytest.mark.parametrize("radius", [1e-13, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_pairs_of_one_modulus_are_kept_whole_at_every_scale(radius, k):
    pairs = jo.eigenpairs(rotations(0.3, 0.9, 1.5, radius=radius), k, "LM")
    z = pairs.values / radius
    assert len(z) == k + k % 2
    np.testing.assert_allclose(np.abs(z), 1, atol=1e-9)
    np.testing.assert_allclose(z[::2], z[1::2].conj(), atol=1e-9)
    assert (z[::2].imag > 0).all()


@pytest.mark.parametrize("which, expected", [("LR", 3.0), ("SR", -4.0), ("LM", -4.0)])
def test_real_ends_of_a_non_symmetric_map(which, expected):
    random = np.random.default_rng(3)
    s = random.standard_normal((30, 30)) + 8 * np.eye(30)
    matrix = torch.from_numpy(s @ np.diag(np.r_[3.0, -4.0, random.uniform(-1, 1, 28)]) @ np.linalg.inv(s))
    f = jo.FunctionMap(lambda x: matrix @ x, size=30, dtype="float64")
    pairs = jo.eigenpairs(f.jacobian(torch.zeros(30, dtype=torch.float64)), 1, which)
    np.testing.assert_allclose(pairs.values, [expected], atol=1e-8)


def test_the_zero_operator_has_zero_eigenvalues():
    loss = jo.FunctionLoss(lambda x: x.sum(), size=10, dtype="float64")
    pairs = jo.eigenpairs(loss.hessian(loss.initial()), 2, "LA")
    assert pairs.values.tolist() == [0, 0]
    assert (pairs.bounds >= 0).all()


@pytest.mark.parametrize("k", [0, -1, 2.5, True, None])
def test_a_k_that_is_no_count_is_refused(k):
    operator, _ = symmetric_operator(np.arange(5.0))
    with pytest.raises(jo.InputError, match="k must be an integer of at least 1"):
        jo.eigenpairs(operator, k, "LA")


def test_k_beyond_what_scipy_can_find_is_refused_with_the_way_out():
    operator, _ = symmetric_operator(np.arange(5.0))
    with pytest.raises(jo.InputError, match=r"k=5 is out of range: .* at most 4 .* method='dense' finds all"):
        jo.eigenpairs(operator, 5, "LA", method="scipy")
    f = jo.FunctionMap(lambda x: x.roll(1), size=5)
    with pytest.raises(jo.InputError, match="at most 3"):
        jo.eigenpairs(f.jacobian(torch.zeros(5)), 4, "LM", method="scipy")
    for method in ("auto", "dense"):
        with pytest.raises(jo.InputError, match=r"k=6 is out of range: .* at most 5"):
            jo.eigenpairs(operator, 6, "LA", method=method)
    with pytest.raises(jo.InputError, match=r"k=5 is out of range: method='lanczos' finds at most 4"):
        jo.eigenpairs(operator, 5, "LA", method="lanczos")


def test_k_of_n_minus_1_works():
    operator, exact = symmetric_operator(np.arange(6.0))
    np.testing.assert_allclose(jo.eigenpairs(operator, 5, "LA").values, exact[::-1][:5], atol=1e-9)


@pytest.mark.parametrize("which", ["LR", "largest", None, "SM"])
def test_an_end_that_a_symmetric_operator_does_not_have_is_refused(which):
    operator, _ = symmetric_operator(np.arange(5.0))
    with pytest.raises(jo.InputError, match="which must be one of LA, SA, LM, BE"):
        jo.eigenpairs(operator, 2, which)


def test_what_is_no_square_operator_is_refused(digits_step):
    f, theta, _ = digits_step
    with pytest.raises(jo.InputError, match="square operator, not one of shape 8 × 10"):
        jo.eigenpairs(f.jacobian(theta).block("b1", "b2"), 2, "LM")
    with pytest.raises(jo.InputError, match="not list"):
        jo.eigenpairs(np.eye(3).tolist(), 1, "LA")


@pytest.mark.parametrize("options", [{"tol": -1.0}, {"tol": float("nan")}, {"rng": -1}, {"max_products": 0}])
def test_bad_options_are_refused(options):
    operator, _ = symmetric_operator(np.arange(8.0))
    with pytest.raises(jo.InputError, match=next(iter(options))):
        jo.eigenpairs(operator, 2, "LA", **options)


@pytest.mark.parametrize("method, at", [("scipy", 21), ("lanczos", 5)])
def test_nan_in_the_middle_of_a_solve_is_named_with_the_product(method, at):
    calls = 0

    def product(V):
        nonlocal calls
        calls += 1
        return V * (float("nan") if calls >= at else torch.arange(1.0, 101.0)[:, None])

    layout = Parameters.of({"x": (100,)})
    operator = TensorOperator(
        LinearMap(product, product, layout, layout, torch.float32, torch.device("cpu"), True, dict)
    )
    named = "product 21 " if method == "scipy" else "product 19 to 26 "
    with pytest.raises(jo.NonFiniteError, match=named) as caught:
        jo.eigenpairs(operator, 3, "LA", method=method)
    if method == "lanczos":
        partial = caught.value.partial
        assert len(partial) == 3
        assert partial.stopped == "failed"
        assert not partial.converged.any()
        for value, bound in zip(partial.values, partial.bounds, strict=True):
            assert np.abs(np.arange(1.0, 101.0) - value).min() <= bound
