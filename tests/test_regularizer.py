"""A regularizer: a term of the parameters, once in the whole loss, whatever the batches are."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact, exact_gauss_newton, outputs_at, smallest_budget, theta_of
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T, REAL = numbers(320, 40, 5), labels_of(321, 40, 3), numbers(322, 40, 3)
SIZES = [1, 13, 7, 19]


def mlp():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def decay(weights):
    return 0.15 * sum((w**2).sum() for w in weights.values())


def of_matrices(weights):
    return 0.2 * torch.linalg.matrix_norm(weights["2.weight"] @ weights["0.weight"]) ** 2


def to_start(weights):
    return sum(torch.cosh(w - 0.25).sum() for name, w in weights.items() if name.endswith("bias"))


def weighted(outputs, targets):
    return functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 5.0, 20.0]).double())


def summed(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="sum")


TERMS = {"decay": decay, "a product of matrices": of_matrices, "biases alone": to_start}
LOSSES = {"a mean": functional.cross_entropy, "a weighted mean": weighted, "a sum": summed}


def named(theta):
    a, b, c, d = theta.split([20, 4, 12, 3])
    return {"0.weight": a.reshape(4, 5), "0.bias": b, "2.weight": c.reshape(3, 4), "2.bias": d}


def batches(sizes=SIZES):
    return list(zip(X.split(sizes), T.split(sizes), strict=True))


@pytest.mark.parametrize("data", [(X, T), batches(), batches(3)], ids=["one batch", "ragged", "many"])
@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_it_is_added_once(term, function, data):
    model = seeded(mlp)
    loss = jo.ModelLoss(model, function, data, regularizer=term)
    assert_matches(loss, lambda t: function(outputs_at(model, t, X), T) + term(named(t)))


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_gauss_newton_adds_its_hessian(term, function):
    model = seeded(mlp)
    theta = theta_of(model)
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: function(z, T), theta)
    expected = G + exact(lambda t: term(named(t)), theta).hessian
    for data in ((X, T), batches()):
        loss = jo.ModelLoss(model, function, data, regularizer=term)
        assert_near(loss.gauss_newton(theta).dense(), expected)
        assert_near(loss.gauss_newton(theta).apply(torch.eye(39).double()), expected)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_the_least_memory_adds_it_once(kind):
    model = seeded(mlp)

    def loss_of(budget):
        return jo.ModelLoss(model, weighted, (X, T), regularizer=of_matrices, max_memory=budget)

    A, roomy = smallest_budget(loss_of, kind)[1], loss_of(None)
    assert_near(A.dense(), getattr(roomy, kind)(roomy.initial()).dense())
    assert_matches(roomy, lambda t: weighted(outputs_at(model, t, X), T) + of_matrices(named(t)))


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
def test_every_mini_batch_has_it_whole_as_training_does(function):
    model = seeded(mlp)
    loss = jo.ModelLoss(model, function, (X, T), regularizer=decay)
    f = jo.MinibatchSGD(loss, 9, optimizer=lambda loss: jo.GradientDescent(loss, lr=0.05), rng=2)
    last = f.run(loss.initial(), steps=10)
    index = f.batch(4)
    true = exact(lambda t: function(outputs_at(model, t, X[index]), T[index]) + decay(named(t)), last)
    assert_near(f.jacobian(last, 4).dense(), torch.eye(39).double() - 0.05 * true.hessian)
    part = loss.subset([3, 5])
    true = exact(lambda t: function(outputs_at(model, t, X[[3, 5]]), T[[3, 5]]) + decay(named(t)), last)
    assert_near(part.value(last), true.value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(10):
        optimizer.zero_grad()
        index = f.batch(step)
        (function(model(X[index]), T[index]) + decay(dict(model.named_parameters()))).backward()
        optimizer.step()
    assert_near(last, theta_of(model), 1e-11)


def test_of_parameters_that_are_left_out_it_is_a_constant():
    model, options = seeded(mlp), {"regularizer": of_matrices}
    rest = theta_of(model[0])

    def true(theta):
        weights = named(torch.cat([rest, theta]))
        hidden = torch.tanh(X @ weights["0.weight"].mT + weights["0.bias"])
        outputs = hidden @ weights["2.weight"].mT + weights["2.bias"]
        return functional.cross_entropy(outputs, T) + of_matrices(weights)

    assert_matches(jo.ModelLoss(model, functional.cross_entropy, batches(), parameters="2.*", **options), true)
    model[0].requires_grad_(False)
    assert_matches(jo.ModelLoss(model, functional.cross_entropy, batches(), **options), true)


def test_it_makes_losses_different():
    model = seeded(mlp)
    without, one, two = (
        jo.ModelLoss(model, functional.cross_entropy, (X, T), regularizer=term) for term in (None, decay, of_matrices)
    )
    identities = [str(loss.identity()) for loss in (without, one, two)]
    assert len(set(identities)) == 3
    again = jo.ModelLoss(model, functional.cross_entropy, (X, T), regularizer=decay)
    assert again.identity() == one.identity()


def test_it_is_kept_in_another_dtype():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T), regularizer=decay, dtype="float32")

    def true(theta):
        return functional.cross_entropy(outputs_at(model, theta, X), T) + decay(named(theta))

    assert_matches(loss, true, rtol=2e-5)
    assert_matches(loss.to(dtype="float64"), true)
    assert_near(loss.hessian(loss.initial()).in_float64().dense(), exact(true, theta_of(model)).hessian)


@pytest.mark.parametrize(
    "term",
    [
        lambda weights: weights["2.weight"],
        lambda weights: 0.5,
        lambda weights: None,
        lambda weights: torch.stack([w.norm() for w in weights.values()]),
        0.5,
        "decay",
        torch.ones(()),
        lambda: 0.0,
        lambda weights: (weights["head.weight"] ** 2).sum(),
        lambda weights: decay(weights) * float("nan"),
    ],
    ids=["matrix", "float", "none", "vector", "number", "string", "tensor", "no argument", "unknown name", "nan"],
)
def test_a_regularizer_of_the_wrong_kind_is_refused(term):
    with pytest.raises(jo.JvpOpsError, match="regularizer"):
        jo.ModelLoss(seeded(mlp), functional.cross_entropy, (X, T), regularizer=term)


def test_a_regularizer_that_holds_another_trainable_tensor_is_refused():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(jo.InputError, match=r"(?s)scale.*requires_grad_\(False\)"):
        jo.ModelLoss(seeded(mlp), functional.cross_entropy, (X, T), regularizer=lambda weights: scale * decay(weights))
