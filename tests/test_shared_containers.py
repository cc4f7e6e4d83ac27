"""Lists and dictionaries that a module shares with others, and code that looks at what its parameters are."""

import time
from collections import Counter, OrderedDict, defaultdict, deque

import pytest
import torch
from cases import labels_of, numbers
from oracles import assert_matches
from torch import nn
from torch.nn import functional

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


class Writes(Perceptron):
    """Put the hidden layer into a container, by whatever way leads to it."""

    def __init__(self, held, write):
        super().__init__()
        self.held, self.write = held, write

    def forward(self, x):
        h = self.hidden(x)
        self.write(self.held, h)
        return self.last(h)


def in_list():
    store = []
    return store, lambda held, h: held.append(h), store, lambda: store[-1]


def in_list_within_dict():
    store = []
    return {"h": store}, lambda held, h: held["h"].append(h), store, lambda: store[-1]


def in_list_within_tuples():
    store = []
    return (1, (2, store)), lambda held, h: held[1][1].append(h), store, lambda: store[-1]


def in_dict():
    store = {}
    return store, lambda held, h: held.__setitem__("h", h), store, lambda: store["h"]


def in_ordered():
    store = OrderedDict()
    return [store], lambda held, h: held[0].__setitem__("h", h), store, lambda: next(iter(store.values()))


def in_defaultdict():
    store = defaultdict(list)
    return store, lambda held, h: held["h"].append(h), store, lambda: store["h"][-1]


def in_deque():
    store = deque(maxlen=3)
    return store, lambda held, h: held.append(h), store, lambda: store[-1]


def in_set():
    store = set()
    return store, lambda held, h: held.add(h), store, lambda: next(iter(store))


WAYS = [
    in_list,
    in_list_within_dict,
    in_list_within_tuples,
    in_dict,
    in_ordered,
    in_defaultdict,
    in_deque,
    in_set,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_loss_sees_what_a_module_puts_into_what_they_share(way):
    held, write, store, latest = way()
    model = made(Writes, held, write)

    def loss_function(z, y):
        value = functional.cross_entropy(z, y) + latest().square().mean() / 2
        store.clear()
        return value

    user = loss_function(model(X), T)
    loss = jo.ModelLoss(model, loss_function, (X, T))
    torch.testing.assert_close(loss.value(loss.initial()), user.detach(), rtol=1e-12, atol=0)
    assert_matches(loss, penalized)
    assert model.held is held
    assert len(store) == 0


@pytest.mark.parametrize("way", [in_list, in_dict], ids=lambda way: way.__name__)
def test_so_it_does_batch_by_batch(way):
    held, write, _, latest = way()
    model = made(Writes, held, write)
    batches = list(zip(X.split([7, 5]), T.split([7, 5]), strict=True))
    loss = jo.ModelLoss(
        model, lambda z, y: functional.cross_entropy(z, y) + latest().square().mean() / 2, batches, max_memory="60kB"
    )
    assert_matches(loss, penalized)
    assert len(held) == 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_was_in_it_is_in_it_afterwards(way):
    held, write, store, _ = way()
    model = made(Writes, held, write)
    write(held, torch.ones(3))
    before = [*store.items()] if isinstance(store, dict) else [*store]
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert_matches(loss, plain_loss)
    after = [*store.items()] if isinstance(store, dict) else [*store]
    assert len(after) == len(before)
    assert all(a is b or (a[0] == b[0] and a[1] is b[1]) for a, b in zip(after, before, strict=True))


def test_nothing_of_a_pass_is_left_when_one_fails():
    model = made(Writes, store := [1.5], lambda held, h: held.append(h))
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    store.append("since")
    model.write = None
    fails = []
    model.first.register_forward_hook(lambda *_: fails.append(1))
    loss.value(loss.initial())
    assert store == [1.5, "since"]
    assert fails == []  # handed over without the hook

    def raises(z, y):
        raise RuntimeError("no")

    with pytest.raises(jo.InputError, match="no"):
        jo.ModelLoss(made(Writes, store, lambda held, h: held.clear()), raises, (X, T))
    assert store == [1.5, "since"]


class Holds(Perceptron):
    """Compute by the weights that a container holds."""

    def __init__(self, put, get):
        super().__init__()
        self.held, self.get = put(self.first.weight, self.first.bias), get

    def hidden(self, x):
        w, b = self.get(self.held)
        assert w is self.first.weight
        return torch.tanh(x @ w.mT + b)


HELD = {
    "list": (lambda w, b: [w, b], lambda held: held),
    "tuple in a list": (lambda w, b: [((w,), b)], lambda held: (held[0][0][0], held[0][1])),
    "list in a tuple": (lambda w, b: ([w], {"b": b}), lambda held: (held[0][0], held[1]["b"])),
    "deque": (lambda w, b: deque([w, b]), lambda held: held),
    "defaultdict": (lambda w, b: defaultdict(list, w=w, b=b), lambda held: (held["w"], held["b"])),
    "long": (lambda w, b: [*range(2000), w, b], lambda held: held[-2:]),
}


@pytest.mark.parametrize("kind", HELD)
def test_theta_is_in_what_holds_the_parameters(kind):
    model = made(lambda: Holds(*HELD[kind]))
    held, inside = model.held, list(model.held)
    assert_matches(jo.ModelLoss(model, functional.cross_entropy, (X, T)), plain_loss)
    assert model.held is held
    assert all(a is b for a, b in zip(held, inside, strict=True))
    assert model.get(held)[0] is model.first.weight


class Scales(Perceptron):
    """Scale by how often it was called, which a container counts."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, x):
        self.count["n"] += 1
        return super().forward(x) * self.count["n"]


@pytest.mark.parametrize("count", [Counter(), defaultdict(int), {"n": 0}, OrderedDict(n=0)], ids=lambda c: str(type(c)))
def test_a_count_that_outputs_depend_on_is_refused_and_put_back(count):
    model, before = made(Scales, count), dict(count)
    with pytest.raises(jo.InputError, match="changes what it keeps"):
        jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert dict(count) == before


@pytest.mark.parametrize("count", [Counter(), defaultdict(int, n=3), [3]], ids=lambda c: type(c).__name__)
def test_each_pass_starts_from_the_count_that_was_handed_over(count):
    class Anneals(Perceptron):
        def __init__(self):
            super().__init__()
            self.count = count

        def forward(self, x):
            return super().forward(x) * (1 if sum(getattr(count, "values", lambda: count)()) < 5 else 2)

    def loss_function(z, y):
        count[0 if isinstance(count, list) else "n"] += 1
        return functional.cross_entropy(z, y)

    before = count.copy()
    assert_matches(jo.ModelLoss(made(Anneals), loss_function, (X, T)), plain_loss)
    assert count == before


def nested(depth):
    inner = ()
    for _ in range(depth):
        inner = (inner, inner)
    return inner


def linked(depth, last):
    inner = [last]
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "held", [nested(40), linked(2000, 1), linked(2000, (nested(30), 1))], ids=["wide", "deep", "both"]
)
def test_containers_in_one_another_however_deep_cost_little(held):
    model = made(Perceptron)
    model.held = held
    start = time.perf_counter()
    assert_matches(jo.ModelLoss(model, functional.cross_entropy, (X, T)), plain_loss)
    assert time.perf_counter() - start < 20
    assert model.held is held


@pytest.mark.parametrize("vocabulary", [{str(n): n for n in range(200_000)}, [(str(n), n) for n in range(100_000)]])
def test_a_large_vocabulary_is_left_alone(vocabulary):
    model = made(Perceptron)
    model.vocabulary = vocabulary
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert_matches(loss, plain_loss)
    H, v = loss.hessian(loss.initial()), torch.ones(39, dtype=torch.float64)
    start = time.perf_counter()
    for _ in range(20):
        H @ v
    assert time.perf_counter() - start < 2
    assert model.vocabulary is vocabulary
