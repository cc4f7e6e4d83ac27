"""`leading_frame`, and the note on random directions that cannot have turned to the leading ones."""

import numpy as np
import pytest
import torch
from systems import dense_product

import jvp_ops as jo
from jvp_ops.errors import InputError

CURVATURES = torch.tensor([-3.0, 0.5, -1.0, 2.0, 0.0, -2.0, 30.0], dtype=torch.float64)


def rotation(n):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


Q = rotation(len(CURVATURES))
QUADRATIC = jo.FunctionLoss(lambda x: 0.5 * (CURVATURES * (Q.T @ x) ** 2).sum(), size=len(Q), dtype="float64")


def network(dtype="float64"):
    data = jo.load_digits().subset(120, rng=0)
    return jo.TwoLayerLoss(data.inputs, data.labels, hidden=5, classes=10, dtype=dtype)


def spans(frame, vectors):
    return torch.linalg.matrix_norm(frame @ (frame.mT @ vectors) - vectors) <= 1e-6


def test_it_is_the_directions_of_most_negative_curvature():
    f = jo.GradientDescent(QUADRATIC, lr=0.01)  # stable: 30 is under 2/α = 200
    frame = jo.leading_frame(f, torch.ones(7, dtype=torch.float64), 3, tol=1e-10)
    torch.testing.assert_close(abs(frame), abs(Q[:, [0, 5, 2]]), rtol=0, atol=1e-8)


def test_curvature_beyond_the_threshold_comes_first():
    f = jo.GradientDescent(QUADRATIC, lr=0.1)  # 30 is over 2/α = 20
    frame = jo.leading_frame(f, torch.ones(7, dtype=torch.float64), 2, tol=1e-10)
    torch.testing.assert_close(abs(frame), abs(Q[:, [6, 0]]), rtol=0, atol=1e-8)


def test_exponents_of_a_quadratic_are_right_from_the_first_step():
    f = jo.GradientDescent(QUADRATIC, lr=0.01)
    start = torch.ones(7, dtype=torch.float64)
    found = jo.lyapunov_spectrum(f, start, jo.leading_frame(f, start, 3, tol=1e-12), steps=5)
    np.testing.assert_allclose(found.values, np.log([1.03, 1.02, 1.01]), rtol=1e-10)
    assert not found.notes


@pytest.mark.parametrize("optimizer", [jo.HeavyBall, jo.Nesterov])
def test_momentum_starts_from_changes_of_the_parameters_alone(optimizer):
    f = optimizer(network(), lr=0.1, momentum=0.9)
    state = f.run(f.initial(f.loss.initial(rng=0)), steps=20)
    frame = jo.leading_frame(f, state, 4, step=20, tol=1e-9)
    n = len(state) // 2
    assert not frame[n:].any()
    lowest = torch.linalg.eigh(f.loss.hessian(state[:n]).dense())[1][:, :4]
    assert spans(frame[:n], lowest)


@pytest.mark.parametrize("optimizer", [jo.RMSProp, jo.Adam])
def test_adaptive_optimizers_start_from_their_preconditioned_curvature(optimizer):
    f = optimizer(network(), lr=1e-3)
    state = f.run(f.initial(f.loss.initial(rng=0)), steps=20)
    frame = jo.leading_frame(f, state, 3, step=20, tol=1e-9)
    n = f.loss.parameters.size
    root = f.preconditioner(state, 20).sqrt()
    H = f.loss.hessian(f.theta(state)).dense()
    lowest = root[:, None] * torch.linalg.eigh(root[:, None] * H * root)[1][:, :3]
    assert not frame[n:].any()
    assert spans(frame[:n], torch.linalg.qr(lowest)[0])


def test_of_mini_batches_it_is_that_of_all_samples():
    loss = network()
    f = jo.MinibatchSGD(loss, 30, optimizer=lambda part: jo.GradientDescent(part, lr=0.1), rng=1)
    theta = loss.initial(rng=0)
    whole = jo.leading_frame(jo.GradientDescent(loss, lr=0.1), theta, 2)
    torch.testing.assert_close(jo.leading_frame(f, theta, 2, step=3), whole)


def test_exponents_from_it_are_far_above_those_of_random_directions_over_the_same_steps():
    f = jo.GradientDescent(network("float32"), lr=0.1)
    state = f.run(f.loss.initial(rng=0), steps=20)
    leading = jo.lyapunov_spectrum(f, state, jo.leading_frame(f, state, 3), 60, transient=20)
    random = jo.lyapunov_spectrum(f, state, 3, 60, transient=20)
    assert leading.values.min() > 3 * random.values.max() > 0
    assert not leading.notes
    (note,) = random.notes
    assert note.startswith("over all 80 steps the vectors grew by")
    assert "start from leading_frame" in note


def test_finite_time_exponents_from_it_are_the_same_for_fewer_products():
    f = jo.GradientDescent(network(), lr=0.1)
    orbit = jo.Orbit(f, f.loss.initial(rng=0), steps=20)
    logs = np.log(np.linalg.svd(dense_product(orbit).numpy())[1][:4])
    random = jo.finite_time_exponents(orbit, 4, tol=1e-3)
    leading = jo.finite_time_exponents(orbit, jo.leading_frame(f, orbit[0], 4), tol=1e-3)
    for found in (random, leading):
        np.testing.assert_allclose(found.log_singular_values, logs, rtol=0, atol=1e-5)
        assert found.converged.all()
    assert leading.products < random.products


def test_the_frame_is_the_same_for_the_same_seed_and_in_the_map_s_dtype():
    f = jo.GradientDescent(network("float32"), lr=0.1)
    theta = f.loss.initial(rng=0)
    one, same = (jo.leading_frame(f, theta, 3, rng=5) for _ in range(2))
    assert torch.equal(one, same)
    assert one.dtype == torch.float32
    assert one.is_contiguous()
    torch.testing.assert_close(one.mT @ one, torch.eye(3), rtol=0, atol=1e-5)


def test_no_note_where_growth_suffices_or_every_direction_is_followed():
    henon = jo.FunctionMap(lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2, dtype="float64")
    assert not jo.lyapunov_spectrum(henon, torch.tensor([0.1, 0.1], dtype=torch.float64), 1, 50).notes
    still = jo.FunctionMap(lambda s: 1.0 * s, size=3, dtype="float64")
    zeros = torch.zeros(3, dtype=torch.float64)
    assert not jo.lyapunov_spectrum(still, zeros, 3, 10).notes
    assert len(jo.lyapunov_spectrum(still, zeros, 1, 10).notes) == 1


def test_what_cannot_be_is_refused():
    still = jo.FunctionMap(lambda s: 1.0 * s, size=3, dtype="float64")
    with pytest.raises(InputError, match="optimizer map such as GradientDescent"):
        jo.leading_frame(still, torch.zeros(3, dtype=torch.float64), 1)
    f = jo.GradientDescent(QUADRATIC, lr=0.01)
    with pytest.raises(InputError, match="k must be less than the 7 parameters, not 7"):
        jo.leading_frame(f, torch.ones(7, dtype=torch.float64), 7)
    with pytest.raises(InputError, match="k must be an integer"):
        jo.leading_frame(f, torch.ones(7, dtype=torch.float64), 0)
    with pytest.raises(InputError, match="state"):
        jo.leading_frame(f, torch.ones(6, dtype=torch.float64), 2)
