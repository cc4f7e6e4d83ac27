"""Losses that were silently wrong once, each in a form that no other test has."""

import pytest
import torch
from cases import mlp, numbers, seeded
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import jvp_ops as jo

X, T = numbers(70, 103, 3), torch.arange(103) % 3


def test_a_mean_weighted_by_hand_is_refused_though_only_batches_differ_in_weight():
    inputs, targets = numbers(71, 6400, 3), torch.arange(6400) % 2
    targets[[70, 2001, 5003]] = 2
    weights = torch.tensor([1.0, 1.0, 1000.0]).double()

    def by_hand(z, t):
        return (functional.cross_entropy(z, t, reduction="none") * weights[t]).sum() / weights[t].sum()

    with pytest.raises(jo.InputError, match="normalizer="):
        jo.ModelLoss(seeded(mlp), by_hand, DataLoader(TensorDataset(inputs, targets), batch_size=64))


class Recomputed(nn.Module):
    """Checkpoints a function that reaches a weight through its closure."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)
        weight = self.a.weight
        self.inner = lambda x: torch.tanh(torch.tanh(functional.linear(x, weight)))

    def forward(self, x):
        return self.b(checkpoint(self.inner, x, use_reentrant=False))


def test_a_checkpoint_runs_again_at_theta_and_not_at_the_models_own_values():
    model = seeded(Recomputed)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    theta = 2 * loss.initial()

    def plain(w):
        a, _, b, c = w.split([12, 4, 12, 3])
        hidden = torch.tanh(torch.tanh(X @ a.reshape(4, 3).mT))
        return functional.cross_entropy(hidden @ b.reshape(3, 4).mT + c, T)

    true = jo.FunctionLoss(plain, size=31, dtype="float64")
    torch.testing.assert_close(loss.gradient(theta), true.gradient(theta), rtol=0, atol=1e-14)
    H = loss.hessian(theta)
    with torch.no_grad():
        model.a.weight.mul_(-3)
    torch.testing.assert_close(H.dense(), true.hessian(theta).dense(), rtol=0, atol=1e-13)


def test_what_a_regularizer_closes_over_is_as_it_was_handed_over():
    anchor = torch.zeros(4, 3, dtype=torch.float64)
    loss = jo.ModelLoss(
        seeded(mlp), functional.cross_entropy, (X, T), regularizer=lambda w: ((w["0.weight"] - anchor) ** 4).sum()
    )
    theta = loss.initial()
    H, value = loss.hessian(theta), loss.value(theta)
    before = H.dense()
    anchor.add_(1)
    assert torch.equal(loss.value(theta), value)
    assert torch.equal(H.dense(), before)


def test_a_regularizer_of_another_precision_runs_in_both():
    weights = torch.ones(3, 2)
    loss = jo.ModelLoss(
        seeded(mlp).float(),
        functional.cross_entropy,
        (X.float(), T),
        regularizer=lambda w: (w["0.weight"] @ weights).square().sum(),
    )
    assert loss.hessian(loss.initial()).shape == (31, 31)
    assert loss.to(dtype="float64").value(loss.initial().double()).dtype == torch.float64


def test_a_padding_row_that_a_regularizer_trains_is_no_constant():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.b = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 3)
            nn.init.ones_(self.e.weight)

        def forward(self, ids):
            return self.b(torch.tanh(self.e(ids).mean(1)))

    ids = 1 + torch.arange(103 * 2).reshape(103, 2) % 5  # none is padding
    loss = jo.ModelLoss(
        seeded(Embedded),
        functional.cross_entropy,
        (ids, T),
        regularizer=lambda w: sum((p**2).sum() for p in w.values()),
    )
    theta = loss.initial()
    assert torch.equal(loss.gradient(theta)[:4], 2 * theta[:4])
    torch.testing.assert_close(loss.hessian(theta).dense()[0, 0], torch.tensor(2.0).double())


def test_the_float64_twin_of_a_weighted_mean_divides_by_weights_of_float64():
    weights = torch.tensor([0.1, 2.3, 5.7])
    loss = jo.ModelLoss(seeded(mlp).float(), nn.CrossEntropyLoss(weight=weights), (X.float(), T))
    theta = loss.initial().double()
    exact = nn.CrossEntropyLoss(weight=weights.double())
    true = exact(seeded(mlp)(X.float().double()), T).detach()
    assert abs(float(loss.to(dtype="float64").value(theta) - true)) < 1e-15 * 10


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, scale):
        return self.body(x) * scale


class Passes:
    """Batches that hold a number which grows with each pass."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        yield {"x": X, "scale": 1.0 + self.passes}, T


def test_a_number_in_a_batch_that_changes_is_a_change_of_the_data():
    with pytest.raises(jo.DataError, match="differs from the first pass"):
        jo.ModelLoss(seeded(Scaled), functional.cross_entropy, Passes())


def test_numbers_keys_and_parts_make_losses_different():
    model = seeded(Scaled)
    of = lambda scale: jo.ModelLoss(model, functional.cross_entropy, ({"x": X, "scale": scale}, T)).identity()  # noqa: E731
    assert of(1.0) == of(1.0)
    assert of(1.0) != of(3.0)
    plain = [jo.ModelLoss(seeded(mlp), functional.cross_entropy, (X, T), outputs=o).identity() for o in (None, 0)]
    assert plain[0] != plain[1]


class Folded(nn.Module):
    """Multiplies its weights at its first call in eval mode, and keeps the product without its graph."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.kept = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False), None

    def forward(self, x):
        if self.kept is None:
            self.kept = (self.last.weight @ self.first.weight).detach()
        return x @ self.kept.mT


def test_a_model_whose_weights_were_folded_before_it_was_handed_over_is_refused():
    model = seeded(Folded)
    model(X)
    with pytest.raises(jo.InputError, match=r"kept|depends on none"):
        jo.ModelLoss(model, functional.cross_entropy, (X, T)).hessian(torch.zeros(24).double())
