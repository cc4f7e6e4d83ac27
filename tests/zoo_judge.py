"""Ask the package for an entry's loss, gradient and Hessian, and compare with the oracle."""

from dataclasses import dataclass

import torch
from zoo_entry import REFUSED, data_of
from zoo_oracle import Oracle, relative

import jvp_ops as jo


@dataclass(frozen=True)
class Verdict:
    """What came of an entry: right, refused, or wrong, and in what."""

    kind: str
    detail: str = ""

    def __str__(self):
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def judge(entry, form):
    """Try one form of the data. An error that is not the package's own is let through."""
    try:
        return attempt(entry, form)
    except jo.JvpOpsError as error:
        return Verdict("refused", str(error))


def attempt(entry, form):
    case, oracle = entry.make(), Oracle(entry.make())
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    loss = jo.ModelLoss(case.model, case.loss_function, data_of(case, form), **case.options)
    if entry.expected == REFUSED:
        loss.hessian(loss.initial()).apply(flat(loss, oracle.noise(9)))
        return Verdict("wrong", "gave a product of a Hessian that does not exist")
    wrong = [message for message in comparisons(loss, oracle) if message]
    if any(
        not torch.equal(value.to_dense(), before[name].to_dense()) for name, value in case.model.state_dict().items()
    ):
        wrong.append("the user's model was changed")
    return Verdict("wrong", "; ".join(wrong)) if wrong else Verdict("right")


def flat(loss, values):
    return loss.parameters.flatten(values)


def comparisons(loss, oracle):
    """Compare at every place, and say what is off."""
    case = oracle.case
    if set(loss.parameters.names) != set(oracle.names):
        yield f"θ is of {loss.parameters.names} and not of {oracle.names}"
        return
    if not torch.equal(loss.initial(), flat(loss, oracle.start())):
        yield "initial() is not the model's own"
    for number, place in enumerate(oracle.places()):
        theta, v = flat(loss, place), oracle.noise(9)
        value = oracle.value(place)
        yield off("value", number, float(abs(loss.value(theta) - value) / abs(value)), case.value_error)
        gradient = loss.parameters.unflatten(loss.gradient(theta))
        yield off("gradient", number, relative(gradient, oracle.gradient(place)), case.gradient_error)
        product = loss.parameters.unflatten(loss.hessian(theta).apply(flat(loss, v)))
        yield off("product", number, relative(product, oracle.product(place, v)), case.product_error)


def off(what, place, error, most):
    return "" if error <= most else f"{what} at place {place} off by {error:.1e}"
