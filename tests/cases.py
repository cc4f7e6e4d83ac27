"""Every operator of the package, each beside a dense matrix in float64 that is made without the package.

All numbers that go in are exact in float32, so an operator in float32 and its oracle stand at the same θ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache

import numpy as np
import torch
from optimizers import OPTIMIZERS
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional

import jvp_ops as jo

LR, DECAY = 0.125, 0.25


def numbers(seed, *shape, scale=1.0):
    """Draw normal numbers that are exact in float32, as float64."""
    drawn = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.from_numpy(drawn.astype(np.float32).astype(np.float64))


def hessian(function):
    """Differentiate twice in reverse (torch.func.hessian would import torch.jit, which warns)."""
    return jacrev(jacrev(function))


def labels_of(seed, samples, classes):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, samples))


def gauss_newton(outputs, loss_of, theta):
    """Multiply out Jᵀ (∂²ℓ/∂z²) J."""
    z = outputs(theta)
    J = jacrev(outputs)(theta).reshape(z.numel(), -1)
    return J.mT @ hessian(loss_of)(z).reshape(z.numel(), z.numel()) @ J


# --- the two-layer network ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoLayer:
    samples: int
    inputs: int
    hidden: int
    classes: int
    dead: tuple[int, ...] = ()
    zero_rows: tuple[int, ...] = ()
    sparsity: float = 0.0
    one_label: bool = False
    seed: int = 0

    def data(self):
        X = numbers(self.seed, self.samples, self.inputs)
        X[torch.from_numpy(np.random.default_rng(self.seed + 1).random(tuple(X.shape)) < self.sparsity)] = 0
        X[:, list(self.dead)] = 0
        X[list(self.zero_rows)] = 0
        t = labels_of(self.seed + 2, self.samples, self.classes)
        return X, torch.zeros_like(t) if self.one_label else t

    def loss(self, dtype=torch.float64, device="cpu", **options):
        X, t = self.data()
        return jo.TwoLayerLoss(X, t, hidden=self.hidden, classes=self.classes, dtype=dtype, device=device, **options)

    def theta(self, dtype=torch.float64, device="cpu"):
        d, h, c = self.inputs, self.hidden, self.classes
        return numbers(self.seed + 3, d * h + h + h * c + c).to(device, dtype)

    def split(self, theta):
        d, h, c = self.inputs, self.hidden, self.classes
        W1, b1, W2, b2 = theta.split([d * h, h, h * c, c])
        return W1.view(d, h), b1, W2.view(h, c), b2

    def logits(self, theta):
        W1, b1, W2, b2 = self.split(theta)
        return torch.sigmoid(self.data()[0] @ W1 + b1) @ W2 + b2

    def value(self, theta):
        return functional.cross_entropy(self.logits(theta), self.data()[1])

    @cache  # noqa: B019
    def H(self):
        return hessian(self.value)(self.theta())

    @cache  # noqa: B019
    def G(self):
        def outputs(theta, x):
            W1, b1, W2, b2 = self.split(theta)
            return torch.sigmoid(x @ W1 + b1) @ W2 + b2

        p = torch.softmax(self.logits(self.theta()), 1)
        J = vmap(jacrev(outputs), in_dims=(None, 0))(self.theta(), self.data()[0])
        S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("kin,kim->nm", J, S @ J) / len(p)


TWO_LAYER = {
    "one hidden unit": TwoLayer(7, 3, 1, 3),
    "two classes": TwoLayer(9, 4, 3, 2, seed=10),
    "one sample": TwoLayer(1, 3, 2, 3, seed=20),
    "more inputs than samples": TwoLayer(4, 11, 2, 3, seed=30),
    "dead inputs": TwoLayer(12, 6, 3, 4, dead=(1, 4), seed=40),
    "rows of zeros": TwoLayer(9, 4, 2, 3, zero_rows=(0, 5), seed=50),
    "no live input": TwoLayer(5, 2, 2, 3, dead=(0, 1), seed=60),
    "several sparse chunks": TwoLayer(5000, 4, 2, 3, sparsity=0.5, seed=70),
    "several chunks that nothing divides": TwoLayer(4500, 2, 2, 2, one_label=True, seed=80),
}

# --- modules -----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.extra = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return torch.tanh(self.used(x))


class Attention(nn.Module):
    """A pre-norm transformer block over 3 tokens of width 4, two heads, then a mean over tokens."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.wide, self.narrow, self.head = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        x = x + self.narrow(functional.gelu(self.wide(self.norm2(x))))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 2), nn.Linear(3, 2)

    def forward(self, left, right):
        return torch.tanh(self.left(left)) * self.right(right)


def frozen_first():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return model


def convolutional():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    model[1].running_mean.copy_(torch.tensor([0.25, -0.5]))
    model[1].running_var.copy_(torch.tensor([0.5, 2.0]))
    return model.eval()


def gru_by_hand(weights, x):
    """Follow nn.GRU's documented equations, step by step."""
    h = x.new_zeros(len(x), 3)
    for step in range(x.shape[1]):
        inner = (x[:, step] @ weights["cell.weight_ih_l0"].mT + weights["cell.bias_ih_l0"]).split(3, 1)
        outer = (h @ weights["cell.weight_hh_l0"].mT + weights["cell.bias_hh_l0"]).split(3, 1)
        r, z = torch.sigmoid(inner[0] + outer[0]), torch.sigmoid(inner[1] + outer[1])
        h = (1 - z) * torch.tanh(inner[2] + r * outer[2]) + z * h
    return h @ weights["head.weight"].mT + weights["head.bias"]


def attention_by_hand(weights, x):
    """Write the block of `Attention` out in plain sums."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].mT + weights[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    q, k, v = linear("qkv", norm("norm1", x)).split(4, 2)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        scores = q[..., head] @ k[..., head].mT / 2**0.5
        heads.append(torch.softmax(scores, -1) @ v[..., head])
    x = x + linear("out", torch.cat(heads, -1))
    wide = linear("wide", norm("norm2", x))
    x = x + linear("narrow", wide * (1 + torch.erf(wide / 2**0.5)) / 2)
    return linear("head", x.mean(1))


def mean_cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs, targets)


def sum_of_squares(outputs, targets):
    return ((outputs - targets) ** 2).sum()


@torch.no_grad()
def _round(module):
    for p in module.parameters(recurse=False):
        p.copy_(p.float())


def seeded(make):
    """Make a module with fixed weights, exact in float32, in float64 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make().double().eval().apply(_round)


@dataclass(frozen=True)
class Module:
    make: Callable[[], nn.Module]
    inputs: object
    targets: torch.Tensor
    function: Callable = mean_cross_entropy
    names: str = "*"
    by_hand: Callable | None = None

    @cache  # noqa: B019
    def model(self):
        return seeded(self.make)

    def loss(self, dtype=torch.float64, device="cpu", **options):
        options.setdefault("parameters", self.names)
        return jo.ModelLoss(
            self.model(), self.function, (self.inputs, self.targets), dtype=dtype, device=device, **options
        )

    def outputs(self, theta):
        """Run the model at a flat θ, without the package."""
        entries = [(n, p) for n, p in self.model().named_parameters() if p.requires_grad and fnmatch(n, self.names)]
        pieces = theta.split([p.numel() for _, p in entries])
        weights = {name: piece.view(p.shape) for (name, p), piece in zip(entries, pieces, strict=True)}
        if self.by_hand is not None:
            return self.by_hand(weights, self.inputs)
        keywords = self.inputs if isinstance(self.inputs, dict) else {}
        return functional_call(self.model(), weights, () if keywords else self.inputs, keywords)

    def theta(self):
        pairs = self.model().named_parameters()
        return torch.cat([p.detach().reshape(-1) for n, p in pairs if p.requires_grad and fnmatch(n, self.names)])

    def value(self, theta):
        return self.function(self.outputs(theta), self.targets)

    @cache  # noqa: B019
    def H(self):
        return hessian(self.value)(self.theta()).detach()

    @cache  # noqa: B019
    def G(self):
        return gauss_newton(self.outputs, lambda z: self.function(z, self.targets), self.theta()).detach()

    def __hash__(self):
        return id(self)


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


_X, _T = numbers(90, 7, 3), labels_of(91, 7, 3)
MODULES = {
    "perceptron": Module(mlp, _X, _T),
    "perceptron by sum": Module(mlp, _X, numbers(92, 7, 3), function=sum_of_squares),
    "subset by glob": Module(mlp, _X, _T, names="2.*"),
    "frozen layer": Module(frozen_first, _X, _T),
    "tied weights": Module(Tied, _X, _T),
    "unused layer": Module(Unused, _X, labels_of(93, 7, 2)),
    "two inputs by keyword": Module(
        TwoInputs, {"left": numbers(94, 6, 2), "right": numbers(95, 6, 3)}, labels_of(96, 6, 2)
    ),
    "convolutions with batch-norm": Module(convolutional, numbers(97, 6, 1, 6, 6), labels_of(98, 6, 3)),
    "transformer block": Module(Attention, numbers(99, 5, 3, 4), labels_of(100, 5, 3), by_hand=attention_by_hand),
    "gated recurrence": Module(Recurrent, numbers(101, 5, 4, 2), labels_of(102, 5, 2), by_hand=gru_by_hand),
}

# --- functions ---------------------------------------------------------------------------------------------------

PARTS = {"A": (2, 3), "b": (2,), "unused": (1,)}


def scalar(theta):
    A, b = theta[:6].reshape(2, 3), theta[6:8]
    return torch.tanh(A.mT @ torch.sin(b)).sum() + (A**2).sum() ** 2 / 8 + b.prod()


def circulation(state):
    """A step with momentum along a field that is no gradient: state (x, v)."""
    x, v = state[:3], state[3:]
    v = 0.5 * v + x * (x @ x) + torch.stack([x[1], x[0] * x[2], torch.sin(x[0])])
    return torch.cat([x - 0.25 * v, v])


# --- the registry ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    operator: Callable  # (dtype, device) to the operator
    oracle: Callable  # () to its matrix in float64


def _descent(decay):
    def operator(problem, dtype, device):
        f = jo.GradientDescent(problem.loss(dtype, device), LR, weight_decay=decay)
        return f.jacobian(problem.theta().to(device, dtype))

    return operator, lambda problem: (1 - LR * decay) * torch.eye(len(problem.H())).double() - LR * problem.H()


def _optimizer(known):
    """Linearize an optimizer's step number 2."""

    def operator(problem, dtype, device):
        f = known.make(problem.loss(dtype, device))
        return f.jacobian(known.state(problem.theta()).to(device, dtype), 2)

    return operator, lambda problem: known.jacobian(problem.value, known.state(problem.theta()), 2)


_OPTIMIZERS = {name: _optimizer(known) for name, known in OPTIMIZERS.items() if name != "descent"}
_KINDS = {
    "Hessian": (lambda p, dtype, device: p.loss(dtype, device).hessian(p.theta().to(device, dtype)), lambda p: p.H()),
    "Gauss-Newton": (
        lambda p, dtype, device: p.loss(dtype, device).gauss_newton(p.theta().to(device, dtype)),
        lambda p: p.G(),
    ),
    "descent": _descent(0.0),
    "descent with decay": _descent(DECAY),
    **_OPTIMIZERS,
}


def _of(problems, kinds, prefix):
    for name, problem in problems.items():
        for kind in kinds:
            operator, oracle = _KINDS[kind]
            yield Case(
                f"{prefix}: {name}: {kind}",
                lambda dtype, device, problem=problem, operator=operator: operator(problem, dtype, device),
                lambda problem=problem, oracle=oracle: oracle(problem),
            )


def _map(dtype, device):
    f = jo.FunctionMap(circulation, shapes={"x": (3,), "v": (3,)}, dtype=dtype, device=device)
    return f.jacobian(numbers(110, 6).to(device, dtype))


def _function(dtype, device):
    loss = jo.FunctionLoss(scalar, shapes=PARTS, dtype=dtype, device=device)
    return loss.hessian(numbers(111, 9).to(device, dtype))


def _jacobian():
    return jacrev(circulation)(numbers(110, 6))


def _views():
    """Blocks and transposes: name, view of an operator, the same view of its matrix."""
    two, f = TWO_LAYER["dead inputs"], _KINDS["descent with decay"]
    places = {"W1": range(18), "b1": range(18, 21), "W2": range(21, 33), "b2": range(33, 37)}

    def block(view, rows, columns):
        i = [n for name in rows for n in places[name]]
        j = [n for name in columns for n in places[name]]
        return lambda dtype, device: view(f[0](two, dtype, device)), lambda: f[1](two)[i][:, j]

    yield "block", *block(lambda A: A.block("W1", "b2"), ["W1"], ["b2"])
    yield "diagonal block", *block(lambda A: A.block("W2", "W2"), ["W2"], ["W2"])
    yield "block of lists", *block(lambda A: A.block(["b*", "W1"], ["W2"]), ["W1", "b1", "b2"], ["W2"])
    yield "transposed block", *block(lambda A: A.block("W1", "b2").T, ["b2"], ["W1"])
    yield "block of a block", *block(lambda A: A.block("W*", "b*").block("W2", "b1"), ["W2"], ["b1"])
    yield "map", _map, _jacobian
    yield "transposed map", lambda *where: _map(*where).T, lambda: _jacobian().mT
    yield "adjoint of the adjoint", lambda *where: _map(*where).H.H, _jacobian
    yield "block of a map", lambda *where: _map(*where).block("v", "x"), lambda: _jacobian()[3:, :3]
    yield "block of a transposed map", lambda *where: _map(*where).T.block("x", "v"), lambda: _jacobian().mT[:3, 3:]
    yield "function", _function, lambda: hessian(scalar)(numbers(111, 9))


CASES = [
    *_of(TWO_LAYER, ["Hessian", "Gauss-Newton", "descent", "descent with decay"], "two-layer"),
    *_of({"two classes": TWO_LAYER["two classes"]}, _OPTIMIZERS, "two-layer"),
    *_of(MODULES, ["Hessian", "Gauss-Newton"], "module"),
    *_of({"perceptron": MODULES["perceptron"]}, ["descent", "descent with decay", *_OPTIMIZERS], "module"),
    *(Case(f"view: {name}", operator, oracle) for name, operator, oracle in _views()),
]
