"""Models that cannot be copied: what they keep of an earlier pass, hooks that compute weights, locks and generators."""

import io
import threading

import pytest
import torch
from cases import labels_of, numbers
from oracles import assert_matches, exact_gauss_newton, outputs_at, theta_of
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(230, 12, 5), labels_of(231, 12, 3)
BATCHES = list(zip(X.split([7, 5]), T.split([7, 5]), strict=True))
HOOKED = pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class KeepsFeatures(Perceptron):
    def forward(self, x):
        self.features = torch.tanh(self.first(x))
        return self.last(self.features)


class KeepsOutput(Perceptron):
    def forward(self, x):
        self.output = super().forward(x)
        return self.output


class KeepsList(Perceptron):
    """Keep every activation that ever was, in a list and a dict of a submodule."""

    def forward(self, x):
        self.seen = [*getattr(self, "seen", []), torch.tanh(self.first(x))]
        self.first.cache = {"latest": self.seen[-1]}
        return self.last(self.seen[-1])


class KeepsLog(Perceptron):
    """Append to lists in one another, which another module holds too, and in a circle."""

    def __init__(self):
        super().__init__()
        self.log = {"passes": [["first"]]}
        self.log["log"] = self.log
        self.first.log = self.log["passes"]

    def forward(self, x):
        assert self.first.log is self.log["log"]["passes"]
        self.first.log.append([x.mean()])
        return self.last(torch.tanh(self.first(x)) + 0 * len(self.log["passes"]))


class HoldsLock(Perceptron):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return super().forward(x)


class HoldsGenerators(Perceptron):
    """A torch generator and a Python generator: neither can be copied."""

    def __init__(self):
        super().__init__()
        self.random, self.numbers = torch.Generator(), (n for n in range(10))


class HoldsStream(Perceptron):
    def __init__(self):
        super().__init__()
        self.log, self.local = io.TextIOWrapper(io.BytesIO()), threading.local()


class RefusesCopies(Perceptron):
    def __deepcopy__(self, memo):
        raise RuntimeError("one of me is enough")


class HooksActivation(Perceptron):
    """A forward hook of the user's own that keeps activations outside the model."""

    def __init__(self):
        super().__init__()
        self.kept = []
        self.first.register_forward_hook(lambda module, inputs, output: self.kept.append(output))


KEEPERS = [
    KeepsFeatures,
    KeepsOutput,
    KeepsList,
    KeepsLog,
    HoldsLock,
    HoldsGenerators,
    HoldsStream,
    RefusesCopies,
    HooksActivation,
]


def made(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make().double()


def true_loss(theta):
    a, b, c, d = theta.split([20, 4, 12, 3])
    return functional.cross_entropy(
        torch.tanh(X @ a.reshape(4, 5).mT + b) @ c.reshape(3, 4).mT + d,
        T,
    )


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after a step"])
@pytest.mark.parametrize("kind", KEEPERS, ids=lambda kind: kind.__name__)
def test_a_model_that_cannot_be_copied_is_linearized_as_it_is(kind, trained):
    model = made(kind)
    if trained:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        functional.cross_entropy(model(X), T).backward()
        optimizer.step()
    loss = jo.ModelLoss(model, functional.cross_entropy, BATCHES)
    assert torch.equal(loss.initial(), theta_of(model))
    assert_matches(loss, true_loss)
    theta = loss.initial()
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: functional.cross_entropy(z, T), theta)
    torch.testing.assert_close(loss.gauss_newton(theta).dense(), G, rtol=1e-11, atol=1e-13)


def test_lists_in_one_another_are_as_they_were():
    model = made(KeepsLog)
    model(X)
    loss = jo.ModelLoss(model, functional.cross_entropy, BATCHES)
    loss.value(loss.initial()), loss.gradient(loss.initial()), loss.hessian(loss.initial()).dense()
    assert len(model.log["passes"]) == 2
    assert model.log["log"] is model.log
    assert model.first.log is model.log["passes"]


@pytest.mark.parametrize("kind", KEEPERS, ids=lambda kind: kind.__name__)
def test_its_parameters_and_gradients_are_left_as_they_were(kind):
    model = made(kind)
    functional.cross_entropy(model(X), T).backward()
    slopes = [p.grad.clone() for p in model.parameters()]
    values, training = theta_of(model), [module.training for module in model.modules()]
    loss = jo.ModelLoss(model, functional.cross_entropy, BATCHES)
    loss.value(loss.initial() + 1), loss.gradient(loss.initial() + 1), loss.hessian(loss.initial() + 1).dense()
    assert torch.equal(theta_of(model), values)
    assert all(torch.equal(p.grad, slope) for p, slope in zip(model.parameters(), slopes, strict=True))
    assert [module.training for module in model.modules()] == training
    with torch.no_grad():
        model.last.weight.zero_()
    assert torch.equal(loss.initial(), values)


@HOOKED
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after a step"])
def test_weight_norm_by_hooks_is_v_scaled_to_length_g(trained):
    model = made(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)))
    if trained:
        functional.cross_entropy(model(X), T).backward()

    def true(theta):
        b, g, v, W, c = theta.split([4, 4, 20, 12, 3])
        v = v.reshape(4, 5)
        hidden = torch.tanh(X @ (v * g[:, None] / v.norm(dim=1, keepdim=True)).mT + b)
        return functional.cross_entropy(hidden @ W.reshape(3, 4).mT + c, T)

    assert [name for name, _ in model.named_parameters()][:3] == ["0.bias", "0.weight_g", "0.weight_v"]
    assert_matches(jo.ModelLoss(model, functional.cross_entropy, BATCHES), true)


@HOOKED
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after a step"])
def test_spectral_norm_by_hooks_divides_by_its_estimate(trained):
    model = made(lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)))
    if trained:
        functional.cross_entropy(model(X), T).backward()
    model.eval()
    u, v = model[0].weight_u.clone(), model[0].weight_v.clone()

    def true(theta):
        b, w, W, c = theta.split([4, 20, 12, 3])
        w = w.reshape(4, 5)
        hidden = torch.tanh(X @ (w / (u @ w @ v)).mT + b)
        return functional.cross_entropy(hidden @ W.reshape(3, 4).mT + c, T)

    assert [name for name, _ in model.named_parameters()][:2] == ["0.bias", "0.weight_orig"]
    assert_matches(jo.ModelLoss(model, functional.cross_entropy, BATCHES), true)
