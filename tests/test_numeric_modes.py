"""What the process is set to (autocast, the precision of products, the default dtype) does not change a number."""

from contextlib import contextmanager

import pytest
import torch
from cases import numbers
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(40, 300, 64).float(), torch.arange(300) % 4


def two_layer():
    return jo.TwoLayerLoss(X, T, hidden=32)


def module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    return jo.ModelLoss(model, functional.cross_entropy, (X, T))


def function():
    return jo.FunctionLoss(lambda w: functional.cross_entropy(torch.tanh(X @ w.reshape(64, 4)), T), size=256)


@contextmanager
def medium():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "medium precision": medium,
    "float64 by default": float64_by_default,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [two_layer, module, function])
def test_no_mode_of_the_process_changes_a_number(make, mode):
    loss = make()
    theta = loss.initial(rng=0)

    def all_numbers():
        H = loss.hessian(theta)
        part = H.dense(rows=slice(0, 40), cols=slice(0, 40))
        return loss.value(theta), loss.gradient(theta), H.apply(theta), part, H.dense()

    plain = all_numbers()
    with MODES[mode]():
        assert all(torch.equal(one, other) for one, other in zip(plain, all_numbers(), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_changes_a_step_of_a_function_map(mode):
    weight = numbers(41, 64, 64).float()
    f = jo.FunctionMap(lambda x: torch.tanh(weight @ x), size=64)
    x = numbers(42, 64).float()
    plain = f(x), f.jacobian(x).dense()
    with MODES[mode]():
        again = f(x), f.jacobian(x).dense()
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_the_modes_are_as_they_were_afterwards():
    with medium(), float64_by_default():
        torch.backends.mha.set_fastpath_enabled(True)
        module().hessian(module().initial())
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_default_dtype() == torch.float64
        assert torch.backends.mha.get_fastpath_enabled()
