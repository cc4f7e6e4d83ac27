"""Batches as people have them: dicts, tuples of three, what unpack= makes of others, and models that make the loss."""

from types import SimpleNamespace

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact_gauss_newton, outputs_at
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import jvp_ops as jo

X, Y, T = numbers(610, 24, 5), numbers(611, 24, 4), labels_of(612, 24, 3)
W = numbers(613, 24).abs() + 0.1
CUTS = [slice(0, 7), slice(7, 8), slice(8, 24)]


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(5, 3)

    def forward(self, x):
        return torch.sin(self.left(x))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, x, y):
        return torch.sin(self.left(x)) + self.right(y)


class Optional(Two):
    def forward(self, x, y=None):
        return torch.sin(self.left(x)) + (0 if y is None else self.right(y))


class AnyNumber(Two):
    def forward(self, *parts):
        return super().forward(*parts)


class KeywordOnly(Two):
    """One input by place; the keyword has a default, and no batch of three can reach it."""

    def forward(self, x, *, scale=1.0):
        return scale * torch.sin(self.left(x))


def weighted(outputs, targets):
    labels, weights = targets
    return (weights * functional.cross_entropy(outputs, labels, reduction="none")).mean()


def threes(*tensors):
    batches = [tuple(t[cut] for t in tensors) for cut in CUTS]
    loader = DataLoader(TensorDataset(*tensors), batch_size=7)  # gives lists
    return [tensors, batches, [list(batch) for batch in batches], loader]


@pytest.mark.parametrize("how", range(4), ids=["one batch", "tuples", "lists", "a loader"])
def test_of_three_tensors_the_model_takes_as_many_as_it_requires(how):
    model = seeded(Two)
    loss = jo.ModelLoss(model, functional.cross_entropy, threes(X, Y, T)[how])
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, X, Y), T))
    for kind in (One, KeywordOnly):
        model = seeded(kind)
        loss = jo.ModelLoss(model, weighted, threes(X, T, W)[how])
        assert_matches(loss, lambda t, m=model: weighted(outputs_at(m, t, X), (T, W)))


def test_subsets_of_one_batch_of_three_take_all_three():
    model, index = seeded(Two), torch.tensor([3, 0, 20])
    part = jo.ModelLoss(model, functional.cross_entropy, (X, Y, T)).subset(index)
    assert_matches(part, lambda t: functional.cross_entropy(outputs_at(model, t, X[index], Y[index]), T[index]))


@pytest.mark.parametrize("kind", [Optional, AnyNumber])
@pytest.mark.parametrize("how", range(4))
def test_where_forward_could_take_more_the_split_is_asked_for(kind, how):
    with pytest.raises(jo.InputError, match="unpack="):
        jo.ModelLoss(seeded(kind), functional.cross_entropy, threes(X, Y, T)[how])


@pytest.mark.parametrize("how", range(4))
def test_unpack_says_what_is_an_input(how):
    model = seeded(Optional)
    both = jo.ModelLoss(model, functional.cross_entropy, threes(X, Y, T)[how], unpack=lambda b: ((b[0], b[1]), b[2]))
    assert_matches(both, lambda t: functional.cross_entropy(outputs_at(model, t, X, Y), T))
    named = jo.ModelLoss(
        model, functional.cross_entropy, threes(X, Y, T)[how], unpack=lambda b: ({"x": b[0], "y": b[1]}, b[2])
    )
    assert_near(named.gradient(named.initial()), both.gradient(both.initial()))
    one = jo.ModelLoss(model, weighted, threes(X, T, W)[how], unpack=lambda b: (b[0], (b[1], b[2])))
    assert_matches(one, lambda t: weighted(outputs_at(model, t, X), (T, W)))


class Records(Dataset):
    """Samples as dicts with a name beside the tensors."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return {"id": f"sample {i}", "pixels": X[i], "answer": int(T[i])}


def test_unpack_may_leave_out_what_is_no_tensor():
    model = seeded(One)
    loader = DataLoader(Records(), batch_size=7)
    loss = jo.ModelLoss(model, functional.cross_entropy, loader, unpack=lambda b: (b["pixels"], b["answer"]))
    assert loss.samples == 24
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, X), T))


@pytest.mark.parametrize(
    "unpack",
    [3, lambda batch: batch[0], lambda batch: None, lambda batch: batch, lambda: None],
    ids=["a number", "inputs alone", "nothing", "all three", "no argument"],
)
def test_an_unpack_of_the_wrong_kind_is_refused(unpack):
    with pytest.raises(jo.InputError, match="unpack"):
        jo.ModelLoss(seeded(Two), functional.cross_entropy, threes(X, Y, T)[1], unpack=unpack)


class ByKeyword(Two):
    """Keywords in, logits out; with labels, the loss too, as transformers' models do."""

    def forward(self, x, y=None, labels=None):
        z = torch.sin(self.left(x)) + (0 if y is None else self.right(y))
        loss = None if labels is None else functional.cross_entropy(z, labels)
        return {"loss": loss, "logits": z}


class Scalar(ByKeyword):
    def forward(self, x, y, labels):
        return super().forward(x, y, labels)["loss"]


class WithLoss(ByKeyword):
    def forward(self, x, y=None, labels=None):
        found = super().forward(x, y, labels)
        return SimpleNamespace(**found)


def dicts(**tensors):
    batches = [{name: t[cut] for name, t in tensors.items()} for cut in CUTS]
    return [tensors, batches]


def logits(theta):
    return torch.sin(X @ theta[:15].reshape(3, 5).mT + theta[15:18]) + (Y @ theta[18:30].reshape(3, 4).mT + theta[30:])


@pytest.mark.parametrize("how", [0, 1], ids=["one batch", "ragged"])
@pytest.mark.parametrize("kind", [ByKeyword, Scalar, WithLoss])
def test_a_model_may_make_the_loss_itself(kind, how):
    holes = torch.where(torch.arange(24) % 3 == 0, -100, T)
    for targets in (T, holes):
        loss = jo.ModelLoss(seeded(kind), None, dicts(x=X, y=Y, labels=targets)[how])
        assert_matches(loss, lambda t, targets=targets: functional.cross_entropy(logits(t), targets))


@pytest.mark.parametrize("how", [0, 1], ids=["one batch", "ragged"])
def test_gauss_newton_of_a_loss_that_the_model_makes_is_split_at_its_logits(how):
    loss = jo.ModelLoss(seeded(ByKeyword), None, dicts(x=X, y=Y, labels=T)[how], outputs="logits")
    theta = loss.initial()
    G = exact_gauss_newton(logits, lambda z: functional.cross_entropy(z, T), theta)
    try:
        found = loss.gauss_newton(theta).dense()
    except jo.InputError as error:
        assert "loss_function" in str(error)  # noqa: PT017
        return
    assert_near(found, G)


@pytest.mark.parametrize("how", [0, 1], ids=["one batch", "ragged"])
def test_with_a_loss_function_the_labels_are_not_given_to_the_model(how):
    model = seeded(ByKeyword)
    seen = []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)

    def of_logits(outputs, targets):
        assert outputs["loss"] is None
        return functional.cross_entropy(outputs["logits"], targets)

    loss = jo.ModelLoss(model, of_logits, dicts(x=X, y=Y, labels=T)[how])
    assert_matches(loss, lambda t: functional.cross_entropy(logits(t), T))
    assert set().union(*seen) <= {"x", "y"}


def test_without_labels_the_batch_itself_is_the_target():
    def rebuild(outputs, batch):
        return functional.mse_loss(outputs["logits"], batch["x"][:, :3])

    for data in dicts(x=X, y=Y):
        loss = jo.ModelLoss(seeded(ByKeyword), rebuild, data)
        assert_matches(loss, lambda t: functional.mse_loss(logits(t), X[:, :3]))


def test_a_model_that_makes_no_loss_needs_a_loss_function():
    for data in ({"x": X, "y": Y}, (X, T)):
        with pytest.raises(jo.InputError, match="loss_function"):
            jo.ModelLoss(seeded(ByKeyword if isinstance(data, dict) else One), None, data)
    with pytest.raises(jo.InputError, match="loss"):
        jo.ModelLoss(seeded(One), "cross_entropy", (X, T))


def test_batches_of_other_kinds_are_refused_with_a_way_out():
    for batch in ("abc", X, (X,), (X, "names"), {"x": X, "y": ["a"] * 24}):
        with pytest.raises(jo.InputError, match=r"unpack=|\(inputs, targets\)"):
            jo.ModelLoss(seeded(One), functional.cross_entropy, [batch, batch])
