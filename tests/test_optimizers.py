"""The optimizer maps: the same steps as torch.optim, and the derivatives of those steps."""

import copy
import math

import pytest
import torch
from cases import MODULES, TWO_LAYER, numbers
from optimizers import BETA, CLIP, EPS, LR, OPTIMIZERS, SQUARES
from torch.func import jacfwd, jacrev

import jvp_ops as jo

STEPS = 100
TWO, MODULE = TWO_LAYER["dead inputs"], MODULES["perceptron"]


def torch_run(optimizer, parameters, value, *, steps=STEPS, clip=None, schedule=None):
    """Train by torch's own optimizer, clipping and scheduler."""
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    thetas, active = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        value().backward()
        if clip is not None:
            active.append(float(torch.nn.utils.clip_grad_norm_(parameters, clip)) > clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        thetas.append(torch.cat([p.detach().reshape(-1) for p in parameters]).clone())
    return thetas, active


def same_run(f, theta, thetas):
    """Hold every step of a run to torch's."""
    seen = []
    f.run(f.initial(theta), steps=len(thetas), callback=lambda _, state: seen.append(f.theta(state)))
    assert (thetas[-1] - theta).norm() > 1e-2
    for ours, theirs in zip(seen, thetas, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_hundred_steps_of_the_two_layer_network_are_those_of_torch(name):
    known = OPTIMIZERS[name]
    leaf = TWO.theta().requires_grad_()
    thetas, active = torch_run(known.torch([leaf]), [leaf], lambda: TWO.value(leaf), clip=known.clip)
    assert known.clip is None or any(active)
    same_run(known.make(TWO.loss()), TWO.theta(), thetas)


@pytest.mark.parametrize("name", ["heavy ball with all", "nesterov", "rmsprop", "adamw"])
def test_a_hundred_steps_of_a_module_are_those_of_torch(name):
    known, model = OPTIMIZERS[name], copy.deepcopy(MODULE.model())
    weights = list(model.parameters())

    def value():
        return MODULE.function(model(MODULE.inputs), MODULE.targets)

    same_run(
        known.make(MODULE.loss()), MODULE.theta(), torch_run(known.torch(weights), weights, value, clip=known.clip)[0]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_gives_the_steps_of_torchs_lambda_lr(name):
    known = OPTIMIZERS[name]

    def schedule(step):
        return min(1.0, (step + 1) / 10) * 0.97**step

    leaf = TWO.theta().requires_grad_()
    thetas, _ = torch_run(known.torch([leaf]), [leaf], lambda: TWO.value(leaf), clip=known.clip, schedule=schedule)
    same_run(known.make(TWO.loss(), lr=lambda step: LR * schedule(step)), TWO.theta(), thetas)


def test_a_momentum_of_zero_ignores_dampening_as_torch_does():
    leaf = TWO.theta().requires_grad_()
    sgd = torch.optim.SGD([leaf], lr=LR, momentum=0, dampening=0.5)
    thetas, _ = torch_run(sgd, [leaf], lambda: TWO.value(leaf))
    same_run(jo.HeavyBall(TWO.loss(), LR, 0, dampening=0.5), TWO.theta(), thetas)


def test_a_run_in_two_parts_is_the_run_as_a_whole():
    f = OPTIMIZERS["adam"].make(TWO.loss(), lr=lambda step: 0.1 / (1 + step))
    start = f.initial(TWO.theta())
    whole = f.run(start, steps=7)
    assert torch.equal(f.run(f.run(start, steps=3), steps=4, first=3), whole)
    assert not torch.equal(f.run(f.run(start, steps=3), steps=4), whole)
    assert torch.equal(f.run(start, steps=1), f(start, 0))


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("problem", [TWO_LAYER["two classes"], MODULE], ids=["two-layer", "module"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_jvp_and_vjp_are_the_derivative_of_the_step_by_hand(name, problem, number):
    known = OPTIMIZERS[name]
    f, state = known.make(problem.loss()), known.state(problem.theta())
    expected = known.jacobian(problem.value, state, number)
    torch.testing.assert_close(f(state, number), known.step(jacrev(problem.value), state, number), rtol=0, atol=1e-13)
    A = f.jacobian(state, number)
    n, size = len(state), float(expected.abs().max())
    eye = torch.eye(n, dtype=torch.float64)
    assert (A.apply(eye) - expected).abs().max() <= 1e-12 * size
    assert (A.apply_adjoint(eye) - expected.mT).abs().max() <= 1e-12 * size
    columns = numbers(5, n, 4)
    assert torch.allclose(torch.stack([A.apply(v) for v in columns.mT], 1), A.apply(columns), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["heavy ball with all", "adam"])
def test_forward_differences_of_torchs_own_derivative_agree_too(name):
    known, problem = OPTIMIZERS[name], TWO_LAYER["two classes"]
    state = known.state(problem.theta())
    expected = jacfwd(lambda s: known.step(jacrev(problem.value), s, 2))(state)
    torch.testing.assert_close(known.make(problem.loss()).jacobian(state, 2).dense(), expected, rtol=0, atol=1e-12)


class Counted:
    """A loss that counts the directions its Hessian is multiplied with, and the calls."""

    def __init__(self, loss):
        self._loss, self.widths = loss, []

    def __getattr__(self, name):
        return getattr(self._loss, name)

    def hessian(self, theta):
        H = self._loss.hessian(theta)
        product = H.linear.apply

        def apply(V):
            self.widths.append(V.shape[1])
            return product(V)

        return jo.HessianOperator(type(H.linear)(**{**vars(H.linear), "apply": apply}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_product_takes_one_wide_hessian_product(name):
    known, problem = OPTIMIZERS[name], TWO_LAYER["two classes"]
    loss = Counted(problem.loss())
    A = known.make(loss).jacobian(known.state(problem.theta()))
    assert loss.widths == []
    A.apply(numbers(1, A.shape[1], 5))
    A.apply_adjoint(numbers(2, A.shape[0], 3))
    assert loss.widths == [5, 3]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_float32_jacobian_knows_its_float64_twin_and_stays_at_its_state(name):
    known, problem = OPTIMIZERS[name], TWO_LAYER["two classes"]
    state = known.state(problem.theta()).float()
    A = known.make(problem.loss(torch.float32)).jacobian(state, 3)
    state.fill_(7.0)
    expected = known.jacobian(problem.value, known.state(problem.theta()), 3)
    assert A.dense().dtype == torch.float32
    assert (A.dense().double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    twin = A.in_float64()
    assert twin.torch_dtype == torch.float64
    assert (twin.dense() - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["RMSProp", "Adam"])
def test_where_no_gradient_ever_came_the_derivative_is_that_of_the_step(name):
    """Dead inputs have v = 0 and g = 0: the root has no derivative there, the step has."""
    rates = {"alpha": SQUARES} if name == "RMSProp" else {"betas": (BETA, SQUARES)}
    f = getattr(jo, name)(TWO.loss(), LR, **rates, eps=EPS)
    state, n = f.initial(TWO.theta()), len(TWO.theta())
    dead = torch.nonzero(TWO.loss().gradient(TWO.theta()) == 0)[:, 0]
    assert len(dead) >= 6
    expected = torch.zeros(len(dead), len(state), dtype=torch.float64)
    expected[torch.arange(len(dead)), dead] = 1
    if name == "Adam":
        expected[torch.arange(len(dead)), n + dead] = -LR / (1 - BETA) * BETA / EPS
    torch.testing.assert_close(f.jacobian(state).dense()[dead], expected, rtol=1e-14, atol=0)
    for v in (1e-8, 1e-10):  # g/√v stays 0, though the root's own slope is without bound
        moved = state.clone()
        moved[-n:] = v
        assert torch.equal(f(moved)[dead], f(state)[dead])


def test_clipping_at_its_threshold_warns_and_takes_the_unclipped_side():
    loss = jo.FunctionLoss(lambda x: 2 * x.sum() ** 2 / 2, size=1, dtype="float64")
    theta = torch.ones(1, dtype=torch.float64)
    f = jo.GradientDescent(loss, 0.25, clip=2 + 1e-6)
    with pytest.warns(jo.JvpOpsWarning, match="exactly at the clipping threshold"):
        A = f.jacobian(theta)
    assert A.symmetric
    assert A.dense().item() == 0.5
    assert not jo.GradientDescent(loss, 0.25, clip=1.99).jacobian(theta).symmetric


def test_clipping_that_is_not_active_changes_nothing():
    problem = TWO_LAYER["two classes"]
    plain, loose = (jo.GradientDescent(problem.loss(), LR, clip=clip) for clip in (None, 1e3))
    assert torch.equal(plain(problem.theta()), loose(problem.theta()))
    A = loose.jacobian(problem.theta())
    assert A.symmetric
    assert A.affine.scale == -LR
    assert torch.equal(A.dense(), plain.jacobian(problem.theta()).dense())
    tight = jo.GradientDescent(problem.loss(), LR, clip=CLIP / 4).jacobian(problem.theta())
    assert (tight.symmetric, tight.affine) == (False, None)


def test_gradient_descents_affine_identity_follows_the_schedule():
    problem = TWO_LAYER["two classes"]
    f = jo.GradientDescent(problem.loss(), lambda step: 1 / (step + 2), weight_decay=0.5)
    for step in (0, 2):
        A = f.jacobian(problem.theta(), step)
        assert (A.affine.shift, A.affine.scale) == (1 - 0.5 / (step + 2), -1 / (step + 2))
        expected = A.affine.shift * torch.eye(len(problem.theta())).double() + A.affine.scale * problem.H()
        torch.testing.assert_close(A.dense(), expected, rtol=0, atol=1e-13)
        assert math.isclose(f.threshold(step), 2 * (step + 2) - 0.5)
        torch.testing.assert_close(A.in_float64().dense(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adam clipped", "adamw"])
def test_the_preconditioner_is_what_the_step_multiplies_by(name):
    known = OPTIMIZERS[name]
    f, state = known.make(TWO.loss()), known.state(TWO.theta())
    after, theta = f(state, 2), TWO.theta()
    kept = 1 - LR * f.weight_decay if name == "adamw" else 1.0
    average = after.chunk(3)[1] if "adam" in name else TWO.loss().gradient(theta) + f.weight_decay * theta
    torch.testing.assert_close(
        f.theta(after), kept * theta - LR * f.preconditioner(state, 2) * average, rtol=1e-13, atol=0
    )


def test_states_and_numbers_of_the_wrong_kind_are_refused():
    loss = jo.FunctionLoss(lambda x: (x**2).sum(), size=2, dtype="float64")
    theta = torch.ones(2, dtype=torch.float64)
    adam = jo.Adam(loss, 0.1)
    state = adam.initial(theta)
    state[-1] = -1.0
    lonely = adam.initial(0 * theta)
    lonely[2] = 1.0
    schedule = jo.HeavyBall(loss, lambda step: [0.1, -0.1, math.nan][step], 0.5)
    bad = [
        (lambda: adam(theta), r"state has shape \(2,\); expected \(6,\)"),
        (lambda: adam.jacobian(state), "v in the state holds 1 negative numbers, .*start from Adam.initial"),
        (lambda: adam.preconditioner(state), "negative numbers"),
        (lambda: adam.initial(torch.ones(3)), r"theta has shape \(3,\)"),
        (lambda: adam.theta(theta), r"state has shape \(2,\)"),
        (lambda: adam(adam.initial(theta), -1), "step must be an integer of at least 0 .*not -1"),
        (lambda: adam.jacobian(adam.initial(theta), 1.0), r"step must be an integer .*not 1\.0"),
        (lambda: adam.preconditioner(adam.initial(theta), True), "step must be an integer .*not True"),
        (lambda: schedule.run(schedule.initial(theta), steps=2), r"lr\(1\) must be at least 0, not -0.1"),
        (lambda: schedule.jacobian(schedule.initial(theta), 2), r"lr\(2\) must be a finite real number, not nan"),
        (lambda: schedule.threshold(1), r"lr\(1\) must be at least 0"),
        (lambda: schedule.phase_space_eigenvalues([1j]), "h must hold finite real eigenvalues"),
        (lambda: schedule.phase_space_eigenvalues([math.nan]), "h must hold finite real eigenvalues"),
        (lambda: jo.Adam(loss, 0.1, 0.9), r"betas must be a pair of numbers such as \(0.9, 0.999\), not 0.9"),
        (lambda: jo.Adam(loss, 0.1, (0.9, 1.0)), r"betas\[1\] must be less than 1, not 1.0"),
        (lambda: jo.RMSProp(loss, 0.1, -0.5), "alpha must be at least 0, not -0.5"),
        (lambda: jo.RMSProp(loss, 0.1, eps=0), "eps must be above 0, not 0"),
        (lambda: jo.HeavyBall(loss, 0.1, "0.9"), "momentum must be a finite real number, not '0.9'"),
        (lambda: jo.Nesterov(loss, 0.1, -0.9), "momentum must be at least 0"),
        (lambda: jo.Nesterov(loss, 0.1, 0.9, weight_decay=-1), "weight_decay must be at least 0"),
        (lambda: jo.GradientDescent(loss, 0.1, clip=0), "clip must be a norm above 0, or None .*not 0"),
        (lambda: jo.HeavyBall(len, 0.1, 0.9), "loss must be a loss such as"),
    ]
    for call, message in bad:
        with pytest.raises(jo.InputError, match=message):
            call()
    with pytest.raises(jo.NonFiniteError, match="infinite derivative at this state: in 1 of 2 entries"):
        adam.jacobian(lonely)
    with pytest.raises(jo.NonFiniteError, match="state holds 1 NaN"):
        adam(torch.cat([theta, theta, theta]).index_fill(0, torch.tensor([3]), math.nan))


@pytest.mark.parametrize("make", [lambda loss: jo.HeavyBall(loss, 0.1, 0.9), lambda loss: jo.Nesterov(loss, 0.1, 0.9)])
def test_a_step_that_is_linear_in_the_gradient_is_linearized_without_it(make, monkeypatch):
    loss = TWO.loss()
    f = make(loss)
    state = f.initial(TWO.theta())
    monkeypatch.setattr(type(loss), "gradient", lambda *_: pytest.fail("a gradient was computed"))
    assert f.jacobian(state).dense().isfinite().all()


@pytest.mark.parametrize("gradient", [3e-22, 5e-22, 8e-22, 1e-20])
def test_gradients_whose_squares_underflow_are_no_kinks_of_adam(gradient):
    loss = jo.FunctionLoss(lambda x: (gradient * x).sum(), size=2, dtype="float32")
    f = jo.Adam(loss, 1e-3)
    state = f.initial(torch.ones(2))
    for step in range(3):
        assert f.jacobian(state, step).dense().isfinite().all()
        state = f(state, step)


def test_adam_that_averages_no_squares_is_differentiable_where_one_gradient_vanishes():
    losses = [jo.FunctionLoss(lambda x, i=i: x[i] ** 2, size=2, dtype="float64") for i in (0, 1)]
    f = jo.MinibatchSGD.of(losses, optimizer=lambda loss: jo.Adam(loss, 0.1, betas=(0.9, 0.0)))
    state = f.initial(torch.ones(2, dtype=torch.float64))
    for step in range(4):
        assert f.jacobian(state, step).dense().isfinite().all()
        state = f(state, step)


@pytest.mark.parametrize("make", [jo.GradientDescent, jo.HeavyBall, jo.Nesterov, jo.RMSProp, jo.Adam, jo.AdamW])
def test_thresholds_follow_the_schedule(make):
    options = {"momentum": 0.9} if make in (jo.HeavyBall, jo.Nesterov) else {}
    f = make(TWO.loss(), lambda step: 0.1 / (1 + step), **options, weight_decay=0.0)
    assert f.threshold(3) == pytest.approx(4 * f.threshold(0))


@pytest.mark.parametrize("make", [jo.RMSProp, jo.Adam])
def test_the_preconditioner_sees_the_clipped_gradient(make):
    loss, theta = TWO.loss(), TWO.theta()
    c = float(loss.gradient(theta).norm()) / 10
    f = make(loss, 1.0, clip=c, eps=1e-30)
    free = make(loss, 1.0, eps=1e-30)
    state = f.initial(theta)
    seen = loss.gradient(theta) != 0
    ratio = (f.preconditioner(state) / free.preconditioner(state))[seen]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 10.0), rtol=1e-3, atol=0)
