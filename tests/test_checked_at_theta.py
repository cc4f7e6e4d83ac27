"""What is wrong at θ alone, or small beside the rest, is refused; kinks at θ, and what is small and right, are not."""

from itertools import pairwise

import pytest
import torch
from cases import numbers, seeded
from oracles import assert_near
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, Y = numbers(900, 30, 3), numbers(901, 30, 3)
SOME_ZERO = torch.tensor([0.0, 0.5, 1.0, 0.0, -0.7], dtype=torch.float64)
EXACTLY = "wrongly exactly at theta"


class Pose(nn.Module):
    """A rotation by its vector, and a shift; around no rotation, a branch."""

    def __init__(self, below):
        super().__init__()
        self.below, self.turn, self.shift = below, nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        if self.below is None:  # to second order
            across = torch.linalg.cross(self.turn.expand_as(x), x)
            return x + across + torch.linalg.cross(self.turn.expand_as(x), across) / 2 + self.shift
        angle = self.turn.norm()
        if angle < self.below:
            return x + self.shift
        axis = self.turn / angle
        across = torch.linalg.cross(axis.expand_as(x), x)
        twice = torch.linalg.cross(axis.expand_as(x), across)
        return x + angle.sin() * across + (1 - angle.cos()) * twice + self.shift


class Skipped(nn.Module):
    """A residual branch that a gain of zero turns off."""

    def __init__(self, skips):
        super().__init__()
        self.inner, self.out, self.gain = nn.Linear(3, 3), nn.Linear(3, 3), nn.Parameter(torch.zeros(1))
        self.skips = skips

    def forward(self, x):
        if self.skips and float(self.gain) == 0:
            return self.out(x)
        return self.out(x + self.gain * torch.tanh(self.inner(x)))


class Pruned(nn.Module):
    """A layer whose weights of zero are left out of the penalty that the outputs hold."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        with torch.no_grad():
            self.inner.weight[1, 1] = 0.0

    def forward(self, x):
        w = self.inner.weight
        return self.inner(x) + w[w != 0].sin().sum()


WRONG_MODELS = {
    "pose": lambda: Pose(1e-8),
    "pose with a wider branch": lambda: Pose(1e-6),
    "skipped branch": lambda: Skipped(True),
    "pruned": Pruned,
}


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_model_with_a_branch_at_theta_is_refused(name, kind):
    loss = jo.ModelLoss(seeded(WRONG_MODELS[name]), nn.MSELoss(), (X, Y))
    with pytest.raises(jo.InputError, match=EXACTLY):
        getattr(loss, kind)(loss.initial())


WRONG_FUNCTIONS = {
    "where": lambda x: torch.where(x == 0, torch.zeros_like(x), x.sin() + x**2).sum(),
    "where of another slope": lambda x: torch.where(x == 0, x, x**2).sum(),
    "masked": lambda x: x[x != 0].exp().sum() - 3 * x.sum(),
    "if": lambda x: (x.sum() if x[0] == 0 else x.sum() + x[0].sin()) ** 2,
    "coincident points": lambda x: (x[:, None] - x).abs().square().sum(),
}


@pytest.mark.parametrize("name", WRONG_FUNCTIONS)
def test_a_function_with_a_convention_at_theta_is_refused(name):
    loss = jo.FunctionLoss(WRONG_FUNCTIONS[name], size=5, dtype="float64")
    with pytest.raises(jo.InputError, match=EXACTLY):
        loss.hessian(SOME_ZERO)


def test_so_is_one_all_of_whose_numbers_are_zero():
    loss = jo.FunctionLoss(WRONG_FUNCTIONS["where of another slope"], size=4, dtype="float64")
    with pytest.raises(jo.InputError, match=EXACTLY):
        loss.hessian(torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("size", [5, 500])
def test_one_special_number_among_many_is_refused(size):
    theta = numbers(902, size)
    theta[size // 2] = 0.0
    loss = jo.FunctionLoss(WRONG_FUNCTIONS["where"], size=size, dtype="float64")
    with pytest.raises(jo.InputError, match=EXACTLY):
        loss.hessian(theta.double())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x == 0, torch.zeros_like(x), x.sin() + x**2),
        lambda x: x + torch.zeros_like(x).index_put((x.nonzero()[:, 0],), x[x != 0]),
        lambda x: x.clone() if x[0] == 0 else x * (1 + x[0]),
    ],
)
def test_a_map_with_a_branch_at_the_state_is_refused(function):
    step = jo.FunctionMap(function, size=5, dtype="float64")
    with pytest.raises(jo.InputError, match=EXACTLY):
        step.jacobian(SOME_ZERO)


def test_the_same_functions_are_right_beside():
    beside = SOME_ZERO + torch.linspace(0.1, 0.2, 5, dtype=torch.float64)
    for function in WRONG_FUNCTIONS.values():
        found = jo.FunctionLoss(function, size=5, dtype="float64").hessian(beside).dense()
        assert_near(found, torch.autograd.functional.hessian(function, beside), 1e-10)


# --- kinks at θ, which are no faults ----------------------------------------------------------------------------


class Net(nn.Module):
    """A rectified or pooled net whose inputs are zero in some samples, with biases of zero and a dead unit."""

    def __init__(self, rectify, dead=False, scale=1.0):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.rectify = rectify
        with torch.no_grad():
            for layer in (self.a, self.b, self.c):
                layer.bias.zero_()
                layer.weight *= scale
            if dead:
                self.a.bias[0] = -30.0
                self.b.weight[1] = 0.0

    def forward(self, x):
        return self.c(self.rectify(self.b(self.rectify(self.a(x)))))


def pooled(x):
    """Pool by threes, with the ties that zeros make."""
    return functional.max_pool1d(x.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)


SOUND = {
    "relu": lambda: Net(torch.relu),
    "relu, dead": lambda: Net(torch.relu, dead=True),
    "leaky": lambda: Net(functional.leaky_relu, dead=True),
    "relu6": lambda: Net(functional.relu6),
    "abs": lambda: Net(torch.abs),
    "elu": lambda: Net(functional.elu),
    "hardswish": lambda: Net(functional.hardswish),
    "pooled": lambda: Net(pooled),
    "large": lambda: Net(torch.relu, scale=30.0),
    "small": lambda: Net(torch.relu, scale=1e-3),
    "zero": lambda: Net(torch.relu, scale=0.0),
    "pooled zero": lambda: Net(pooled, scale=0.0),
    "tanh zero": lambda: Net(torch.tanh, scale=0.0),
    "pose": lambda: Pose(None),
    "branch of gain zero": lambda: Skipped(False),
}


@pytest.mark.parametrize("name", SOUND)
def test_kinks_at_theta_are_accepted(name):
    x = X.clone()
    x[::2] = 0.0
    loss = jo.ModelLoss(seeded(SOUND[name]), nn.MSELoss(), (x, Y))
    theta = loss.initial()
    assert bool(torch.isfinite(loss.hessian(theta).dense()).all())
    assert bool(torch.isfinite(loss.gauss_newton(theta).dense()).all())


@pytest.mark.parametrize(
    "penalty",
    [lambda t: sum(p.abs().sum() for p in t.values()), lambda t: sum(p.relu().sum() for p in t.values())],
)
def test_a_penalty_with_a_kink_at_weights_of_zero_is_accepted(penalty):
    model = seeded(lambda: nn.Linear(3, 3))
    with torch.no_grad():
        model.weight[0].zero_()
        model.bias.zero_()
    loss = jo.ModelLoss(model, nn.MSELoss(), (X, Y), regularizer=penalty)
    assert_near(loss.hessian(loss.initial()).dense(), loss.gauss_newton(loss.initial()).dense(), 1e-5)


KINKED = {
    "abs": lambda x: x.abs().sum() + (x**3).sum(),
    "sum of relus": lambda x: (x.relu() * torch.arange(1.0, 6).to(x)).sum() + (x**2).sum(),
    "maximum of ties": lambda x: x[[0, 3]].max() + x.square().sum(),
    "three ties": lambda x: (
        (x * torch.zeros(5).to(x)).max() + torch.stack([x[0], x[3], 2 * x[0]]).max() + x.exp().sum()
    ),
    "huber": lambda x: functional.smooth_l1_loss(x, torch.zeros_like(x)) + functional.huber_loss(x, x.detach() * 0),
    "clamp": lambda x: x.clamp(0, 1).sum() + x.square().sum(),
    "sharp": lambda x: torch.tanh(1e6 * x).sum() + x.square().sum(),
    "smooth norm": lambda x: (x.square() + 1e-12).sqrt().sum(),
    "normalized": lambda x: (x[0] / (x[0] ** 2 + 1e-5).sqrt() + x.sum()) ** 2,
    "in float32": lambda x: x.float().sin().sum().to(x) + (x.float() ** 2).sum().to(x),
    "count": lambda x: (x != 0).sum() + x.square().sum(),
}


@pytest.mark.parametrize("name", KINKED)
def test_functions_with_a_kink_at_theta_are_accepted(name):
    found = jo.FunctionLoss(KINKED[name], size=5, dtype="float64").hessian(SOME_ZERO).dense()
    assert_near(found, torch.autograd.functional.hessian(KINKED[name], SOME_ZERO), 1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_large_nets_of_any_scale_are_accepted_as_functions_of_a_flat_vector(seed, scale):
    sizes = [8, 40, 40, 1]
    n = sum(a * b for a, b in pairwise(sizes))
    x, y = numbers(910 + seed, 30, 8).double(), numbers(920 + seed, 30, 1).double()

    def loss(theta):
        z, at = x.to(theta), 0
        for a, b in pairwise(sizes):
            z = (z.relu() if at else z) @ theta[at : at + a * b].reshape(a, b)
            at += a * b
        return functional.mse_loss(z, y.to(theta))

    jo.FunctionLoss(loss, size=n, dtype="float64").hessian(scale * numbers(930 + seed, n).double())


# --- what is small beside the rest ------------------------------------------------------------------------------


def adam(n, stops):
    """One step of Adam on a quadratic function; what it squares may be cut off."""
    h, b = torch.linspace(0.1, 1, n, dtype=torch.float64), 0.1 * numbers(940, n).double()

    def step(s):
        theta, m, v = s.split(n)
        slope = h * theta - b
        m = 0.9 * m + 0.1 * slope
        v = 0.999 * v + 0.001 * (slope.detach() if stops else slope) ** 2
        return torch.cat([theta - 0.01 * m / (v.sqrt() + 1e-8), m, v])

    random = numbers(941, 3, n).double()
    return step, torch.cat([b / h + 0.01 * random[0], 0.003 * random[1], 1e-5 * (1 + random[2].abs())])


@pytest.mark.parametrize("n", [4, 50])
def test_a_small_wrong_part_of_a_flat_state_is_refused(n):
    step, state = adam(n, stops=True)
    with pytest.raises(jo.InputError, match="disagrees"):
        jo.FunctionMap(step, size=3 * n, dtype="float64").jacobian(state)


@pytest.mark.parametrize("n", [4, 50])
def test_a_small_right_part_is_accepted(n):
    step, state = adam(n, stops=False)
    found = jo.FunctionMap(step, size=3 * n, dtype="float64").jacobian(state).dense()
    assert_near(found, torch.autograd.functional.jacobian(step, state), 1e-10)


@pytest.mark.parametrize("small", [1e-6, 1e-4, 1e-2])
def test_a_small_wrong_part_of_a_flat_function_is_refused(small):
    def function(x, cut):
        tail = x[40:]
        return x[:40].exp().sum() + small * ((tail.detach() if cut else tail) * tail**2).sum()

    loss = jo.FunctionLoss(lambda x: function(x, True), size=80, dtype="float64")
    with pytest.raises(jo.InputError, match="disagrees"):
        loss.hessian(numbers(942, 80).double())
    jo.FunctionLoss(lambda x: function(x, False), size=80, dtype="float64").hessian(numbers(942, 80).double())


@pytest.mark.parametrize("function", [lambda x: x[:3].exp().sum() + 0 * x.sum(), lambda x: 1e-12 * x.sin().sum()])
def test_parts_without_effect_are_accepted(function):
    jo.FunctionLoss(function, size=40, dtype="float64").hessian(numbers(943, 40).double())


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.gate = nn.Linear(3, 1), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.layer(x)


def cut(t):
    q = t["gate"]
    return (q * q.detach()).sum() * 2 - (q.detach() * q.detach()).sum()


def whole(t):
    return t["gate"].square().sum() + (t["gate"] - 1).relu().sum() + t["gate"].abs().sum()


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("scale", [1.0, 2e5, 2e7])
def test_a_small_parameter_beside_a_large_gradient_is_refused_where_it_is_wrong(scale, kind):
    targets = scale * (1 + Y[:, :1])
    wrong = jo.ModelLoss(seeded(Gated), nn.MSELoss(), (X, targets), regularizer=cut, dtype="float64")
    with pytest.raises(jo.InputError, match="disagrees"):
        getattr(wrong, kind)(wrong.initial())
    right = jo.ModelLoss(seeded(Gated), nn.MSELoss(), (X, targets), regularizer=whole, dtype="float64")
    found = getattr(right, kind)(right.initial()).block("gate", "gate").dense()
    assert_near(found, 2 * torch.eye(6, dtype=torch.float64), 1e-6)
