"""A loss at one θ: value, gradient, Hessian and Gauss-Newton matrix from one forward pass."""

import numpy as np
import pytest
import torch
from cases import MODULES, TWO_LAYER, numbers
from torch import nn

import jvp_ops as jo
from jvp_ops.losses import point_at
from jvp_ops.losses.two_layer import _products


def losses():
    yield "two-layer", TWO_LAYER["two classes"].loss(), TWO_LAYER["two classes"].theta()
    for name, module in MODULES.items():
        loss = module.loss(torch.float64)
        yield name, loss, loss.initial()
    yield "function", jo.FunctionLoss(lambda x: (x**4).sum(), size=5, dtype="float64"), numbers(1, 5)


LOSSES = {name: (loss, theta) for name, loss, theta in losses()}


@pytest.mark.parametrize("name", LOSSES)
def test_a_point_gives_what_the_loss_gives(name):
    loss, theta = LOSSES[name]
    here = loss.at(theta)
    v = numbers(7, len(theta), 2)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(here.gradient, loss.gradient(theta), **close)
    torch.testing.assert_close(here.value, loss.value(theta), **close)
    assert torch.equal(here.hessian().apply(v), loss.hessian(theta).apply(v))
    assert here.identity() == {key: value for key, value in loss.hessian(theta).identity().items() if key != "operator"}
    if name == "function":
        with pytest.raises(jo.InputError, match="no Gauss-Newton matrix"):
            here.gauss_newton()
    else:
        assert torch.equal(here.gauss_newton().apply(v), loss.gauss_newton(theta).apply(v))


@pytest.mark.parametrize("name", LOSSES)
def test_a_point_is_immutable(name):
    loss, theta = LOSSES[name]
    given = theta.clone()
    here = loss.at(given)
    kept = here.gradient
    given.zero_()
    here.theta.zero_()
    here.gradient.zero_()
    here.value.zero_()
    assert torch.equal(here.theta, theta)
    assert torch.equal(here.gradient, kept)
    with pytest.raises(AttributeError):
        here.loss = None


def test_the_two_layer_networks_are_the_same_bits():
    data = jo.load_digits()
    loss = jo.TwoLayerLoss(data, hidden=11)
    theta = loss.initial(rng=0)
    here = loss.at(theta)
    assert torch.equal(here.gradient, loss.gradient(theta))
    assert torch.equal(here.value, loss.value(theta))


def counted_two_layer(monkeypatch):
    passes = []
    whole = _products._hidden
    monkeypatch.setattr(_products, "_hidden", lambda *given: (passes.append(1), whole(*given))[1])
    data = jo.load_digits().subset(100)  # one chunk
    loss = jo.TwoLayerLoss(data, hidden=4)
    return loss, loss.initial(rng=0), passes


def counted_module():
    passes = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            passes.append(1)
            return self.layer(x)

    torch.manual_seed(0)
    data = (torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0]))
    loss = jo.ModelLoss(Net(), nn.functional.cross_entropy, data, max_memory="1GiB")
    loss.hessian(loss.initial())  # which is held against differences, once
    loss.gradient(loss.initial())
    return loss, loss.initial(), passes


@pytest.mark.parametrize("order", [("value", "gradient", "hessian"), ("hessian", "gradient", "value")], ids=str)
def test_value_gradient_hessian_and_gauss_newton_take_one_forward_pass(order, monkeypatch):
    loss, theta, passes = counted_two_layer(monkeypatch)
    here = loss.at(theta)
    for name in (*order, "gauss_newton", *order):
        got = getattr(here, name)
        assert got is not None if name in ("value", "gradient") else got().apply(theta) is not None
    here.identity()
    assert len(passes) == 1


def test_a_module_is_passed_once_beside_what_measures_its_graphs():
    loss, theta, passes = counted_module()
    passes.clear()
    loss.hessian(theta)
    alone = len(passes)
    passes.clear()
    here = loss.at(theta)
    here.gradient, here.value, here.hessian()
    assert len(passes) == alone


MAPS = {
    "descent": lambda loss: jo.GradientDescent(loss, 0.1),
    "clipped": lambda loss: jo.GradientDescent(loss, 0.1, clip=1e-3),
    "momentum": lambda loss: jo.HeavyBall(loss, 0.1, 0.9),
    "adam": lambda loss: jo.Adam(loss, 0.01),
    "rmsprop": lambda loss: jo.RMSProp(loss, 0.01),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_step_of_lyapunov_exponents_makes_one_forward_pass(name, monkeypatch):
    loss, theta, passes = counted_two_layer(monkeypatch)
    f = MAPS[name](loss)
    system = jo.TangentSystem(f, f.initial(theta), 2)
    passes.clear()
    for _ in range(3):
        system.step()
    assert len(passes) == 3


@pytest.mark.parametrize("name", MAPS)
def test_linearizing_a_step_gives_the_step_and_its_jacobian(name):
    loss = jo.TwoLayerLoss(jo.load_digits().subset(100), hidden=4)
    f = MAPS[name](loss)
    state = f.run(f.initial(loss.initial(rng=0)), steps=3)
    image, A = f.linearize(state, 3)
    assert torch.equal(image, f(state, 3))
    v = torch.ones(A.shape[1])
    assert torch.equal(A.apply(v), f.jacobian(state, 3).apply(v))
    assert f.identity_at(state, 3) == f.jacobian(state, 3).identity()


def test_an_identity_takes_no_pass(monkeypatch):
    loss, theta, passes = counted_two_layer(monkeypatch)
    jo.MinibatchSGD(loss, 50).identity_at(theta, 1)
    jo.GradientDescent(loss, 0.1).identity_at(theta)
    loss.at(theta).identity()
    assert passes == []


def test_a_tracked_row_makes_one_forward_pass(monkeypatch):
    loss, theta, passes = counted_two_layer(monkeypatch)
    f = jo.Adam(loss, 0.01)
    rows = []
    jo.track_eigenpairs(f, f.initial(theta), 4, every=2, k=2, callback=lambda *seen: rows.append(len(passes)))
    # a row, and the two steps before it
    assert np.diff(rows).tolist() == [3, 3]


def test_data_are_cast_to_float64_once():
    loss = jo.TwoLayerLoss(jo.load_digits().subset(50), hidden=4)
    assert loss.to(dtype="float64") is loss.to(dtype="float64")
    assert loss.to(dtype="float64")._form is loss.to(dtype=torch.float64)._form


class WithoutAt:
    """A user's own loss, which knows nothing of points."""

    def __init__(self):
        self._inner = jo.FunctionLoss(lambda x: (x**4).sum(), size=3, dtype="float64")

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def hessian(self, theta):
        return 2 * self._inner.hessian(theta)

    def gradient(self, theta):
        return 2 * self._inner.gradient(theta)


class Halved(jo.TwoLayerLoss):
    def gradient(self, theta):
        return super().gradient(theta) / 2


def test_a_loss_without_at_or_that_overrides_the_rest_is_asked_by_its_own_methods():
    mine, theta = WithoutAt(), torch.ones(3, dtype=torch.float64)
    assert point_at(mine, theta).gradient.tolist() == [8.0] * 3
    assert point_at(mine, theta).hessian().apply(theta).tolist() == [24.0] * 3
    f = jo.GradientDescent(mine, 0.5)
    assert f.jacobian(theta).apply(theta).tolist() == [-11.0] * 3
    assert f.linearize(theta)[0].tolist() == f(theta).tolist() == [-3.0] * 3
    halved = Halved(jo.load_digits().subset(20), hidden=2)
    start = halved.initial(rng=0)
    assert torch.equal(point_at(halved, start).gradient, halved.gradient(start))
    assert torch.equal(jo.GradientDescent(halved, 1.0).linearize(start)[0], start - halved.gradient(start))


def test_a_map_that_overrides_its_step_is_asked_for_it():
    class Noisy(jo.GradientDescent):
        def __call__(self, state, step=0):
            return super().__call__(state, step) + 1

    loss = jo.FunctionLoss(lambda x: (x**2).sum(), size=2, dtype="float64")
    system = jo.TangentSystem(Noisy(loss, 0.5), torch.zeros(2, dtype=torch.float64), 1)
    system.step()
    assert system.state.tolist() == [1.0, 1.0]


def test_where_the_graphs_do_not_all_fit_the_gradient_is_still_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
    data = (torch.randn(400, 8), torch.randint(2, (400,)))
    tight, wide = (
        jo.ModelLoss(net, nn.functional.cross_entropy, data, max_memory=memory, regularizer=lambda p: p["0.bias"].sum())
        for memory in ("300KiB", "1GiB")
    )
    theta = wide.initial()
    for loss in (tight, wide):
        here = loss.at(theta)
        torch.testing.assert_close(here.gradient, loss.gradient(theta), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(here.value, loss.value(theta))


def test_batches_whose_step_is_overridden_are_asked_for_it():
    class Shifted(jo.MinibatchSGD):
        def __call__(self, state, step=0):
            return super().__call__(state, step) + 1

    f = Shifted(jo.TwoLayerLoss(jo.load_digits().subset(60), hidden=2), 20)
    state = f.loss.initial(rng=0)
    assert torch.equal(f.linearize(state, 1)[0], f(state, 1))


class Damped(jo.FunctionLoss):
    damping = 1.0

    def hessian(self, theta):
        return super().hessian(theta).shifted(self.damping)


def test_losses_that_differ_in_an_override_have_different_fingerprints():
    theta = torch.ones(3, dtype=torch.float64)
    one, other = (Damped(torch.linalg.vector_norm, size=3, dtype="float64") for _ in range(2))
    other.damping = 2.0
    named = [jo.GradientDescent(loss, 0.1).jacobian(theta).identity() for loss in (one, other)]
    assert named[0] != named[1]
    assert one.at(theta).identity() == one.hessian(theta).linear.identity()
