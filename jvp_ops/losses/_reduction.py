"""Whether a loss function is a mean or a sum over samples, found out by trying; what is neither is refused."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops.errors import InputError
from jvp_ops.losses._batches import Batch, Batches, all_tensors, join_batches
from jvp_ops.losses._graphs import SampleSum
from jvp_ops.losses._modules import call

SAMPLES = 512  # tried in all
LossFunction = Callable[[Any, Any], Tensor]


def find_reduction(model: nn.Module, function: LossFunction, batches: Batches) -> SampleSum:
    """Try the loss on samples spread over all batches: whole, in two parts, and with every sample twice.

    Raises
    ------
    InputError
        It is neither a mean nor a sum, does not return a scalar, or the model is random.
    """
    share = max(1, SAMPLES // len(batches.sizes))
    with torch.no_grad():
        samples = [_spread(batch, share) for batch in batches]
        _refuse_random(model, samples[0])
        found = {_is_mean(model, function, sample) for sample in _mixed(samples)}
    if len(found) > 1:
        raise InputError("the loss function is a mean over some batches and a sum over others: make it one of the two")
    return SampleSum(function, found.pop())


def _spread(batch: Batch, count: int) -> Batch:
    return batch.take(torch.linspace(0, batch.samples - 1, min(count, batch.samples)).round().long())


def _mixed(samples: list[Batch]) -> list[Batch]:
    """Put samples of all batches together, since each batch alone may hold one class; where shapes differ, do not."""
    try:
        return [join_batches(samples)]
    except RuntimeError:
        return samples


def _is_mean(model: nn.Module, function: LossFunction, batch: Batch) -> bool:
    values = _trial(model, function, batch, spread=0.0)
    if values.whole == 0 == values.twice:  # a perfect fit tells nothing: look beside it
        values = _trial(model, function, batch, spread=0.1)
    tolerance = (1e-4 if values.single else 1e-9) * (1e-30 + abs(values.whole) + abs(values.sum))
    if abs(values.whole - values.mean) <= tolerance and abs(values.twice - values.whole) <= tolerance < abs(
        values.whole
    ):
        return True
    if abs(values.whole - values.sum) <= tolerance and abs(values.twice - 2 * values.whole) <= tolerance:
        if abs(values.whole) > tolerance:
            return False
        reduction = getattr(function, "reduction", None)
        if reduction in ("mean", "sum"):
            return bool(reduction == "mean")
        raise InputError(
            "the loss is zero wherever it was tried, so that a mean and a sum are the same: start elsewhere"
        )
    raise InputError(
        f"the loss of {batch.samples} samples is {values.whole:.6g}, neither the mean ({values.mean:.6g}) nor the sum "
        f"({values.sum:.6g}) of its parts: a mean or sum over samples is needed (class weights, ignore_index and batch "
        "statistics break it; normalize by hand with reduction='sum')"
    )


class _trial:  # noqa: N801 - a record of five numbers, made in one go
    """The loss of all samples, of two parts as their mean and sum, and of all samples twice."""

    def __init__(self, model: nn.Module, function: LossFunction, batch: Batch, *, spread: float) -> None:
        everything = torch.arange(batch.samples)
        cut = max(1, batch.samples // 3)  # in one piece: sorted classes then weigh differently in the two parts
        parts = [part for part in (everything[:cut], everything[cut:]) if len(part)]
        noise = torch.randn(batch.samples, generator=torch.Generator().manual_seed(0)) * spread

        def loss(index: Tensor) -> float:
            chosen = batch.take(index)
            outputs = call(model, chosen.inputs)
            if spread and isinstance(outputs, Tensor):
                outputs = outputs + noise[index].to(outputs).reshape(-1, *[1] * (outputs.ndim - 1))
            self.single = any(tensor.dtype == torch.float32 for tensor in all_tensors(outputs))
            return _scalar(function(outputs, chosen.targets))

        self.whole, self.twice = loss(everything), loss(torch.cat([everything, everything]))
        values = [loss(part) for part in parts]
        self.sum = sum(values)
        self.mean = sum(value * len(part) for value, part in zip(values, parts, strict=True)) / batch.samples


def _scalar(value: Any) -> float:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss function must return a scalar, not {shape}: use reduction='mean' or 'sum'")
    return float(value)


def _refuse_random(model: nn.Module, batch: Batch) -> None:
    first, again = (all_tensors(call(model, batch.inputs)) for _ in range(2))
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        raise InputError("the model gave two outputs for one input: it is random; call model.eval() first")
