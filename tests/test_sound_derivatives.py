"""What is not smooth, or hides behind rounding, is not taken for a wrong derivative; weight norms are right."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, differences, exact, outputs_at
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import jvp_ops as jo

X, T = numbers(410, 24, 5), labels_of(411, 24, 3)
IMAGES = numbers(412, 12, 1, 6, 6)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between(function, wide=12):
    return lambda: nn.Sequential(nn.Linear(5, wide), Apply(function), nn.Linear(wide, 3))


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))


def deep():
    layers = [part for _ in range(6) for part in (nn.Linear(5, 5), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(5, 3))


def steady_softmax(x):
    x = x - x.max(1, keepdim=True).values.detach()  # which changes nothing
    return x.exp() / x.exp().sum(1, keepdim=True)


SOUND = {
    "relu": between(torch.relu),
    "leaky relu": between(functional.leaky_relu),
    "hard tanh": between(functional.hardtanh),
    "hard swish": between(functional.hardswish),
    "clamps": between(lambda x: x.clamp(-0.25, 0.25)),
    "absolute values": between(torch.abs),
    "a sort": between(lambda x: x.sort(1).values),
    "the largest": between(lambda x: x * (x >= x.topk(3, 1).values[:, 2:])),
    "many layers of relu": deep,
    "a shift that changes nothing": between(steady_softmax),
    "linear outputs": lambda: nn.Linear(5, 3),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", SOUND)
def test_kinks_are_not_taken_for_wrong_derivatives(name, scale, dtype):
    model = seeded(SOUND[name])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), dtype=dtype)
    H = loss.hessian(loss.initial())
    true = exact(lambda t: functional.cross_entropy(outputs_at(model, t, X), T), loss.initial().double())
    assert_near(H.dense(), true.hessian, 1e-11 if dtype == "float64" else 1e-3, floor=1e-6 if dtype == "float32" else 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pooled_images_are_not_taken_for_wrong_derivatives(dtype):
    model, labels = seeded(convolutional), T[:12]
    loss = jo.ModelLoss(model, functional.cross_entropy, (IMAGES, labels), dtype=dtype)
    true = exact(lambda t: functional.cross_entropy(outputs_at(model, t, IMAGES), labels), loss.initial().double())
    assert_near(loss.hessian(loss.initial()).dense(), true.hessian, 1e-12 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("zero_samples", [1, 12, 24])
def test_a_start_on_a_kink_has_autograds_derivatives(zero_samples):
    model, inputs = seeded(between(torch.relu)), X.clone()
    inputs[:zero_samples] = 0  # with a bias of zero, these samples stand exactly on the kink of every unit
    nn.init.zeros_(model[0].bias)
    loss = jo.ModelLoss(model, functional.cross_entropy, (inputs, T))
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, inputs), T))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e12])
def test_the_size_of_the_loss_does_not_matter(factor, dtype):
    model = seeded(between(torch.tanh))
    loss = jo.ModelLoss(model, lambda o, t: factor * functional.cross_entropy(o, t), (X, T), dtype=dtype)
    true = exact(lambda t: factor * functional.cross_entropy(outputs_at(model, t, X), T), loss.initial().double())
    assert_near(loss.hessian(loss.initial()).dense(), true.hessian, 1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_flat_places_are_not_taken_for_wrong_derivatives(dtype):
    for spoil in (
        lambda model: [nn.init.zeros_(p) for p in model.parameters()],
        lambda model: [nn.init.zeros_(p) for p in model[2].parameters()],
        lambda model: [nn.init.constant_(p, 40.0) for p in model[0].parameters()],  # saturated
    ):
        model = seeded(between(torch.sigmoid))
        spoil(model)
        loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), dtype=dtype)
        true = exact(lambda t, m=model: functional.cross_entropy(outputs_at(m, t, X), T), loss.initial().double())
        assert_near(loss.hessian(loss.initial()).dense(), true.hessian, 1e-12 if dtype == "float64" else 1e-5)


def test_a_fitted_model_is_not_taken_for_a_wrong_one():
    model = seeded(lambda: nn.Linear(5, 3))
    targets = model(X).detach()
    loss = jo.ModelLoss(model, functional.mse_loss, (X, targets))
    assert_matches(loss, lambda t: functional.mse_loss(outputs_at(model, t, X), targets))


# --- weight norms, whose double backward in torch is wrong on the CPU --------------------------------------------


def normed(v, g, dims):
    return v * g / torch.linalg.vector_norm(v, dim=dims, keepdim=True)


def split(theta, *shapes):
    pieces = theta.split([int(torch.Size(shape).numel()) for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class Direct(nn.Module):
    """Call torch's fused operation itself."""

    def __init__(self):
        super().__init__()
        self.g, self.v, self.l = nn.Parameter(torch.rand(4, 1) + 0.5), nn.Parameter(torch.randn(4, 5)), nn.Linear(4, 3)

    def forward(self, x):
        return self.l(torch.tanh(functional.linear(x, torch._weight_norm(self.v, self.g, 0))))


def of_rows(theta):
    b, g, v, W, c = split(theta, (4,), (4, 1), (4, 5), (3, 4), (3,))
    return torch.tanh(X @ normed(v, g, 1).mT + b) @ W.mT + c


def of_columns(theta):
    b, g, v, W, c = split(theta, (4,), (1, 5), (4, 5), (3, 4), (3,))
    return torch.tanh(X @ normed(v, g, 0).mT + b) @ W.mT + c


def of_everything(theta):
    b, g, v, W, c = split(theta, (4,), (), (4, 5), (3, 4), (3,))
    return torch.tanh(X @ (v * g / v.norm()).mT + b) @ W.mT + c


def of_both(theta):
    b, g, v, c, h, w = split(theta, (4,), (4, 1), (4, 5), (3,), (3, 1), (3, 4))
    return torch.tanh(X @ normed(v, g, 1).mT + b) @ normed(w, h, 1).mT + c


def of_filters(theta):
    b, g, v, W, c = split(theta, (2,), (2, 1, 1), (2, 1, 3), (3, 6), (3,))
    return torch.tanh(functional.conv1d(X[:, None], normed(v, g, (1, 2)), b)).flatten(1) @ W.mT + c


def by_hand(theta):
    g, v, W, c = split(theta, (4, 1), (4, 5), (3, 4), (3,))
    return torch.tanh(X @ normed(v, g, 1).mT) @ W.mT + c


def plain(**options):
    return lambda: nn.Sequential(weight_norm(nn.Linear(5, 4), **options), nn.Tanh(), nn.Linear(4, 3))


def both():
    return nn.Sequential(weight_norm(nn.Linear(5, 4)), nn.Tanh(), weight_norm(nn.Linear(4, 3)))


def filters():
    conv = weight_norm(nn.Conv1d(1, 2, 3))
    return nn.Sequential(Apply(lambda x: x[:, None]), conv, nn.Tanh(), nn.Flatten(), nn.Linear(6, 3))


NORMED = {
    "rows": (plain(), of_rows),
    "columns": (plain(dim=1), of_columns),
    "the whole matrix": (plain(dim=None), of_everything),
    "both layers": (both, of_both),
    "filters": (filters, of_filters),
    "the operation itself": (Direct, by_hand),
}


@pytest.mark.parametrize("name", NORMED)
def test_weight_norm_has_the_derivatives_of_its_formula(name):
    make, outputs = NORMED[name]
    model = seeded(make)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    theta = loss.initial()
    true = assert_matches(loss, lambda t: functional.cross_entropy(outputs(t), T))
    assert_near(differences(loss.gradient, theta), true.hessian, 1e-9)
    H = loss.hessian(theta)
    assert jo.symmetry_error(H.apply(torch.eye(len(theta)).double())) < 1e-13
    top = torch.linalg.eigvalsh(true.hessian)[-2:].flip(0)
    assert abs(torch.from_numpy(jo.eigenpairs(H, k=2, which="LA", tol=1e-9).values) - top).max() < 1e-8
    J = torch.autograd.functional.jacobian(outputs, theta).reshape(-1, len(theta))
    curvature = exact(lambda z: functional.cross_entropy(z.reshape(24, 3), T), outputs(theta).reshape(-1)).hessian
    assert_near(loss.gauss_newton(theta).dense(), J.mT @ curvature @ J)


@pytest.mark.parametrize("name", NORMED)
def test_weight_norm_is_right_in_float32_too(name):
    make, outputs = NORMED[name]
    loss = jo.ModelLoss(seeded(make), functional.cross_entropy, (X, T), dtype="float32")
    assert_matches(loss, lambda t: functional.cross_entropy(outputs(t), T), rtol=3e-5)
