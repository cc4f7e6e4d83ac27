"""Means that divide by weights: the loss of all data is that of one batch, however divided and wherever θ is."""

import pytest
import torch
from cases import seeded
from oracles import assert_matches, assert_near, exact, exact_gauss_newton, outputs_at, smallest_budget
from torch import nn
from torch.nn import functional
from weighted import (
    CLASS,
    HOLES,
    MASK,
    REAL,
    SAMPLES,
    SIZES,
    WEIGHTED,
    WEIGHTS,
    T,
    Weighted,
    X,
    by_mask,
    by_sample,
    head_of,
)

import jvp_ops as jo

HEADS = {"a head of zeros": 0.0, "a head near zero": 1e-8, "a small head": 1e-3, "torch's own head": None}
CONVEX = [name for name, case in WEIGHTED.items() if case.convex]


@pytest.mark.parametrize("how", ["one batch", "ragged", "shuffled"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_loss_of_batches_is_that_of_one_batch(name, how):
    case, model = WEIGHTED[name], head_of(None)
    assert_matches(case.loss(model, how), case.true(model))


@pytest.mark.parametrize("std", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", WEIGHTED)
def test_it_does_not_depend_on_where_the_model_stands(name, std):
    case, model = WEIGHTED[name], head_of(std)
    loss = case.loss(model, "ragged")
    assert_matches(loss, case.true(model))
    assert_matches(loss, case.true(model), loss.initial() + 0.5)


@pytest.mark.parametrize("how", ["one batch", "ragged"])
@pytest.mark.parametrize("name", CONVEX)
def test_so_is_gauss_newton(name, how):
    case, model = WEIGHTED[name], head_of(1e-3)
    theta = case.loss(model).initial()
    for at in (theta, theta + 0.5):
        assert_near(case.loss(model, how).gauss_newton(at).dense(), case.G(model, at))


def test_terms_of_both_signs_have_no_gauss_newton_matrix():
    loss = WEIGHTED["terms that cancel"].loss(head_of(None))
    with pytest.raises(jo.InputError, match=r"convex|linear"):
        loss.gauss_newton(loss.initial())


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("how", ["one batch", "ragged"])
@pytest.mark.parametrize("name", ["class weights", "ignored targets", "two means", "weights of samples"])
def test_the_least_memory_gives_the_same(name, how, kind):
    case, model = WEIGHTED[name], head_of(0.0)
    budget, A = smallest_budget(lambda b: case.loss(model, how, max_memory=b), kind)
    theta = case.loss(model).initial()
    true = case.exact(model, theta)
    expected = true.hessian if kind == "hessian" else case.G(model, theta)
    assert_near(A.apply(torch.eye(len(theta)).double()), expected)
    tight = case.loss(model, how, max_memory=budget)
    assert_near(tight.value(theta), true.value, floor=1.0)
    assert_near(tight.gradient(theta), true.gradient)


def test_a_batch_of_nothing_but_ignored_targets_adds_nothing():
    targets = HOLES.clone()
    targets[:8] = -100
    model = head_of(None)
    batches = list(zip(X.split([8, 20, 12]), targets.split([8, 20, 12]), strict=True))
    for function in (functional.cross_entropy, nn.CrossEntropyLoss(weight=CLASS)):
        loss = jo.ModelLoss(model, function, batches)
        assert_matches(loss, lambda t, f=function: f(outputs_at(model, t, X), targets))
        tight = smallest_budget(lambda b, f=function: jo.ModelLoss(model, f, (X, targets), max_memory=b), "hessian")[1]
        assert_near(tight.dense(), loss.hessian(loss.initial()).dense())


def test_a_mean_that_keeps_no_sample_at_all_is_refused():
    with pytest.raises(jo.JvpOpsError, match=r"(?i)nan|weigh|ignore"):
        jo.ModelLoss(head_of(None), functional.cross_entropy, (X, torch.full_like(T, -100)))


def test_a_mean_over_the_samples_that_a_mask_keeps_is_recognized():
    def kept(outputs, targets):
        values, mask = targets
        return functional.mse_loss(outputs[mask], values[mask]) + functional.l1_loss(outputs[:, 0], values[:, 0]) / 9

    case, model = Weighted(kept, (REAL, MASK)), head_of(None)
    for how in ("one batch", "ragged", "shuffled"):
        assert_matches(case.loss(model, how), case.true(model))


HAND_WRITTEN = {
    "weights of samples": (by_sample, (T, WEIGHTS)),
    "weights near 1": (by_sample, (T, 1 + 1e-4 * WEIGHTS)),
    "a mask": (by_mask, (REAL, MASK)),
    "a chosen mean": (lambda o, t: ((o - t[0]) ** 2)[t[1]].mean(), (REAL, MASK)),
    "divided by a count": (
        lambda o, t: functional.cross_entropy(o, t, reduction="sum") / (t >= 0).sum(),
        HOLES,
    ),
}


@pytest.mark.parametrize("std", [0.0, 1e-3, None], ids=["zeros", "small", "as drawn"])
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_means_that_are_weighted_by_hand_are_pointed_to_normalizer(name, std):
    function, targets = HAND_WRITTEN[name]
    for how in ("one batch", "ragged"):
        with pytest.raises(jo.InputError, match="normalizer="):
            Weighted(function, targets).loss(head_of(std), how)


@pytest.mark.parametrize("std", [0.0, None], ids=["zeros", "as drawn"])
def test_a_normalizer_that_is_not_the_one_the_loss_divides_by_is_refused(std):
    wrong = [
        lambda targets: len(targets[0]),
        lambda targets: (targets[1] ** 2).sum(),
        lambda targets: targets[1],
        lambda targets: "all",
        lambda targets: -targets[1].sum(),
    ]
    for normalizer in wrong:
        with pytest.raises(jo.InputError, match="normalizer"):
            Weighted(by_sample, (T, WEIGHTS), {"normalizer": normalizer}).loss(head_of(std), "ragged")
    with pytest.raises(jo.InputError, match="normalizer"):
        Weighted(by_sample, (T, WEIGHTS), {"normalizer": 3.0}).loss(head_of(std))


@pytest.mark.parametrize("std", [0.0, None], ids=["zeros", "as drawn"])
def test_weights_in_batches_of_three_are_targets(std):
    model = head_of(std)
    case = Weighted(by_sample, (T, WEIGHTS))
    threes = list(zip(X.split(SIZES), T.split(SIZES), WEIGHTS.split(SIZES), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, T, WEIGHTS), batch_size=7)
    for data in (threes, loader, (X, T, WEIGHTS)):
        loss = jo.ModelLoss(model, by_sample, data, normalizer=lambda targets: targets[1].sum())
        assert loss.samples == SAMPLES
        assert_matches(loss, case.true(model))


def test_in_float32_the_weights_are_those_of_float64():
    for name in ("class weights", "ignored targets", "two means", "weights of samples"):
        case, model = WEIGHTED[name], head_of(0.0)
        theta = case.loss(model).initial()
        loss = Weighted(single(case.function), case.targets, case.options).loss(model, "ragged", dtype="float32")
        true = case.exact(model, theta)
        assert_near(loss.value(theta.float()), true.value, 1e-6, floor=1.0)
        assert_near(loss.hessian(theta.float()).dense(), true.hessian, 2e-5)


def single(function):
    """Let a loss function with weights in float64 take outputs in float32, as the model computes."""
    return lambda o, t: function(o.double(), tuple(map(wide, t)) if isinstance(t, tuple) else t).float()


def wide(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def test_tokens_count_alike_whatever_sequence_they_are_in():
    vocabulary, lengths = 7, torch.tensor([6, 2, 5, 1, 3, 6, 4, 2, 1, 5])
    tokens = torch.arange(60).reshape(10, 6) * 3 % vocabulary
    targets = torch.where(torch.arange(6) < lengths[:, None], (tokens * 2 + 1) % vocabulary, -100)

    def model():
        return nn.Sequential(nn.Embedding(vocabulary, 3), nn.Tanh(), nn.Linear(3, vocabulary))

    network = seeded(model)

    def token_mean(outputs, labels):
        return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())

    def swapped(outputs, labels):
        return functional.cross_entropy(outputs.mT, labels)

    padded = []
    for index in torch.arange(10).split([4, 1, 3, 2]):
        longest = int(lengths[index].max())
        padded.append((tokens[index, :longest], targets[index, :longest]))
    for function in (token_mean, swapped):
        for data in ((tokens, targets), padded, padded[::-1]):
            loss = jo.ModelLoss(network, function, data)
            true = assert_matches(loss, lambda t: token_mean(outputs_at(network, t, tokens), targets))
            G = exact_gauss_newton(
                lambda t: outputs_at(network, t, tokens), lambda z: token_mean(z, targets), loss.initial()
            )
            assert_near(loss.gauss_newton(loss.initial()).dense(), G)
            assert true.hessian.norm() > 0.1


def test_the_oracle_itself_is_the_users_training_loss():
    case, model = WEIGHTED["class weights"], head_of(None)
    case.function(model(X), T).backward()
    slope = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert_near(exact(case.true(model), theta).gradient, slope)
