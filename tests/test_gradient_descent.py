"""Gradient descent as a map: its step, its runs, and its Jacobian."""

import copy

import numpy as np
import pytest
import torch
from cases import DECAY, LR, MODULES, TWO_LAYER
from torch.func import jacrev

import jvp_ops as jo


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("name", ["perceptron", "convolutions with batch-norm", "perceptron by sum"])
def test_twenty_steps_are_those_of_torchs_sgd(name, decay):
    module = MODULES[name]
    lr = 0.1 if "sum" not in name else 0.01
    model = copy.deepcopy(module.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    f = jo.GradientDescent(module.loss(), lr, weight_decay=decay)
    start = theta = module.theta()
    for _ in range(20):
        optimizer.zero_grad()
        module.function(model(module.inputs), module.targets).backward()
        optimizer.step()
        theta = f(theta)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert (expected - start).norm() > 1e-2
    assert (theta - expected).norm() <= 1e-13 * expected.norm()
    assert torch.equal(f.run(start, steps=20), theta)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_twenty_steps_of_the_two_layer_network_are_those_of_torchs_sgd(decay):
    problem = TWO_LAYER["dead inputs"]
    leaf = problem.theta().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.5, weight_decay=decay)
    for _ in range(20):
        optimizer.zero_grad()
        problem.value(leaf).backward()
        optimizer.step()
    theta = jo.GradientDescent(problem.loss(), 0.5, weight_decay=decay).run(problem.theta(), steps=20)
    assert (theta - problem.theta()).norm() > 1e-1
    assert (theta - leaf.detach()).norm() <= 1e-13 * theta.norm()


def test_the_jacobian_is_the_derivative_of_the_step():
    problem = TWO_LAYER["two classes"]

    def step(theta):
        return theta - LR * (jacrev(problem.value)(theta) + DECAY * theta)

    f = jo.GradientDescent(problem.loss(), LR, weight_decay=DECAY)
    torch.testing.assert_close(f(problem.theta()), step(problem.theta()), rtol=0, atol=1e-14)
    expected = jacrev(step)(problem.theta())
    torch.testing.assert_close(f.jacobian(problem.theta()).dense(), expected, rtol=0, atol=1e-13)


def test_the_affine_identity_names_the_hessian():
    problem = TWO_LAYER["two classes"]
    A = jo.GradientDescent(problem.loss(), LR, weight_decay=DECAY).jacobian(problem.theta())
    assert A.affine.shift == 1 - LR * DECAY
    assert A.affine.scale == -LR
    assert isinstance(A.affine.base, jo.HessianOperator)
    eye = torch.eye(A.shape[0]).double()
    torch.testing.assert_close(
        A.dense(), A.affine.shift * eye + A.affine.scale * A.affine.base.dense(), rtol=0, atol=1e-15
    )
    block = A.block("W2", "W2")
    torch.testing.assert_close(
        block.dense(),
        block.affine.shift * torch.eye(6).double() + block.affine.scale * block.affine.base.dense(),
        rtol=0,
        atol=1e-15,
    )
    assert A.block("W1", "W2").affine is None


@pytest.mark.parametrize("name", ["two-layer", "module"])
def test_a_float32_jacobian_is_formed_in_float32_and_knows_its_float64_twin(name):
    problem = TWO_LAYER["two classes"] if name == "two-layer" else MODULES["perceptron"]
    f = jo.GradientDescent(problem.loss(torch.float32), LR, weight_decay=DECAY)
    A = f.jacobian(problem.theta().float())
    assert A.dense().dtype == torch.float32
    twin = A.in_float64()
    assert twin.torch_dtype == torch.float64
    expected = (1 - LR * DECAY) * torch.eye(len(problem.H())).double() - LR * problem.H()
    torch.testing.assert_close(twin.dense(), expected, rtol=0, atol=1e-13)
    block = A.block("*", "*").in_float64()
    torch.testing.assert_close(block.dense(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["two-layer", "module"])
def test_the_jacobian_and_its_twin_stay_at_their_state_when_theta_changes_in_place(name):
    problem = TWO_LAYER["two classes"] if name == "two-layer" else MODULES["perceptron"]
    theta = problem.theta().clone()
    A = jo.GradientDescent(problem.loss(), LR).jacobian(theta)
    before = A.dense()
    theta.mul_(-3)
    assert torch.equal(A.dense(), before)
    assert torch.equal(A.in_float64().dense(), before)


def test_a_run_calls_back_after_each_step_and_leaves_the_start_alone():
    f = jo.GradientDescent(TWO_LAYER["two classes"].loss(), lr=0.1)
    start = TWO_LAYER["two classes"].theta()
    kept, seen = start.clone(), []
    last = f.run(start, steps=3, callback=lambda number, state: seen.append((number, state.clone())))
    assert [number for number, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[0][1], f(start))
    assert torch.equal(seen[2][1], last)
    assert torch.equal(last, f(f(f(start))))
    assert torch.equal(start, kept)
    assert torch.equal(f.run(start, steps=0), start)


def test_a_run_shows_its_progress_only_when_asked(capsys):
    f = jo.GradientDescent(TWO_LAYER["two classes"].loss(), lr=0.1)
    f.run(f.loss.initial(), steps=2)
    assert capsys.readouterr().err == ""
    f.run(f.loss.initial(), steps=2, progress=True)
    assert "training" in capsys.readouterr().err


def test_a_run_that_diverges_names_the_step():
    quartic = jo.FunctionLoss(lambda x: (x**4).sum(), size=1, dtype="float64")
    f, start = jo.GradientDescent(quartic, lr=1.0), torch.full((1,), 2.0).double()
    state, number = start, 0
    while bool(torch.isfinite(state).all()):
        state, number = state - 4 * state**3, number + 1
    with pytest.raises(jo.NonFiniteError, match=rf"NaN or Inf at step {number - 1}: .*smaller lr"):
        f.run(start, steps=50)
    with pytest.raises(jo.NonFiniteError, match=f"NaN or Inf at step {number + 9}:"):
        f.run(start, steps=50, first=10)


@pytest.mark.parametrize("steps", [-1, 2.0, True, None, "3"])
def test_steps_of_the_wrong_kind_are_refused(steps):
    f = jo.GradientDescent(TWO_LAYER["two classes"].loss(), lr=0.1)
    with pytest.raises(jo.InputError, match=f"steps must be an integer of at least 0, not {steps!r}"):
        f.run(f.loss.initial(), steps=steps)


def test_steps_may_be_a_numpy_integer():
    f = jo.GradientDescent(TWO_LAYER["two classes"].loss(), lr=0.1)
    assert torch.equal(f.run(f.loss.initial(), steps=np.int64(2)), f.run(f.loss.initial(), steps=2))


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", None, True, 1j])
def test_rates_of_the_wrong_kind_are_refused(name, value):
    with pytest.raises(jo.InputError, match=rf"{name} must be .*, not "):
        jo.GradientDescent(TWO_LAYER["two classes"].loss(), **{"lr": 0.1, name: value})


def test_a_rate_of_zero_is_the_identity():
    problem = TWO_LAYER["two classes"]
    f = jo.GradientDescent(problem.loss(), lr=0)
    assert torch.equal(f(problem.theta()), problem.theta())
    assert torch.equal(f.jacobian(problem.theta()).dense(), torch.eye(len(problem.theta())).double())
