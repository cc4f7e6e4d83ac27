"""`leading_frame`, and the note on random directions that cannot have turned to the leading ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from systems import dense_product

import jvp_ops as jo
from jvp_ops.dynamics import _leading
from jvp_ops.dynamics.lyapunov._alignment import alignment_notes
from jvp_ops.errors import ConvergenceError, InputError

CURVATURES = torch.tensor([-3.0, 0.5, -1.0, 2.0, 0.0, -2.0, 30.0], dtype=torch.float64)


def rotation(n):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


Q = rotation(len(CURVATURES))
QUADRATIC = jo.FunctionLoss(lambda x: 0.5 * (CURVATURES * (Q.T @ x) ** 2).sum(), size=len(Q), dtype="float64")


def network(dtype="float64"):
    data = jo.load_digits().subset(120, rng=0)
    return jo.TwoLayerLoss(data.inputs, data.labels, hidden=5, classes=10, dtype=dtype)


@pytest.mark.parametrize(
    ("lr", "columns"),
    [
        (0.01, [0, 5, 2]),  # stable: 30 is under 2/α, and negative curvature leads
        (0.1, [6, 0, 5]),  # 30 is over 2/α = 20
        (0.0765, [6, 0, 5]),  # |1 − αh| of 30 and −3 are 1.295 and 1.2295
        (0.074, [0, 6, 5]),  # 1.22 and 1.222
    ],
)
@pytest.mark.parametrize("optimizer", [jo.GradientDescent, jo.HeavyBall])
def test_it_is_the_directions_of_largest_growth(optimizer, lr, columns):
    f = optimizer(QUADRATIC, lr) if optimizer is jo.GradientDescent else optimizer(QUADRATIC, lr, 0.0)
    frame = jo.leading_frame(f, f.initial(torch.ones(7, dtype=torch.float64)), 3, tol=1e-10)
    theta = frame[:7] / torch.linalg.vector_norm(frame[:7], dim=0)
    torch.testing.assert_close(abs(theta.mT @ Q[:, columns]), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)


def test_where_every_curvature_is_positive_the_least_contracting_lead():
    h = torch.linspace(100, 190, 10, dtype=torch.float64)
    loss = jo.FunctionLoss(lambda x: (h * x**2).sum() / 2, size=10, dtype="float64")
    f, start = jo.GradientDescent(loss, lr=0.01), torch.ones(10, dtype=torch.float64)
    found = jo.lyapunov_spectrum(f, start, jo.leading_frame(f, start, 2, tol=1e-12), steps=3)
    np.testing.assert_allclose(found.values, np.log([0.9, 0.8]), rtol=1e-9)


def test_exponents_of_a_quadratic_are_right_from_the_first_step():
    f = jo.GradientDescent(QUADRATIC, lr=0.01)
    start = torch.ones(7, dtype=torch.float64)
    found = jo.lyapunov_spectrum(f, start, jo.leading_frame(f, start, 3, tol=1e-12), steps=8)
    np.testing.assert_allclose(found.values, np.log([1.03, 1.02, 1.01]), rtol=1e-10)
    assert not found.notes


@pytest.mark.parametrize("optimizer", [jo.HeavyBall, jo.Nesterov])
@pytest.mark.parametrize("k", [4, 5])
def test_under_momentum_it_is_the_leading_invariant_subspace_of_the_jacobian(optimizer, k):
    f = optimizer(network(), lr=1.0, momentum=0.9)
    state = f.run(f.initial(f.loss.initial(rng=0)), steps=20)
    J = f.jacobian(state, 20).dense()
    frame = jo.leading_frame(f, state, k, step=20, tol=1e-10)
    values, vectors = np.linalg.eig(J.numpy())
    leading = vectors[:, np.argsort(-abs(values), kind="stable")[:k]]
    Qk = frame.numpy()
    assert abs(leading - Qk @ (Qk.T @ leading)).max() < 1e-6
    assert abs(J.numpy() @ Qk - Qk @ (Qk.T @ J.numpy() @ Qk)).max() < 1e-6


@pytest.mark.parametrize("optimizer", [jo.RMSProp, jo.Adam])
def test_adaptive_optimizers_have_none(optimizer):
    f = optimizer(network(), lr=1e-3)
    state = f.run(f.initial(f.loss.initial(rng=0)), steps=20)
    with pytest.raises(InputError, match=r"not for this step of (RMSProp|Adam): start at random"):
        jo.leading_frame(f, state, 3, step=20)


def test_an_active_clip_has_none_and_an_inactive_one_does_not_matter():
    loss = network()
    theta = loss.initial(rng=0)
    with pytest.raises(InputError, match="or one without clip="):
        jo.leading_frame(jo.GradientDescent(loss, lr=0.1, clip=1e-3), theta, 2)
    free, loose = (jo.leading_frame(jo.GradientDescent(loss, lr=0.1, clip=c), theta, 2) for c in (None, 1e3))
    torch.testing.assert_close(free, loose)


def test_an_interrupted_solve_gives_no_half_made_frame(monkeypatch):
    f = jo.GradientDescent(network(), lr=0.1)
    solve = _leading.eigenpairs
    monkeypatch.setattr(_leading, "eigenpairs", lambda *a, **o: replace(solve(*a, **o), stopped="cancelled"))
    with pytest.raises(KeyboardInterrupt):
        jo.leading_frame(f, f.loss.initial(rng=0), 2)


def test_a_tolerance_that_cannot_be_met_is_told():
    f = jo.GradientDescent(network("float32"), lr=0.1)
    with pytest.raises(ConvergenceError, match="reached tol=1e-30: raise it, or start at random"):
        jo.leading_frame(f, f.loss.initial(rng=0), 2, tol=1e-30)


def test_of_mini_batches_it_is_that_of_all_samples():
    loss = network()
    f = jo.MinibatchSGD(loss, 30, optimizer=lambda part: jo.GradientDescent(part, lr=0.1), rng=1)
    theta = loss.initial(rng=0)
    whole = jo.leading_frame(jo.GradientDescent(loss, lr=0.1), theta, 2)
    torch.testing.assert_close(jo.leading_frame(f, theta, 2, step=3), whole)


def test_exponents_from_it_are_far_above_those_of_random_directions_over_the_same_steps():
    f = jo.GradientDescent(network("float32"), lr=0.1)
    state = f.run(f.loss.initial(rng=0), steps=20)
    leading = jo.lyapunov_spectrum(f, state, jo.leading_frame(f, state, 3), 60)
    random = jo.lyapunov_spectrum(f, state, 3, 60, transient=20)
    assert leading.values.min() > 3 * random.values.max() > 0
    assert not any("random" in note for note in leading.notes)
    (note,) = random.notes
    assert note.startswith("over all 80 steps the vectors grew or parted by")
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
    assert not jo.lyapunov_spectrum(still, zeros, 1, 10).notes  # of one vector that does not grow nothing is known
    assert len(jo.lyapunov_spectrum(still, zeros, 2, 10).notes) == 1


def test_decay_that_all_directions_share_is_no_reason_to_trust_random_ones():
    f = jo.GradientDescent(network(), lr=0.1, weight_decay=0.3)
    (note,) = jo.lyapunov_spectrum(f, f.loss.initial(rng=0), 2, 100).notes
    assert "start from leading_frame" in note


def test_e_folds_are_those_of_growth_or_of_parting():
    def notes(values, n):
        return alignment_notes(np.array([values] * 10), np.ones(10, dtype=int), 0, n, 1e-16)

    few, many = 2 * 10**2, 2 * 10**3  # e-folds needed: 2.3 and 3.5 with two vectors
    assert [bool(notes([0.3, 0.2], n)) for n in (few, many)] == [False, True]  # 3 by growth
    assert [bool(notes([-1.0, -1.3], n)) for n in (few, many)] == [False, True]  # 3 by parting
    assert notes([-1.0, -1.1], few)
    assert not notes([0.01, 0.0], 0)  # given vectors


def test_an_order_that_has_not_settled_is_noted_and_scatter_is_not():
    random = np.random.default_rng(0)
    growth = np.array([0.2, 0.3]) + 0.01 * random.standard_normal((64, 2))
    ones = np.ones(64, dtype=int)
    (note,) = alignment_notes(growth, ones, 0, 0, 1e-16)
    assert note.startswith("exponent 2 is above exponent 1 by more than 3 standard errors")
    assert not alignment_notes(growth[:, ::-1], ones, 0, 0, 1e-16)
    assert not alignment_notes(1e-9 * growth, ones, 0, 0, 1e-7)  # which is rounding
    assert not alignment_notes(np.array([0.2, 0.21]) + 1.0 * random.standard_normal((64, 2)), ones, 0, 0, 1e-16)


def test_what_cannot_be_is_refused():
    still = jo.FunctionMap(lambda s: 1.0 * s, size=3, dtype="float64")
    with pytest.raises(InputError, match="optimizer map such as GradientDescent"):
        jo.leading_frame(still, torch.zeros(3, dtype=torch.float64), 1)
    f = jo.GradientDescent(QUADRATIC, lr=0.01)
    with pytest.raises(InputError, match="k must be less than the 7 parameters, not 7"):
        jo.leading_frame(f, torch.ones(7, dtype=torch.float64), 7)
    with pytest.raises(InputError, match="k must be an integer"):
        jo.leading_frame(f, torch.ones(7, dtype=torch.float64), 0)
    with pytest.raises(InputError, match="shape"):
        jo.leading_frame(f, torch.ones(6, dtype=torch.float64), 2)
