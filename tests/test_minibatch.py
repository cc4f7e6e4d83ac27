"""Subsets of a loss's samples, and the seeded sequence of batches that stochastic gradient descent goes through."""

import json
import math

import numpy as np
import pytest
import torch
from cases import MODULES, TWO_LAYER, mlp, numbers, seeded
from optimizers import LR, OPTIMIZERS
from torch.nn import functional

import jvp_ops as jo
from jvp_ops.store import fingerprint

TWO, MODULE = TWO_LAYER["dead inputs"], MODULES["perceptron"]


def two_layer_on(index):
    X, t = TWO.data()
    return jo.TwoLayerLoss(X[index], t[index], hidden=TWO.hidden, classes=TWO.classes, dtype="float64")


def module_on(index):
    return jo.ModelLoss(MODULE.model(), MODULE.function, (MODULE.inputs[index], MODULE.targets[index]))


@pytest.mark.parametrize("index", [[3], [5, 0, 2], [1, 1, 4], list(range(7)), torch.tensor([6, 2]), np.array([0, 6])])
@pytest.mark.parametrize("name", ["two-layer", "module"])
def test_a_subset_is_the_loss_made_of_those_samples(name, index):
    problem, on = (TWO, two_layer_on) if name == "two-layer" else (MODULE, module_on)
    part, fresh = problem.loss().subset(index), on(torch.as_tensor(index))
    theta = problem.theta()
    assert part.samples == len(index)
    assert part.parameters == problem.loss().parameters
    torch.testing.assert_close(part.value(theta), fresh.value(theta), rtol=1e-14, atol=0)
    torch.testing.assert_close(part.gradient(theta), fresh.gradient(theta), rtol=0, atol=1e-15)
    torch.testing.assert_close(part.hessian(theta).dense(), fresh.hessian(theta).dense(), rtol=0, atol=1e-14)
    assert part.identity() == fresh.identity()
    if len(index) < problem.loss().samples:
        assert part.identity() != problem.loss().identity()
        assert problem.loss().value(theta) != part.value(theta)


def test_a_subset_of_many_sparse_chunks_takes_the_right_samples():
    problem = TWO_LAYER["several sparse chunks"]
    loss, (X, t) = problem.loss(torch.float32), problem.data()
    assert len(loss._form.chunks) > 3
    index = torch.from_numpy(np.random.default_rng(0).permutation(5000)[:1500])
    fresh = jo.TwoLayerLoss(X[index], t[index], hidden=problem.hidden, classes=problem.classes)
    assert loss.subset(index).identity() == fresh.identity()
    theta = problem.theta(torch.float32)
    assert torch.equal(loss.subset(index).gradient(theta), fresh.gradient(theta))


def test_a_subset_of_a_sum_is_the_sum_over_it():
    problem = MODULES["perceptron by sum"]
    parts = [problem.loss().subset(index).value(problem.theta()) for index in ([0, 3], [1, 2, 4, 5, 6])]
    torch.testing.assert_close(sum(parts), problem.loss().value(problem.theta()), rtol=1e-13, atol=0)


def test_a_subset_of_inputs_by_keyword_takes_the_same_rows_of_all():
    problem = MODULES["two inputs by keyword"]
    alone = [float(problem.loss().subset([i]).value(problem.theta())) for i in range(6)]
    assert math.isclose(sum(alone) / 6, float(problem.loss().value(problem.theta())), rel_tol=1e-13)
    assert len(set(alone)) == 6


def test_data_that_changed_in_place_have_no_subset():
    inputs = MODULE.inputs.clone()
    loss = jo.ModelLoss(MODULE.model(), MODULE.function, (inputs, MODULE.targets))
    inputs[0] = 0
    with pytest.raises(jo.DataError, match="changed in place"):
        loss.subset([1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch_on_the_same_batches(name):
    known = OPTIMIZERS[name]
    f = jo.MinibatchSGD(TWO.loss(), 5, optimizer=known.make, rng=3)
    X, t = TWO.data()
    leaf = TWO.theta().requires_grad_()
    optimizer = known.torch([leaf])
    for step in range(60):
        W1, b1, W2, b2 = TWO.split(leaf)
        index = f.batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(torch.sigmoid(X[index] @ W1 + b1) @ W2 + b2, t[index]).backward()
        if known.clip is not None:
            torch.nn.utils.clip_grad_norm_([leaf], known.clip)
        optimizer.step()
    theta = f.theta(f.run(f.initial(TWO.theta()), steps=60))
    assert (theta - TWO.theta()).norm() > 1e-2
    assert (theta - leaf.detach()).norm() <= 1e-12 * theta.norm()


@pytest.mark.parametrize("drop_last", [False, True])
def test_each_epoch_takes_every_sample_once_in_an_order_of_its_own(drop_last):
    f = jo.MinibatchSGD(TWO.loss(), 5, drop_last=drop_last)
    assert f.steps_per_epoch == (2 if drop_last else 3)
    epochs = [torch.cat([f.batch(step) for step in range(e, e + f.steps_per_epoch)]) for e in (0, f.steps_per_epoch)]
    for order in epochs:
        assert len(order) == len(order.unique()) == (10 if drop_last else 12)
    assert not torch.equal(*epochs)
    sizes = [len(f.batch(step)) for step in range(f.steps_per_epoch)]
    assert sizes == ([5, 5] if drop_last else [5, 5, 2])


def test_any_step_can_be_asked_for_at_random_and_again():
    def make(rng=7):
        return jo.MinibatchSGD(TWO.loss(), 4, rng=rng)

    f, g = make(), make()
    forward = [f.batch(step) for step in range(20)]
    backward = [g.batch(step) for step in reversed(range(20))][::-1]
    assert all(map(torch.equal, forward, backward))
    state = f.run(TWO.theta(), steps=11)
    assert torch.equal(f.run(f.run(TWO.theta(), steps=5), steps=6, first=5), state)
    assert torch.equal(g(TWO.theta(), 17), f(TWO.theta(), 17))
    assert not torch.equal(f(TWO.theta(), 17), f(TWO.theta(), 16))
    assert not torch.equal(make(8).batch(0), f.batch(0))
    seeded_by_generator = [make(np.random.default_rng(5)) for _ in range(2)]
    assert seeded_by_generator[0].seed == seeded_by_generator[1].seed != 7


def test_each_jacobian_is_that_of_its_batch_and_their_products_are_not_symmetric():
    f = jo.MinibatchSGD(TWO.loss(), 5, optimizer=lambda loss: jo.GradientDescent(loss, LR))
    theta, dense = TWO.theta(), []
    for step in (4, 1):
        A = f.jacobian(theta, step)
        H = two_layer_on(f.batch(step)).hessian(theta).dense()
        assert A.symmetric
        assert A.affine.scale == -LR
        torch.testing.assert_close(A.dense(), torch.eye(len(theta)).double() - LR * H, rtol=0, atol=1e-14)
        dense.append(A.dense())
    product = dense[0] @ dense[1]
    assert (product - product.mT).abs().max() > 1e-6


def test_a_float32_jacobian_on_a_batch_knows_its_float64_twin():
    f = jo.MinibatchSGD(TWO.loss(torch.float32), 5, optimizer=OPTIMIZERS["adam"].make)
    wide = jo.MinibatchSGD(TWO.loss(), 5, optimizer=OPTIMIZERS["adam"].make)
    state = OPTIMIZERS["adam"].state(TWO.theta())
    twin = f.jacobian(state.float(), 4).in_float64()
    torch.testing.assert_close(twin.dense(), wide.jacobian(state, 4).dense(), rtol=0, atol=1e-12)


def test_one_dimensional_descent_on_two_samples_grows_by_the_mean_logarithm():
    losses = [jo.FunctionLoss(lambda x, h=h: h * (x**2).sum() / 2, size=1, dtype="float64") for h in (1.0, 6.0)]
    f = jo.MinibatchSGD.of(losses, optimizer=lambda loss: jo.GradientDescent(loss, 0.5), rng=1)
    growth = [float(f.jacobian(torch.ones(1).double(), step).dense().abs().log()) for step in range(40)]
    assert math.isclose(np.mean(growth), (math.log(0.5) + math.log(2.0)) / 2, abs_tol=1e-12)
    assert {int(f.batch(step)) for step in range(6)} == {0, 1}
    assert len({tuple(int(f.batch(2 * epoch + i)) for i in (0, 1)) for epoch in range(20)}) == 2
    start = torch.full((1,), 3.0, dtype=torch.float64)
    assert math.isclose(float(f.run(start, steps=40).abs()), 3 * math.exp(sum(growth)), rel_tol=1e-12)


def test_identities_tell_sequences_apart_and_matrices_by_their_batch():
    def make(batch_size=5, lr=LR, **options):
        return jo.MinibatchSGD(TWO.loss(), batch_size, optimizer=lambda loss: jo.GradientDescent(loss, lr), **options)

    maps = [make(), make(4), make(lr=0.5), make(rng=1), make(drop_last=True)]
    maps += [jo.MinibatchSGD.of([TWO.loss(), two_layer_on([i])]) for i in (0, 1)]
    assert len({json.dumps(f.identity(), sort_keys=True) for f in maps}) == 7
    assert make().identity() == make().identity()
    found = [fingerprint(make().jacobian(TWO.theta(), step).identity()) for step in range(4)]
    assert len(set(found)) == 4
    assert "batches of 5, seed 0: GradientDescent" in repr(make())
    assert "2 losses" in repr(maps[-1])


def test_what_cannot_be_divided_is_refused():
    plain = jo.FunctionLoss(lambda x: x.sum() ** 2, size=2)
    other = jo.FunctionLoss(lambda x: x.sum() ** 2, size=3)
    batches = [(numbers(1, 4, 3), torch.zeros(4, dtype=torch.long)), (numbers(2, 3, 3), torch.ones(3).long())]
    streamed = jo.ModelLoss(seeded(mlp), functional.cross_entropy, batches)
    bad = [
        (lambda: plain.subset([0]), r"a FunctionLoss has no samples .*MinibatchSGD.of\(losses\)"),
        (lambda: jo.MinibatchSGD(plain, 1), r"over samples, .* not FunctionLoss: MinibatchSGD.of\(losses\)"),
        (lambda: jo.MinibatchSGD(streamed, 1), r"the data are a list, read batch by batch: pass \(inputs, targets\)"),
        (lambda: jo.MinibatchSGD(3, 1), "loss must be over samples, .* not int"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 13), "batch_size must be at most the 12 samples there are, not 13"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 0), "batch_size must be an integer of at least 1, not 0"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 5, optimizer=lambda loss: loss), "must make .* it gave TwoLayerLoss"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 5, optimizer="adam"), "must make an optimizer map .*it is a str"),
        (
            lambda: jo.MinibatchSGD(TWO.loss(), 5, optimizer=jo.Adam(TWO.loss(), 0.1)),
            "must make an optimizer map .*it is a Adam",
        ),
        (lambda: jo.MinibatchSGD.of([1, 2]), "losses must hold losses such as TwoLayerLoss, not int"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 5, rng=-1), "rng must be a seed"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 5).batch(-1), "step must be an integer of at least 0"),
        (lambda: jo.MinibatchSGD(TWO.loss(), 5)(TWO.theta(), 1.5), "step must be an integer of at least 0"),
        (lambda: jo.MinibatchSGD.of([]), "at least one loss"),
        (lambda: jo.MinibatchSGD.of([plain, other]), "the losses must have the same parameters, dtype and device"),
        (lambda: TWO.loss().subset([0, 12]), "index runs from 0 to 12, but there are 12 samples: 0 to 11"),
        (lambda: MODULE.loss().subset([-1]), "index runs from -1 to -1, but there are 7 samples"),
        (lambda: TWO.loss().subset([]), "index holds no sample"),
        (lambda: TWO.loss().subset(torch.zeros(0).long()), "index holds no sample"),
        (lambda: TWO.loss().subset([0.5]), "index must hold integers, .*float32"),
        (lambda: TWO.loss().subset("ab"), "index must hold the numbers of samples"),
        (lambda: TWO.loss().subset(torch.ones(12, dtype=torch.bool)), "index must hold integers, .*bool"),
    ]
    for call, message in bad:
        with pytest.raises(jo.InputError, match=message):
            call()


@pytest.mark.parametrize("optimizer", [jo.GradientDescent, jo.Adam])
def test_the_number_of_the_step_reaches_the_optimizer_s_jacobian_and_start(optimizer):
    f = jo.MinibatchSGD(TWO.loss(), 5, optimizer=lambda loss: optimizer(loss, lambda step: 0.1 / (1 + step)), rng=3)
    state = f.run(f.initial(TWO.theta()), steps=4)
    for step in (0, 7):
        assert torch.equal(f.jacobian(state, step).dense(), f.at(step).jacobian(state, step).dense())
    assert not torch.equal(f.jacobian(state, 0).dense(), f.jacobian(state, 7).dense())
    assert torch.equal(f.initial(TWO.theta(), 4), f.at(4).initial(TWO.theta()))


def test_seeds_give_sequences_that_are_not_shifted_copies():
    one, two = (jo.MinibatchSGD(TWO.loss(), 5, rng=seed) for seed in (0, 1))
    epoch = one.steps_per_epoch
    assert not all(torch.equal(one.batch(epoch + step), two.batch(step)) for step in range(epoch))


def test_one_loss_in_turn_is_not_named_as_its_samples_in_turn():
    loss = TWO.loss()
    assert jo.MinibatchSGD(loss, 1).identity() != jo.MinibatchSGD.of([loss]).identity()
