"""Steps and scalar functions as people write them: right or refused, as was decided before trying."""

import pytest
import torch
from zoo_entry import REFUSED, RIGHT
from zoo_maps import MAPS

import jvp_ops as jo


def chosen(expected):
    found = [entry for entry in MAPS if entry.expected == expected]
    return pytest.mark.parametrize("entry", found, ids=lambda entry: entry.name.replace(" ", "-"))


def values(case, state):
    """Call the function as the user does, with a state of their own."""
    return case.function(state.clone()).detach().reshape(-1)


def differences(function, state, h=1e-3):
    """Differentiate column by column by the central rule of sixth order."""
    columns = []
    for e in torch.eye(len(state), dtype=state.dtype):
        near, mid, far = ((function(state + k * h * e) - function(state - k * h * e)) / h for k in (1, 2, 3))
        columns.append(0.75 * near - 0.15 * mid + far / 60)
    return torch.stack(columns, 1)


def slope(case, state):
    """Differentiate once with autograd, as the user's training does."""
    leaf = state.clone().requires_grad_()
    value = case.function(leaf.clone())
    rows = []
    for part in value.reshape(-1):
        if part.requires_grad:
            rows.append(torch.autograd.grad(part, leaf, retain_graph=True, materialize_grads=True)[0])
        else:
            rows.append(torch.zeros_like(state))
    return torch.stack(rows)


def derivative_fault(case):
    wanted = differences(lambda s: values(case, s), case.state)
    return float((slope(case, case.state) - wanted).norm() / wanted.norm())


def second_fault(case):
    leaf = case.state.clone().requires_grad_()
    first = torch.autograd.grad(case.function(leaf), leaf, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), leaf)[0]
    return float("inf") if second.isnan().any() else 0.0


def random_fault(case):
    return float((values(case, case.state) - values(case, case.state)).norm())


def moving_fault(case):
    state = case.state.clone()
    case.function(state)
    return float((state - case.state).norm())


FAULTS = {
    "no derivative": derivative_fault,
    "second derivative": second_fault,
    "random": random_fault,
    "moves its state": moving_fault,
}


@chosen(RIGHT)
def test_the_oracle_of_maps_is_consistent(entry):
    assert derivative_fault(entry.make()) < 1e-9


@chosen(REFUSED)
def test_a_refused_map_has_the_fault_that_is_named(entry):
    assert FAULTS[entry.fault](entry.make()) > 1e-4


def asked(case):
    """Make the operator of a case at its state, with the shapes or the size that the user gives."""
    kind = jo.FunctionLoss if case.scalar else jo.FunctionMap
    size = {"size": len(case.state)} if case.sizes is None else {"shapes": case.sizes}
    made = kind(case.function, dtype="float64", **size)
    state = case.state.clone()
    operator = made.hessian(state) if case.scalar else made.jacobian(state)
    return made, operator


def check(case):
    made, operator = asked(case)
    state, V = case.state.clone(), torch.eye(len(case.state), dtype=torch.float64)
    if case.scalar:
        wanted = differences(lambda s: slope(case, s)[0], case.state)
        torch.testing.assert_close(made.value(state), values(case, state)[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(made.gradient(state), slope(case, state)[0], rtol=1e-9, atol=1e-12)
    else:
        wanted = differences(lambda s: values(case, s), case.state)
        torch.testing.assert_close(made(state), values(case, state), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(operator.apply_adjoint(V), wanted.T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(operator.apply(V), wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(operator.apply(V[:, 2]), wanted[:, 2], rtol=1e-8, atol=1e-8)
    assert torch.equal(state, case.state), "the user's state was moved"


@chosen(RIGHT)
def test_a_step_that_can_be_differentiated_is_right(entry):
    check(entry.make())


@chosen(REFUSED)
def test_a_step_that_cannot_be_differentiated_is_refused(entry):
    with pytest.raises(jo.JvpOpsError):
        asked(entry.make())[1].apply(torch.linspace(-1, 1, len(entry.make().state), dtype=torch.float64))
