"""Rows of an embedding that padding holds still are constants, in the value as in the gradient and the products."""

import pytest
import torch
from cases import labels_of, seeded
from oracles import assert_matches, assert_near, differences, exact_gauss_newton, theta_of, training_gradient
from torch import nn
from torch.nn import functional

import jvp_ops as jo

T = labels_of(401, 24, 3)
IDS = torch.arange(144).reshape(24, 6) * 7 % 10


class Padded(nn.Module):
    """Average embedded tokens; the row of the padding is not zero, as after from_pretrained."""

    def __init__(self, index=3):
        super().__init__()
        self.index = index
        self.e, self.l = nn.Embedding(10, 4, padding_idx=index), nn.Linear(4, 3)
        with torch.no_grad():
            self.e.weight[index] = 0.5

    def forward(self, ids):
        return self.l(torch.tanh(self.e(ids)).mean(1))


class PaddedByFunction(Padded):
    def forward(self, ids):
        return self.l(torch.tanh(functional.embedding(ids, self.e.weight, padding_idx=self.index)).mean(1))


PADDED = {
    "a row": Padded,
    "the last row": lambda: Padded(-1),
    "a row in a function": PaddedByFunction,
}


@pytest.mark.parametrize("make", PADDED.values(), ids=PADDED)
def test_the_row_of_the_padding_is_a_constant(make):
    model = seeded(make)
    row = model.index % 10
    own = model.e.weight[row].detach().clone()

    def outputs(theta):
        table, W, b = theta[:40].reshape(10, 4), theta[40:52].reshape(3, 4), theta[52:]
        table = torch.cat([table[:row], own[None], table[row + 1 :]])
        return torch.tanh(table[IDS]).mean(1) @ W.mT + b

    for data in ((IDS, T), list(zip(IDS.split([7, 17]), T.split([7, 17]), strict=True))):
        loss = jo.ModelLoss(model, functional.cross_entropy, data)
        theta = loss.initial()
        assert loss.parameters.size == 55
        moved = theta.clone()
        moved[4 * row : 4 * row + 4] += 1
        assert torch.equal(loss.value(moved), loss.value(theta))
        for at in (theta, moved, 0.5 * theta):
            true = assert_matches(loss, lambda t: functional.cross_entropy(outputs(t), T), at)
        held = slice(4 * row, 4 * row + 4)
        H, G = loss.hessian(theta).dense(), loss.gauss_newton(theta).dense()
        assert torch.count_nonzero(H[held]) == torch.count_nonzero(H[:, held]) == 0
        assert torch.count_nonzero(loss.gradient(theta)[held]) == 0
        assert_near(G, exact_gauss_newton(outputs, lambda z: functional.cross_entropy(z, T), theta))
        assert_near(differences(loss.gradient, theta), H, 1e-9)
        assert_near(training_gradient(model, functional.cross_entropy, IDS, T)(theta), loss.gradient(theta))
        assert float(true.hessian.norm()) > 0.01


def test_descent_with_padding_is_that_of_torch_and_its_jacobian_is_that_of_the_step():
    model = seeded(Padded)
    f = jo.GradientDescent(jo.ModelLoss(model, functional.cross_entropy, (IDS, T)), lr=1.0)
    theta = f.loss.initial()
    assert_near(differences(f, theta).mT, f.jacobian(theta).dense(), 1e-9)
    last = f.run(theta, steps=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(IDS), T).backward()
        optimizer.step()
    assert_near(last, theta_of(model))


def test_a_padding_row_that_the_head_trains_is_refused_or_held_for_the_embedding_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(10, 4, padding_idx=0)

        def forward(self, ids):
            return torch.tanh(self.e(ids)).mean(1) @ self.e.weight.mT

    model, targets = seeded(Tied), IDS[:, 0]
    slope = training_gradient(model, functional.cross_entropy, IDS, targets)
    theta = theta_of(model)
    try:
        loss = jo.ModelLoss(model, functional.cross_entropy, (IDS, targets))
        found = loss.gradient(theta), loss.hessian(theta).dense()
    except jo.JvpOpsError as error:
        assert any(word in str(error) for word in ("padding", "second_derivatives"))  # noqa: PT017
        return
    assert_near(found[0], slope(theta))
    assert_near(found[1], differences(loss.gradient, theta), 1e-9)


class Shared(nn.Module):
    """An encoder and a decoder whose embeddings share one weight, with the same padding."""

    def __init__(self, other):
        super().__init__()
        self.e, self.d, self.o = (
            nn.Embedding(9, 4, padding_idx=0),
            nn.Embedding(9, 4, padding_idx=other),
            nn.Linear(4, 3),
        )
        self.d.weight = self.e.weight

    def forward(self, ids):
        return self.o((self.e(ids) + self.d(ids.roll(1, 1))).tanh().mean(1))


@pytest.mark.parametrize("other", [0, -9])
def test_embeddings_that_share_a_weight_and_its_padding_hold_the_row(other):
    ids, labels = torch.arange(60).reshape(12, 5) * 7 % 9, torch.arange(12) % 3
    model = seeded(lambda: Shared(other))
    loss = jo.ModelLoss(model, nn.functional.cross_entropy, (ids, labels))
    theta, row = theta_of(model) + 0.1, model.e.weight[0].detach()

    def true(at):
        weight = torch.cat([row, at[4:36]]).reshape(9, 4)
        hidden = (weight[ids] + weight[ids.roll(1, 1)]).tanh().mean(1)
        return nn.functional.cross_entropy(hidden @ at[36:48].reshape(3, 4).mT + at[48:], labels)

    assert_matches(loss, true, theta)
