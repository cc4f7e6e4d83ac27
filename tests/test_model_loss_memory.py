"""What a linearized module keeps, what it records anew, and that all of it goes when it is dropped."""

import gc
import weakref

import pytest
import torch
from cases import MODULES, circulation, mean_cross_entropy, numbers, scalar
from oracles import smallest_budget
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import jvp_ops as jo

X, T = numbers(1, 64, 3), torch.arange(64) % 3


class Watched(nn.Module):
    """A perceptron that tells of every forward pass and of the weight that took part in it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        Watched.calls += 1
        Watched.seen.append(weakref.ref(self.first.weight))
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture
def model():
    Watched.calls, Watched.seen = 0, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Watched().double()


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_graphs_that_do_not_fit_are_recorded_anew_with_the_same_product(model, kind):
    full = jo.ModelLoss(model, mean_cross_entropy, (X, T))
    A = getattr(full, kind)(full.initial())
    V = numbers(2, A.shape[1], 5)
    kept = Watched.calls
    expected = A.apply(V)
    assert Watched.calls == kept  # linearized once: a product runs no forward pass

    _, B = smallest_budget(lambda budget: jo.ModelLoss(model, mean_cross_entropy, (X, T), max_memory=budget), kind)
    before = Watched.calls
    image = B.apply(V)
    assert Watched.calls - before > 1  # several chunks were recorded anew
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-14 * float(expected.abs().max()) * 64)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_the_least_budget_gives_the_same_matrix_for_every_module(name, kind):
    module = MODULES[name]
    _, A = smallest_budget(lambda budget: module.loss(max_memory=budget), kind)
    V = numbers(3, A.shape[1], 2)
    expected = (module.H() if kind == "hessian" else module.G()) @ V
    assert (A.apply(V) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_value_and_gradient_are_the_same_in_the_least_budget(model):
    budget, _ = smallest_budget(lambda b: jo.ModelLoss(model, mean_cross_entropy, (X, T), max_memory=b), "hessian")
    tight, full = (jo.ModelLoss(model, mean_cross_entropy, (X, T), max_memory=b) for b in (budget, None))
    theta = full.initial()
    torch.testing.assert_close(tight.value(theta), full.value(theta), rtol=1e-13, atol=0)
    torch.testing.assert_close(tight.gradient(theta), full.gradient(theta), rtol=1e-12, atol=1e-15)


def test_the_number_of_threads_does_not_matter(threads):
    for name in ("perceptron", "transformer block"):
        loss = MODULES[name].loss()
        theta = loss.initial()
        dense = []
        for count in (1, 2):
            threads(count)
            dense.append([loss.hessian(theta).dense(), loss.gauss_newton(theta).dense(), loss.gradient(theta)])
            assert torch.get_num_threads() == count
        for one, two in zip(*dense, strict=True):
            assert (one - two).abs().max() <= 1e-14 * max(1.0, float(one.abs().max()))


class LargestResult(TorchDispatchMode):
    """Note the largest tensor that any torch operation makes, but for those of one shape."""

    def __init__(self, but):
        super().__init__()
        self.but, self.numel = but, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) != self.but:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_many_directions_take_no_larger_intermediates_than_one(model, kind, threads):
    threads(1)  # the dispatch mode watches this thread
    loss = jo.ModelLoss(model, mean_cross_entropy, (X, T))
    A = getattr(loss, kind)(loss.initial())
    largest = []
    for m in (1, 64):
        with LargestResult((A.shape[0], m)) as watch:
            A.apply(torch.ones(A.shape[1], m, dtype=torch.float64))
        largest.append(watch.numel)
    assert largest[0] >= 64 * 3
    assert largest[1] == largest[0]


def alive():
    return sum(reference() is not None for reference in Watched.seen)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_the_watch_sees_a_graph_that_a_cycle_keeps_alive(no_collector):
    leaf = torch.ones(3, requires_grad=True)
    reference = weakref.ref(leaf)
    holder = [(leaf**3).sum()]
    holder.append(holder)
    del leaf, holder
    assert reference() is not None


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("budget", ["full", "least"])
def test_200_linearizations_of_a_module_leave_nothing_behind(model, kind, budget, threads, no_collector):
    options = {}
    if budget == "least":
        least = lambda b: jo.ModelLoss(model, mean_cross_entropy, (X, T), max_memory=b)  # noqa: E731
        options["max_memory"] = smallest_budget(least, kind)[0]
    loss = jo.ModelLoss(model, mean_cross_entropy, (X, T), **options)
    theta = loss.initial()
    loss.value(theta), loss.gradient(theta)
    Watched.seen.clear()
    A = getattr(loss, kind)(theta)
    assert alive() > 0
    threads(1)
    for _ in range(200 if budget == "full" else 10):
        A = getattr(loss, kind)(theta)
        A.apply(torch.ones(A.shape[1], dtype=torch.float64))
    loss.value(theta), loss.gradient(theta)
    del A
    assert Watched.seen
    assert alive() == 0


@pytest.mark.parametrize("make", ["hessian", "descent", "map", "transposed map", "block"])
def test_200_linearizations_of_a_function_leave_nothing_behind(make, no_collector):
    seen = []

    def watched(function):
        def call(theta):
            seen.append(weakref.ref(theta))
            return function(theta)

        return call

    loss = jo.FunctionLoss(watched(scalar), shapes={"a": (6,), "b": (3,)}, dtype="float64")
    f = jo.FunctionMap(watched(circulation), size=6, dtype="float64")
    makers = {
        "hessian": lambda: loss.hessian(numbers(1, 9)),
        "descent": lambda: jo.GradientDescent(loss, lr=0.1).jacobian(numbers(1, 9)),
        "block": lambda: loss.hessian(numbers(1, 9)).block("a", "b"),
        "map": lambda: f.jacobian(numbers(1, 6)),
        "transposed map": lambda: f.jacobian(numbers(1, 6)).T,
    }
    for _ in range(200):
        A = makers[make]()
        A.apply(torch.ones(A.shape[1], 2, dtype=torch.float64))
        A.apply_adjoint(torch.ones(A.shape[0], dtype=torch.float64))
    assert sum(reference() is not None for reference in seen) >= 1
    del A
    assert len(seen) >= 200
    assert all(reference() is None for reference in seen)


def test_a_dropped_operator_of_the_two_layer_loss_is_freed_at_once(no_collector):
    loss = jo.TwoLayerLoss(X, T, hidden=2, dtype="float64")
    A = jo.GradientDescent(loss, lr=0.1).jacobian(loss.initial())
    A.apply(torch.ones(A.shape[1], dtype=torch.float64))
    references = [weakref.ref(A), weakref.ref(A.affine.base), weakref.ref(A.linear)]
    del A
    assert all(reference() is None for reference in references)


class Recurrent(nn.Module):
    """A module whose graph grows with the length of its sequences."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = x[:, 0]
        for step in range(x.shape[1]):
            Recurrent.steps += 1
            h = torch.tanh(self.cell(h) + x[:, step])
        return self.head(h)


def test_longer_sequences_in_later_batches_are_kept_only_as_far_as_they_fit():
    batches = [(numbers(5, 8, length, 4), torch.arange(8) % 3) for length in (2, 200, 200, 200)]
    Recurrent.steps = 0
    model = Recurrent().double()
    full = jo.ModelLoss(model, mean_cross_entropy, batches)
    H = full.hessian(full.initial())
    v = numbers(6, H.shape[1])
    Recurrent.steps = 0
    expected = H.apply(v)
    assert Recurrent.steps == 0
    # a long sample's graph takes about 19 KB, a short one's 0.2 KB: by the first batch alone, all would be kept
    tight = jo.ModelLoss(model, mean_cross_entropy, batches, max_memory=300_000)
    B = tight.hessian(tight.initial())
    Recurrent.steps = 0
    torch.testing.assert_close(B.apply(v), expected, rtol=1e-12, atol=1e-15)
    assert Recurrent.steps > 200  # some of the long ones were recorded anew


def test_small_batches_of_a_loader_are_kept_as_well_as_tensors(model):
    budget = 2**20
    whole = jo.ModelLoss(model, mean_cross_entropy, (X, T), max_memory=budget)
    loader = jo.ModelLoss(model, mean_cross_entropy, list(zip(X.split(4), T.split(4), strict=True)), max_memory=budget)
    for loss in (whole, loader):
        H = loss.hessian(loss.initial())
        before = Watched.calls
        H.apply(numbers(2, H.shape[1]))
        assert Watched.calls == before
