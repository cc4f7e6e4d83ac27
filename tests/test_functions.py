"""Losses and maps made of any torch function of a flat vector."""

import pytest
import torch
from cases import circulation, hessian, numbers, scalar
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

import jvp_ops as jo


@given(st.integers(0, 10**6))
def test_value_gradient_and_hessian_are_those_of_autodiff(seed):
    loss, theta = jo.FunctionLoss(scalar, size=9, dtype="float64"), numbers(seed, 9)
    torch.testing.assert_close(loss.value(theta), scalar(theta), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(loss.gradient(theta), jacrev(scalar)(theta), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(loss.hessian(theta).dense(), hessian(scalar)(theta), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10**6))
def test_the_jacobian_of_a_map_and_its_transpose_are_those_of_autodiff(seed):
    f, state = jo.FunctionMap(circulation, size=6, dtype="float64"), numbers(seed, 6)
    J = jacrev(circulation)(state)
    A = f.jacobian(state)
    torch.testing.assert_close(A.dense(), J, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(A.T.dense(), J.mT, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(f(state), circulation(state), rtol=0, atol=0)
    assert not A.symmetric


def test_a_map_propagates_forward_by_its_jacobian_and_not_by_the_transpose():
    f, state = jo.FunctionMap(circulation, size=6, dtype="float64"), numbers(1, 6)
    v = numbers(2, 6) * 1e-6
    moved = (f(state + v) - f(state - v)) / 2
    A = f.jacobian(state)
    assert (A.apply(v) - moved).norm() <= 1e-8 * moved.norm()
    assert (A.apply_adjoint(v) - moved).norm() >= 0.1 * moved.norm()


def test_linear_functions_have_the_derivatives_they_have():
    theta = numbers(1, 3)
    loss = jo.FunctionLoss(lambda x: x.sum(), size=3, dtype="float64")
    assert torch.count_nonzero(loss.hessian(theta).dense()) == 0
    assert torch.equal(loss.gradient(theta), torch.ones(3).double())
    M = numbers(2, 3, 3)
    assert torch.equal(jo.FunctionMap(lambda x: M @ x, size=3, dtype="float64").jacobian(theta).dense(), M)
    constant = jo.FunctionMap(lambda x: 0 * x + 1, size=3, dtype="float64").jacobian(theta)
    assert torch.count_nonzero(constant.dense()) == 0
    assert torch.count_nonzero(constant.T.dense()) == 0


@pytest.mark.parametrize("function", [lambda x: x.detach() * 2, lambda x: torch.ones(3).double()])
def test_a_function_that_autograd_cannot_follow_is_refused_rather_than_given_a_zero_derivative(function):
    theta = numbers(1, 3)
    with pytest.raises(jo.InputError, match=r"operations that autograd records: is there a detach\(\)"):
        jo.FunctionMap(function, size=3, dtype="float64").jacobian(theta)
    with pytest.raises(jo.InputError, match=r"operations that autograd records: is there a detach\(\)"):
        jo.FunctionLoss(lambda x: function(x).sum(), size=3, dtype="float64").hessian(theta)


def test_the_identity_map_has_the_identity_as_its_jacobian():
    f = jo.FunctionMap(lambda x: x, size=3, dtype="float64")
    A = f.jacobian(numbers(1, 3))
    assert torch.equal(A.dense(), torch.eye(3).double())
    assert torch.equal(A.T.dense(), torch.eye(3).double())


def test_a_linearization_stays_at_its_state_when_the_state_changes_in_place():
    f, state = jo.FunctionMap(circulation, size=6, dtype="float64"), numbers(1, 6)
    loss, theta = jo.FunctionLoss(scalar, size=9, dtype="float64"), numbers(2, 9)
    A, H = f.jacobian(state), loss.hessian(theta)
    before = A.dense(), A.T.dense(), H.dense()
    state.mul_(-2)
    theta.zero_()
    assert all(torch.equal(one, two) for one, two in zip(before, (A.dense(), A.T.dense(), H.dense()), strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    f, loss = jo.FunctionMap(circulation, size=6, dtype="float64"), jo.FunctionLoss(scalar, size=9, dtype="float64")
    state, theta = numbers(1, 6), numbers(2, 9)
    with mode():
        found = f.jacobian(state).dense(), loss.gradient(theta), loss.hessian(theta).dense()
        inside = loss.hessian(loss.initial(rng=0)).dense()
    expected = jacrev(circulation)(state), jacrev(scalar)(theta), hessian(scalar)(theta)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inside, loss.hessian(loss.initial(rng=0)).dense(), rtol=0, atol=0)


def test_shapes_name_the_parts():
    loss = jo.FunctionLoss(scalar, shapes={"A": (2, 3), "b": (2,), "unused": ()}, dtype="float64")
    assert loss.parameters.names == ("A", "b", "unused")
    assert loss.parameters.size == 9
    H = loss.hessian(numbers(1, 9))
    torch.testing.assert_close(
        H.block("b", "A").dense(), hessian(scalar)(numbers(1, 9))[6:8, :6], rtol=1e-12, atol=1e-13
    )
    assert torch.count_nonzero(H.block("*", "unused").dense()) == 0


def test_a_map_runs_as_gradient_descent_does():
    henon = jo.FunctionMap(lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2, dtype="float64")
    seen = []
    start = torch.tensor([0.1, 0.1]).double()
    last = henon.run(start, steps=5, callback=lambda number, state: seen.append(number))
    assert seen == [1, 2, 3, 4, 5]
    state = start
    for _ in range(5):
        state = henon(state)
    assert torch.equal(last, state)
    with pytest.raises(jo.NonFiniteError, match=r"NaN or Inf at step \d+:"):
        henon.run(torch.tensor([9.0, 9.0]).double(), steps=40)


@pytest.mark.parametrize("kind", [jo.FunctionLoss, jo.FunctionMap])
def test_the_length_is_given_once(kind):
    for options in ({}, {"size": 3, "shapes": {"a": (3,)}}):
        with pytest.raises(jo.InputError, match=r"either size= .* or shapes= .*, not both"):
            kind(torch.sin, **options)
    for size in (0, -1, 2.0, True, "3"):
        with pytest.raises(jo.InputError, match="size must be an integer of at least 1"):
            kind(torch.sin, size=size)


@pytest.mark.parametrize("kind", [jo.FunctionLoss, jo.FunctionMap])
@pytest.mark.parametrize("shapes", [{}, {"a": (-1,)}, {"a": (2.5,)}, {"a": "3"}, {"a": 3}], ids=str)
def test_shapes_of_the_wrong_kind_are_refused(kind, shapes):
    with pytest.raises(jo.InputError, match="shape"):
        kind(torch.sin, shapes=shapes)


@pytest.mark.parametrize("given_back", [lambda x: x, lambda x: float(x.detach().sum()), lambda x: None])
def test_a_loss_that_returns_no_scalar_is_refused(given_back):
    loss = jo.FunctionLoss(given_back, size=3, dtype="float64")
    for use in (loss.value, loss.gradient, loss.hessian):
        with pytest.raises(jo.InputError, match=r"must return a scalar tensor, not (\(3,\)|float|NoneType)"):
            use(torch.ones(3).double())


@pytest.mark.parametrize("given_back", [lambda x: x[:2], lambda x: x[:, None], lambda x: x.tolist(), lambda x: None])
def test_a_map_that_returns_another_shape_is_refused(given_back):
    f = jo.FunctionMap(given_back, size=3, dtype="float64")
    for use in (f, f.jacobian):
        with pytest.raises(jo.InputError, match=r"must return a tensor of shape \(3,\), not (\(|list|NoneType)"):
            use(torch.ones(3).double())


def test_gauss_newton_of_a_bare_function_is_refused():
    with pytest.raises(jo.InputError, match=r"no model outputs.*use ModelLoss, or hessian\(theta\)"):
        jo.FunctionLoss(scalar, size=9).gauss_newton(torch.ones(9))
