"""A loss whose value with θ put in is not that of the user's own call is refused, and what is the user's stays."""

from contextlib import suppress

import pytest
import torch
from cases import labels_of, numbers
from oracles import assert_matches, theta_of
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

import jvp_ops as jo

X, T = numbers(330, 12, 5), labels_of(331, 12, 3)
DTYPES = [torch.float32, torch.float64]


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.hidden(x))

    def hidden(self, x):
        return torch.tanh(self.first(x))


def made(make, *given):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make(*given).double()


def hidden_at(theta):
    a, b = theta[:20], theta[20:24]
    return torch.tanh(X @ a.reshape(4, 5).mT + b)


def plain_loss(theta):
    return functional.cross_entropy(hidden_at(theta) @ theta[24:36].reshape(3, 4).mT + theta[36:], T)


def penalized(theta):
    return plain_loss(theta) + hidden_at(theta).square().mean() / 2


class MasksByParameter(Perceptron):
    def __init__(self):
        super().__init__()
        self.masks = {self.first.weight: (torch.arange(20).reshape(4, 5) % 2).float()}

    def hidden(self, x):
        mask = self.masks.get(self.first.weight, torch.ones(()))
        return torch.tanh(x @ (self.first.weight * mask).mT + self.first.bias)


class TellsParameters(Perceptron):
    def hidden(self, x):
        scale = 2.0 if isinstance(self.first.weight, nn.Parameter) else 1.0
        return scale * super().hidden(x)


class TellsByNumber(Perceptron):
    def __init__(self):
        super().__init__()
        self.rates = {id(self.last.weight): 3.0}

    def forward(self, x):
        return super().forward(x) * self.rates.get(id(self.last.weight), 1.0)


def decays(model, counts):
    def loss_function(z, y):
        kept = [p for module in model.modules() for p in module._parameters.values() if counts(p)]
        return functional.cross_entropy(z, y) + sum((p.square().sum() for p in kept), 0 * z.sum()) / 100

    return loss_function


PLACES = "(?s)put into the model.*by the user's own call.*isinstance"


@pytest.mark.parametrize("asked", [None, "float64"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [MasksByParameter, TellsParameters, TellsByNumber], ids=lambda kind: kind.__name__)
def test_a_model_that_looks_at_what_its_parameters_are_is_refused(kind, dtype, asked):
    model = made(kind).to(dtype)
    values = theta_of(model)
    with pytest.raises(jo.InputError, match=PLACES):
        jo.ModelLoss(model, functional.cross_entropy, (X.to(dtype), T), dtype=asked)
    assert torch.equal(theta_of(model), values)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_penalty_on_what_is_a_parameter_is_refused(dtype):
    model = made(Perceptron).to(dtype)
    with pytest.raises(jo.InputError, match=PLACES):
        jo.ModelLoss(model, decays(model, lambda p: isinstance(p, nn.Parameter)), (X.to(dtype), T), coupled=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_penalty_on_what_requires_gradients_is_refused_where_some_are_constants(dtype):
    model = made(Perceptron).to(dtype)
    function, pair = decays(model, lambda p: p.requires_grad), (X.to(dtype), T)
    with pytest.raises(jo.InputError, match=PLACES):
        jo.ModelLoss(model, function, pair, parameters="last.*")
    if dtype == torch.float64:
        assert_matches(jo.ModelLoss(model, function, pair), lambda t: plain_loss(t) + t.square().sum() / 100)
    model.first.requires_grad_(False)
    loss = jo.ModelLoss(model, function, pair)
    torch.testing.assert_close(loss.value(loss.initial()), function(model(X.to(dtype)), T).detach())


@pytest.mark.parametrize(
    "write", [lambda w: w.data.clamp_(-0.1, 0.1), lambda w: w.data.mul_(0.5)], ids=["clamp", "halve"]
)
def test_a_model_that_writes_into_its_weights_never_writes_into_the_users(write):
    class Writer(Perceptron):
        def forward(self, x):
            write(self.first.weight)
            return super().forward(x)

    model = made(Writer)
    values = theta_of(model)
    with suppress(jo.InputError):
        jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert torch.equal(theta_of(model), values)


def test_buffers_and_constants_are_as_they_were():
    class Counts(Perceptron):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.mean, self.number = torch.zeros(4), 0

        def forward(self, x):
            self.calls += 1
            self.number += 1
            self.mean.add_(1)
            return super().forward(x)

    model = made(Counts)
    jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert (float(model.calls), model.number, float(model.mean.sum())) == (0.0, 0, 0.0)


def test_a_random_loss_is_not_taken_for_one_that_looks_at_its_parameters():
    def contrast(z, y):
        return (z * z[torch.randperm(len(z))]).sum(1).exp().mean()

    with pytest.raises(jo.InputError, match="two values for one input"):
        jo.ModelLoss(made(Perceptron), contrast, (X, T), coupled=True)


class Symmetric(nn.Module):
    def forward(self, w):
        return w * w.tanh()


@pytest.mark.parametrize("made_within", [True, False])
def test_parametrized_weights_are_not_kept_from_the_users_cache(made_within):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    theta = 1.5 * loss.initial()
    expected = [loss.value(theta), loss.gradient(theta), loss.hessian(theta).dense()]
    with parametrize.cached():
        kept = model[0].weight
        cached = jo.ModelLoss(model, functional.cross_entropy, (X, T)) if made_within else loss
        found = [cached.value(theta), cached.gradient(theta), cached.hessian(theta).dense()]
        assert model[0].weight is kept
    assert all(map(torch.equal, found, expected))
