"""Lyapunov exponents of systems whose exponents are known, and what an interrupted run leaves."""

import math

import numpy as np
import pytest
import torch
from systems import DOUBLE, GOLDEN, Cocycle, cat, cubics, henon, linear, logistic_exponent, twisted

import jvp_ops as jo
from jvp_ops.dynamics import kaplan_yorke
from jvp_ops.dynamics._batch_means import batch_errors
from jvp_ops.dynamics._frame import orthonormal

HENON = (0.41922, -1.62319)


def agrees(spectrum, expected, sigmas=4):
    return bool((abs(spectrum.values - np.array(expected)) <= sigmas * spectrum.errors + 1e-5).all())


@pytest.fixture(scope="module")
def henon_spectrum():
    return jo.lyapunov_spectrum(*henon(), k=2, steps=3000, transient=100)


# --- known systems -----------------------------------------------------------------------------------------------


def test_the_henon_map(henon_spectrum):
    assert agrees(henon_spectrum, HENON)
    assert (henon_spectrum.errors < 0.01).all()
    assert abs(henon_spectrum.values.sum() - math.log(0.3)) < 1e-12
    assert abs(henon_spectrum.kaplan_yorke - 1.2583) < 0.01
    assert henon_spectrum.positive_count == 1
    assert henon_spectrum.positive_sum == henon_spectrum.values[0]


def test_arnolds_cat_map():
    spectrum = jo.lyapunov_spectrum(*cat(), k=2, steps=200, transient=40)
    np.testing.assert_allclose(spectrum.values, [GOLDEN, -GOLDEN], rtol=0, atol=1e-13)


def test_gradient_descent_on_a_cubic_is_the_logistic_map():
    spectrum = jo.lyapunov_spectrum(*cubics([4.0]), k=1, steps=2000)
    assert agrees(spectrum, [math.log(2)])
    assert spectrum.errors[0] < 0.02


def test_a_rotated_sum_of_cubics_has_the_exponents_of_its_logistic_maps():
    rates = [2.7, 4.0, 1.8, 3.2, 2.45, 4.0]
    expected = sorted((logistic_exponent(r) for r in rates), reverse=True)
    spectrum = jo.lyapunov_spectrum(*cubics(rates), k=5, steps=1500, transient=300)
    assert agrees(spectrum, expected[:5])
    np.testing.assert_allclose(spectrum.values[2:], expected[2:5], rtol=0, atol=1e-6)
    assert spectrum.positive_count == 2
    assert abs(spectrum.kaplan_yorke - (4 + sum(expected[:4]) / -expected[4])) < 0.05


def test_the_jacobian_and_not_its_transpose_goes_forward_in_time():
    A, B, C = torch.randn(3, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(6))
    right, wrong = (
        np.sort(np.log(np.abs(np.linalg.eigvals(product.numpy()))))[::-1] / 3 for product in (C @ B @ A, A @ B @ C)
    )
    assert abs(right - wrong).max() > 0.1
    f = Cocycle([A, B, C])
    spectrum = jo.lyapunov_spectrum(f, torch.zeros(3, dtype=DOUBLE), k=3, steps=600, transient=300)
    np.testing.assert_allclose(spectrum.values, right, rtol=0, atol=1e-10)
    transposed = jo.lyapunov_spectrum(Cocycle([A.T, B.T, C.T]), torch.zeros(3, dtype=DOUBLE), 3, 600, transient=300)
    np.testing.assert_allclose(transposed.values, wrong, rtol=0, atol=1e-10)


def test_the_sum_of_all_is_the_mean_logarithm_of_the_determinant():
    orbit = jo.Orbit(*twisted(), steps=60)
    spectrum = jo.lyapunov_spectrum(*twisted(), k=6, steps=60)
    dets = [torch.linalg.slogdet(orbit.map.jacobian(orbit[t]).dense())[1] for t in range(60)]
    assert abs(spectrum.values.sum() - float(torch.stack(dets).mean())) < 1e-11


def test_float32_gives_the_same_exponents():
    f = jo.FunctionMap(lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2)
    spectrum = jo.lyapunov_spectrum(f, torch.tensor([0.1, 0.1]), k=2, steps=2000, transient=100)
    assert agrees(spectrum, HENON)
    assert abs(spectrum.values.sum() - math.log(0.3)) < 1e-5
    assert spectrum.intervals.max() <= 2  # a spread of 2 e-folds a step, of 7 that float32 has


# --- orthonormalization ------------------------------------------------------------------------------------------


def test_an_interval_in_which_vectors_lose_rank_is_found_out_and_mended():
    spectrum = jo.lyapunov_spectrum(*cat(), k=2, steps=300, transient=50, interval=60)
    np.testing.assert_allclose(spectrum.values, [GOLDEN, -GOLDEN], rtol=0, atol=1e-8)
    assert any("interval of 60 steps lets the vectors lose rank" in note for note in spectrum.notes)
    assert spectrum.intervals.max() < 10
    kept = jo.lyapunov_spectrum(*cat(), k=2, steps=300, interval=5)
    assert set(kept.intervals.tolist()) == {5}
    assert kept.notes == ()


def test_a_loop_of_ones_own_is_told_of_rank_loss():
    system = jo.TangentSystem(*cat(), 2)
    for _ in range(60):
        system.step()
    growth = system.orthonormalize()
    assert abs(growth[0] - 60 * GOLDEN) < 2
    assert math.isnan(growth[1])
    assert system.frame.spread > 18


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_column_in_the_span_of_those_before_it_is_replaced_and_the_others_count(scale):
    V = torch.randn(6, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    V[:, 1] = scale * V[:, 0]
    frame = orthonormal(V, rounding=1e-16, random=np.random.default_rng(0))
    assert frame.lost.tolist() == [False, True, False, False]
    Q, R = frame.vectors, torch.from_numpy(frame.triangle)
    torch.testing.assert_close(Q @ R, V, rtol=0, atol=1e-14)
    torch.testing.assert_close(Q.T @ Q, torch.eye(4, dtype=DOUBLE), rtol=0, atol=1e-14)
    kept = torch.linalg.qr(V[:, [0, 2, 3]])[1].diagonal().abs().log().numpy()
    np.testing.assert_allclose(frame.growth[[0, 2, 3]], kept, rtol=1e-12)
    assert frame.growth[1] == -math.inf


def test_growth_that_would_overflow_shortens_the_interval():
    spectrum = jo.lyapunov_spectrum(linear([[1e30]])[0], torch.zeros(1, dtype=DOUBLE), k=1, steps=50, interval=20)
    np.testing.assert_allclose(spectrum.values, [math.log(1e30)], rtol=1e-13)


@pytest.mark.parametrize("matrix", [[[0.5, 0.0], [0.5, 0.0]], [[2.0, 0.3], [4.0, 0.6]], [[0.0, 0.0], [0.0, 3.0]]])
def test_a_singular_map_has_an_exponent_of_minus_infinity(matrix):
    f, state = linear(matrix)
    spectrum = jo.lyapunov_spectrum(f, state * 0, k=2, steps=30, transient=5)
    leading = max(abs(np.linalg.eigvals(np.array(matrix))))
    np.testing.assert_allclose(spectrum.values[0], math.log(leading), rtol=1e-12)
    assert spectrum.values[1] == -math.inf
    assert any("singular" in note for note in spectrum.notes)
    assert spectrum.kaplan_yorke == (0 if leading < 1 else 1)
    assert "-inf" in repr(spectrum)


def test_k_of_more_than_n_and_other_bad_input_is_told():
    f, state = henon()
    with pytest.raises(jo.InputError, match=r"k = 3 directions .* has 2 numbers"):
        jo.lyapunov_spectrum(f, state, k=3, steps=10)
    with pytest.raises(jo.InputError, match="linearly independent; column 1"):
        jo.lyapunov_spectrum(f, state, torch.ones(2, 2, dtype=DOUBLE), steps=10)
    for name, value in (("steps", 0), ("transient", -1), ("interval", 0), ("max_seconds", 0), ("first", -1)):
        with pytest.raises(jo.InputError, match=name):
            jo.lyapunov_spectrum(f, state, **{"k": 1, "steps": 10, name: value})


def test_the_kaplan_yorke_dimension_needs_a_negative_sum_or_all_exponents():
    assert kaplan_yorke([0.5, 0.0, -1.0], 3) == 2.5
    assert kaplan_yorke([-1.0, 0.5, 0.0], 7) == 2.5
    assert kaplan_yorke([-0.1, -0.2], 5) == 0
    assert kaplan_yorke([0.3, 0.1], 2) == 2
    assert math.isnan(kaplan_yorke([0.3, -0.1], 5))
    assert kaplan_yorke([0.3, -math.inf], 2) == 1


def test_the_jacobian_is_that_of_the_step_by_number():
    """Under a schedule the exponent of a quadratic is the mean of ln |1 − α_t h| over just the steps measured."""
    loss = jo.FunctionLoss(lambda x: (x**2).sum() * 0.35, size=1, dtype="float64")
    f = jo.GradientDescent(loss, lambda step: 1 / (1 + step % 7))
    found = jo.lyapunov_spectrum(f, torch.ones(1, dtype=torch.float64), 1, 10, transient=4, first=100)
    expected = np.mean([math.log(1 - 0.7 / (1 + step % 7)) for step in range(104, 114)])
    assert found.values[0] == pytest.approx(expected, rel=1e-12)
    system = jo.TangentSystem(f, torch.ones(1, dtype=torch.float64), 1, first=3)
    system.step()
    assert system.orthonormalize()[0] == pytest.approx(math.log(1 - 0.7 / 4), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_map_that_forgets_everything_has_exponents_of_minus_infinity(k):
    f, start = linear(torch.zeros(3, 3))
    found = jo.lyapunov_spectrum(f, start, k, 4)
    assert (found.values == -math.inf).all()
    orbit = jo.Orbit(f, start, steps=3)
    assert (jo.local_growth(orbit, k) == -math.inf).all()


def test_vectors_of_zeros_are_refused():
    f, start = linear(torch.eye(3))
    with pytest.raises(jo.InputError, match="linearly independent; column 0 is not"):
        jo.TangentSystem(f, start, torch.zeros(3, 2, dtype=torch.float64))


def test_a_step_that_is_singular_only_in_the_transient_is_not_noted():
    f = jo.FunctionMap(lambda s: s * torch.where(s.sum() > 5, torch.tensor([0.5, 0]), torch.tensor([0.9, 0.5])), size=2)
    found = jo.lyapunov_spectrum(f, torch.tensor([5.2, 0.0]), 2, 20, transient=10, interval=1)
    assert np.isfinite(found.values).all()
    assert not any("singular" in note for note in found.notes)


def test_the_kaplan_yorke_dimension_counts_a_sum_of_exactly_zero():
    assert kaplan_yorke([1.0, -1.0, -2.0], 3) == 2.0


def test_standard_errors_weigh_stretches_by_their_steps():
    random = np.random.default_rng(0)
    intervals = random.integers(1, 9, 400)
    growth = np.array([0.3 * steps + 0.1 * steps**0.5 * random.standard_normal() for steps in intervals])[:, None]
    expected = 0.1 / intervals.sum() ** 0.5
    assert batch_errors(growth, intervals)[0] == pytest.approx(expected, rel=0.5)


def test_a_default_run_has_stretches_enough_for_standard_errors():
    f, start = linear(torch.eye(4))
    found = jo.lyapunov_spectrum(f, start, 4, 100)
    assert len(found.intervals) >= 16
    assert np.isfinite(found.errors).all()
    few = jo.lyapunov_spectrum(f, start, 4, 5)
    assert few.notes == ("5 stretches are too few for standard errors: take more steps, or interval=1",)
