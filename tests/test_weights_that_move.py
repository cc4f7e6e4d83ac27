"""Means whose weights only a closer look shows: masks by index, means of means, weights that depend on θ, lengths."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact, outputs_at, smallest_budget, theta_of
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import jvp_ops as jo

N, TOKENS = 60, 7
X, T = numbers(840, N, 5), labels_of(841, N, 3)
Y, KEPT = numbers(842, N, 3), torch.arange(N) % 5 < 2 + torch.arange(N) // 25  # more and more of them
SEQUENCES, WORDS = numbers(843, N, TOKENS, 4), labels_of(844, N * TOKENS, 3).reshape(N, TOKENS)
LENGTHS = 1 + torch.arange(N) * 3 % TOKENS
LABELS = torch.where(torch.arange(TOKENS) < LENGTHS[:, None], WORDS, -100)


def net(inputs=5):
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, 3))


def by_mask(z, targets):
    y, kept = targets
    return functional.mse_loss(z[kept], y[kept])


def by_numbers(z, targets):
    y, kept = targets
    rows = kept.nonzero()[:, 0]
    return functional.smooth_l1_loss(z.index_select(0, rows), y.index_select(0, rows))


def by_entries(z, targets):
    y, kept = targets
    chosen = kept[:, None] & (torch.arange(3) < 2)
    return functional.binary_cross_entropy_with_logits(z[chosen], y[chosen].sigmoid())


def each_sequence(z, t):
    return torch.stack([functional.cross_entropy(a, b, ignore_index=-100) for a, b in zip(z, t, strict=True)]).mean()


CLASSES = torch.tensor([0.2, 1.0, 5.0]).double()


def each_sample(z, t):
    each = [functional.cross_entropy(a, b, weight=CLASSES) for a, b in zip(z, t, strict=True)]
    return sum(each) / len(each)


def forms(loss_of, x, t):
    """Give the same data as one batch, in ragged batches, and cut as far as memory allows."""
    pick = (lambda index: tuple(p[index] for p in t)) if isinstance(t, tuple) else lambda index: t[index]
    cuts = (torch.arange(0, 20), torch.arange(20, 23), torch.arange(23, N))
    yield loss_of((x, t), None)
    yield loss_of([(x[index], pick(index)) for index in cuts], None)
    yield loss_of((x, t), smallest_budget(lambda budget: loss_of((x, t), budget), "hessian")[0])
    even = torch.arange(N).split(20)
    yield loss_of([(x[index], pick(index)) for index in even], None)


@pytest.mark.parametrize("function", [by_mask, by_numbers, by_entries])
def test_masks_weigh_as_in_one_batch_whatever_is_cut(function):
    model = seeded(net)

    def made(data, budget):
        return jo.ModelLoss(model, function, data, max_memory=budget)

    for loss in forms(made, X, (Y, KEPT)):
        assert_matches(loss, lambda theta: function(outputs_at(model, theta, X), (Y, KEPT)), rtol=1e-11)


@pytest.mark.parametrize("function, inputs, targets", [(each_sequence, SEQUENCES, LABELS), (each_sample, X, T)])
def test_a_mean_of_means_is_that_whatever_is_cut(function, inputs, targets):
    model = seeded(lambda: net(inputs.shape[-1]))

    def made(data, budget):
        return jo.ModelLoss(model, function, data, max_memory=budget)

    for loss in forms(made, inputs, targets):
        assert_matches(loss, lambda theta: function(outputs_at(model, theta, inputs), targets), rtol=1e-11)


def hard_examples(z, t):
    hard = functional.cross_entropy(z, t, reduction="none") > 1.0
    return functional.cross_entropy(z, torch.where(hard, t, -100))


def hard_rows(z, t):
    hard = functional.cross_entropy(z, t, reduction="none").detach() > 1.0
    return functional.cross_entropy(z[hard], t[hard])


def confident(z, t):
    sure, label = z.detach().softmax(1).max(1)
    return functional.cross_entropy(z, torch.where(sure > 0.4, label, -100))


@pytest.mark.parametrize("function", [hard_examples, hard_rows, confident])
@pytest.mark.parametrize("cut", [N, 20])
def test_weights_that_depend_on_the_parameters_are_refused(function, cut):
    data = (X, T) if cut == N else list(zip(X.split(cut), T.split(cut), strict=True))
    model = seeded(net)
    refused = 0
    for factor in (1.0, 2.0, -1.5, 5.0):
        theta = factor * theta_of(model)
        try:
            loss = jo.ModelLoss(model, function, data)
            found = loss.value(theta), loss.gradient(theta)
        except jo.InputError as error:
            refused += "coupled=True" in str(error)
        else:  # where it weighs as it was found to
            true = exact(lambda at: function(outputs_at(model, at, X), T), theta)
            assert_near(found[0], true.value, 1e-12)
            assert_near(found[1], true.gradient, 1e-11)
    assert refused >= 3


@pytest.mark.parametrize("function", [hard_examples, hard_rows, confident])
def test_coupled_they_are_right(function):
    model = seeded(net)
    loss = jo.ModelLoss(model, function, (X, T), coupled=True)
    theta = theta_of(model)
    true = exact(lambda at: function(outputs_at(model, at, X), T), theta)
    assert_near(loss.value(theta), true.value, 1e-12)
    assert_near(loss.gradient(theta), true.gradient, 1e-12)
    assert_near(loss.hessian(theta).dense(), true.hessian, 1e-11)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("kind", ["value", "gradient", "hessian", "gauss_newton"])
def test_weights_that_are_others_only_elsewhere_are_refused_there(kind, tight):
    def rare(z, t):
        far = z.detach().abs().amax(1) > 40
        return functional.cross_entropy(z, torch.where(far | (t == 2), -100, t))

    def made(budget):
        return jo.ModelLoss(seeded(net), rare, [(X, T)], max_memory=budget)

    loss = made(smallest_budget(made, "gauss_newton")[0] if tight else None)
    getattr(loss, kind)(loss.initial())
    with pytest.raises(jo.InputError, match="divides by depends on the parameters"):
        getattr(loss, kind)(60 * loss.initial())


class OwnLoss(nn.Module):
    """A token mean that is written out, of which only the number is seen."""

    def __init__(self, flat):
        super().__init__()
        self.net, self.flat = net(4), flat

    def forward(self, x, t=None):
        each = functional.cross_entropy(self.net(x).mT, t, reduction="none") if t is not None else self.net(x)
        return each.mean() if t is not None else each.flatten() if self.flat else torch.distributions.Normal(each, 1.0)


def test_hand_written_means_over_ragged_batches_are_refused_where_no_output_shows_them():
    cuts = [SEQUENCES[:20], SEQUENCES[20:30, :3], SEQUENCES[30:, :5]]
    labels = [WORDS[:20], WORDS[20:30, :3], WORDS[30:, :5]]
    own = [{"x": x, "t": t} for x, t in zip(cuts, labels, strict=True)]
    with pytest.raises(jo.InputError, match="normalizer"):
        jo.ModelLoss(seeded(lambda: OwnLoss(False)), None, own)
    values = [(x, numbers(845, *x.shape[:2], 3)) for x in cuts]
    with pytest.raises(jo.InputError, match="normalizer"):
        jo.ModelLoss(seeded(lambda: OwnLoss(True)), lambda z, y: ((z - y.flatten()) ** 2).mean(), values)
    with pytest.raises(jo.InputError, match="normalizer"):
        jo.ModelLoss(seeded(lambda: OwnLoss(False)), lambda z, y: -z.log_prob(y).mean(), values)


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_regularizer_with_a_checkpoint_over_parameters_that_it_closes_over_is_right(reduce, dtype):
    model = seeded(net)
    weight = model[0].weight

    def penalty(tensors):
        def inner(scale):
            return reduce((weight * scale) ** 4) + tensors["2.weight"].square().sum()

        return checkpoint(inner, torch.ones(1, dtype=weight.dtype), use_reentrant=False).sum()

    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), regularizer=penalty, dtype=dtype)
    theta = 2 * loss.initial()

    def true(at):
        w, last = at[:20].reshape(4, 5), at[24:36]
        return functional.cross_entropy(outputs_at(model, at, X), T) + reduce(w**4) + last.square().sum()

    assert_matches(loss, true, theta, rtol=1e-11 if dtype == "float64" else 2e-5)


def test_a_random_regularizer_is_refused():
    with pytest.raises(jo.InputError, match="random"):
        jo.ModelLoss(
            seeded(net),
            functional.cross_entropy,
            (X, T),
            regularizer=lambda tensors: (tensors["0.weight"] * torch.randn(())).sum(),
        )
