"""Complex parameters and buffers stay complex, in float32 and in float64."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact_gauss_newton, in_float64, outputs_at, theta_of
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(220, 12, 8), labels_of(221, 12, 3)


class Rotary(nn.Module):
    """Rotate pairs of features by angles that a complex buffer holds."""

    def __init__(self):
        super().__init__()
        self.wide, self.head = nn.Linear(8, 4), nn.Linear(4, 3)
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.tensor([0.75, 1.875])))

    def forward(self, x):
        pairs = torch.view_as_complex(self.wide(x).reshape(-1, 2, 2))
        return self.head(torch.tanh(torch.view_as_real(pairs * self.turns).reshape(-1, 4)))


class Filter(nn.Module):
    """Filter by a fixed complex response, in a buffer."""

    def __init__(self):
        super().__init__()
        self.wide, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("response", torch.complex(torch.linspace(1, 0, 5), torch.linspace(0, 1, 5)))

    def forward(self, x):
        return self.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(self.wide(x)) * self.response, n=8)))


class Spectral(nn.Module):
    """Learn complex weights of the lowest frequencies, as Fourier neural operators do."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(3, dtype=torch.cfloat)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(x)[:, :3] * self.w, n=8)))


class ComplexLayer(nn.Module):
    """A complex linear layer whose outputs count by their size."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 3, dtype=torch.cfloat), nn.Linear(3, 3)

    def forward(self, x):
        z = self.layer(torch.complex(x[:, :4], x[:, 4:]))
        return self.head(z.real * z.imag + (z * z.conj()).real)


class Mixed(nn.Module):
    """A frozen complex parameter, a trained one without dimensions, and integers that stay integers."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Parameter(torch.tensor([1.0 + 0.5j, -0.25j]), requires_grad=False)
        self.gain, self.head = nn.Parameter(torch.tensor(0.5 - 1.0j)), nn.Linear(4, 3)
        self.register_buffer("order", torch.tensor([3, 0, 2, 1]))

    def forward(self, x):
        z = torch.view_as_complex(x[:, :4].reshape(-1, 2, 2)) * self.fixed * self.gain
        return self.head(torch.sin(torch.view_as_real(z).reshape(-1, 4)[:, self.order]))


KINDS = [Rotary, Filter, Spectral, ComplexLayer, Mixed]


def single(kind):
    """Make a module in float32 and cfloat, and its exact twin in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind().eval()
    return model, in_float64(model)


def true_loss(twin, inputs=X):
    return lambda theta: functional.cross_entropy(outputs_at(twin, theta, inputs), T)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_model_in_float32_is_the_same_function_in_float64(kind):
    model, twin = single(kind)
    batches = list(zip(X.split([5, 7]), T.split([5, 7]), strict=True))
    loss = jo.ModelLoss(model, functional.cross_entropy, batches, dtype="float64")
    assert torch.equal(loss.initial(), theta_of(model))
    assert_matches(loss, true_loss(twin))
    theta = loss.initial()
    G = exact_gauss_newton(lambda t: outputs_at(twin, t, X), lambda z: functional.cross_entropy(z, T), theta)
    assert_near(loss.gauss_newton(theta).dense(), G)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_model_in_float32_is_computed_in_float32(kind):
    model, twin = single(kind)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert loss.dtype == torch.float32
    value = functional.cross_entropy(model(X.float()), T).detach()
    assert_near(loss.value(loss.initial()), value.double(), 1e-6)
    assert_matches(loss, true_loss(twin), rtol=2e-5)
    assert_matches(loss.to(dtype="float64"), true_loss(twin))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_linearization_in_float64_is_that_of_the_same_function(kind):
    model, twin = single(kind)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    H = loss.hessian(loss.initial()).in_float64()
    other = jo.ModelLoss(twin, functional.cross_entropy, (X, T))
    assert_near(H.dense(), other.hessian(theta_of(model)).dense())
    assert_matches(other, true_loss(twin))


def test_complex_parameters_stand_in_theta_as_pairs():
    for kind, shapes in ((Spectral, {"w": (3, 2)}), (ComplexLayer, {"layer.weight": (3, 4, 2), "layer.bias": (3, 2)})):
        loss = jo.ModelLoss(single(kind)[0], functional.cross_entropy, (X, T))
        found = {entry.name: tuple(entry.shape) for entry in loss.parameters}
        assert shapes.items() <= found.items()
    loss = jo.ModelLoss(single(Mixed)[0], functional.cross_entropy, (X, T))
    assert next((entry.name, tuple(entry.shape)) for entry in loss.parameters) == ("gain", (2,))
    tensors = loss.parameters.unflatten(loss.initial())
    assert torch.equal(torch.view_as_complex(tensors["gain"]), torch.tensor(0.5 - 1.0j))
    assert loss.hessian(loss.initial()).block("gain", "head.*").shape == (2, 15)


def test_descent_on_complex_parameters_is_that_of_torch():
    model = in_float64(single(Spectral)[0])
    f = jo.GradientDescent(jo.ModelLoss(model, functional.cross_entropy, (X, T)), lr=0.5)
    last = f.run(f.loss.initial(), steps=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(X), T).backward()
        optimizer.step()
    assert_near(last, theta_of(model))


def test_complex_inputs_stay_complex():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, z):
            return self.layer(torch.cat([z.real, z.imag * z.abs()], 1))

    model, z = seeded(Takes), torch.complex(X[:, :4].float(), X[:, 4:].float())
    wide = z.to(torch.complex128)
    for data in ((z, T), (wide, T), [(z[:5], T[:5]), (z[5:], T[5:])]):
        loss = jo.ModelLoss(model, functional.cross_entropy, data, dtype="float64")
        assert_matches(loss, true_loss(model, wide))


def test_half_precision_buffers_and_integers_do_not_make_a_model_complex():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)
            self.register_buffer("scale", torch.tensor([1.0, 0.5, 2.0], dtype=torch.float16))
            self.register_buffer("count", torch.tensor(3))

        def forward(self, x):
            return self.layer(x) * self.scale / self.count

    model = single(Scaled)[0]
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), dtype="float64")
    assert_matches(loss, true_loss(in_float64(model)))
