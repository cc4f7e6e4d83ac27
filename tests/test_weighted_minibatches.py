"""Steps on mini-batches of a weighted mean divide by the batch's own weights, as training does."""

import pytest
import torch
from oracles import assert_near, exact, theta_of
from weighted import SAMPLES, WEIGHTED, X, head_of, parts

import jvp_ops as jo

LR = 0.5
NAMES = [
    "class weights",
    "class weights and smoothing",
    "ignored targets",
    "soft targets and class weights",
    "two means",
    "two tasks with missing labels",
    "weights of samples",
    "a mask over outputs",
    "terms that cancel",
    "a sum with class weights",
]


def descent(case, model, **options):
    return jo.MinibatchSGD(case.loss(model), optimizer=lambda loss: jo.GradientDescent(loss, lr=LR), **options)


@pytest.mark.parametrize("std", [0.0, None], ids=["zeros", "as drawn"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_that_of_torch_on_the_same_batches(name, std):
    case, model = WEIGHTED[name], head_of(std)
    f = descent(case, model, batch_size=9, rng=1)
    steps = 2 * f.steps_per_epoch
    assert len(f.batch(f.steps_per_epoch - 1)) == SAMPLES % 9
    last = f.run(case.loss(model).initial(), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(steps):
        index = f.batch(step)
        optimizer.zero_grad()
        case.function(model(X[index]), parts(case.targets, index)).backward()
        optimizer.step()
    assert_near(last, theta_of(model), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_the_jacobian_of_a_step_is_that_of_the_batchs_own_mean(name):
    case, model = WEIGHTED[name], head_of(None)
    f = descent(case, model, batch_size=9)
    theta = case.loss(model).initial() + 0.25
    for step in (0, 4, 5):
        true = exact(case.on(model, f.batch(step)), theta)
        assert_near(f(theta, step), theta - LR * true.gradient)
        assert_near(f.jacobian(theta, step).dense(), torch.eye(len(theta)).double() - LR * true.hessian)


@pytest.mark.parametrize("name", NAMES)
def test_a_subset_has_its_own_weights_and_its_own_batches(name):
    case, model = WEIGHTED[name], head_of(None)
    chosen = torch.tensor([1, 7, 8, 20, 31, 39])
    true = exact(case.on(model, chosen), theta_of(model))
    part = case.loss(model).subset(chosen)
    assert part.samples == 6
    assert_near(part.value(part.initial()), true.value, floor=1.0)
    assert_near(part.hessian(part.initial()).dense(), true.hessian)


def test_a_batch_without_weight_is_refused_and_not_stepped_over_in_silence():
    case, model = WEIGHTED["ignored targets"], head_of(None)
    f = descent(case, model, batch_size=1)
    empty = next(step for step in range(SAMPLES) if case.targets[f.batch(step)] == -100)
    theta = theta_of(model)
    with pytest.raises(jo.JvpOpsError, match=r"(?i)nan|weigh|ignore|normaliz"):  # training gets NaN here
        f(theta, empty)
