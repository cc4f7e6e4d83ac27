"""Models on which torch itself gives up somewhere: each is right, or refused by a message that names the trouble."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_near, differences, theta_of, training_gradient
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import jvp_ops as jo

pytestmark = pytest.mark.filterwarnings("ignore:::torch", "ignore:.*torch.jit", "ignore:Sparse")

X, T = numbers(700, 24, 5), labels_of(701, 24, 3)
IDS = torch.arange(144).reshape(24, 6) * 7 % 10
IMAGES = numbers(702, 24, 1, 4, 4)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a, self.h, self.b, self.reentrant = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3), reentrant

    def forward(self, x):
        inner = checkpoint(lambda y: torch.tanh(self.h(y)), torch.tanh(self.a(x)), use_reentrant=self.reentrant)
        return self.b(inner)


class CheckpointedInput(Checkpointed):
    """The first layer is checkpointed, whose input requires no gradient: torch warns, and loses its weights."""

    def forward(self, x):
        return self.b(checkpoint(lambda y: torch.tanh(self.a(y)), x, use_reentrant=self.reentrant))


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(10, 3, **options), nn.Linear(3, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.bag(ids)))


class Weighted(Bags):
    def forward(self, ids):
        weights = torch.linspace(0.5, 1, 6).double().expand(len(ids), 6)
        return self.head(torch.tanh(self.bag(ids, per_sample_weights=weights)))


class Tokens(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 3, **options), nn.Linear(3, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids)).mean(1))


class Distances(nn.Module):
    """A radial basis network by torch.cdist."""

    def __init__(self):
        super().__init__()
        self.centres, self.head = nn.Parameter(torch.randn(4, 5)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.exp(-(torch.cdist(x, self.centres) ** 2) / 8))


class Warped(nn.Module):
    """A spatial transformer by torch's grid_sample."""

    def __init__(self):
        super().__init__()
        self.locate, self.head = nn.Linear(16, 6), nn.Linear(16, 3)

    def forward(self, x):
        turn = torch.tanh(self.locate(x.flatten(1))).reshape(-1, 2, 3) / 2
        grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
        return self.head(functional.grid_sample(x, grid, align_corners=False).flatten(1))


def mlp():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def connectionist(outputs, targets):
    paths = functional.log_softmax(outputs, 1)[None].expand(4, -1, -1)
    lengths = torch.full((len(targets),), 4), torch.ones(len(targets), dtype=torch.long)
    return functional.ctc_loss(paths, (targets % 2 + 1)[:, None], *lengths)


def several_margins(outputs, targets):
    return functional.multilabel_margin_loss(outputs, functional.pad(targets[:, None], (0, 2), value=-1))


@dataclass(frozen=True)
class Awkward:
    make: Callable
    inputs: object
    words: str
    function: Callable = functional.cross_entropy
    rewrap: Callable = nn.Sequential


AWKWARD = {
    "a reentrant checkpoint": Awkward(lambda: Checkpointed(True), X, "checkpoint"),
    "a checkpoint": Awkward(lambda: Checkpointed(False), X, "checkpoint"),
    "a bag of means": Awkward(Bags, IDS, "EmbeddingBag|embedding_bag"),
    "a bag of sums": Awkward(lambda: Bags(mode="sum"), IDS, "EmbeddingBag|embedding_bag"),
    "a bag of maxima": Awkward(lambda: Bags(mode="max"), IDS, "EmbeddingBag|embedding_bag"),
    "a bag with padding": Awkward(lambda: Bags(padding_idx=3), IDS, "EmbeddingBag|embedding_bag"),
    "a weighted bag": Awkward(lambda: Weighted(mode="sum"), IDS, "EmbeddingBag|embedding_bag"),
    "an embedding with sparse gradients": Awkward(lambda: Tokens(sparse=True), IDS, "sparse"),
    "an embedding of bounded norm": Awkward(lambda: Tokens(max_norm=1.0), IDS, "max_norm"),
    "a scripted model": Awkward(mlp, X, "TorchScript|ScriptModule", rewrap=torch.jit.script),
    "a traced model": Awkward(
        mlp, X, "TorchScript|ScriptModule|TopLevelTracedModule", rewrap=lambda m: torch.jit.trace(m, X)
    ),
    "a scripted part": Awkward(
        mlp, X, "TorchScript|ScriptModule", rewrap=lambda m: nn.Sequential(torch.jit.script(m[0]), m[1], m[2])
    ),
    "a compiled model": Awkward(mlp, X, "compile", rewrap=lambda m: torch.compile(m, backend="aot_eager")),
    "a compiled part": Awkward(
        mlp, X, "compile", rewrap=lambda m: nn.Sequential(torch.compile(m[:2], backend="aot_eager"), m[2])
    ),
    "connectionist loss": Awkward(mlp, X, "ctc_loss", connectionist),
    "a margin": Awkward(mlp, X, "multi_margin_loss", functional.multi_margin_loss),
    "several margins": Awkward(mlp, X, "multilabel_margin_loss", several_margins),
    "distances": Awkward(Distances, X, "cdist"),
    "a warp": Awkward(Warped, IMAGES, "grid_sample"),
    "parallel copies": Awkward(mlp, X, "DataParallel", rewrap=nn.DataParallel),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_it_is_right_or_refused_by_name(name):
    case = AWKWARD[name]
    plain = seeded(case.make)
    theta = theta_of(plain)
    gradient = training_gradient(plain, case.function, case.inputs, T)
    value, slope, H = (
        case.function(plain(case.inputs), T).detach(),
        gradient(theta),
        differences(gradient, theta, h=1e-5),
    )
    assert torch.isfinite(H).all()
    try:
        loss = jo.ModelLoss(case.rewrap(seeded(case.make)), case.function, (case.inputs, T))
        found = loss.value(theta), loss.gradient(theta), loss.hessian(theta).dense()
        eye = torch.eye(len(theta)).double()
        products = loss.hessian(theta).apply(eye)
    except jo.JvpOpsError as error:
        assert any(word in str(error) for word in case.words.split("|"))  # noqa: PT017
        return
    assert_near(found[0], value, floor=1.0)
    assert_near(found[1], slope)
    assert_near(found[2], H, 1e-6)
    assert_near(products, H, 1e-6)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_a_checkpoint_that_loses_weights_is_right_or_refused():
    model = seeded(lambda: CheckpointedInput(True))
    gradient = training_gradient(seeded(lambda: CheckpointedInput(False)), functional.cross_entropy, X, T)
    try:
        loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
        found = loss.gradient(loss.initial()), loss.hessian(loss.initial()).dense()
    except jo.JvpOpsError as error:
        assert "checkpoint" in str(error)  # noqa: PT017
        return
    assert_near(found[0], gradient(loss.initial()))
    assert_near(found[1], differences(gradient, loss.initial()), 1e-8)


def test_lazy_layers_are_refused_until_they_have_seen_data():
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3)).double()
    with pytest.raises(jo.JvpOpsError, match=r"Lazy"):
        jo.ModelLoss(model, functional.cross_entropy, (X, T))
    model(X)
    gradient = training_gradient(model, functional.cross_entropy, X, T)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    assert_near(loss.gradient(loss.initial()), gradient(loss.initial()))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_inputs_are_right_or_refused(layout):
    inputs = X * (X > 0)
    plain = seeded(lambda: nn.Linear(5, 3))
    gradient = training_gradient(plain, functional.cross_entropy, inputs, T)
    try:
        loss = jo.ModelLoss(plain, functional.cross_entropy, (inputs.to_sparse(layout=layout), T))
        found = loss.gradient(loss.initial()), loss.hessian(loss.initial()).dense()
    except jo.JvpOpsError as error:
        assert "sparse" in str(error)  # noqa: PT017
        return
    assert_near(found[0], gradient(loss.initial()))
    assert_near(found[1], differences(gradient, loss.initial()), 1e-8)


def test_nested_inputs_are_right_or_refused():
    rows = torch.nested.nested_tensor([numbers(703, n, 5) for n in (2, 3, 1)], layout=torch.jagged)

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 3)

        def forward(self, x):
            return torch.stack([self.l(row).sum(0) for row in x.unbind()])

    plain, labels = seeded(Summed), T[:3]
    gradient = training_gradient(plain, functional.cross_entropy, rows, labels)
    try:
        loss = jo.ModelLoss(plain, functional.cross_entropy, (rows, labels))
        found = loss.gradient(loss.initial()), loss.hessian(loss.initial()).dense()
    except jo.JvpOpsError as error:
        assert "nested" in str(error)  # noqa: PT017
        return
    assert_near(found[0], gradient(loss.initial()))
    assert_near(found[1], differences(gradient, loss.initial()), 1e-8)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_empty_batch_adds_nothing_wherever_it_stands(place):
    batches = list(zip(X.split(8), T.split(8), strict=True))
    batches.insert(place, (X[:0], T[:0]))
    model = seeded(mlp)
    gradient = training_gradient(model, functional.cross_entropy, X, T)
    loss = jo.ModelLoss(model, functional.cross_entropy, batches)
    theta = loss.initial()
    assert loss.samples == 24
    assert_near(loss.value(theta), functional.cross_entropy(model(X), T).detach())
    assert_near(loss.gradient(theta), gradient(theta))
    for A in (loss.hessian(theta), loss.gauss_newton(theta)):
        assert A.shape == (39, 39)
    assert_near(loss.hessian(theta).dense(), differences(gradient, theta), 1e-8)
