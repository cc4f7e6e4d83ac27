"""Starts: the same seed gives the same bits, on every device."""

import numpy as np
import pytest
import torch
from cases import TWO_LAYER, scalar

import jvp_ops as jo

LOSSES = {
    "two-layer": lambda dtype, device: TWO_LAYER["dead inputs"].loss(dtype, device),
    "function": lambda dtype, device: jo.FunctionLoss(scalar, size=9, dtype=dtype, device=device),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_seed_fixes_the_start_bit_for_bit(name, dtype, device):
    loss = LOSSES[name](dtype, device)
    theta = loss.initial(rng=3)
    assert theta.shape == (loss.parameters.size,)
    assert (theta.dtype, theta.device) == (dtype, device)
    assert torch.equal(theta, loss.initial(rng=3))
    assert torch.equal(theta, loss.initial(rng=np.int64(3)))
    assert torch.equal(theta, loss.initial(rng=np.random.default_rng(3)))
    assert torch.equal(theta.cpu(), LOSSES[name](dtype, "cpu").initial(rng=3))
    in_double = LOSSES[name](torch.float64, "cpu").initial(rng=3)
    torch.testing.assert_close(theta.cpu().double(), in_double, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert not torch.equal(theta, loss.initial(rng=4))
    assert torch.equal(loss.initial(), loss.initial(rng=0))


@pytest.mark.parametrize("name", LOSSES)
def test_a_generator_moves_on_and_global_generators_do_not(name):
    loss = LOSSES[name](torch.float64, "cpu")
    rng = np.random.default_rng(0)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert not torch.equal(loss.initial(rng=rng), loss.initial(rng=rng))
    assert torch.equal(torch_before, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_weights_have_the_spread_of_glorot_and_biases_are_zero():
    loss = jo.TwoLayerLoss(np.ones((1, 300)), [0], hidden=100, classes=50, dtype="float64")
    parts = loss.parameters.unflatten(loss.initial(rng=0))
    assert torch.count_nonzero(parts["b1"]) == torch.count_nonzero(parts["b2"]) == 0
    for name, fan in (("W1", 400), ("W2", 150)):
        assert float(parts[name].std()) == pytest.approx((2 / fan) ** 0.5, rel=0.05)
        assert abs(float(parts[name].mean())) < 0.01


def test_scale_draws_every_entry():
    loss = jo.TwoLayerLoss(np.ones((1, 300)), [0], hidden=100, classes=50, dtype="float64")
    one = loss.initial(rng=0, scale=1.0)
    assert float(one.std()) == pytest.approx(1, rel=0.05)
    assert torch.equal(loss.initial(rng=0, scale=0.25), 0.25 * one)
    assert torch.count_nonzero(loss.parameters.unflatten(one)["b1"]) == 100
    assert torch.count_nonzero(loss.initial(rng=0, scale=0)) == 0


@pytest.mark.parametrize("scale", [float("nan"), "1", True, float("inf")])
def test_a_scale_of_the_wrong_kind_is_refused(scale):
    with pytest.raises(jo.InputError, match="scale must be a finite real number"):
        TWO_LAYER["two classes"].loss().initial(scale=scale)
