"""Parameters without dimensions, starts of parametrized weights, and losses without curvature in the outputs."""

import math

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact, exact_gauss_newton, outputs_at
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import jvp_ops as jo

X, T = numbers(710, 24, 5), labels_of(711, 24, 3)
REAL = numbers(712, 24, 3)

# --- parameters without dimensions -------------------------------------------------------------------------------


class Scaled(nn.Module):
    """CLIP's head: logits times a learned scale."""

    def __init__(self):
        super().__init__()
        self.logit_scale, self.l = nn.Parameter(torch.tensor(1.25)), nn.Linear(5, 3)

    def forward(self, x):
        return self.l(x) * self.logit_scale.exp()


class ReZero(nn.Module):
    """Residual branches that start at nothing."""

    def __init__(self):
        super().__init__()
        self.l, self.alpha, self.beta = nn.Linear(5, 5), nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones([]))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(x + self.alpha * torch.tanh(self.beta * self.l(x)))


class OnlyScalars(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(-1.5))

    def forward(self, x):
        return torch.sin(self.a * x[:, :3]) + self.b


@pytest.mark.parametrize("kind", [Scaled, ReZero, OnlyScalars])
def test_parameters_without_dimensions_are_parameters(kind):
    model = seeded(kind)
    batches = list(zip(X.split([7, 17]), T.split([7, 17]), strict=True))
    loss = jo.ModelLoss(model, functional.cross_entropy, batches)
    theta = loss.initial()
    true = assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, X), T))
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: functional.cross_entropy(z, T), theta)
    assert_near(loss.gauss_newton(theta).dense(), G)
    pairs = jo.eigenpairs(loss.hessian(theta), k=1, which="LA")
    assert math.isclose(pairs.values[0], float(torch.linalg.eigvalsh(true.hessian)[-1]), rel_tol=1e-7)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: tensor.shape for name, tensor in pairs.tensors(0).items()} == shapes
    name = next(name for name, shape in shapes.items() if shape == ())
    assert loss.hessian(theta).block(name, name).shape == (1, 1)
    assert loss.hessian(theta).block(name, "*").dense().shape == (1, len(theta))


def test_parts_without_dimensions_are_parts():
    shapes = {"a": (), "b": (2,)}
    loss = jo.FunctionLoss(lambda t: t[0] ** 3 + (t[1:] ** 2).sum() * t[0], shapes=shapes, dtype="float64")
    theta = torch.tensor([2.0, 1.0, -1.0]).double()
    H = loss.hessian(theta)
    assert_near(H.dense(), torch.tensor([[12.0, 2.0, -2.0], [2.0, 4.0, 0.0], [-2.0, 0.0, 4.0]]).double(), 1e-15)
    tensors = jo.eigenpairs(H, k=1, which="LA").tensors(0)
    assert tensors["a"].shape == ()
    assert tensors["b"].shape == (2,)
    f = jo.FunctionMap(lambda s: torch.cat([s[:1] * s[1:2], s[1:]]), shapes=shapes, dtype="float64")
    J = f.jacobian(theta)
    assert torch.equal(J.block("a", "b").dense(), torch.tensor([[2.0, 0.0]]).double())
    assert jo.eigenpairs(J, k=1, which="LM").tensors(0)["a"].shape == ()


# --- starts drawn anew -------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    """A parametrization of the user's own, without a right inverse."""

    def forward(self, x):
        return x.triu() + x.triu(1).mT


def symmetric(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


WRAPS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "the user's own": symmetric,
    "weight norm by hooks": nn.utils.weight_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize("name", WRAPS)
def test_another_seed_is_another_start_or_refused(name):
    model = seeded(lambda: nn.Sequential(WRAPS[name](nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3)))
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    own = loss.initial()
    try:
        drawn = [loss.initial(seed) for seed in (1, 2, 1)]
    except jo.InputError as error:
        message = str(error)
        assert "0." in message
        assert "drawn" in message
        return
    assert torch.equal(drawn[0], drawn[2])
    for entry in loss.parameters:
        first, second, before = (theta[entry.slice] for theta in (drawn[0], drawn[1], own))
        assert not torch.equal(first, second), entry.name
        assert not torch.equal(first, before), entry.name
    assert torch.equal(loss.initial(), own)


def test_a_start_is_drawn_for_the_parameters_in_theta_alone():
    model = seeded(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3)))
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), parameters="2.*")
    assert not torch.equal(loss.initial(1), loss.initial(2))


# --- losses that are linear in the outputs -----------------------------------------------------------------------

ZERO = r"(?s)(?=.*zero)(?=.*linear)(?=.*hessian\()"


def net(*more):
    return lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), *more)


class InForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()()

    def forward(self, x):
        return functional.log_softmax(self.net(x), 1)


LOG_SOFTMAX = {
    "a last layer": (net(nn.LogSoftmax(1)), functional.nll_loss, T),
    "inside forward": (InForward, nn.NLLLoss(), T),
    "with class weights": (InForward, nn.NLLLoss(weight=torch.tensor([1.0, 5.0, 20.0]).double()), T),
    "written out": (InForward, lambda o, t: -o.gather(1, t[:, None]).mean(), T),
    "divergence": (InForward, nn.KLDivLoss(reduction="batchmean"), torch.softmax(REAL, 1)),
}


@pytest.mark.parametrize("name", LOG_SOFTMAX)
def test_gauss_newton_of_log_probabilities_is_refused_as_zero_by_definition(name):
    make, function, targets = LOG_SOFTMAX[name]
    model = seeded(make)
    for data in ((X, targets), list(zip(X.split([7, 17]), targets.split([7, 17]), strict=True))):
        loss = jo.ModelLoss(model, function, data)
        with pytest.raises(jo.InputError, match=ZERO + "(?=.*cross_entropy)"):
            loss.gauss_newton(loss.initial())
        assert_matches(loss, lambda t: function(outputs_at(model, t, X), targets))


@pytest.mark.parametrize(
    "function",
    [lambda o, t: o.mean(), lambda o, t: (o * t).mean(), functional.l1_loss],
    ids=["critic", "product", "l1"],
)
def test_gauss_newton_of_any_loss_that_is_linear_is_refused(function):
    loss = jo.ModelLoss(seeded(net()), function, (X, REAL))
    with pytest.raises(jo.InputError, match=ZERO):
        loss.gauss_newton(loss.initial())


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e-9])
def test_a_little_curvature_in_the_outputs_is_a_gauss_newton_matrix(factor):
    model = seeded(InForward)

    def function(outputs, targets):
        return functional.nll_loss(outputs, targets[0]) + factor * functional.mse_loss(outputs, targets[1])

    loss = jo.ModelLoss(model, function, (X, (T, REAL)))
    theta = loss.initial()
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: function(z, (T, REAL)), theta)
    assert_near(loss.gauss_newton(theta).dense(), G)


def test_a_saturated_model_is_not_taken_for_a_linear_loss():
    model = seeded(net())
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    theta = loss.initial().clone()
    theta[-3:] = torch.tensor([4000.0, 0.0, -4000.0]).double()  # whose softmax is exact zeros and ones
    assert torch.count_nonzero(loss.gauss_newton(theta).dense()) == 0
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: functional.cross_entropy(z, T), theta)
    assert torch.count_nonzero(G) == 0


def test_the_same_network_with_cross_entropy_has_the_same_loss_and_a_gauss_newton_matrix():
    with_softmax, without = seeded(net(nn.LogSoftmax(1))), seeded(net())
    one = jo.ModelLoss(with_softmax, functional.nll_loss, (X, T))
    two = jo.ModelLoss(without, functional.cross_entropy, (X, T))
    theta = one.initial()
    assert_near(one.hessian(theta).dense(), two.hessian(theta).dense())
    assert_near(
        two.hessian(theta).dense(),
        exact(lambda t: functional.cross_entropy(outputs_at(without, t, X), T), theta).hessian,
    )
    assert float(two.gauss_newton(theta).dense().norm()) > 0.1
