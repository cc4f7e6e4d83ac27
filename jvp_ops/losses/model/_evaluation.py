"""One evaluation of the model and its loss on some samples, with θ in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jvp_ops._autodiff import written_out
from jvp_ops._explained import explained
from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch
from jvp_ops.losses.model._binding import Binding, Substitutes
from jvp_ops.losses.model._means import RECOGNIZED, Means, Totals

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Objective:
    """What is evaluated: a model and a loss function, and how its values add up to the whole.

    Parameters
    ----------
    model : torch.nn.Module
    function : callable or None
        ``function(outputs, targets)``; None where the model computes its loss itself.
    normalizer : callable or None
        ``normalizer(targets)``, the weight that `function` divides by.
    is_mean : bool
        Whether the loss is a mean over samples (of weight `normalizer`), or a sum.
    by_weight : bool
        Whether means of torch's losses in it are means over all the data; else they are parts of what a sample has.
    totals : Totals, optional
        What the means of torch's losses divide by in all the data, where their weights differ.
    """

    model: nn.Module
    function: LossFunction | None
    normalizer: Callable[[Any], Any] | None = None
    is_mean: bool = True
    by_weight: bool = True
    totals: Totals | None = None

    def term(self, value: Tensor, batch: Batch) -> Tensor:
        """Turn the loss of a batch into its term of the sum over samples."""
        return value * self.weight(batch) if self.is_mean else value

    def weight(self, batch: Batch) -> float:
        """Weigh a batch: by its samples, or as the normalizer says."""
        if self.normalizer is None:
            return float(batch.samples)
        found = self.normalizer(batch.counted)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= float(found) < float("inf"):
            raise InputError(
                f"normalizer(targets) must return a number of at least 0, the weight that the loss function divides "
                f"by, not {found!r}"
            )
        return float(found)


class Evaluation:
    """The objective with θ in the modules, for as long as `bound` lasts."""

    def __init__(self, objective: Objective, binding: Binding, substitutes: Substitutes) -> None:
        self.objective, self._binding, self.substitutes = objective, binding, substitutes
        self._weights: list[float] = []

    def outputs(self, batch: Batch, means: Means | None = None) -> Any:
        """Run the model: mappings as keywords, tuples as positional arguments.

        Means that it takes are those of the loss only where it computes the loss itself.
        """
        means = means if self.objective.function is None else None
        if self._binding.keeps_state:
            self._binding.install(self.substitutes)
        with _Pass(self.substitutes, means, wide=self._binding.is_wide):
            return _call(self.objective.model, batch.inputs)

    def loss(
        self, outputs: Any, batch: Batch, means: Means | None = None, substitutes: Substitutes | None = None
    ) -> Tensor:
        """Compute the loss of outputs: by the loss function, or as the model itself gave it."""
        function = self.objective.function
        if function is None:
            return _own_loss(outputs)
        if substitutes is None:
            with _Pass(self.substitutes, means, wide=self._binding.is_wide):
                return checked_scalar("the loss function", function(outputs, batch.targets))
        self._binding.install(substitutes)  # in the modules, too: custom functions are no torch calls
        try:
            with _Pass(substitutes, means, wide=self._binding.is_wide):
                return checked_scalar("the loss function", function(outputs, batch.targets))
        finally:
            self._binding.install(self.substitutes)

    def value(self, batch: Batch, means: Means | None = None) -> Tensor:
        """Compute the loss of a batch as the user's own code does."""
        return self.loss(self.outputs(batch, means), batch, means)

    def term(self, batch: Batch) -> Tensor:
        """Compute a batch's term of the sum over samples."""
        if self.counts_nothing(batch):
            leaf = next(tensor for tensor in self.substitutes.values() if tensor.requires_grad)
            return torch.view_as_real(leaf).sum() * 0 if leaf.is_complex() else leaf.sum() * 0
        means = self.means(batch)
        value = self.value(batch, means)
        self.note(means)
        return self.objective.term(value, batch)

    def counts_nothing(self, batch: Batch) -> bool:
        """Say whether a batch weighs nothing, so that its own loss is 0/0."""
        return self.objective.is_mean and self.objective.weight(batch) == 0

    def passing(self) -> TorchFunctionMode:
        """Let every torch call see θ, in this thread: on the way back too, where a checkpoint runs the model again."""
        return seeing(self.substitutes, self._binding)

    def within(self, product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Run a product as a pass."""

        def passed(v: Tensor) -> Tensor:
            with self.passing():
                return product(v)

        return passed

    def means(self, batch: Batch) -> Means | None:
        """Prepare for the means of one evaluation."""
        seen = self.objective.by_weight and self.objective.normalizer is None and not batch.whole
        return Means(batch.samples, self.objective.totals) if seen else None

    def note(self, means: Means | None) -> None:
        """Add up what the means of an evaluation divided by; where that was the samples, hold it against them."""
        if means is not None and means.totals is None and not means.plain:
            refuse_moving([float(means.samples)] * len(means.weights), means.weights)
        if means is not None:
            before = self._weights or [0.0] * len(means.weights)
            self._weights = [one + more for one, more in zip(before, means.weights, strict=True)]

    def start_over(self) -> None:
        """Forget what means divided by until now."""
        self._weights = []

    def check_weights(self) -> None:
        """After a pass over all the data: hold what the means divided by against what they are said to.

        Raises
        ------
        InputError
            It is another at this θ.
        """
        totals = self.objective.totals
        if totals is not None and self._weights:
            refuse_moving(totals.weights, self._weights)

    def with_totals(self, totals: Totals | None) -> "Evaluation":
        """Give the same evaluation with other totals."""
        return Evaluation(replace(self.objective, totals=totals), self._binding, self.substitutes)


@contextmanager
def bound(objective: Objective, binding: Binding, substitutes: Substitutes) -> Iterator[Evaluation]:
    """Put θ into the modules and evaluate there; what the user's code raises becomes an InputError."""
    what = (
        "the model and the loss function do not run on the data"
        if objective.function is not None
        else "without a loss_function the model must compute its loss itself, but it does not run on the data"
    )
    with binding.holding(substitutes), explained(what):
        yield Evaluation(objective, binding, substitutes)


def seeing(substitutes: Substitutes, binding: Binding) -> TorchFunctionMode:
    """Let every torch call in this thread see what stands in for the tensors that it is given."""
    return _Pass(substitutes, None, wide=binding.is_wide)


class _Pass(TorchFunctionMode):
    """Let every torch call see θ where it is given a parameter itself, as closures and lists hold them.

    In a `wide` pass the code runs in float64 throughout: where it names float32, it gets float64.
    """

    def __init__(self, substitutes: Substitutes, means: Means | None, *, wide: bool) -> None:
        super().__init__()
        self._substitutes, self._means, self._wide = substitutes, means, wide

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = tuple(self._bound(value) for value in args)
        kwargs = {key: self._bound(value) for key, value in kwargs.items()} if kwargs else {}
        if self._wide and function is Tensor.float:
            function = Tensor.double
        if self._means is not None and function in RECOGNIZED:
            return self._means.take(function, args, kwargs)
        return written_out(function)(*args, **kwargs)

    def _bound(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._substitutes.get(id(value), value)
        if self._wide and value is torch.float32:
            return torch.float64
        if type(value) in (list, tuple):
            return type(value)(self._bound(inside) for inside in value)
        return value


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


def _own_loss(outputs: Any) -> Tensor:
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(outputs, Tensor) and outputs.numel() == 1:
        found = outputs
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise InputError(
            "without a loss_function the model must compute its loss itself, and return it as its output, as "
            f"output.loss or output['loss']; it returned {type(outputs).__name__} with {_shape(found)} in its place: "
            "are there labels in the batches?"
        )
    return found.reshape(())


def refuse_moving(said: Sequence[float], met: Sequence[float]) -> None:
    """Refuse means whose weights depend on θ."""
    if len(said) != len(met) or any(abs(a - b) > 1e-6 * abs(a) for a, b in zip(said, met, strict=True)):
        raise InputError(
            f"what the loss divides by depends on the parameters (it was {', '.join(f'{w:.6g}' for w in said)} and is "
            f"{', '.join(f'{w:.6g}' for w in met)}), as where hard examples or pseudo-labels are chosen: it is no sum "
            "over samples. Make the data one batch, and say so by coupled=True"
        )


def checked_scalar(what: str, value: Any) -> Tensor:
    """Check that a loss function returned a scalar tensor."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        hint = "use reduction='mean' or 'sum'" if what == "the loss function" else "a tensor of one number"
        raise InputError(f"{what} must return a scalar, not {_shape(value)}: {hint}")
    return value.reshape(())


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
