"""What the fingerprint of a function sees: all that it holds, the same in every process, and what it says it misses."""

import enum
import os
import subprocess
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial, update_wrapper

import numpy as np
import pytest
import torch
from systems import Held
from torch import nn

import jvp_ops as jo
from jvp_ops.store import callable_identity, module_identity

FACTOR = 2.0
TABLE = {"rate": [0.1, 0.2]}
COUNT = 0
KINDS = {"a", "b", "c"}
Point = namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Settings:
    rate: float
    steps: list = field(default_factory=list)

    @cached_property
    def twice(self):
        return 2 * self.rate


class Slotted:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, x):
        return self.rate * x


class Scaled:
    def __init__(self, rate, held=None):
        self.rate, self.held = rate, held

    def __call__(self, x):
        return self.helped(x)

    def helped(self, x):
        return self.rate * x

    @property
    def half(self):
        return self.rate / 2


class Layer(nn.Module):
    def __init__(self, width=3, scale=1.0, function=torch.tanh, hidden=0.0):
        super().__init__()
        self.linear, self.scale, self.function = nn.Linear(width, width), scale, function
        self.constant = torch.full((2,), hidden)
        self.register_buffer("shift", torch.zeros(width))
        self.blocks = [nn.Linear(2, 2)]  # not registered, so that torch does not know of it
        for p in (*self.linear.parameters(), *self.blocks[0].parameters()):
            nn.init.ones_(p)

    def forward(self, x):
        return self.helped(x) + self.shift

    def helped(self, x):
        return self.scale * self.function(self.linear(x))


def layer(change=None, frozen=False, **options):
    made = Layer(**options).requires_grad_(not frozen)
    if change is not None:
        with torch.no_grad():
            dict((*made.named_parameters(), *made.named_buffers()))[change][0] += 1
    return made


def closed(value):
    return lambda x: (x, value)


def default(value):
    return lambda x, value=value: (x, value)


def keyword(value):
    return lambda x, *, value=value: (x, value)


def in_a_partial(value):
    return partial(torch.add, value)


def in_a_partials_keyword(value):
    return partial(torch.add, alpha=value)


def in_an_object(value):
    return Scaled(value)


def in_a_bound_method(value):
    return Scaled(value).helped


def called_by_another(value):
    def inner(x):
        return x, value

    return lambda x: inner(x)


def behind_a_cache(value):
    return lru_cache(lambda x: (x, value))


class Decorated:
    def __init__(self, function, factor):
        update_wrapper(self, function)
        self.factor = factor

    def __call__(self, x):
        return self.factor * self.__wrapped__(x)


def in_a_decorators_object(value):
    return Decorated(torch.sin, value)


def behind_a_decorators_object(value):
    return Decorated(lambda x: (x, value), 1)


def behind_numpy(value):
    return np.vectorize(lambda x: (x, value))


def behind_torch(value):
    return torch.func.grad(lambda x: x * value)


WAYS = [
    closed,
    default,
    keyword,
    in_a_partial,
    in_a_partials_keyword,
    in_an_object,
    in_a_bound_method,
    called_by_another,
    behind_a_cache,
    in_a_decorators_object,
    behind_a_decorators_object,
    behind_numpy,
    behind_torch,
]


def array(*values, dtype=np.float64):
    return lambda: np.array(values, dtype=dtype)


def sparse(value):
    return lambda: torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, value], (2, 2), check_invariants=True)


PAIRS = {
    "number": (lambda: 1.0, lambda: 1.0000000000000002),
    "integer": (lambda: 3, lambda: 4),
    "big integer": (lambda: 10**5000, lambda: 10**5000 + 1),
    "kind of number": (lambda: 1, lambda: True),
    "numpy number": (lambda: np.float32(1), lambda: np.float64(1)),
    "signed zero": (lambda: 0.0, lambda: -0.0),
    "complex number": (lambda: 1j, lambda: 2j),
    "text": (lambda: "mean", lambda: "sum"),
    "bytes": (lambda: b"a", lambda: b"b"),
    "none": (lambda: None, lambda: False),
    "tuple": (lambda: (1, (2, 3)), lambda: (1, (2, 4))),
    "kind of sequence": (lambda: [1, 2], lambda: (1, 2)),
    "list": (lambda: [[1], [2]], lambda: [[1, 2], []]),
    "dict": (lambda: {"a": {"b": 1}}, lambda: {"a": {"b": 2}}),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda: OrderedDict(b=2, a=1)),
    "set": (lambda: {"x", "y", "z"}, lambda: {"x", "y", "w"}),
    "deque": (lambda: deque([1.0]), lambda: deque([2.0])),
    "named tuple": (lambda: Point(1, 2), lambda: Point(1, 3)),
    "namespace": (lambda: types.SimpleNamespace(a=1), lambda: types.SimpleNamespace(a=2)),
    "dataclass": (lambda: Settings(0.1), lambda: Settings(0.2)),
    "nested dataclass": (lambda: Settings(0.1, [torch.ones(2)]), lambda: Settings(0.1, [torch.zeros(2)])),
    "enumeration": (lambda: Color.RED, lambda: Color.BLUE),
    "dtype": (lambda: torch.float32, lambda: torch.float64),
    "range": (lambda: range(3), lambda: range(4)),
    "tensor": (lambda: torch.tensor([1.0, 2.0]), lambda: torch.tensor([1.0, 2.5])),
    "shape of a tensor": (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
    "dtype of a tensor": (lambda: torch.zeros(2), lambda: torch.zeros(2).int()),
    "tensor with a gradient": (lambda: torch.ones(2, requires_grad=True), lambda: torch.zeros(2, requires_grad=True)),
    "conjugate": (lambda: torch.tensor([1j]).conj(), lambda: torch.tensor([1j])),
    "sparse tensor": (sparse(2.0), sparse(3.0)),
    "array": (array(1.0, 2.0), array(1.0, 2.5)),
    "dtype of an array": (array(1.0), array(1.0, dtype=np.float32)),
    "array of objects": (array("a", None, dtype=object), array("a", 1, dtype=object)),
    "array of dates": (array("2001", dtype="M8[Y]"), array("2002", dtype="M8[Y]")),
    "callable object": (lambda: Scaled(1), lambda: Scaled(2)),
    "object in an object": (lambda: Scaled(1, Scaled(1)), lambda: Scaled(1, Scaled(2))),
    "object with slots": (lambda: Slotted(1), lambda: Slotted(2)),
    "method of a list": (lambda: [0.1].__getitem__, lambda: [0.2].__getitem__),
    "method of a number": (lambda: (0.1).__mul__, lambda: (0.2).__mul__),
    "method of a tensor": (lambda: torch.ones(2).norm, lambda: torch.zeros(2).norm),
    "function": (lambda: torch.sin, lambda: torch.cos),
    "function of numpy": (lambda: np.sin, lambda: np.cos),
    "operation of torch": (lambda: torch.ops.aten.sin.default, lambda: torch.ops.aten.cos.default),
    "transform": (
        lambda: torch.distributions.AffineTransform(0.0, 1.0),
        lambda: torch.distributions.AffineTransform(0.0, 2.0),
    ),
    "class": (lambda: Scaled, lambda: Slotted),
    "weak reference": (lambda: weakref.ref(Scaled), lambda: weakref.ref(Slotted)),
    "module's setting": (lambda: layer(), lambda: layer(scale=2.0)),
    "module's function": (lambda: layer(), lambda: layer(function=torch.sin)),
    "module's plain tensor": (lambda: layer(), lambda: layer(hidden=1.0)),
    "module's parameter": (lambda: layer(), lambda: layer(change="linear.weight")),
    "module's frozen parameter": (lambda: layer(frozen=True), lambda: layer(frozen=True, change="linear.bias")),
    "module's buffer": (lambda: layer(), lambda: layer(change="shift")),
    "module's mode": (lambda: layer(), lambda: layer().eval()),
    "layers of a network": (lambda: nn.Sequential(nn.Tanh()), lambda: nn.Sequential(nn.Sigmoid())),
    "loss": (
        lambda: jo.FunctionLoss(lambda x: FACTOR * x.sum(), size=2),
        lambda: jo.FunctionLoss(lambda x: FACTOR * x.sum(), size=3),
    ),
    "map over a loss": (
        lambda: jo.GradientDescent(jo.TwoLayerLoss(np.eye(3), [0, 1, 0], hidden=2), 0.1),
        lambda: jo.GradientDescent(jo.TwoLayerLoss(np.eye(3), [0, 1, 1], hidden=2), 0.1),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_a_function_holds_is_seen(way, kind):
    value, other = PAIRS[kind]
    assert callable_identity(way(value())) == callable_identity(way(value()))
    assert callable_identity(way(value())) != callable_identity(way(other()))
    assert "unseen" not in callable_identity(way(value()))


@pytest.mark.parametrize("kind", PAIRS)
def test_what_a_learning_rate_holds_is_seen_by_the_same_eye(kind):
    def schedule(value):
        return lambda step: 0.1 + 0 * (value is schedule)  # its rates are the same, whatever it holds

    loss = jo.FunctionLoss(torch.sum, size=2)
    value, other = PAIRS[kind]
    found = [jo.GradientDescent(loss, schedule(make())).identity() for make in (value, value, other)]
    assert found[0] == found[1] != found[2]


def test_the_order_of_a_set_and_of_keywords_does_not_matter():
    assert callable_identity(closed({1, 9, 17})) == callable_identity(closed({17, 9, 1}))
    ab, ba = partial(torch.add, a=1, b=2), partial(torch.add, b=2, a=1)
    assert callable_identity(ab) == callable_identity(ba)


def test_which_of_two_equal_objects_is_meant_does_not_matter():
    one = torch.ones(3)
    assert callable_identity(closed([one, one])) == callable_identity(closed([one, one.clone()]))


def test_what_was_only_computed_once_does_not_matter():
    used = Settings(0.5)
    assert used.twice == 1.0
    assert callable_identity(closed(used)) == callable_identity(closed(Settings(0.5)))
    data = jo.load_digits().subset(5)
    before = callable_identity(closed(data))
    assert data.sha256
    assert callable_identity(closed(data)) == before != callable_identity(closed(jo.load_digits().subset(6)))


# --- globals -----------------------------------------------------------------------------------------------------


def uses_a_number(x):
    return FACTOR * x


def uses_a_table(x):
    return [TABLE["rate"][0] * y for y in x]


def uses_a_function(x):
    return uses_a_number(x) + 1


def uses_one_in_an_inner_function(x):
    def inner(y):
        return FACTOR * y

    return inner(x)


def uses_a_class(x):
    return Scaled(1.0)(x)


@pytest.mark.parametrize("function", [uses_a_number, uses_a_function, uses_one_in_an_inner_function])
def test_globals_are_seen(function, monkeypatch):
    before = callable_identity(function)
    assert callable_identity(function) == before
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert callable_identity(function) != before
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert callable_identity(function) == before
    monkeypatch.setitem(globals(), "TABLE", {})
    assert callable_identity(function) == before  # it does not name this one


def test_containers_and_classes_and_functions_among_the_globals_are_seen(monkeypatch):
    before = callable_identity(uses_a_table)
    monkeypatch.setitem(TABLE, "rate", [0.1, 0.3])
    assert callable_identity(uses_a_table) != before
    before = callable_identity(uses_a_class)
    monkeypatch.setattr(Scaled, "helped", lambda self, x: x)
    assert callable_identity(uses_a_class) != before
    before = callable_identity(uses_a_function)
    monkeypatch.setitem(globals(), "uses_a_number", lambda x: x)
    assert callable_identity(uses_a_function) != before


def test_values_in_the_users_own_modules_are_seen(tmp_path, monkeypatch):
    def read():
        code = "import own_settings\nimport math\ndef f(x): return own_settings.inner.rate * math.pi * x"
        scope = {"__name__": "own_code"}
        exec(code, scope)
        return callable_identity(scope["f"])

    for name in ("own_settings", "own_settings.inner"):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["own_settings"].inner = module
    module.rate = 0.1
    before = read()
    assert read() == before
    assert "unseen" not in before
    module.rate = 0.2
    assert read() != before


def test_methods_helpers_and_hooks_of_a_module_are_seen(monkeypatch):
    before = module_identity(layer())
    hooked = layer()
    hooked.linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert module_identity(hooked) != before
    again = layer()
    again.linear.register_forward_hook(lambda module, inputs, output: 2 * output).remove()
    assert module_identity(again) == before
    monkeypatch.setattr(Layer, "helped", lambda self, x: x)
    assert module_identity(layer()) != before


# --- θ is no part of a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [layer, lambda **_: nn.GRU(2, 3), lambda **_: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))]
)
def test_parameters_that_require_gradients_are_not_hashed_in_a_model(make):
    torch.manual_seed(0)
    model = make()
    before = module_identity(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert module_identity(model) == before
    first = next(model.parameters())
    first.requires_grad_(False)
    frozen = module_identity(model)
    assert frozen != before
    with torch.no_grad():
        first.add_(1)
    assert module_identity(model) != frozen


def test_a_teacher_in_a_loss_function_is_no_part_of_theta():
    def of(teacher):
        model, pair = nn.Linear(3, 3), (torch.ones(4, 3), torch.ones(4, 3))
        nn.init.zeros_(model.weight)
        teacher.requires_grad_(False)
        return jo.ModelLoss(model, lambda z, t: ((z - teacher(t)) ** 2).mean(), pair).identity()["function"]

    assert of(layer()) == of(layer()) != of(layer(change="linear.weight"))


# --- what is not seen --------------------------------------------------------------------------------------------


def halve(x):
    return x / 2


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Held(1), "systems.Held"),
        (lambda: [{"a": Held(1)}], "systems.Held"),
        (lambda: Scaled(Held(1)), "systems.Held"),
        (lambda: torch.Generator(), "torch._C.Generator"),
        (lambda: np.random.default_rng(0), "numpy.random._generator.Generator"),
        (lambda: threading.Lock(), "_thread.lock"),
        (lambda: np.frompyfunc(halve, 1, 1), "ufunc halve (vectorized)"),
        (lambda: sys.__stderr__, "_io.TextIOWrapper"),
        (lambda: sys.__stderr__.write, "_io.TextIOWrapper"),
        (lambda: torch.empty(2, device="meta"), "torch.Tensor of torch.strided on meta"),
        (lambda: layer(function=Held(1)), "systems.Held"),
        (lambda: jo.FunctionLoss(closed(Held(1)), size=2), "systems.Held"),
    ],
)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_cannot_be_seen_is_named(way, make, name):
    found = callable_identity(way(make()))
    assert found.endswith(f" (unseen: {name})")
    assert found == callable_identity(way(make()))


def test_an_object_is_looked_into_where_its_method_is_called():
    held = Held(1)
    held.method = types.MethodType(lambda self, x: self.value * x, held)
    other = Held(2)
    other.method = types.MethodType(lambda self, x: self.value * x, other)
    assert callable_identity(Held(1).__init__) != callable_identity(Held(2).__init__)
    assert callable_identity(held.method) == callable_identity(held.method) != callable_identity(other.method)


def test_a_variable_that_the_function_changes_is_no_constant(monkeypatch):
    calls = 0

    def counting(x):
        nonlocal calls
        calls += 1
        return x

    def counting_outside(x):
        global COUNT
        COUNT += 1
        return FACTOR * x

    for function, name in ((counting, "calls"), (counting_outside, "COUNT")):
        before = callable_identity(function)
        function(1.0)
        assert callable_identity(function) == before
        assert f"(unseen: the variable {name} that test_fingerprints." in before
    before = callable_identity(counting_outside)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert callable_identity(counting_outside) != before


def test_the_file_of_a_run_says_what_it_does_not_see(tmp_path):
    held = Held(2.0)
    f = jo.FunctionMap(lambda x: held.value * x, size=3)
    folder = jo.eigenpairs(f.jacobian(torch.zeros(3)), 1, "LM", method="dense").save(tmp_path / "run")
    assert "(unseen: systems.Held)" in (folder / "run.json").read_text()


# --- what holds itself, and what is deep -------------------------------------------------------------------------


def test_cycles_come_to_an_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1 + shift)

    shift = 0
    ring = [1]
    ring.append(ring)
    first = [callable_identity(f) for f in (even, odd, closed(ring))]
    assert first == [callable_identity(f) for f in (even, odd, closed(ring))]
    shift = 1
    assert callable_identity(even) != first[0]
    ring[0] = 2
    assert callable_identity(closed(ring)) != first[2]

    class Problem:
        def __init__(self, rate):
            self.rate, self.loss = rate, jo.FunctionLoss(self.value, size=2)

        def value(self, x):
            return self.rate * x.sum()

    problems = [Problem(rate).loss.identity() for rate in (1.0, 1.0, 2.0)]
    assert problems[0] == problems[1] != problems[2]


def test_what_lies_too_deep_is_said():
    def nested(depth, value):
        for _ in range(depth):
            value = [value]
        return callable_identity(closed(value))

    assert nested(30, 1) != nested(30, 2)
    assert "unseen: what lies deeper than 48" in nested(60, 1)


def test_a_tensor_is_hashed_once(monkeypatch):
    from jvp_ops.store import _sight

    calls = []
    original = _sight.sha256_of
    monkeypatch.setattr(_sight, "sha256_of", lambda *tensors: (calls.append(1), original(*tensors))[1])
    tensor = torch.ones(3)
    callable_identity(closed([tensor, (tensor, {"a": tensor}), closed(tensor)]))
    assert len(calls) == 1


OTHER_PROCESS = """
import sys, torch
torch.manual_seed(0)
import test_fingerprints as t
from jvp_ops.store import callable_identity, module_identity
for kind, (value, other) in t.PAIRS.items():
    for make in (value, other):
        print(kind, *(callable_identity(way(make())) for way in t.WAYS))
for f in (t.uses_a_number, t.uses_a_table, t.uses_a_function, t.uses_a_class, t.Wrong.apply, t.in_a_set, t.Scaled.half):
    print(callable_identity(f))
for f in (torch.sin, torch.nn.functional.cross_entropy, torch.nn.functional.max_pool2d, torch.nn.GELU(), abs, len):
    print(callable_identity(f))
print(module_identity(torch.nn.TransformerEncoderLayer(4, 2)), module_identity(torch.nn.GRU(2, 2)))
"""


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, g):
        return FACTOR * g


def in_a_set(x):
    return x in {"a", "b", "c", "d"} or x in KINDS


def test_two_processes_see_the_same():
    folder = os.path.dirname(__file__)
    found = []
    for seed in ("1", "2"):
        places = os.pathsep.join([folder, os.path.dirname(folder), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": places}
        warm = "import torch\nclass Before(torch.autograd.Function): pass\nx = [object() for _ in range(1000)]\n"
        code = (warm if seed == "2" else "") + OTHER_PROCESS
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == 2 * len(PAIRS) + 14
    assert "0x" not in found[0]
