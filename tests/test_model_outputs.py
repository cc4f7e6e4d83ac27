"""What a model may return: anything that the loss function can use; and which part Gauss-Newton is split at."""

import dataclasses
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact_gauss_newton
from torch import nn
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(600, 24, 5), labels_of(601, 24, 3)
BATCHES = list(zip(X.split([7, 1, 16]), T.split([7, 1, 16]), strict=True))


class Cache:
    """What language models hand on: no tensor, and nothing to compare."""

    def __init__(self, keys):
        self.keys = keys


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    hidden: tuple = ()


Named = namedtuple("Named", ["logits", "attentions"])


class Frozen(OrderedDict):
    """A mapping whose keys are attributes too, as transformers' outputs are."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.l, self.wrap = nn.Linear(5, 3), wrap

    def forward(self, x):
        return self.wrap(torch.sin(self.l(x)))


def by_key(outputs, targets):
    return functional.cross_entropy(outputs["logits"], targets)


def by_attribute(outputs, targets):
    return functional.cross_entropy(outputs.logits, targets)


def by_place(outputs, targets):
    return functional.cross_entropy(outputs[0], targets)


KINDS = {
    "None beside logits": (lambda z: {"loss": None, "logits": z}, by_key, "logits"),
    "a cache": (lambda z: {"logits": z, "past": Cache(z)}, by_key, "logits"),
    "strings and numbers": (lambda z: {"logits": z, "name": "head", "count": 3, "flag": True}, by_key, "logits"),
    "a dataclass": (Output, by_attribute, "logits"),
    "a dataclass of more": (lambda z: Output(z, None, (z, [Cache(z)])), by_attribute, "logits"),
    "a namespace": (lambda z: SimpleNamespace(logits=z, cache=Cache(z)), by_attribute, "logits"),
    "a named tuple": (lambda z: Named(z, None), by_attribute, "logits"),
    "a tuple with None": (lambda z: (z, None, Cache(z)), by_place, 0),
    "a list": (lambda z: [z, [z, None]], by_place, 0),
    "a mapping with attributes": (lambda z: Frozen(loss=None, logits=z), by_attribute, "logits"),
}


def outputs(theta):
    return torch.sin(X @ theta[:15].reshape(3, 5).mT + theta[15:])


def G(theta):
    return exact_gauss_newton(outputs, lambda z: functional.cross_entropy(z, T), theta)


@pytest.mark.parametrize("data", [(X, T), BATCHES], ids=["one batch", "ragged"])
@pytest.mark.parametrize("name", KINDS)
def test_anything_that_the_loss_function_can_use_is_taken(name, data):
    wrap, function, part = KINDS[name]
    model = seeded(lambda: Wrapped(wrap))
    loss = jo.ModelLoss(model, function, data)
    assert_matches(loss, lambda t: functional.cross_entropy(outputs(t), T))
    theta = loss.initial()
    assert_near(loss.gauss_newton(theta).dense(), G(theta))  # found without saying
    said = jo.ModelLoss(model, function, data, outputs=part)
    assert_near(said.gauss_newton(theta).dense(), G(theta))


def test_a_part_that_is_not_there_is_refused_with_those_that_are():
    for wrap, function, wrong, there in (
        (lambda z: {"logits": z, "past": Cache(z)}, by_key, "scores", "logits"),
        (Output, by_attribute, "scores", "logits"),
        (lambda z: (z, None), by_place, 5, "0"),
    ):
        with pytest.raises(jo.InputError, match=rf"(?s){wrong}.*{there}"):
            _gauss_newton(jo.ModelLoss, seeded(lambda wrap=wrap: Wrapped(wrap)), function, (X, T), outputs=wrong)
    for bad in (1.5, ["logits"], True):
        with pytest.raises(jo.InputError, match="outputs"):
            _gauss_newton(jo.ModelLoss, seeded(lambda: Wrapped(Output)), by_attribute, (X, T), outputs=bad)


def _gauss_newton(make, *arguments, **options):
    loss = make(*arguments, **options)
    return loss.gauss_newton(loss.initial())


def test_a_part_that_the_loss_does_not_use_is_refused():
    model = seeded(lambda: Wrapped(lambda z: {"logits": z, "other": 2 * z}))
    with pytest.raises(jo.InputError, match="other"):
        _gauss_newton(jo.ModelLoss, model, by_key, (X, T), outputs="other")


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return {"left": self.left(h), "right": self.right(h)}


def test_a_loss_of_two_heads_is_split_at_both_or_refused():
    model, values = seeded(TwoHeads), numbers(602, 24, 2)

    def both(outputs, targets):
        return functional.cross_entropy(outputs["left"], targets[0]) + functional.mse_loss(outputs["right"], targets[1])

    def flat(theta):
        A, a, B, b, C, c = theta.split([20, 4, 12, 3, 8, 2])
        h = torch.tanh(X @ A.reshape(4, 5).mT + a)
        return torch.cat([h @ B.reshape(3, 4).mT + b, h @ C.reshape(2, 4).mT + c], 1)

    def of_flat(z):
        return functional.cross_entropy(z[:, :3], T) + functional.mse_loss(z[:, 3:], values)

    loss = jo.ModelLoss(model, both, (X, (T, values)))
    theta = loss.initial()
    assert_matches(loss, lambda t: of_flat(flat(t)))
    for options in ({}, {"outputs": "left"}):  # a part that leaves curvature of the loss out gives another matrix
        try:
            found = _gauss_newton(jo.ModelLoss, model, both, (X, (T, values)), **options).dense()
        except jo.InputError as error:
            assert "outputs" in str(error)  # noqa: PT017
        else:
            assert_near(found, exact_gauss_newton(flat, of_flat, theta))


# --- outputs that are no numbers ---------------------------------------------------------------------------------


def spoiled(value):
    return seeded(lambda: Wrapped(lambda z: torch.where(z > 0, z, torch.full_like(z, value))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_called_so(value):
    with pytest.raises(jo.JvpOpsError, match=r"NaN|Inf|finite") as caught:
        jo.ModelLoss(spoiled(value), functional.cross_entropy, (X, T))
    assert isinstance(caught.value, jo.NonFiniteError | jo.InputError)
    assert "random" not in str(caught.value)
    assert "eval()" not in str(caught.value)


def logits_of(outputs):
    if isinstance(outputs, torch.Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


class Roots(Wrapped):
    def forward(self, x):
        return self.wrap(self.l((x + 40).sqrt()))


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: {"logits": z}, Output], ids=["tensor", "mapping", "dataclass"])
def test_nan_is_found_in_later_batches_and_in_any_structure(wrap):
    rows = X.clone()
    rows[20] = -50.0  # which has no root
    model = seeded(lambda: Roots(wrap))

    def function(outputs, targets):
        return functional.cross_entropy(logits_of(outputs), targets)

    with pytest.raises(jo.JvpOpsError, match="NaN") as caught:
        jo.ModelLoss(model, function, list(zip(rows.split(8), T.split(8), strict=True)))
    assert "random" not in str(caught.value)
    assert jo.ModelLoss(model, function, list(zip(X.split(8), T.split(8), strict=True))).samples == 24


def test_a_loss_function_that_gives_nan_is_called_so():
    model = seeded(lambda: Wrapped(lambda z: z))
    with pytest.raises(jo.JvpOpsError, match="NaN") as caught:
        jo.ModelLoss(model, lambda o, t: (o - 2).log().mean(), (X, T))
    assert "neither the mean" not in str(caught.value)


def test_a_random_model_is_still_called_random():
    model = seeded(lambda: Wrapped(lambda z: {"logits": functional.dropout(z, 0.5), "loss": None}))
    with pytest.raises(jo.InputError, match="it is random"):
        jo.ModelLoss(model, by_key, (X, T))
