"""What lies outside the modules: caches of functions, the user's data, compiled code, errors of the user's own."""

import functools

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, outputs_at
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(850, 20, 5), labels_of(851, 20, 3)


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class CachedMethod(Perceptron):
    @functools.cache  # noqa: B019
    def scaled(self):
        return self.a.weight * 2

    def forward(self, x):
        return self.b(torch.tanh(functional.linear(x, self.scaled(), self.a.bias)))


KEPT = {}


class CachedGlobal(Perceptron):
    def forward(self, x):
        if "weight" not in KEPT:
            KEPT["weight"] = self.a.weight.softmax(1)
        return self.b(torch.tanh(functional.linear(x, KEPT["weight"], self.a.bias)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [CachedMethod, CachedGlobal])
def test_what_is_computed_once_and_kept_outside_the_modules_is_refused(kind, dtype):
    KEPT.clear()
    with pytest.raises(jo.InputError, match="earlier pass"):
        jo.ModelLoss(seeded(kind), functional.cross_entropy, (X, T), dtype=dtype)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(
    "model",
    [lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)), lambda: nn.Sequential(Clamp(), nn.Linear(5, 3))],
)
def test_a_model_that_writes_into_its_data_is_refused_and_the_data_stay(model, coupled):
    data = X.clone()
    for given in ((data, T), [(data, T)]):
        with pytest.raises(jo.InputError, match="changes the data in place"):
            jo.ModelLoss(seeded(model), functional.cross_entropy, given, coupled=coupled)
    assert torch.equal(data, X)


class Clamp(nn.Module):
    def forward(self, x):
        return x.clamp_(-0.5, 0.5)


def test_a_loss_function_that_writes_into_its_targets_is_refused_and_they_stay():
    targets = numbers(852, 20, 3)
    before = targets.clone()
    with pytest.raises(jo.InputError, match="changes the data in place"):
        jo.ModelLoss(seeded(Perceptron), lambda z, y: ((z - y.mul_(2)) ** 2).mean(), (X, targets))
    assert torch.equal(targets, before)


@pytest.mark.parametrize("draw", [lambda n: torch.randperm(n), lambda n: torch.rand(n).argsort()])
def test_a_random_loss_is_refused_where_samples_are_coupled(draw):
    def contrast(z, t):
        return ((z * z[draw(len(z))]).sum(1)).exp().mean()

    with pytest.raises(jo.InputError, match="two values"):
        jo.ModelLoss(seeded(Perceptron), contrast, (X, T), coupled=True)


class OwnError(Exception):
    pass


def failing(*_):
    raise OwnError("what the user says")


def ending(*_):
    raise StopIteration("at once")


@pytest.mark.parametrize("error", [failing, ending])
@pytest.mark.parametrize("place", ["model", "loss_function", "regularizer", "normalizer", "unpack"])
def test_any_error_of_the_users_code_is_explained(place, error):
    class Failing(Perceptron):
        def forward(self, x):
            return error()

    options = {"regularizer": error} if place == "regularizer" else {}
    options |= {place: error} if place in ("normalizer", "unpack") else {}
    model = Failing() if place == "model" else Perceptron()
    function = error if place == "loss_function" else functional.cross_entropy
    with pytest.raises(jo.InputError, match=r"what the user says|at once"):
        jo.ModelLoss(model.double(), function, (X, T), **options)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_within_a_model_runs_as_it_is_written(backend, capfd):
    class Inside(Perceptron):
        def __init__(self):
            super().__init__()
            self.function = torch.compile(lambda h: torch.tanh(h) * h, backend=backend)

        def forward(self, x):
            return self.b(self.function(self.a(x)))

    model = seeded(Inside)
    assert_matches(
        jo.ModelLoss(model, functional.cross_entropy, (X, T), max_memory="20kB"),
        lambda theta: functional.cross_entropy(
            (lambda h: (torch.tanh(h) * h) @ theta[24:36].reshape(3, 4).mT + theta[36:])(
                X @ theta[:20].reshape(4, 5).mT + theta[20:24]
            ),
            T,
        ),
    )
    assert "recompile" not in capfd.readouterr().err


def test_data_made_within_inference_mode_are_taken_as_they_were():
    with torch.inference_mode():
        data = X.clone()
    model = seeded(Perceptron)
    loss = jo.ModelLoss(model, functional.cross_entropy, (data, T))
    with torch.inference_mode():
        data.mul_(2)
    assert_matches(loss, lambda theta: functional.cross_entropy(outputs_at(model, theta, X), T))


class KeptFromBefore(Perceptron):
    """In eval mode a weight is computed at the first call, and kept: handed over after it, θ does not reach it."""

    def __init__(self, empty, put, get):
        super().__init__()
        self.kept, self.put, self.get = empty, put, get

    def forward(self, x):
        if not self.training and not self.kept:
            self.kept = self.put(self.kept, (self.a.weight * 2).detach())
        weight = self.a.weight * 2 if self.training else self.get(self.kept)
        return self.b(torch.tanh(functional.linear(x, weight, self.a.bias)))


@pytest.mark.parametrize(
    "empty, put, get",
    [
        ({}, lambda kept, w: {"weight": w}, lambda kept: kept["weight"]),
        ([], lambda kept, w: [w], lambda kept: kept[0]),
        ((), lambda kept, w: (w, 1), lambda kept: kept[0]),
        ({}, lambda kept, w: {"all": [(w,)]}, lambda kept: kept["all"][0][0]),
    ],
    ids=["dict", "list", "tuple", "nested"],
)
def test_a_weight_kept_from_before_in_a_container_is_refused(empty, put, get):
    model = seeded(lambda: KeptFromBefore(empty, put, get)).eval()
    with torch.no_grad():
        model(X)
    with pytest.raises(jo.InputError, match="computed before"):
        jo.ModelLoss(model, functional.cross_entropy, (X, T))


def test_a_mean_taken_only_where_something_is_selected_is_named():
    def sparse(z, t):
        chosen = t == 2
        main = functional.cross_entropy(z[:, :2], t.clamp(max=1))
        return main + functional.mse_loss(z[chosen, 2], z[chosen, 1].detach() * 0 + 1) if chosen.any() else main

    rare = torch.where(torch.arange(20) == 7, 2, T % 2)
    with pytest.raises(jo.InputError, match="take each"):
        jo.ModelLoss(seeded(Perceptron), sparse, (X, rare))


class Flat(nn.Module):
    """A parameter that lies far inside a large buffer, with a small buffer between their beginnings."""

    def __init__(self, with_small):
        super().__init__()
        big = torch.randn(30).double()
        self.register_buffer("big", big)
        if with_small:
            self.register_buffer("small", big[2:5])
        self.w = nn.Parameter(big[12:27].view(3, 5))

    def forward(self, x):
        return functional.linear(x, self.w) * self.big[0]


@pytest.mark.parametrize("with_small", [False, True])
def test_memory_shared_across_others_is_seen(with_small):
    with pytest.raises(jo.InputError, match="share memory"):
        jo.ModelLoss(Flat(with_small), functional.cross_entropy, (X, T))


class Doubled(torch.autograd.Function):
    """The identity, with twice its slope."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class WrongWhenLong(Perceptron):
    def forward(self, x):
        hidden = torch.tanh(self.a(x)).mean(1)
        return self.b(Doubled.apply(hidden) if x.shape[1] > 9 else hidden)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("samples", [1, 16])
def test_shapes_from_all_over_the_data_are_checked(kind, samples):
    lengths = [2] * 8 + [4] * 8 + [12] * 8
    data = [(numbers(860 + n, samples, length, 5), T[:samples]) for n, length in enumerate(lengths)]
    loss = jo.ModelLoss(seeded(WrongWhenLong), functional.cross_entropy, data)
    with pytest.raises(jo.InputError, match="differences"):
        getattr(loss, kind)(loss.initial())


def test_options_that_do_not_go_together_and_things_that_are_no_functions_are_named():
    model = Perceptron().double()
    with pytest.raises(jo.InputError, match="has no part in coupled"):
        jo.ModelLoss(model, functional.cross_entropy, (X, T), coupled=True, normalizer=len)
    with pytest.raises(jo.InputError, match=r"CrossEntropyLoss\(\)"):
        jo.ModelLoss(model, nn.CrossEntropyLoss, (X, T))
    for made in (jo.FunctionLoss, jo.FunctionMap):
        with pytest.raises(jo.InputError, match="callable, not int"):
            made(3, size=2)


def test_advice_is_given_where_it_helps():
    with pytest.raises(jo.InputError) as caught:
        jo.ModelLoss(Perceptron().double(), functional.cross_entropy, (X, T), regularizer=lambda: torch.zeros(()))
    assert "unpack" not in str(caught.value)
