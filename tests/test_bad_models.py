"""Modules and loss functions whose loss is no fixed sum over samples are refused, with the remedy."""

import pytest
import torch
from cases import MODULES, mean_cross_entropy, mlp, numbers, seeded
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = MODULES["perceptron"].inputs, MODULES["perceptron"].targets
LINEAR = seeded(lambda: nn.Linear(3, 3))
WEIGHTS = torch.tensor([1.0, 5.0, 0.2]).double()


def weighted_by_hand(z, t):
    """Take the mean that CrossEntropyLoss(weight=WEIGHTS) takes, in a form that nothing recognizes."""
    return (functional.cross_entropy(z, t, reduction="none") * WEIGHTS[t]).sum() / WEIGHTS[t].sum()


def ignoring_by_hand(z, t):
    counted = (t != -100).double()
    return (functional.cross_entropy(z, t.clamp(min=0), reduction="none") * counted).sum() / counted.sum()


def assert_is_that_of_one_batch(function, data, X, T):
    """Hold value and Hessian against the loss on all the data at once."""
    loss = loss_of(LINEAR, function, data)
    theta = loss.initial()
    whole = jo.FunctionLoss(lambda w: function(X @ w[:9].reshape(3, 3).mT + w[9:], T), size=12, dtype="float64")
    torch.testing.assert_close(loss.value(theta), whole.value(theta), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.hessian(theta).dense(), whole.hessian(theta).dense(), rtol=0, atol=1e-13)


def loss_of(model, function=mean_cross_entropy, data=(X, T), **options):
    return jo.ModelLoss(model, function, data, **options)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.BatchNorm1d(3), nn.RReLU(), nn.AlphaDropout(0.2)], ids=lambda m: type(m).__name__
)
def test_layers_in_training_mode_are_refused_until_eval(layer):
    model = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 3)).double()
    with pytest.raises(
        jo.InputError, match=rf"module '1' \({type(layer).__name__}\) is in training mode.*model.eval\(\)"
    ):
        loss_of(model)
    assert loss_of(model.eval()).samples == 7


def test_dropout_inside_attention_and_recurrence_is_refused():
    for part in (nn.MultiheadAttention(4, 2, dropout=0.1), nn.LSTM(3, 3, num_layers=2, dropout=0.1)):
        with pytest.raises(jo.InputError, match=rf"the model \({type(part).__name__}\) is in training mode"):
            loss_of(part.double())


def test_dropout_of_nothing_is_taken():
    assert loss_of(nn.Sequential(LINEAR, nn.Dropout(0.0))).samples == 7


def test_batch_norm_without_running_statistics_is_refused_in_any_mode():
    model = nn.Sequential(LINEAR, nn.BatchNorm1d(3, track_running_stats=False)).double().eval()
    with pytest.raises(jo.InputError, match=r"mixes the samples of a batch.*track_running_stats=True"):
        loss_of(model)


class Noisy(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(3, 3), wrap

    def forward(self, x):
        return self.wrap(functional.dropout(self.layer(x), 0.5))


def first_cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs["logits"], targets)


def test_a_model_that_is_random_on_its_own_is_refused():
    with pytest.raises(jo.InputError, match=r"two outputs for one input: it is random; call model.eval\(\)"):
        loss_of(Noisy(lambda y: y).double().eval())


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: {"logits": y}], ids=["tuple", "mapping"])
def test_a_random_model_of_several_outputs_is_refused(wrap):
    with pytest.raises(jo.InputError, match="it is random"):
        loss_of(Noisy(wrap).double().eval(), first_cross_entropy)


def test_a_model_that_mixes_samples_is_refused():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            y = self.layer(x)
            return y - y.mean(0)

    with pytest.raises(jo.InputError, match=r"neither the mean .* nor the sum .* of its parts"):
        loss_of(Centred().double())


@pytest.mark.parametrize(
    "function",
    [
        weighted_by_hand,
        lambda z, t: functional.cross_entropy(z, t) ** 2,
        lambda z, t: z.std(),
    ],
    ids=["class weights by hand", "square of a mean", "spread"],
)
def test_a_loss_that_is_neither_a_mean_nor_a_sum_is_refused(function):
    with pytest.raises(jo.InputError, match=r"neither the mean .*reduction='sum'"):
        loss_of(LINEAR, function)


@pytest.mark.parametrize("as_batches", [False, True])
def test_class_weights_are_right_or_refused_though_the_first_samples_are_of_one_class(as_batches):
    X, T = numbers(1, 600, 3), torch.arange(600) // 300
    data = list(zip(X.split(300), T.split(300), strict=True)) if as_batches else (X, T)
    with pytest.raises(jo.InputError, match="neither the mean"):
        loss_of(LINEAR, weighted_by_hand, data)
    assert_is_that_of_one_batch(nn.CrossEntropyLoss(weight=WEIGHTS), data, X, T)


@pytest.mark.parametrize(
    "function, given",
    [
        (nn.CrossEntropyLoss(reduction="none"), r"\(7,\)"),
        (lambda z, t: float(functional.cross_entropy(z, t)), "float"),
        (lambda z, t: None, "NoneType"),
        (lambda z, t: z, r"\(7, 3\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in the losses that are tried
def test_a_loss_that_is_no_scalar_is_refused(function, given):
    with pytest.raises(jo.InputError, match=f"must return a scalar, not {given}.*'mean' or 'sum'"):
        loss_of(LINEAR, function)


def test_reductions_are_told_apart_in_every_form():
    with torch.no_grad():
        each = functional.cross_entropy(LINEAR(X), T, reduction="none")
    for function, by_sum in (
        (functional.cross_entropy, False),
        (nn.CrossEntropyLoss(), False),
        (nn.CrossEntropyLoss(reduction="sum"), True),
        (lambda z, t: functional.cross_entropy(z, t, reduction="sum"), True),
    ):
        for count in (1, 2, 7):
            loss = loss_of(LINEAR, function, (X[:count], T[:count]))
            expected = each[:count].sum() if by_sum else each[:count].mean()
            torch.testing.assert_close(loss.value(loss.initial()), expected, rtol=1e-12, atol=0)


def test_a_sum_is_told_from_a_mean_even_where_the_models_own_loss_is_zero():
    targets = LINEAR(X).detach()
    loss = loss_of(LINEAR, lambda z, t: ((z - t) ** 2).sum(), (X, targets))
    theta = loss.initial() + 1
    expected = ((X.sum(1) + 1) ** 2).sum() * 3
    torch.testing.assert_close(loss.value(theta), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("as_batches", [False, True])
def test_ignored_targets_are_right_or_refused_though_the_first_samples_have_none(as_batches):
    X, T = numbers(1, 600, 3), torch.arange(600) % 3
    T[300:400] = -100
    data = list(zip(X.split(300), T.split(300), strict=True)) if as_batches else (X, T)
    with pytest.raises(jo.InputError, match="neither the mean"):
        loss_of(LINEAR, ignoring_by_hand, data)
    assert_is_that_of_one_batch(nn.CrossEntropyLoss(), data, X, T)


def test_models_with_nothing_to_differentiate_are_refused():
    for model in (nn.Sequential(), nn.Tanh(), nn.Linear(3, 3).requires_grad_(False)):
        with pytest.raises(jo.InputError, match="no parameter that requires a gradient"):
            loss_of(model)
    with pytest.raises(jo.InputError, match=r"must be a torch.nn.Module, not function"):
        loss_of(mean_cross_entropy)


def test_parameters_that_match_nothing_are_refused_with_the_names():
    with pytest.raises(
        jo.InputError, match=r"no parameter is named 'head\.\*'; the names are 0.weight, 0.bias, 2.weight"
    ):
        loss_of(seeded(mlp), parameters="head.*")


def test_models_of_mixed_or_half_precision_need_a_dtype():
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    for model in (mixed, nn.Linear(3, 3).half(), nn.Linear(3, 3).bfloat16()):
        with pytest.raises(jo.InputError, match=r"the model's parameters are torch.*: pass dtype=torch.float32"):
            loss_of(model)
    assert loss_of(mixed, dtype="float64").initial().dtype == torch.float64


def test_gauss_newton_of_a_loss_that_is_not_convex_is_refused():
    for function in (lambda z, t: torch.sin(3 * z).sum(), lambda z, t: -functional.cross_entropy(z, t)):
        loss = loss_of(seeded(mlp), function)
        loss.hessian(loss.initial())
        with pytest.raises(jo.InputError, match=r"not convex in the model's outputs .*use hessian\(theta\)"):
            loss.gauss_newton(loss.initial())


def test_gauss_newton_takes_the_output_that_the_loss_depends_on_and_refuses_several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x), self.layer(-x)

    model = Two().double()
    loss = loss_of(model, first_cross_entropy)
    theta = loss.initial()
    alone = loss_of(model.layer).gauss_newton(theta)
    assert torch.equal(loss.gauss_newton(theta).dense(), alone.dense())
    both = loss_of(model, lambda z, t: functional.cross_entropy(z[0], t) + functional.cross_entropy(z[1], t))
    both.hessian(theta)
    with pytest.raises(jo.InputError, match=r"the loss depends on 0 and 1 of tuple of 0, 1: name it by outputs="):
        both.gauss_newton(theta)


def test_what_breaks_the_sum_is_found_however_rare_it_is():
    X, T = numbers(1, 4000, 3), torch.arange(4000) % 2
    T[[1234, 3456]] = 2
    heavy = torch.tensor([1.0, 1.0, 500.0]).double()

    def by_hand(z, t):
        return (functional.cross_entropy(z, t, reduction="none") * heavy[t]).sum() / heavy[t].sum()

    with pytest.raises(jo.InputError, match="neither the mean"):
        loss_of(LINEAR, by_hand, (X, T))
    assert_is_that_of_one_batch(nn.CrossEntropyLoss(weight=heavy), (X, T), X, T)
    T[[1234, 3456]] = -100
    with pytest.raises(jo.InputError, match="neither the mean"):
        loss_of(LINEAR, ignoring_by_hand, (X, T))
    assert_is_that_of_one_batch(nn.CrossEntropyLoss(), (X, T), X, T)


def test_a_loss_that_is_concave_only_for_later_samples_has_no_gauss_newton_matrix():
    X, T = numbers(2, 1000, 3), torch.zeros(1000, 3).double()
    T[64:] = 1.9
    loss = loss_of(LINEAR, lambda z, t: torch.log1p((z - t) ** 2).mean(), (X, T))
    with pytest.raises(jo.InputError, match="not convex"):
        loss.gauss_newton(0 * loss.initial())


def test_labels_that_the_model_has_no_output_for_are_refused_wherever_they_are():
    X, T = numbers(3, 2000, 3), torch.arange(2000) % 3
    T[1999] = 7
    with pytest.raises(jo.InputError, match="do not run on the data: IndexError"):
        loss_of(LINEAR, nn.CrossEntropyLoss(), (X, T))
