"""The loss is the function that the user trains: all that it reads of the model counts, whoever reads it."""

import copy
import functools

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact, exact_gauss_newton, outputs_at, theta_of, weights_at
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T, DECAY = numbers(200, 40, 5), labels_of(201, 40, 3), 0.3
POINTS = numbers(202, 6, 5)
RAGGED = list(zip(X.split([1, 13, 7, 19]), T.split([1, 13, 7, 19]), strict=True))
BY_LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, T), batch_size=8)
DATA = {"one batch": (X, T), "ragged batches": RAGGED, "a loader": BY_LOADER}


def mlp():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


GLOBAL = seeded(mlp)


def square(weights):
    return sum((w**2).sum() for w in weights)


def reads_a_global(outputs, targets):
    return functional.cross_entropy(outputs, targets) + DECAY * square(GLOBAL.parameters())


def takes_the_model(outputs, targets, model):
    return functional.cross_entropy(outputs, targets) + DECAY * square(model.parameters())


class HoldsTheModel(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, outputs, targets):
        return takes_the_model(outputs, targets, self.model)


class Trainer:
    def __init__(self, model):
        self.model = model

    def loss(self, outputs, targets):
        return takes_the_model(outputs, targets, self.model)


def only_the_matrices(model):
    matrices = [model[0].weight, model[2].weight]
    return lambda o, t: functional.cross_entropy(o, t) + DECAY * square(matrices)


def by_name(model):
    named = dict(model.named_parameters())
    return lambda o, t: functional.cross_entropy(o, t) + torch.linalg.matrix_norm(named["2.weight"], 2) / 4


def through_a_second_module(model):
    start = nn.Sequential(model[0], nn.Softplus())  # shares the model's first layer
    return lambda o, t: functional.cross_entropy(o, t) + start(POINTS).mean()


def by_default_argument(model):
    return lambda o, t, m=model: takes_the_model(o, t, m)


def _all(theta, weights):
    return DECAY * (theta @ theta)


def _matrices(theta, weights):
    return DECAY * square([weights["0.weight"], weights["2.weight"]])


def _largest(theta, weights):
    return torch.linalg.svdvals(weights["2.weight"])[0] / 4


def _second(theta, weights):
    return functional.softplus(POINTS @ weights["0.weight"].mT + weights["0.bias"]).mean()


PENALTIES = {
    "a closure over the model": (lambda m: lambda o, t: takes_the_model(o, t, m), _all),
    "a list of its matrices": (only_the_matrices, _matrices),
    "a dict of its parameters": (by_name, _largest),
    "a second module that shares a layer": (through_a_second_module, _second),
    "a loss module that holds the model": (HoldsTheModel, _all),
    "a partial": (lambda m: functools.partial(takes_the_model, model=m), _all),
    "a method of a trainer": (lambda m: Trainer(m).loss, _all),
    "a default argument": (by_default_argument, _all),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("name", PENALTIES)
def test_what_the_loss_function_reads_of_the_model_is_differentiated(name, data):
    make, penalty = PENALTIES[name]
    model = seeded(mlp)

    def true(theta):
        weights = weights_at(model, theta)[0]
        return functional.cross_entropy(outputs_at(model, theta, X), T) + penalty(theta, weights)

    loss = jo.ModelLoss(model, make(model), data)
    assert loss.parameters.names == tuple(name for name, _ in model.named_parameters())
    assert_matches(loss, true)
    assert_matches(loss, true, 2 * loss.initial() + 0.1)


def test_a_loss_function_that_reads_a_global_model_is_differentiated():
    loss = jo.ModelLoss(GLOBAL, reads_a_global, RAGGED)
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(GLOBAL, t, X), T) + DECAY * (t @ t))


def test_a_step_shrinks_the_weights_that_the_loss_function_penalizes():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, HoldsTheModel(model), RAGGED)
    theta = loss.initial()
    true = exact(lambda t: functional.cross_entropy(outputs_at(model, t, X), T) + DECAY * (t @ t), theta)
    f = jo.GradientDescent(loss, lr=0.1)
    assert_near(f(theta), theta - 0.1 * true.gradient)
    assert_near(f.jacobian(theta).dense(), torch.eye(len(theta)).double() - 0.1 * true.hessian)


def test_of_the_parameters_that_are_left_out_a_penalty_is_a_constant():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, HoldsTheModel(model), RAGGED, parameters="2.*")
    rest = theta_of(model[0])

    def true(theta):
        whole = torch.cat([rest, theta])
        return functional.cross_entropy(outputs_at(model, whole, X), T) + DECAY * (whole @ whole)

    assert_matches(loss, true)


def test_the_users_model_is_neither_changed_nor_followed_when_the_loss_function_holds_it():
    model = seeded(mlp)
    state = copy.deepcopy(model.state_dict())
    loss = jo.ModelLoss(model, HoldsTheModel(model), RAGGED)
    theta = loss.initial()
    before = loss.value(theta), loss.gradient(theta), loss.hessian(theta).dense()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad and p.is_leaf for p in model.parameters())
    with torch.no_grad():
        model[2].weight.zero_()
    after = loss.value(theta), loss.gradient(theta), loss.hessian(theta).dense()
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_penalty_inside_a_sum_is_pointed_to_regularizer():
    model = seeded(mlp)

    def summed(outputs, targets):
        return functional.cross_entropy(outputs, targets, reduction="sum") + DECAY * square(model.parameters())

    with pytest.raises(jo.InputError, match="regularizer="):
        jo.ModelLoss(model, summed, RAGGED)


class Prototypes(nn.Module):
    """A loss with parameters of its own: distances to learned class centres."""

    def __init__(self):
        super().__init__()
        self.centres, self.log_scale = nn.Parameter(numbers(203, 3, 3)), nn.Parameter(torch.zeros(()).double())

    def forward(self, outputs, targets):
        gaps = ((outputs[:, None] - self.centres) ** 2).sum(2)
        return functional.cross_entropy(-gaps * self.log_scale.exp(), targets)


class Tuned(HoldsTheModel):
    """A loss that holds the model and a weight of its own."""

    def __init__(self, model):
        super().__init__(model)
        self.decay = nn.Parameter(torch.tensor(0.3).double())

    def forward(self, outputs, targets):
        return functional.cross_entropy(outputs, targets) + self.decay**2 * square(self.model.parameters())


def test_the_loss_functions_own_parameters_are_in_theta():
    model, prototypes = seeded(mlp), Prototypes()
    loss = jo.ModelLoss(model, prototypes, RAGGED)
    assert loss.parameters.names[-2:] == ("loss_function.centres", "loss_function.log_scale")
    assert torch.equal(loss.initial(), theta_of(model, prototypes))

    def true(theta):
        rest = weights_at(model, theta)[1]
        gaps = ((outputs_at(model, theta, X)[:, None] - rest[:9].reshape(3, 3)) ** 2).sum(2)
        return functional.cross_entropy(-gaps * rest[9].exp(), T)

    assert_matches(loss, true)


def test_a_loss_function_with_the_model_and_a_parameter_adds_only_the_latter():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, Tuned(model), RAGGED)
    names = tuple(name for name, _ in model.named_parameters())
    assert loss.parameters.names == (*names, "loss_function.decay")

    def true(theta):
        of_model = theta[:-1]
        return functional.cross_entropy(outputs_at(model, theta, X), T) + theta[-1] ** 2 * (of_model @ of_model)

    assert_matches(loss, true)


def _temperature():
    log_t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    return lambda o, t: functional.cross_entropy(o * log_t.exp(), t), [log_t], "log_t"


def _teacher():
    teacher = seeded(mlp)
    soft = functools.partial(functional.kl_div, reduction="batchmean", log_target=True)

    def distilled(outputs, targets):
        return soft(outputs.log_softmax(1), teacher(targets).log_softmax(1))

    return distilled, list(teacher.parameters()), "teacher"


def _scales():
    scales = {"wide": torch.ones(3, dtype=torch.float64, requires_grad=True)}
    return lambda o, t: functional.cross_entropy(o * scales["wide"], t), [scales["wide"]], "scales|wide"


@pytest.mark.parametrize("make", [_temperature, _teacher, _scales], ids=["tensor", "module", "dict"])
def test_trainable_tensors_that_are_not_the_models_are_refused_until_they_are_constants(make):
    function, tensors, name = make()
    targets = X if make is _teacher else T
    model = seeded(mlp)
    with pytest.raises(jo.InputError, match=rf"(?s)({name}).*requires_grad_\(False\)"):
        jo.ModelLoss(model, function, (X, targets))
    for tensor in tensors:
        tensor.requires_grad_(False)
    loss = jo.ModelLoss(model, function, (X, targets))
    assert_matches(loss, lambda t: function(outputs_at(model, t, X), targets))


def test_gauss_newton_of_a_loss_with_a_penalty_adds_the_penaltys_own_hessian_or_is_refused():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, HoldsTheModel(model), RAGGED)
    theta = loss.initial()
    G = exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: functional.cross_entropy(z, T), theta)
    try:
        found = loss.gauss_newton(theta).dense()
    except jo.InputError as error:
        assert "regularizer=" in str(error)  # noqa: PT017
        return
    assert_near(found, G + 2 * DECAY * torch.eye(len(theta)).double())
