"""Growth along the steps of the optimizer maps themselves, where it is known in closed form."""

import math

import numpy as np
import pytest
import torch
from systems import DOUBLE, dense_product

import jvp_ops as jo

HENON = (0.41922, -1.62319)


def one(value):
    return jo.FunctionLoss(value, size=1, dtype="float64")


def state(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


def network(hidden=2, samples=30):
    data = jo.load_digits().subset(samples)
    return jo.TwoLayerLoss(torch.as_tensor(data.inputs)[:, 18:22], data.labels, hidden=hidden, dtype=DOUBLE)


def quadratic(h):
    h = torch.tensor(h, dtype=DOUBLE)
    return jo.FunctionLoss(lambda x: (h * x**2).sum() / 2, size=len(h), dtype="float64")


def test_heavy_ball_with_negative_momentum_is_the_henon_map():
    f = jo.HeavyBall(one(lambda x: (0.35 * x**2 - x + 1.4 * x**3 / 3).sum()), lr=1.0, momentum=-0.3)
    x, before = 0.1, 0.1  # v = 0: the x before is the same
    for _ in range(3):
        x, before = 1 - 1.4 * x * x + 0.3 * before, x
    assert float(f.run(state(0.1, 0.0), steps=3)[0]) == pytest.approx(x, abs=1e-12)
    spectrum = jo.lyapunov_spectrum(f, state(0.1, 0.0), k=2, steps=1200, transient=100)
    assert (abs(spectrum.values - np.array(HENON)) <= 4 * spectrum.errors + 1e-5).all()
    assert abs(spectrum.values.sum() - math.log(0.3)) < 1e-12


def test_heavy_ball_without_friction_on_a_cosine_is_the_standard_map():
    f = jo.HeavyBall(one(lambda x: 10 * torch.cos(x).sum()), lr=1.0, momentum=1.0)
    spectrum = jo.lyapunov_spectrum(f, state(0.3, 0.2), k=2, steps=1200)
    assert abs(spectrum.values[0] - math.log(5)) < 4 * spectrum.errors[0] + 0.02  # ln(K/2), to order 1/K²
    assert abs(spectrum.values.sum()) < 1e-11
    assert abs(spectrum.kaplan_yorke - 2) < 1e-11


def test_sgd_on_two_samples_averages_their_exponents():
    losses = [one(lambda x, h=h: h * (x**2).sum() / 2) for h in (0.5, 5.0)]
    f = jo.MinibatchSGD.of(losses, optimizer=lambda loss: jo.GradientDescent(loss, 0.3))
    spectrum = jo.lyapunov_spectrum(f, state(1.0), k=1, steps=100)
    np.testing.assert_allclose(spectrum.values, [(math.log(0.85) + math.log(0.5)) / 2], rtol=1e-13)
    drawn = {int(f.batch(step)) for step in range(2)}
    assert drawn == {0, 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda loss: jo.GradientDescent(loss, 0.8),
        lambda loss: jo.HeavyBall(loss, 0.8, 0.5),
        lambda loss: jo.Nesterov(loss, 0.3, 0.6),
    ],
    ids=["gradient descent", "heavy ball", "nesterov"],
)
def test_on_a_quadratic_loss_they_are_the_logarithms_of_the_roots(make):
    h = [0.05, 1.2, 3.9]
    f = make(quadratic(h))
    expected = np.sort(np.log(np.abs(f.phase_space_eigenvalues(h))).ravel())[::-1]
    size = f.parameters.size
    spectrum = jo.lyapunov_spectrum(f, state(*[1e-3] * size), k=size, steps=300, transient=150)
    np.testing.assert_allclose(spectrum.values, expected, rtol=0, atol=1e-12 if size == 3 else 1e-2)
    assert spectrum.values.sum() == pytest.approx(expected.sum(), abs=1e-10)


@pytest.mark.parametrize(
    "make, each",
    [
        (lambda loss: jo.HeavyBall(loss, 0.5, 0.9), math.log(0.9)),
        (lambda loss: jo.Adam(loss, 0.02, betas=(0.8, 0.9)), math.log(0.8 * 0.9)),
        (lambda loss: jo.AdamW(loss, 0.02, betas=(0.8, 0.9), weight_decay=0.5), math.log(0.8 * 0.9 * 0.99)),
    ],
    ids=["heavy ball", "adam", "adamw"],
)
def test_the_sum_of_all_exponents_is_that_of_the_determinant_for_any_loss(make, each):
    loss = network()
    f = make(loss)
    p = loss.parameters.size
    start = f.run(f.initial(loss.initial(rng=0)), steps=30)
    spectrum = jo.lyapunov_spectrum(f, start, k=f.parameters.size, steps=20, first=30)
    assert spectrum.values.sum() == pytest.approx(p * each, rel=1e-9)


def test_the_sum_of_nesterovs_and_rmsprops_follows_the_curvature():
    loss, beta = network(), 0.9
    for f, alpha in ((jo.Nesterov(loss, 0.5, beta), 0.5), (jo.RMSProp(loss, 1e-3, beta), 1e-3)):
        at = f.run(f.initial(loss.initial(rng=0)), steps=20)
        spectrum = jo.lyapunov_spectrum(f, at, k=f.parameters.size, steps=10, first=20)
        total = 0.0
        for t in range(20, 30):
            h = torch.linalg.eigvalsh(f.curvature(at, t).dense())
            total += float(torch.log((beta * (1 - alpha * h)).abs()).sum())
            at = f(at, t)
        assert spectrum.values.sum() == pytest.approx(total / 10, rel=1e-9)


def test_heavy_balls_singular_values_pair_to_the_momentum_over_fifty_steps():
    """Jᵀ Ω J = β Ω at each step, so that sᵢ + s₂ₚ₊₁₋ᵢ = T ln β over T of them."""
    loss, beta, T = network(), 0.95, 50
    f = jo.HeavyBall(loss, 0.5, beta)
    p = loss.parameters.size
    orbit = jo.Orbit(f, f.initial(loss.initial(rng=0)), steps=T)
    Omega = torch.zeros(2 * p, 2 * p, dtype=DOUBLE)
    Omega[:p, p:], Omega[p:, :p] = torch.eye(p, dtype=DOUBLE), -torch.eye(p, dtype=DOUBLE)
    for t in (0, 25, 49):
        J = orbit.map.jacobian(orbit[t], t).dense()
        assert float((J.T @ Omega @ J - beta * Omega).abs().max()) < 1e-12
    logs = np.log(np.linalg.svd(dense_product(orbit).numpy())[1])
    np.testing.assert_allclose(logs + logs[::-1], T * math.log(beta), rtol=0, atol=1e-8)
    growth = jo.finite_time_exponents(orbit, k=4)
    np.testing.assert_allclose(growth.log_singular_values, logs[:4], atol=1e-8)
    assert abs(logs[0] - logs[1]) > 1e-3


@pytest.mark.mnist
def test_on_the_mnist_network_heavy_ball_keeps_its_structure_and_pairing_over_fifty_steps():
    """Pᵀ Ω P = βᵀ Ω of the product of T steps: if P v = σ u, then Pᵀ (Ω u) = (βᵀ / σ) Ω v."""
    data, beta, T = jo.load_mnist().subset(300, rng=0), 0.9, 50
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=50, classes=10, dtype="float64")
    f = jo.HeavyBall(loss, 0.1, beta)
    orbit = jo.Orbit(f, f.run(f.initial(loss.initial(rng=0)), steps=50), steps=T, first=50)
    P, p = orbit.jacobian(), loss.parameters.size
    assert p == 39_760

    def omega(x):
        return torch.cat([x[p:], -x[:p]])

    x = torch.randn(2 * p, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    torch.testing.assert_close(P.apply_adjoint(omega(P.apply(x))), beta**T * omega(x), rtol=0, atol=1e-12)
    found = jo.finite_time_exponents(orbit, k=1, tol=1e-5, max_iterations=60)
    assert found.converged.all()
    sigma, u, v = float(np.exp(found.log_singular_values[0])), found.left, found.right
    assert sigma > 1.05
    torch.testing.assert_close(P.apply_adjoint(omega(u)), beta**T / sigma * omega(v), rtol=0, atol=1e-12)
    least = torch.linalg.vector_norm(P.apply(omega(v) / torch.linalg.vector_norm(v)))
    assert math.log(sigma) + math.log(least) == pytest.approx(T * math.log(beta), abs=1e-6)
