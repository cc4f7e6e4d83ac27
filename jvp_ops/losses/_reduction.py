"""Whether a loss function is a mean or a sum over samples, found out by trying; what is neither is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops.errors import InputError, JvpOpsError
from jvp_ops.losses._batches import Batch, Batches, all_tensors, join_batches
from jvp_ops.losses._graphs import SampleSum
from jvp_ops.losses._modules import call

SAMPLES = 512  # tried in all
PIECE = 256  # samples of a forward pass
MOST_OUTPUTS = 2**24  # numbers that are put together
LossFunction = Callable[[Any, Any], Tensor]


def find_reduction(model: nn.Module, function: LossFunction, batches: Batches) -> SampleSum:
    """Try the loss on samples spread over all batches: whole, in two parts, and with every sample twice.

    Raises
    ------
    InputError
        It is neither a mean nor a sum, does not return a scalar, or the model is random.
    """
    try:
        with torch.no_grad():
            samples = spread_samples(batches)
            _refuse_random(model, samples[0])
            found = {_is_mean(model, function, sample) for sample in samples}
            if len(found) > 1:
                raise InputError("the loss function is a mean over some batches and a sum over others: make it one")
            loss = SampleSum(function, found.pop())
            _check_everywhere(model, loss, batches)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, JvpOpsError):
            raise
        raise InputError(
            f"the model and the loss function do not run on the data: {type(error).__name__}: {error}"
        ) from error
    return loss


def spread_samples(batches: Batches) -> list[Batch]:
    """Take samples from all over the data: together, or by batch where shapes differ."""
    share = max(1, SAMPLES // len(batches.sizes))
    return _mixed([_spread(batch, share) for batch in batches])


def _check_everywhere(model: nn.Module, loss: SampleSum, batches: Batches) -> None:
    """Go once through all the data, since what breaks the sum may be rare: a heavy class, an ignored target."""
    for batch in batches:
        pieces, outputs = list(batch.pieces(PIECE)), []
        for number, piece in enumerate(pieces):
            outputs.append(call(model, piece.inputs))
            if not isinstance(outputs[-1], Tensor) or outputs[-1].ndim == 0 or len(outputs[-1]) != piece.samples:
                return  # outputs that cannot be put together row by row
            if number + 1 == len(pieces) or sum(output.numel() for output in outputs) > MOST_OUTPUTS:
                _compare(loss, pieces[number + 1 - len(outputs) : number + 1], outputs)
                outputs = []


def _compare(loss: SampleSum, pieces: list[Batch], outputs: list[Tensor]) -> None:
    if len(pieces) == 1:
        return
    joined, count = join_batches(pieces), sum(piece.samples for piece in pieces)
    values = [float(loss.function(output, piece.targets)) for output, piece in zip(outputs, pieces, strict=True)]
    mean = sum(value * piece.samples for value, piece in zip(values, pieces, strict=True)) / count
    whole = loss.function(torch.cat(outputs), joined.targets)
    weights = [piece.samples / count if loss.is_mean else 1.0 for piece in pieces]
    expected = sum(value * weight for value, weight in zip(values, weights, strict=True))
    size = sum(abs(value) * weight for value, weight in zip(values, weights, strict=True))
    if not abs(float(whole) - expected) <= _tolerance(whole.dtype) * (1e-30 + size):
        raise _neither(count, float(whole), mean, sum(values))


def _tolerance(dtype: torch.dtype) -> float:
    """Say how far, relatively, two ways of adding up one loss may differ by rounding."""
    return 1e-9 if dtype == torch.float64 else 1e-4


def _spread(batch: Batch, count: int) -> Batch:
    return batch.take(torch.linspace(0, batch.samples - 1, min(count, batch.samples)).round().long())


def _mixed(samples: list[Batch]) -> list[Batch]:
    """Put samples of all batches together, since each batch alone may hold one class; where shapes differ, do not."""
    try:
        return [join_batches(samples)]
    except RuntimeError:
        return samples


def _is_mean(model: nn.Module, function: LossFunction, batch: Batch) -> bool:
    values = _try(model, function, batch, spread=0.0)
    if values.whole == 0 == values.twice:  # a perfect fit tells nothing: look beside it
        values = _try(model, function, batch, spread=0.1)
    tolerance = _tolerance(values.dtype) * (1e-30 + abs(values.whole) + abs(values.sum))
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
    raise _neither(batch.samples, values.whole, values.mean, values.sum)


def _neither(samples: int, whole: float, mean: float, total: float) -> InputError:
    return InputError(
        f"the loss of {samples} samples is {whole:.6g}, neither the mean ({mean:.6g}) nor the sum ({total:.6g}) of its "
        "parts: a mean or sum over samples is needed (class weights, ignore_index and batch statistics break it; "
        "normalize by hand with reduction='sum')"
    )


@dataclass(frozen=True)
class _Trial:
    """The loss of all samples, of all samples twice, and of two parts as their mean and sum; and its dtype."""

    whole: float
    twice: float
    mean: float
    sum: float
    dtype: torch.dtype


def _try(model: nn.Module, function: LossFunction, batch: Batch, *, spread: float) -> _Trial:
    everything = torch.arange(batch.samples)
    cut = max(1, batch.samples // 3)  # in one piece: sorted classes then weigh differently in the two parts
    parts = [part for part in (everything[:cut], everything[cut:]) if len(part)]
    noise = torch.randn(batch.samples, generator=torch.Generator().manual_seed(0)) * spread

    def loss(index: Tensor) -> Tensor:
        chosen = batch.take(index)
        outputs = call(model, chosen.inputs)
        if spread and isinstance(outputs, Tensor):
            outputs = outputs + noise[index].to(outputs).reshape(-1, *[1] * (outputs.ndim - 1))
        return _checked_scalar(function(outputs, chosen.targets))

    whole, twice = loss(everything), loss(torch.cat([everything, everything]))
    values = [float(loss(part)) for part in parts]
    mean = sum(value * len(part) for value, part in zip(values, parts, strict=True)) / batch.samples
    return _Trial(float(whole), float(twice), mean, sum(values), whole.dtype)


def _checked_scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss function must return a scalar, not {shape}: use reduction='mean' or 'sum'")
    return value


def _refuse_random(model: nn.Module, batch: Batch) -> None:
    first, again = (all_tensors(call(model, batch.inputs)) for _ in range(2))
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        raise InputError("the model gave two outputs for one input: it is random; call model.eval() first")
