"""Means that torch's own losses take, recognized by what they are: what each divides by, here and in all the data.

A weighted mean over all the data is (Σ terms)/(Σ weights). The loss of a chunk divides by its own weights, so that the
losses of chunks do not add up to that of the whole. Where the call that takes the mean is one of torch's, it is made
to return its sum over the weights of all the data instead.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jvp_ops.errors import InputError

UNEVEN = (
    "the loss takes more means over some samples than over others (`if mask.any():`): take each always, also where "
    "nothing is selected"
)
BY_CLASS = (functional.cross_entropy, functional.nll_loss)
BY_WEIGHT = (functional.mse_loss, functional.l1_loss)  # whose weight= is what they divide by
BY_ENTRY = (
    *BY_WEIGHT,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.kl_div,
    functional.poisson_nll_loss,
    functional.gaussian_nll_loss,
    functional.soft_margin_loss,
)
RECOGNIZED = frozenset((*BY_CLASS, *BY_ENTRY))


@dataclass(frozen=True)
class Totals:
    """Σ weights over all the data of each mean that one evaluation of the loss takes, in the order of the calls."""

    samples: int
    weights: tuple[float, ...]


@dataclass
class Means:
    """The means met in one evaluation of the loss of some samples.

    Parameters
    ----------
    samples : int
        How many samples are evaluated.
    totals : Totals, optional
        Where it is given, each mean becomes its share of the whole: its sum · N / (n · Σ weights).

    Attributes
    ----------
    weights : list of float
        What each mean divides by.
    plain : bool
        Every mean so far weighs each sample the same, one row each.
    """

    samples: int
    totals: Totals | None = None
    weights: list[float] = field(default_factory=list)
    plain: bool = True

    def take(self, function: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """Call one of torch's losses; where it takes a mean, note what it divides by or make it its share."""
        given = _signature(function).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        if _reduction(options) != "mean" or torch._C._are_functorch_transforms_active():
            return function(*args, **kwargs)
        weight, plain = _denominator(function, options)
        self.weights.append(weight)
        self.plain &= plain and _rows(options) == self.samples
        if self.totals is None:
            return function(*args, **kwargs)
        if len(self.weights) > len(self.totals.weights):
            raise InputError(UNEVEN)
        options.update({"reduction": "sum"} | {name: None for name in ("size_average", "reduce") if name in options})
        share = self.totals.samples / (self.samples * self.totals.weights[len(self.weights) - 1])
        return function(**options) * share


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _reduction(options: dict[str, Any]) -> str:
    """Read `reduction`, and the older flags that overrule it."""
    if options.get("size_average") is None and options.get("reduce") is None:
        return str(options["reduction"])
    summed = options.get("reduce") is not False
    return "none" if not summed else "sum" if options.get("size_average") is False else "mean"


def _rows(options: dict[str, Any]) -> int:
    shape = options["target"].shape
    return int(shape[0]) if len(shape) else 1


def _denominator(function: Callable[..., Tensor], options: dict[str, Any]) -> tuple[float, bool]:
    """Say what a mean divides by, and whether it weighs all entries the same."""
    given, target, weight = options["input"], options["target"], options.get("weight")
    if function in BY_ENTRY:
        if weight is not None and function in BY_WEIGHT:
            return float(weight.double().sum()), False
        return float(torch.broadcast_shapes(given.shape, target.shape).numel()), True
    if target.is_floating_point():  # probabilities of classes
        return float(given.numel() // given.shape[0 if given.ndim == 1 else 1]), True
    counted = target != options["ignore_index"]
    if weight is None:
        return float(counted.sum()), bool(counted.all())
    return float((weight.double()[torch.where(counted, target, 0)] * counted).sum()), False
