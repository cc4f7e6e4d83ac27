"""Steps and losses as people write them, in place and with derivatives inside, are one function in every use."""

import math

import pytest
import torch
from cases import circulation, numbers, scalar
from oracles import assert_near, differences, exact
from torch.func import jacrev

import jvp_ops as jo

LR = 0.1


def map_of(function, size, **options):
    return jo.FunctionMap(function, size=size, dtype="float64", **options)


# --- in place ----------------------------------------------------------------------------------------------------


def assigns(s):
    s[0] = 2 * s[0] + s[1]
    return s


def adds(s):
    s[:1] += s[:1]
    s[:1] += s[1:]
    return s


def through_views(s):
    x, v = s[:1], s[1:]
    x.mul_(2).add_(v)
    return s


def by_index(s):
    return s.index_put_((torch.tensor([0]),), (2 * s[0] + s[1])[None])


def by_copy(s):
    s.copy_(torch.stack([2 * s[0] + s[1], s[1]]))
    return s


@pytest.mark.parametrize("step", [assigns, adds, through_views, by_index, by_copy], ids=lambda f: f.__name__)
def test_a_step_in_place_has_the_jacobian_of_what_it_does(step):
    f, state = map_of(step, 2), torch.tensor([1.0, 2.0]).double()
    expected = torch.tensor([[2.0, 1.0], [0.0, 1.0]]).double()
    assert torch.equal(f(state), torch.tensor([4.0, 2.0]).double())
    assert torch.equal(f.jacobian(state).dense(), expected)
    assert torch.equal(f.jacobian(state).T.dense(), expected.mT)
    assert torch.equal(f.run(state, steps=3), torch.tensor([22.0, 2.0]).double())
    assert torch.equal(state, torch.tensor([1.0, 2.0]).double())


def test_a_step_in_place_that_overwrites_what_its_derivative_needs_runs_and_is_refused_by_name():
    def step(s):
        x, v = s[:3], s[3:]
        v.mul_(0.5).add_(x * (x @ x) + torch.stack([x[1], x[0] * x[2], torch.sin(x[0])]))
        x.sub_(0.25 * v)
        return s

    f, state = map_of(step, 6), numbers(500, 6)
    assert_near(f(state), circulation(state), 1e-15)
    with pytest.raises(jo.InputError, match="out of place"):  # x is overwritten, and its old value needed
        f.jacobian(state)


def clamps(t):
    t.clamp_(min=-1)
    return (t**2).sum()


def doubles(t):
    t *= 2
    return (t**2).sum() / 4


def overwrites(t):
    t[0] = 2 * t[0]
    t[1:].exp_()
    return (t**2).sum()


@pytest.mark.parametrize("function", [clamps, doubles, overwrites], ids=lambda f: f.__name__)
def test_a_loss_in_place_has_the_derivatives_of_what_it_computes(function):
    loss, theta = jo.FunctionLoss(function, size=2, dtype="float64"), torch.tensor([1.0, -2.0]).double()
    true = exact(lambda t: function(t.clone()), theta)
    assert_near(loss.value(theta), true.value, 1e-15)
    assert_near(loss.gradient(theta), true.gradient)
    assert_near(loss.hessian(theta).dense(), true.hessian)
    assert torch.equal(theta, torch.tensor([1.0, -2.0]).double())


def test_values_that_are_overwritten_though_their_derivative_needs_them_are_refused():
    def spoils(t):
        t[0] = t[0].sin()  # whose slope needs the old value
        return t.prod()

    with pytest.raises(jo.InputError, match=r"in.?place"):
        jo.FunctionLoss(spoils, size=2, dtype="float64").gradient(torch.ones(2).double())
    with pytest.raises(jo.InputError, match=r"in.?place"):
        jo.FunctionLoss(spoils, size=2, dtype="float64").hessian(torch.ones(2).double())


# --- derivatives inside ------------------------------------------------------------------------------------------


def quartic(t):
    return (t**4).sum() / 4


def by_grad(s):
    (slope,) = torch.autograd.grad(quartic(s), s, create_graph=True)
    return s - LR * slope


def by_grad_of_a_copy(s):
    with torch.enable_grad():
        t = s.clone().requires_grad_() if not s.requires_grad else s
        (slope,) = torch.autograd.grad(quartic(t), t, create_graph=True)
    return s - LR * slope


def by_func(s):
    return s - LR * torch.func.grad(quartic)(s)


def by_vjp(s):
    value, pull = torch.func.vjp(quartic, s)
    return s - LR * pull(torch.ones_like(value))[0]


def by_backward(s):
    (slope,) = torch.autograd.grad([quartic(s)], [s], [torch.ones((), dtype=s.dtype)], create_graph=True)
    return s.sub(slope, alpha=LR)


@pytest.mark.parametrize("step", [by_grad, by_grad_of_a_copy, by_func, by_vjp, by_backward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_step_along_a_gradient_runs_and_is_linearized(step, mode):
    f, start = map_of(step, 3), torch.tensor([1.0, 0.5, -0.25]).double()
    orbit = [start]
    for _ in range(5):
        orbit.append(orbit[-1] - LR * orbit[-1] ** 3)
    with mode():
        assert_near(f(start), orbit[1], 1e-15)
        assert_near(f.run(start, steps=5), orbit[5], 1e-15)
        assert not f(start).requires_grad
        assert_near(f.jacobian(start).dense(), torch.diag(1 - 3 * LR * start**2))
        spectrum = jo.lyapunov_spectrum(f, start, 3, steps=5)
    volume = sum(float(torch.log((1 - 3 * LR * state**2).abs()).sum()) for state in orbit[:5])
    assert math.isclose(5 * spectrum.values.sum(), volume, rel_tol=1e-10)


def test_newtons_method_is_linearized_through_its_hessian():
    def newton(s):
        (slope,) = torch.autograd.grad(quartic(s) + s.prod(), s, create_graph=True)
        rows = [torch.autograd.grad(entry, s, create_graph=True)[0] for entry in slope]
        return s - torch.linalg.solve(torch.stack(rows), slope)

    f, state = map_of(newton, 3), torch.tensor([1.0, 0.5, -0.75]).double()
    assert_near(differences(f, state).mT, f.jacobian(state).dense(), 1e-7)  # the differences' own error


def test_a_loss_with_a_gradient_penalty_is_differentiated():
    def penalized(t):
        (slope,) = torch.autograd.grad(scalar(t), t, create_graph=True)
        return scalar(t) + slope @ slope

    loss, theta = jo.FunctionLoss(penalized, size=9, dtype="float64"), numbers(501, 9)

    def by_hand(t):
        slope = jacrev(scalar)(t)
        return scalar(t) + slope @ slope

    assert_near(loss.value(theta), by_hand(theta))
    assert_near(loss.gradient(theta), jacrev(by_hand)(theta))
    assert_near(loss.hessian(theta).dense(), jacrev(jacrev(by_hand))(theta))
    with torch.no_grad():
        assert_near(loss.value(theta), by_hand(theta))
