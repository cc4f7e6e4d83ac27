"""Whether a loss is a mean or a sum over samples, and what it divides by, found out by trying; else it is refused."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch, Batches, join_batches
from jvp_ops.losses.model._binding import Binding
from jvp_ops.losses.model._evaluation import Evaluation, Objective, bound, refuse_moving
from jvp_ops.losses.model._means import UNEVEN, Means, Totals
from jvp_ops.losses.model._structures import all_tensors, map_tensors, put_together

SAMPLES = 512  # tried in all
PIECE = 256  # samples of a forward pass
MOST_NUMBERS = 2**24  # that are put together
SCALES = (0.5, 0.1, 0.01, 0.0)  # of the perturbation of θ, in its own units: the first whose losses are finite


def spread_samples(batches: Batches) -> list[Batch]:
    """Take samples from all over the data: together, or by batch where shapes differ."""
    share = max(1, SAMPLES // len(batches.sizes))
    return _mixed([spread(batch, share) for batch in batches])


def spread(batch: Batch, count: int) -> Batch:
    """Take some samples of a batch, evenly spread."""
    return batch.take(torch.linspace(0, batch.samples - 1, min(count, batch.samples)).round().long())


def find_reduction(objective: Objective, binding: Binding, samples: Sequence[Batch]) -> tuple[Objective, float]:
    """Try the loss beside the model's own values: whole, in parts, and with every sample twice.

    Beside them, since at a head of zeros, or a perfect fit, all samples have the same loss and tell nothing.

    Returns
    -------
    objective
        With `is_mean`.
    scale
        Of the perturbation at which it was found.

    Raises
    ------
    InputError
        It is neither a mean nor a sum, or zero wherever it was tried.
    """
    refused: InputError | None = None
    for scale in SCALES:
        if scale == 0.0 and refused is not None:
            raise refused
        substitutes = binding.substitutes(binding.perturbed(scale))
        with bound(objective, binding, substitutes) as at, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one sample, say, that a user's code never sees alone
            trials = [trial for sample in samples if (trial := _try(at, sample)) is not None]
        if all(trial.is_finite for trial in trials):
            try:
                kinds = {kind for trial in trials if (kind := trial.is_mean()) is not None}
            except InputError as error:  # far from its own values a model may be chaotic: look closer
                refused = error
                continue
            if len(kinds) > 1:
                raise InputError("the loss is a mean over some batches and a sum over others: make it one")
            if kinds:
                by_weight = {trial.by_weight for trial in trials if trial.by_weight is not None}
                if len(by_weight) > 1:
                    raise InputError("the loss is a weighted mean over some batches and not over others: make it one")
                return replace(objective, is_mean=kinds.pop(), by_weight=by_weight != {False}), scale
    for trial in trials:
        if math.isfinite(trial.whole) and not trial.is_finite:  # a part in which nothing counts
            raise trial.neither()
    reduction = getattr(objective.function, "reduction", None)
    if reduction in ("mean", "sum"):
        return replace(objective, is_mean=reduction == "mean"), 0.0
    raise InputError(
        "the loss is zero, or not finite (NaN), wherever it was tried, so that a mean and a sum are the same: are all "
        "targets ignored, or all weights zero?"
    )


def find_totals(objective: Objective, binding: Binding, batches: Iterable[Batch], scale: float) -> Objective:
    """Go once through all the data: find what means divide by, and what breaks the sum, which may be rare.

    Raises
    ------
    InputError
        Parts of the data do not add up, or all are ignored, or a mean over ragged samples is not one of torch's, or
        what the loss divides by depends on θ.
    """

    def found_at(scale: float, *, compared: bool) -> _Found:
        found = _Found()
        with bound(objective, binding, binding.substitutes(binding.perturbed(scale))) as at:
            _go_through(at, (piece for batch in batches for piece in batch.pieces(PIECE)), found, compared=compared)
        return found

    found = found_at(scale, compared=True)
    totals = found.totals(objective)
    if totals is not None:
        refuse_moving(found_at(0.0 if scale else 0.01, compared=False).weights, totals.weights)
    return replace(objective, totals=totals)


class _Found:
    """What a pass over the data has met: weights of means, and the shapes of outputs."""

    def __init__(self) -> None:
        self.samples, self.weights = 0, list[float]()
        self.shares: set[tuple[float, ...]] = set()
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()
        self.plain = True

    def add(self, means: Means, outputs: object, piece: Batch) -> None:
        if self.samples and len(means.weights) != len(self.weights):
            raise InputError(UNEVEN)
        before = self.weights or [0.0] * len(means.weights)
        self.samples += means.samples
        self.weights = [one + more for one, more in zip(before, means.weights, strict=True)]
        self.shares.add(tuple(weight / means.samples for weight in means.weights))
        rows = [z for z in all_tensors(outputs) if z.is_floating_point() and z.ndim > 0 and len(z) == piece.samples]
        self.shapes.add(tuple(tuple(z.shape[1:]) for z in rows or piece.tensors))  # a loss alone shows no lengths
        self.plain &= means.plain

    def totals(self, objective: Objective) -> Totals | None:
        """Say what each mean divides by in all, or nothing where every sample weighs the same."""
        if objective.normalizer is not None:
            return None
        if objective.by_weight and 0.0 in self.weights:
            raise InputError("the loss counts no sample: all targets are ignored, or all weights are zero")
        if not (self.weights and objective.by_weight) and objective.is_mean and len(self.shapes) > 1:
            raise InputError(
                "the outputs differ in shape between batches, and what the loss divides by cannot be told: "
                "normalizer=lambda targets: ... gives it for a batch (len(targets) for a mean over samples, or the "
                "number of tokens)"
            )
        same = self.plain and len(self.shares) <= 1
        return (
            None if same or not self.weights or not objective.by_weight else Totals(self.samples, tuple(self.weights))
        )


def _go_through(at: Evaluation, pieces: Iterable[Batch], found: _Found, *, compared: bool) -> None:
    """Evaluate all pieces; `compared`, hold the loss of many put together, of whatever batches, against their own."""
    group, outputs = list[Batch](), list[object]()

    def compare() -> None:
        if outputs:
            _compare(at, group, outputs)
        group.clear()
        outputs.clear()

    for piece in pieces:
        means = Means(piece.samples)
        output = map_tensors(at.outputs(piece, means), lambda z: z.detach())
        at.loss(output, piece, means)
        found.add(means if at.objective.by_weight else Means(piece.samples), output, piece)
        if not compared:
            continue
        tensors = all_tensors((output, piece.targets))
        apart = at.objective.function is None or not all_tensors(output)  # a distribution, say, is not put together
        if apart or any(z.ndim == 0 or len(z) != piece.samples for z in tensors):
            compare()
            continue
        if outputs and _shapes(tensors) != _shapes(all_tensors((outputs[-1], group[-1].targets))):
            compare()
        group.append(Batch(torch.arange(piece.samples), piece.targets))  # the inputs have done their work
        outputs.append(output)
        if sum(z.numel() for z in all_tensors((outputs, [one.targets for one in group]))) > MOST_NUMBERS:
            compare()
    compare()


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in tensors]


def _compare(at: Evaluation, pieces: list[Batch], outputs: list[object]) -> None:
    """Hold the loss of pieces put together against those of the pieces."""
    if len(pieces) == 1:
        return
    joined = join_batches(pieces)
    means = Means(joined.samples)
    whole = at.loss(put_together(outputs, torch.cat), joined, means)
    if not bool(torch.isfinite(whole)) or 0.0 in means.weights:
        return
    values = _evaluate(at, lambda there, n, m: there.loss(outputs[n], pieces[n], m), pieces, means)
    trial = _Trial.of(at.objective, whole, whole, joined, values, pieces)
    if not (trial.could_be_mean if at.objective.is_mean else trial.could_be_sum):
        raise trial.neither()


Value = Callable[[Evaluation, int, Means | None], Tensor]


def _unlike(whole: Means, parts: Sequence[Means]) -> bool:
    """Say whether means weigh the samples of some parts otherwise than of others."""
    shares = {tuple(weight / means.samples for weight in means.weights) for means in (whole, *parts)}
    return len(shares) > 1


def _in_shares(at: Evaluation, value: Value, parts: Sequence[Batch], whole: Means) -> list[Tensor]:
    """Evaluate parts as shares of the mean over the whole."""
    there = at.with_totals(Totals(whole.samples, tuple(whole.weights)))
    return [value(there, number, there.means(part)) for number, part in enumerate(parts)]


def _evaluate(at: Evaluation, value: Value, parts: Sequence[Batch], whole: Means) -> list[Tensor]:
    """Evaluate parts; as shares, where torch's means weigh their samples unequally."""
    met = [Means(part.samples) for part in parts]
    values = [value(at, number, means) for number, means in enumerate(met)]
    if at.objective.normalizer is not None or not at.objective.by_weight or not _unlike(whole, met):
        return values
    return _in_shares(at, value, parts, whole)


def _mixed(samples: list[Batch]) -> list[Batch]:
    """Put samples of all batches together, since each batch alone may hold one class; where shapes differ, do not."""
    try:
        return [join_batches(samples)]
    except (RuntimeError, ValueError):
        return samples


@dataclass(frozen=True)
class _Trial:
    """The loss of all samples, of all samples twice, of the parts as their mean and sum, and of what size those are."""

    whole: float
    twice: float
    mean: float
    sum: float
    size: float  # of the terms of the mean and of the whole: terms that cancel are no disagreement
    sum_size: float
    samples: int
    tolerance: float  # how far, relatively, two ways of adding up one loss may differ by rounding
    by_weight: bool | None = None  # whether torch's means in it are over all samples; None where that is the same
    is_uneven: bool = False  # it takes more means over some parts than over others

    @classmethod
    def of(
        cls, objective: Objective, whole: Tensor, twice: Tensor, batch: Batch, values: list[Tensor], parts: list[Batch]
    ) -> "_Trial":
        whole, twice, values = whole.detach(), twice.detach(), [value.detach() for value in values]
        weights = [objective.weight(part) for part in parts]
        share = objective.weight(batch)
        numbers = [float(value) if weight else 0.0 for value, weight in zip(values, weights, strict=True)]
        mean = sum(value * weight for value, weight in zip(numbers, weights, strict=True)) / max(share, 1e-300)
        tolerance = 1e-9 if whole.dtype == torch.float64 else 1e-5
        own = abs(float(whole)) + 1e-30
        size = own + sum(abs(value) * weight for value, weight in zip(numbers, weights, strict=True)) / max(
            share, 1e-300
        )
        sum_size = own + sum(map(abs, numbers))
        return cls(float(whole), float(twice), mean, sum(numbers), size, sum_size, batch.samples, tolerance)

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(torch.tensor([self.whole, self.twice, self.mean, self.sum])).all())

    @property
    def could_be_mean(self) -> bool:
        return abs(self.whole - self.mean) <= self.tolerance * self.size

    @property
    def could_be_sum(self) -> bool:
        return abs(self.whole - self.sum) <= self.tolerance * self.sum_size

    @property
    def adds_up(self) -> bool:
        return any(self._kinds())

    def _kinds(self) -> tuple[bool, bool]:
        """Say whether it could be a mean, and whether a sum."""
        mean = self.could_be_mean and abs(self.twice - self.whole) <= self.tolerance * self.size
        return mean, self.could_be_sum and abs(self.twice - 2 * self.whole) <= self.tolerance * self.sum_size

    def is_mean(self) -> bool | None:
        """Tell a mean from a sum; None where all is zero."""
        mean, total = self._kinds()
        if mean and total:
            return None
        if not mean and not total:
            raise self.neither()
        return mean

    def neither(self) -> InputError:
        why = f"; {UNEVEN}"
        return InputError(
            f"the loss of {self.samples} samples is {self.whole:.6g}, neither the mean ({self.mean:.6g}) nor the sum "
            f"({self.sum:.6g}) of its parts: a mean or sum over samples is needed. normalizer=lambda targets: ... says "
            "what a weighted mean divides by; reduction='sum' needs none; "
            "a penalty on the parameters goes into regularizer=; coupled=True says that the samples of the "
            f"one batch that the data are belong together (batch statistics, contrastive losses){why * self.is_uneven}"
        )


def _try(at: Evaluation, batch: Batch) -> _Trial | None:
    """Try the loss of some samples; None where none of them counts."""
    everything = torch.arange(batch.samples)
    cut = max(1, batch.samples // 3)  # in one piece: sorted classes then weigh differently in the two parts
    rest = everything[cut:]
    parts = [
        batch.take(part) for part in (everything[:cut], *rest.tensor_split(min(7, max(len(rest), 1)))) if len(part)
    ]
    means, met = Means(batch.samples), [Means(part.samples) for part in parts]
    whole = at.value(batch, means)
    if 0.0 in means.weights:
        return None
    twice = at.value(batch.take(torch.cat([everything, everything])))

    def value(there: Evaluation, number: int, chosen: Means | None) -> Tensor:
        return there.value(parts[number], chosen)

    values = [value(at, number, chosen) for number, chosen in enumerate(met)]
    plain = _Trial.of(at.objective, whole, twice, batch, values, parts)
    if at.objective.normalizer is not None or not _unlike(means, met):
        return plain
    if plain.adds_up:
        return replace(plain, by_weight=False)
    if any(len(chosen.weights) != len(means.weights) for chosen in met):
        return replace(plain, by_weight=False, is_uneven=True)
    shares = _in_shares(at, value, parts, means)
    return replace(_Trial.of(at.objective, whole, twice, batch, shares, parts), by_weight=True)
