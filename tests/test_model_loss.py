"""The loss of a module: sums over batches, what belongs to θ, and what is left alone."""

import copy

import pytest
import torch
from cases import MODULES, labels_of, mean_cross_entropy, mlp, numbers, seeded, sum_of_squares
from oracles import assert_near
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import jvp_ops as jo

X, T = MODULES["perceptron"].inputs, MODULES["perceptron"].targets


@pytest.mark.parametrize("name", MODULES)
def test_value_and_gradient_are_those_of_autograd(name, dtype, device):
    module = MODULES[name]
    loss, theta = module.loss(dtype, device), module.theta()
    leaf = theta.clone().requires_grad_()
    value = module.value(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    eps = 64 * torch.finfo(dtype).eps
    at = theta.to(device, dtype)
    assert loss.value(at).shape == ()
    for found, true in ((loss.value(at), value.detach()), (loss.gradient(at), slope)):
        assert found.dtype == dtype
        assert found.device == device
        assert (found.cpu().double() - true).abs().max() <= eps * max(1.0, float(true.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_ragged_batches_weigh_by_samples(batch_size, kind):
    model, function, targets = seeded(mlp), mean_cross_entropy, T
    if kind == "sum":
        function, targets = sum_of_squares, numbers(1, 7, 3)
    whole = jo.ModelLoss(model, function, (X, targets))
    theta = whole.initial()
    loader = DataLoader(TensorDataset(X, targets), batch_size=batch_size)
    batches = list(zip(X.split(batch_size), targets.split(batch_size), strict=True))
    for data in (loader, batches):
        loss = jo.ModelLoss(model, function, data)
        assert loss.samples == 7
        for name in ("value", "gradient"):
            expected = getattr(whole, name)(theta)
            torch.testing.assert_close(getattr(loss, name)(theta), expected, rtol=1e-12, atol=1e-14)
        for name in ("hessian", "gauss_newton"):
            expected = getattr(whole, name)(theta).dense()
            torch.testing.assert_close(getattr(loss, name)(theta).dense(), expected, rtol=1e-11, atol=1e-13)


def test_a_sum_over_unequal_chunks_is_that_of_the_whole():
    model = seeded(mlp)
    whole = jo.ModelLoss(model, mean_cross_entropy, (X, T))
    theta, sizes = whole.initial(), [1, 4, 2]
    loss = jo.ModelLoss(model, mean_cross_entropy, list(zip(X.split(sizes), T.split(sizes), strict=True)))
    torch.testing.assert_close(loss.value(theta), whole.value(theta), rtol=1e-13, atol=0)
    means = [
        functional.cross_entropy(MODULES["perceptron"].outputs(theta)[s], T[s])
        for s in (slice(0, 1), slice(1, 5), slice(5, 7))
    ]
    assert abs(float(sum(means)) / 3 - float(loss.value(theta))) > 1e-3  # a plain mean of means would be another loss
    torch.testing.assert_close(loss.hessian(theta).dense(), whole.hessian(theta).dense(), rtol=1e-11, atol=1e-13)


def test_a_sum_is_told_from_a_mean_even_where_each_batch_holds_one_sample():
    model, targets = seeded(mlp), numbers(1, 7, 3)
    whole = jo.ModelLoss(model, sum_of_squares, (X, targets))
    single = jo.ModelLoss(model, sum_of_squares, list(zip(X.split(1), targets.split(1), strict=True)))
    theta = whole.initial()
    torch.testing.assert_close(single.value(theta), whole.value(theta), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["unused layer", "tied weights"])
def test_parameters_appear_once_and_unused_ones_give_zeros(name):
    module = MODULES[name]
    loss = module.loss()
    assert loss.parameters.names == tuple(name for name, _ in module.model().named_parameters())
    if name == "tied weights":
        assert loss.parameters.size == 15
        return
    H = loss.hessian(loss.initial())
    index = loss.parameters.index("extra.*", torch.device("cpu"))
    assert torch.count_nonzero(H.dense()[index]) == 0
    assert torch.count_nonzero(H.block("extra.*", "*").dense()) == 0
    assert torch.count_nonzero(loss.gradient(loss.initial())[index]) == 0
    assert torch.count_nonzero(loss.gauss_newton(loss.initial()).dense()[:, index]) == 0


def test_frozen_parameters_are_constants():
    loss = MODULES["frozen layer"].loss()
    assert loss.parameters.names == ("2.weight", "2.bias")
    assert loss.hessian(loss.initial()).shape == (15, 15)


def test_the_users_model_is_never_changed():
    model = seeded(mlp).train()
    model[2].bias.requires_grad_(False)
    model.register_buffer("constant", torch.ones(1))
    state, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    rng = torch.get_rng_state()
    loss = jo.ModelLoss(model, mean_cross_entropy, (X, T), dtype="float32")
    theta = loss.initial(rng=0)
    loss.value(theta), loss.gradient(theta), loss.hessian(theta).dense(), loss.gauss_newton(theta).dense()
    loss.to(dtype="float64")
    jo.GradientDescent(loss, lr=1.0).run(theta, steps=2)
    assert torch.equal(rng, torch.get_rng_state())
    assert model.training
    assert all(module.training for module in model.modules())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert all(p.grad is None and p.dtype == torch.float64 for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_later_change_of_the_users_model_is_not_seen():
    model = seeded(mlp)
    loss = jo.ModelLoss(model, mean_cross_entropy, (X, T), parameters="2.*")
    theta = loss.initial()
    before = loss.value(theta)
    with torch.no_grad():
        model[0].weight.zero_()
    assert loss.value(theta) == before


def test_a_later_change_of_the_users_tensors_is_refused_or_not_seen():
    data = X.clone()
    loss = jo.ModelLoss(seeded(mlp), mean_cross_entropy, (data, T))
    theta = loss.initial()
    before, A = loss.value(theta), loss.hessian(theta)
    image = A.apply(torch.ones_like(theta))
    data.mul_(2)
    for again, expected in ((lambda: loss.value(theta), before), (lambda: A.apply(torch.ones_like(theta)), image)):
        try:
            assert torch.equal(again(), expected)
        except jo.DataError as error:
            assert "changed" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["perceptron", "transformer block"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(name, mode):
    loss, module = MODULES[name].loss(), MODULES[name]
    theta = module.theta()
    with mode():
        slope, H, G = loss.gradient(theta), loss.hessian(theta).dense(), loss.gauss_newton(theta).dense()
        drawn = loss.gradient(loss.initial())
    assert torch.equal(slope, loss.gradient(theta))
    assert torch.equal(drawn, slope)
    assert (H - module.H()).abs().max() <= 1e-12
    assert (G - module.G()).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["perceptron", "transformer block"])
def test_a_loss_may_be_made_and_divided_within_inference_mode(name):
    outside = MODULES[name].loss()
    with torch.inference_mode():
        loss = MODULES[name].loss()
        slope, value = loss.gradient(loss.initial()), loss.to(dtype="float32").value(loss.initial().float())
        H, G = loss.hessian(loss.initial()).dense(), loss.gauss_newton(loss.initial()).dense()
    theta = outside.initial()
    assert torch.equal(slope, outside.gradient(theta))
    assert torch.equal(H, outside.hessian(theta).dense())
    assert torch.equal(G, outside.gauss_newton(theta).dense())
    assert torch.equal(value, outside.to(dtype="float32").value(theta.float()))


def test_a_subset_may_be_made_within_inference_mode():
    X, T = numbers(3, 12, 5), labels_of(4, 12, 3)
    with torch.inference_mode():
        part = jo.ModelLoss(seeded(lambda: torch.nn.Linear(5, 3)), mean_cross_entropy, (X, T)).subset([7, 2, 2])
        H = part.hessian(part.initial()).dense()
    index = torch.tensor([7, 2, 2])
    alone = jo.ModelLoss(seeded(lambda: torch.nn.Linear(5, 3)), mean_cross_entropy, (X[index], T[index]))
    assert_near(H, alone.hessian(alone.initial()).dense())


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_a_linearization_stays_at_its_state_when_theta_changes_in_place(kind):
    loss = MODULES["perceptron"].loss()
    theta = loss.initial()
    A = getattr(loss, kind)(theta)
    before = A.dense()
    theta.mul_(-3)
    assert torch.equal(A.dense(), before)
    assert torch.equal(A.in_float64().dense(), before)


def test_initial_is_the_models_own_values_and_a_copy():
    loss = MODULES["perceptron"].loss()
    theta = loss.initial()
    assert torch.equal(theta, MODULES["perceptron"].theta())
    theta.zero_()
    assert torch.equal(loss.initial(), MODULES["perceptron"].theta())


@pytest.mark.parametrize("name", MODULES)
def test_initial_draws_anew_from_a_seed_and_leaves_the_global_generator_alone(name, device):
    loss = MODULES[name].loss(device=device)
    before, on_device = torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None
    drawn = loss.initial(rng=0)
    assert drawn.device == device
    assert torch.equal(before, torch.get_rng_state())
    assert on_device is None or torch.equal(on_device, torch.cuda.get_rng_state())
    torch.manual_seed(123)
    try:
        assert torch.equal(drawn, loss.initial(rng=0))
    finally:
        torch.set_rng_state(before)
    assert not torch.equal(drawn, loss.initial(rng=1))
    assert not torch.equal(drawn, loss.initial())


def test_initial_refuses_parameters_that_no_module_can_draw():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) * self.scale

    loss = jo.ModelLoss(Bare().double(), mean_cross_entropy, (X, T))
    with pytest.raises(jo.InputError, match=r"scale cannot be drawn anew.*reset_parameters"):
        loss.initial(rng=0)
    assert loss.initial().shape == (15,)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_torchs_own_encoder_layer_can_be_linearized(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(12, 3)).double().eval()
    loss = jo.ModelLoss(model, mean_cross_entropy, (numbers(1, 5, 3, 4), MODULES["transformer block"].targets))
    theta, v = loss.initial(), numbers(2, loss.parameters.size)
    H = loss.hessian(theta) if kind == "hessian" else loss.gauss_newton(theta)
    torch.testing.assert_close(H.dense(), H.dense().mT, rtol=0, atol=1e-13)
    if kind == "hessian":
        step = 1e-5 * v / v.norm()
        difference = (loss.gradient(theta + step) - loss.gradient(theta - step)) / 2
        assert (H.apply(step) - difference).norm() <= 1e-8 * difference.norm()
