"""Losses that look at several samples at once: refused, or, with coupled=True, the loss of the one batch there is."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact_gauss_newton, outputs_at
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T, REAL = numbers(310, 12, 5), labels_of(311, 12, 3), numbers(312, 12)
PAIRED = numbers(313, 12, 3)


def mlp():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


class Centred(nn.Module):
    """Subtract the mean of the batch and divide by its spread, by hand."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.tanh((h - h.mean(0)) / (h.var(0) + 0.1).sqrt()))


def contrastive(outputs, targets):
    """InfoNCE: each sample against all others of its batch."""
    scores = functional.normalize(outputs, dim=1) @ functional.normalize(targets, dim=1).mT / 0.5
    return functional.cross_entropy(scores, torch.arange(len(scores)))


def spread(outputs, targets):
    return functional.cross_entropy(outputs, targets) + outputs.var(0).sum() / 10


def correlation(outputs, targets):
    z, t = outputs[:, 0] - outputs[:, 0].mean(), targets - targets.mean()
    return 1 - (z @ t) / (z.norm() * t.norm())


def decorrelated(outputs, targets):
    z = (outputs - outputs.mean(0)) / outputs.std(0)
    return ((z.mT @ z / len(z) - torch.eye(3).double()) ** 2).sum()


def root_of_a_mean(outputs, targets):
    return functional.mse_loss(outputs[:, 0], targets).sqrt()


def dice(outputs, targets):
    p, t = torch.sigmoid(outputs[:, 0]), (targets > 0).double()
    return 1 - 2 * (p * t).sum() / (p.sum() + t.sum())


KINDS = {
    "batch statistics": (Centred, functional.cross_entropy, T),
    "contrast": (mlp, contrastive, PAIRED),
    "a spread": (mlp, spread, T),
    "a correlation": (mlp, correlation, REAL),
    "decorrelation": (mlp, decorrelated, T),
    "the root of a mean": (mlp, root_of_a_mean, REAL),
    "overlap": (mlp, dice, REAL),
}


def halves(targets):
    return [(X[:7], targets[:7]), (X[7:], targets[7:])]


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_that_couples_samples_is_pointed_to_coupled(name):
    make, function, targets = KINDS[name]
    for data in ((X, targets), halves(targets)):
        with pytest.raises(jo.InputError, match="coupled=True"):
            jo.ModelLoss(seeded(make), function, data)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_right_where_all_data_are_one_batch(name):
    make, function, targets = KINDS[name]
    model = seeded(make)
    for data in ((X, targets), [(X, targets)]):
        loss = jo.ModelLoss(model, function, data, coupled=True)
        assert loss.samples == 12
        assert_matches(loss, lambda t: function(outputs_at(model, t, X), targets))


@pytest.mark.parametrize("name", KINDS)
def test_it_is_refused_where_the_data_come_in_several(name):
    make, function, targets = KINDS[name]
    with pytest.raises(jo.InputError, match=r"coupled.*(one|single) batch|(one|single) batch.*coupled"):
        jo.ModelLoss(seeded(make), function, halves(targets), coupled=True)


def test_it_is_not_divided_to_fit_the_memory():
    model = seeded(mlp)
    roomy = jo.ModelLoss(model, contrastive, (X, PAIRED), coupled=True)
    theta = roomy.initial()
    expected, budget, refused = roomy.hessian(theta).dense(), 2**22, 0
    while budget > 64:
        try:
            loss = jo.ModelLoss(model, contrastive, (X, PAIRED), coupled=True, max_memory=budget)
            assert_near(loss.value(theta), roomy.value(theta), floor=1.0)
            assert_near(loss.hessian(theta).dense(), expected)
        except jo.MemoryBudgetError:
            refused += 1
        budget //= 4
    assert refused > 0


@pytest.mark.parametrize("function", [spread, root_of_a_mean])
def test_gauss_newton_of_a_convex_coupled_loss_has_the_curvature_between_samples(function):
    targets = T if function is spread else REAL
    model = seeded(mlp)
    loss = jo.ModelLoss(model, function, (X, targets), coupled=True)
    theta = loss.initial()
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: function(z, targets), theta)
    assert_near(loss.gauss_newton(theta).dense(), G)


def test_a_coupled_subset_is_the_loss_of_that_batch():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, contrastive, (X, PAIRED), coupled=True)
    chosen = torch.tensor([0, 3, 4, 10])
    f = jo.MinibatchSGD(loss, 4, rng=0)
    theta = loss.initial()
    assert_matches(loss.subset(chosen), lambda t: contrastive(outputs_at(model, t, X[chosen]), PAIRED[chosen]))
    index = f.batch(1)
    fresh = jo.ModelLoss(model, contrastive, (X[index], PAIRED[index]), coupled=True)
    assert_near(f(theta, 1), theta - 0.1 * fresh.gradient(theta))


def test_a_plain_mean_may_be_called_coupled():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), coupled=True)
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, X), T))


def test_batch_norm_without_running_statistics_is_right_when_coupled_or_refused():
    model = seeded(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    )
    with pytest.raises(jo.InputError, match="mixes the samples of a batch"):
        jo.ModelLoss(model, functional.cross_entropy, (X, T))
    try:
        loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), coupled=True)
    except jo.InputError as error:
        assert "mixes the samples of a batch" in str(error)  # noqa: PT017
        return
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, X), T), rtol=1e-11)


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("zeros", [True, False])
def test_outputs_of_one_column_against_flat_targets_are_refused(zeros):
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)))
    if zeros:
        nn.init.zeros_(model[2].weight), nn.init.zeros_(model[2].bias)
    for data in ((X, REAL), halves(REAL)):
        with pytest.raises(jo.InputError, match=r"coupled=True|shape"):
            jo.ModelLoss(model, functional.mse_loss, data)


@pytest.mark.parametrize("coupled", [1, "yes", None])
def test_coupled_is_true_or_false(coupled):
    with pytest.raises(jo.InputError, match="coupled"):
        jo.ModelLoss(seeded(mlp), functional.cross_entropy, (X, T), coupled=coupled)
