"""What a Gauss-Newton matrix takes of the loss function and the regularizer is held against differences, too."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_near, exact_gauss_newton, outputs_at, theta_of
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(830, 24, 5), labels_of(831, 24, 3)
Y = numbers(832, 24, 3)


class Kernel(torch.autograd.Function):
    """Softplus whose slope is computed in forward, with gradients off, as kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.sigmoid(x))
        return functional.softplus(x)

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0]


class Half(torch.autograd.Function):
    """x², with half its slope."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * x


def net():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def detached(z):
    """Square z, with a factor that is taken for a constant: half the second derivative is lost."""
    return z * z.detach() + 0.5 * (z - z.detach()) ** 2


WRONG = {
    "a softplus by a kernel": lambda z, y: (Kernel.apply(z) + (z - y) ** 2 / 4).mean(),
    "a square of a detached factor": lambda z, y: detached(z - y).mean(),
    "half a slope": lambda z, y: Half.apply(z - y).mean(),
}
RIGHT = {
    "a softplus by a kernel": lambda z, y: (functional.softplus(z) + (z - y) ** 2 / 4).mean(),
    "a square of a detached factor": lambda z, y: ((z - y) ** 2).mean(),
    "half a slope": lambda z, y: ((z - y) ** 2).mean(),
}


class WithLoss(nn.Module):
    """A model that computes its loss itself."""

    def __init__(self, function):
        super().__init__()
        self.net, self.function = net(), function

    def forward(self, x, y):
        z = self.net(x)
        return {"loss": self.function(z, y), "z": z}


PENALTIES = {
    "a softplus by a kernel": (Kernel.apply, functional.softplus),
    "a square of a detached factor": (detached, torch.square),
    "half a slope": (Half.apply, torch.square),
}


def penalty(function):
    return lambda parameters: 0.3 * sum(function(p).sum() for p in parameters.values())


def inside(function):
    """Give the loss that adds the same penalty by itself, reading the model's parameters."""

    def make(model):
        added = penalty(function)
        return lambda z, y: ((z - y) ** 2).mean() + added(dict(model.named_parameters()))

    return make


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WRONG)
def test_a_loss_whose_curvature_is_wrong_is_refused(name, dtype):
    for loss in (
        jo.ModelLoss(seeded(net), WRONG[name], (X, Y), dtype=dtype),
        jo.ModelLoss(seeded(net), WRONG[name], [(X[:7], Y[:7]), (X[7:], Y[7:])], dtype=dtype),
        jo.ModelLoss(seeded(lambda: WithLoss(WRONG[name])), None, {"x": X, "y": Y}, dtype=dtype, outputs="z"),
    ):
        with pytest.raises(jo.InputError, match=r"(?s)differences of .*second_derivatives"):
            loss.gauss_newton(loss.initial())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_whose_curvature_is_wrong_is_refused(name, dtype):
    wrong, _ = PENALTIES[name]
    model = seeded(net)
    for loss in (
        jo.ModelLoss(model, nn.MSELoss(), (X, Y), regularizer=penalty(wrong), dtype=dtype),
        jo.ModelLoss(model, inside(wrong)(model), (X, Y), dtype=dtype),
    ):
        with pytest.raises(jo.InputError, match=r"(?s)differences of .*second_derivatives"):
            loss.gauss_newton(loss.initial())


@pytest.mark.parametrize("name", RIGHT)
def test_written_out_in_plain_operations_it_is_right(name):
    function, model = RIGHT[name], seeded(net)
    loss = jo.ModelLoss(model, function, (X, Y))
    theta = theta_of(model)
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: function(z, Y), theta)
    assert_near(loss.gauss_newton(theta).dense(), G)
    own = seeded(lambda: WithLoss(function))
    assert_near(jo.ModelLoss(own, None, {"x": X, "y": Y}, outputs="z").gauss_newton(theta_of(own)).dense(), G)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_written_out_is_right(name):
    _, right = PENALTIES[name]
    model = seeded(net)
    theta = theta_of(model)
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: functional.mse_loss(z, Y), theta)
    H = torch.func.hessian(lambda t: 0.3 * right(t).sum())(theta)
    for loss in (
        jo.ModelLoss(model, nn.MSELoss(), (X, Y), regularizer=penalty(right)),
        jo.ModelLoss(model, inside(right)(model), (X, Y)),
    ):
        assert_near(loss.gauss_newton(theta).dense(), G + H)


def test_unchecked_the_wrong_one_is_given_with_a_note():
    loss = jo.ModelLoss(seeded(net), WRONG["a softplus by a kernel"], (X, Y), second_derivatives="unchecked")
    G = loss.gauss_newton(loss.initial())
    assert any("unchecked" in note for note in jo.eigenpairs(G, k=1, which="LA").notes)
    lost = jo.ModelLoss(seeded(net), lambda z, y: ((z - y) ** 2 / 4).mean(), (X, Y))
    assert_near(G.dense(), lost.gauss_newton(lost.initial()).dense())


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.SoftMarginLoss()])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_losses_with_kinks_and_of_any_size_are_taken(loss, scale):
    model, targets = seeded(net), torch.sign(Y) if isinstance(loss, nn.SoftMarginLoss) else Y

    def function(z, y):
        return loss(z, y) * scale

    made = jo.ModelLoss(model, function, (X, targets))
    if isinstance(loss, nn.L1Loss):  # flat wherever it is no kink
        with pytest.raises(jo.InputError, match="linear"):
            made.gauss_newton(made.initial())
        return
    theta = theta_of(model)
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: function(z, targets), theta)
    assert_near(made.gauss_newton(theta).dense(), G)


class Adapter(nn.Module):
    """A zero-initialized adapter, and a penalty on it, whose gradient is zero there, inside the model's loss."""

    def __init__(self, strength):
        super().__init__()
        self.net, self.a, self.strength = net(), nn.Linear(5, 3, bias=False), strength
        nn.init.zeros_(self.a.weight)

    def forward(self, x, y):
        z = self.net(x) + self.a(x)
        return {"loss": ((z - y) ** 2).mean() + self.strength * self.a.weight.square().sum(), "z": z}


class Auxiliary(nn.Module):
    """A second head that is zero at the start, in the loss beside the outputs that are named."""

    def __init__(self):
        super().__init__()
        self.net, self.head = net(), nn.Linear(5, 3, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return {"z": self.net(x), "beside": self.head(x)}


@pytest.mark.parametrize("strength", [1e-2, 1.0])
def test_what_the_loss_depends_on_beside_the_outputs_is_seen_where_it_is_flat(strength):
    own = jo.ModelLoss(seeded(lambda: Adapter(strength)), None, {"x": X, "y": Y}, outputs="z")
    two = jo.ModelLoss(
        seeded(Auxiliary),
        lambda out, y: ((out["z"] - y) ** 2).mean() + strength * out["beside"].square().mean(),
        (X, Y),
        outputs="z",
    )
    for loss in (own, two):
        with pytest.raises(jo.InputError, match="beside the model's outputs"):
            loss.gauss_newton(loss.initial())


class ByLength(nn.Module):
    """Short sequences go through half of a slope, long ones do not."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        z = self.net(x).mean(1)
        return Half.apply(z) if x.shape[1] == 2 else z * z


def test_all_shapes_of_ragged_data_are_looked_at():
    data = [(numbers(833, 6, 4, 5), Y[:6]), (numbers(834, 6, 2, 5), Y[6:12])]
    for batches in (data, data[::-1]):
        loss = jo.ModelLoss(seeded(ByLength), nn.MSELoss(), batches)
        with pytest.raises(jo.InputError, match="differences"):
            loss.gauss_newton(loss.initial())
