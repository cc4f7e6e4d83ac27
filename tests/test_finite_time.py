"""Finite-time exponents: the singular values of the product over a window, against the dense product."""

import json
import math

import numpy as np
import pytest
import torch
from systems import DOUBLE, Cocycle, cat, dense_product, henon, linear, network, rotation, twisted

import jvp_ops as jo
from jvp_ops.dynamics.finite_time._product_svd import product_svd


@pytest.fixture(scope="module")
def orbit():
    return jo.Orbit(*network(hidden=2), steps=40)


def logs_of(product):
    return torch.linalg.svdvals(product).log().numpy()


@pytest.fixture(scope="module")
def five(orbit):
    return jo.finite_time_exponents(orbit, k=5)


def test_they_are_those_of_the_dense_product(orbit, five):
    growth = five
    expected = logs_of(dense_product(orbit))[:5] / 40
    np.testing.assert_allclose(growth.values, expected, rtol=1e-10, atol=0)
    assert growth.converged.all()
    assert growth.notes == ()
    assert (growth.residuals <= 1e-8).all()


def test_both_singular_vectors_belong_to_them(orbit, five):
    growth, P = five, orbit.jacobian()
    sigma = torch.from_numpy(np.exp(growth.log_singular_values))
    assert (P.apply(growth.right) - sigma * growth.left).norm() <= 1e-12 * sigma[0]
    assert (P.apply_adjoint(growth.left) - sigma * growth.right).norm() <= 1e-7 * sigma[0]
    for vectors in (growth.left, growth.right):
        assert (vectors.T @ vectors - torch.eye(5, dtype=DOUBLE)).norm() <= 1e-13


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_window_of_a_map_that_is_not_symmetric(k):
    orbit = jo.Orbit(*twisted(), steps=25)
    growth = jo.finite_time_exponents(orbit, k, start=4, stop=12)  # few enough for the dense product to keep digits
    expected = logs_of(dense_product(orbit, 4, 12))[:k]
    np.testing.assert_allclose(growth.log_singular_values, expected, rtol=1e-10, atol=1e-10)


def test_the_order_in_time_matters():
    A, B, C = torch.randn(3, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(6))
    orbit = jo.Orbit(Cocycle([A, B, C]), torch.zeros(3, dtype=DOUBLE), steps=3)
    growth = jo.finite_time_exponents(orbit, 3)
    assert abs(logs_of(C @ B @ A) - logs_of(A @ B @ C)).max() > 0.1
    np.testing.assert_allclose(growth.log_singular_values, logs_of(C @ B @ A), rtol=0, atol=1e-12)


def test_hundreds_of_steps_neither_overflow_nor_underflow():
    Q = rotation(5)
    rates = torch.tensor([30.0, 28.0, 1.0, 1e-3, 1e-4], dtype=DOUBLE)
    f, state = linear(Q @ torch.diag(rates) @ Q.T)
    growth = jo.finite_time_exponents(jo.Orbit(f, state * 0, steps=400), k=5)
    assert growth.log_singular_values[0] > 1300  # beyond 1e308
    assert growth.log_singular_values[-1] < -3000
    np.testing.assert_allclose(growth.values, rates.log().numpy(), rtol=0, atol=1e-10)


def test_over_200_steps_they_are_other_numbers_than_qr_exponents():
    orbit = jo.Orbit(*network(hidden=1), steps=200)
    growth = jo.finite_time_exponents(orbit, k=3)
    qr = jo.lyapunov_spectrum(*network(hidden=1), k=3, steps=200)
    np.testing.assert_allclose(growth.values, logs_of(dense_product(orbit))[:3] / 200, rtol=1e-10)
    assert growth.values[0] > qr.values[0] + 1e-3


def test_the_cat_map_has_its_exponents_over_any_window():
    growth = jo.finite_time_exponents(jo.Orbit(*cat(), steps=300), k=2)
    np.testing.assert_allclose(growth.values, math.log((3 + 5**0.5) / 2) * np.array([1, -1]), rtol=1e-12)


def test_a_cluster_that_the_block_cuts_is_reported_as_not_converged():
    Q = rotation(30)
    rates = torch.cat([torch.tensor([1.2, 1.1]), torch.linspace(1.0001, 1.0, 28)]).double()
    orbit = jo.Orbit(linear(Q @ torch.diag(rates) @ Q.T)[0], torch.zeros(30, dtype=DOUBLE), steps=4)
    growth = jo.finite_time_exponents(orbit, k=3, max_iterations=4, oversampling=0)
    assert not growth.converged[2]
    assert any("raise max_iterations" in note for note in growth.notes)
    distance = abs(growth.values[:, None] - rates.log().numpy()).min(axis=1)  # to the nearest exponent
    assert (distance <= growth.bounds + 1e-13).all()
    assert (growth.bounds[:2] < 1e-2).all()


def test_a_tolerance_that_rounding_hides_ends_in_a_note():
    growth = jo.finite_time_exponents(jo.Orbit(*henon(), steps=30), k=2, tol=0.0)
    assert growth.iterations < 50
    assert any("rounding hides" in note for note in growth.notes)
    np.testing.assert_allclose(growth.log_singular_values.sum(), 30 * math.log(0.3), rtol=1e-10)


def test_a_singular_product_has_an_exponent_of_minus_infinity(tmp_path):
    orbit = jo.Orbit(linear([[2.0, 1.0], [4.0, 2.0]])[0], torch.zeros(2, dtype=DOUBLE), steps=7)
    growth = jo.finite_time_exponents(orbit, k=2)
    assert abs(growth.log_singular_values[0] - (7 * math.log(4) + math.log(5 / 4))) < 1e-12
    assert growth.values[1] == -math.inf
    assert (growth.right.T @ growth.right - torch.eye(2, dtype=DOUBLE)).norm() < 1e-13
    record = json.loads((growth.save(tmp_path / "run") / "run.json").read_text())
    assert record["values"][1] == "-inf"


def test_float32_comes_close_to_float64():
    data = jo.load_digits().subset(50)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=4)
    orbit = jo.Orbit(jo.GradientDescent(loss, 0.5), loss.initial(rng=0), steps=20)
    growth = jo.finite_time_exponents(orbit, k=3)
    wide = jo.Orbit(jo.GradientDescent(loss.to(dtype=torch.float64), 0.5), loss.initial(rng=0).double(), steps=20)
    expected = jo.finite_time_exponents(wide, k=3)
    assert growth.right.dtype == torch.float32
    np.testing.assert_allclose(growth.values, expected.values, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_bits(orbit):
    first, second = (jo.finite_time_exponents(orbit, k=2, rng=3, tol=0.1) for _ in range(2))
    assert first.values.tobytes() == second.values.tobytes()
    assert torch.equal(first.right, second.right)


def test_a_result_prints_as_a_table(five):
    lines = repr(five).splitlines()
    assert lines[0].startswith("5 finite-time exponents over steps 0 to 39, ")
    assert len(lines) == 7
    assert len({len(line) for line in lines[1:]}) == 1


def test_bad_input_is_told(orbit):
    for options, match in (
        ({"k": 10**6}, "k is at most"),
        ({"k": 0}, "k must be"),
        ({"k": 1, "start": 40}, "0 ≤ start < stop ≤ 40"),
        ({"k": 1, "tol": -1.0}, "tol must be at least 0"),
        ({"k": 1, "oversampling": -1}, "oversampling"),
        ({"k": 1, "max_iterations": 0}, "max_iterations"),
    ):
        with pytest.raises(jo.InputError, match=match):
            jo.finite_time_exponents(orbit, **options)


# --- the small decomposition -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["falling", "rising"])
def test_the_decomposition_of_a_product_of_triangles_keeps_small_values(order):
    random = np.random.default_rng(2)
    diagonal = np.exp([3.0, 1.0, -1.0, -4.0])[:: 1 if order == "falling" else -1]
    triangles = [np.diag(diagonal) + 0.1 * np.triu(random.standard_normal((4, 4)), 1) for _ in range(3)]
    product = triangles[2] @ triangles[1] @ triangles[0]
    found = product_svd(triangles)
    np.testing.assert_allclose(np.exp(found.logs[:2]), np.linalg.svd(product)[1][:2], rtol=1e-12)
    assert abs(found.logs.sum() - 3 * np.log(diagonal).sum()) < 1e-10
    for matrix in (found.left, found.right):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-13)
    rebuilt = found.left * np.exp(found.logs) @ found.right.T
    np.testing.assert_allclose(rebuilt, product, atol=1e-12 * abs(product).max())


def test_the_decomposition_puts_values_that_are_out_of_order_in_order_first():
    """Rows of the product that are nearly parallel lose the least value; the sum of all is known exactly."""
    random = np.random.default_rng(4)
    triangles = [np.triu(random.standard_normal((5, 5))) + np.diag(np.exp(np.linspace(2, -2, 5))) for _ in range(300)]
    exact = sum(np.log(abs(np.diagonal(triangle))).sum() for triangle in triangles)
    found = product_svd(triangles)
    assert found.logs[0] - found.logs[4] > 700
    assert abs(found.logs.sum() - exact) < 1e-10
    assert abs(product_svd(triangles, sweeps=0).logs.sum() - exact) > 1e-6


def test_residuals_are_those_of_the_dense_product_where_vectors_are_coupled():
    """P = U diag(σ) Vᵀ with close σ, stopped early: what is reported is ‖Pᵀu − σv‖ / σ, of every vector."""
    random = np.random.default_rng(1)
    for seed in range(20):
        n = 30
        A = torch.from_numpy(np.diag(np.linspace(1.0, 1.5, n)) @ np.linalg.qr(random.standard_normal((n, n)))[0])
        orbit = jo.Orbit(linear(A)[0], torch.zeros(n, dtype=DOUBLE), steps=3)
        growth = jo.finite_time_exponents(orbit, k=4, max_iterations=1 + seed % 3, rng=seed)
        P = dense_product(orbit)
        sigma = torch.from_numpy(np.exp(growth.log_singular_values))
        exact = torch.linalg.vector_norm(P.T @ growth.left - growth.right * sigma, dim=0) / sigma
        np.testing.assert_allclose(growth.residuals, exact.numpy(), rtol=1e-6)


def test_steps_that_spread_vectors_beyond_the_precision_are_noted():
    spread = torch.diag(torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 1e-6]))
    Q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0]
    orbit = jo.Orbit(linear(Q @ spread @ Q.T, dtype=torch.float32)[0], torch.zeros(5), steps=2)
    assert any("fewer than half of the digits" in note for note in jo.finite_time_exponents(orbit, k=5).notes)
    assert not any("half of the digits" in note for note in jo.finite_time_exponents(orbit, k=2, oversampling=0).notes)


def test_a_product_that_is_zero_has_exponents_of_minus_infinity():
    orbit = jo.Orbit(linear(torch.zeros(3, 3))[0], torch.zeros(3, dtype=DOUBLE), steps=2)
    assert (jo.finite_time_exponents(orbit, k=2).values == -math.inf).all()


def test_overflow_names_the_step():
    f = jo.FunctionMap(lambda s: s * 10.0 ** (200 * (s[:1].detach() > 2)) * 1.5, size=2, dtype="float32")
    orbit = jo.Orbit(jo.FunctionMap(lambda s: 1.0 * s, size=2, dtype="float32"), torch.ones(2), steps=12)
    orbit.map = f  # whose derivative overflows where it is never run
    orbit._states.write(7, torch.full((2,), 3.0))
    for measure in (jo.finite_time_exponents, jo.local_growth):
        with pytest.raises(jo.NonFiniteError, match="NaN or Inf at step 7"):
            measure(orbit, 1)


@pytest.mark.parametrize(("dtype", "steps"), [(DOUBLE, 200), (DOUBLE, 300), (torch.float32, 100), (torch.float32, 150)])
def test_rounding_along_far_stronger_vectors_is_no_residual(dtype, steps):
    logs = 0.3 * torch.tensor([1.0, 0.9, 0.8, 0.4, *[0.0] * 96], dtype=DOUBLE)
    Q = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))[0]
    f, start = linear(Q @ torch.diag(logs.exp()) @ Q.T, dtype=dtype)
    growth = jo.finite_time_exponents(jo.Orbit(f, 0 * start, steps=steps), k=4)
    assert growth.converged.all()
    assert growth.iterations <= 3
    np.testing.assert_allclose(growth.values, logs[:4], atol=1e-12 if dtype == DOUBLE else 1e-5)


def swing(a, half, n, seed, dtype="float64"):
    """Make a map that stretches one direction by 2ᵃ and shrinks another for `half` steps, and then the reverse: P is 1
    on both."""
    Q = np.eye(n - 1) if seed is None else np.linalg.qr(np.random.default_rng(seed).standard_normal((n - 1, n - 1)))[0]
    Q = torch.from_numpy(Q).to(getattr(torch, dtype))
    up, down = (torch.tensor([2.0**s, 2.0**-s] + [0.5] * (n - 3)).to(Q) for s in (a, -a))

    def f(s):
        return torch.cat([Q @ (torch.where(s[-1] < half, up, down) * (Q.T @ s[:-1])), (s[-1] + 1)[None]])

    return jo.FunctionMap(f, size=n, dtype=dtype)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("half", [5, 10, 16, 20, 22, 24, 27, 30, 60])
def test_where_directions_swap_dominance_inside_the_window_nothing_wrong_is_called_converged(half, n, seed):
    orbit = jo.Orbit(swing(1, half, n, seed), torch.zeros(n, dtype=torch.float64), steps=2 * half)
    for k in (1, 3):
        found = jo.finite_time_exponents(orbit, k)
        errors = np.abs(found.log_singular_values)
        assert (errors <= found.bounds * 2 * half + 1e-13).all()
        if half <= 10:
            assert found.converged.all()
            assert errors.max() < 1e-9
        assert (errors[found.converged] < 1e-7).all()
        assert found.iterations <= 10
        if half >= 24:
            assert not found.converged[0]
            assert "grow and shrink again" in found.notes[0]
