"""Products held once against differences of what they are derivatives of, on some of the samples, in float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jvp_ops._autodiff import gradients, join, nodes_of, pull_back, push_forward, split
from jvp_ops._differences import Function, check_slopes, direction_at, disagreement, wrong
from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch
from jvp_ops.losses.model._binding import Binding
from jvp_ops.losses.model._evaluation import Evaluation, Objective, bound
from jvp_ops.losses.model._graphs import Outer, Part, Reading, outer_gradient, pick
from jvp_ops.losses.model._reduction import spread
from jvp_ops.losses.model._regularization import Regularization
from jvp_ops.parameters import Parameters

MOST_SHAPES = 8  # batches that gauss_newton is checked on


@dataclass(frozen=True)
class Probe:
    """Some samples of a loss, in one dtype, and what is taken of them.

    Parameters
    ----------
    objective, binding
        Of the loss.
    samples : sequence of Batch
        In the dtype of the binding.
    regularization : Regularization or None
        Added to the mean over the samples.
    """

    objective: Objective
    binding: Binding
    samples: Sequence[Batch]
    regularization: Regularization | None

    @property
    def names(self) -> list[str]:
        """The parameters' names."""
        return list(self.binding.named)

    @property
    def layout(self) -> Parameters:
        """Where the parameters stand in θ."""
        parts = zip(self.names, self.binding.initial(), strict=True)
        return Parameters.of({name: tuple(part.shape) for name, part in parts})

    @property
    def sizes(self) -> list[int]:
        """How many numbers of θ each parameter holds."""
        return [part.numel() for part in self.binding.initial()]

    def fewer(self, count: int) -> "Probe":
        """Take some of the samples, and a few of each shape."""
        return replace(self, samples=[spread(batch, -(-count // len(self.samples))) for batch in self.samples])

    @contextmanager
    def at(self, theta: Tensor) -> Iterator[tuple[Evaluation, list[Tensor]]]:
        """Put θ into the modules, as leaves."""
        leaves = self.binding.leaves(split(theta, self.binding.initial()))
        with bound(self.objective, self.binding, self.binding.substitutes(leaves)) as evaluation, evaluation.passing():
            yield evaluation, leaves

    def value(self, at: Evaluation, leaves: Sequence[Tensor]) -> Tensor:
        """Compute the loss of the samples, with its graph."""
        weight = sum(map(self.objective.weight, self.samples)) or 1.0
        total = sum((at.term(batch) for batch in self.samples), leaves[0].new_zeros(())) / weight
        return total if self.regularization is None else total + self.regularization.value(leaves, self.binding)


Value = Callable[[Evaluation, Sequence[Tensor]], Tensor]


def check_hessian(probe: Probe, theta: Tensor) -> None:
    """Hold the gradient against differences of the value, and a product with H against differences of the gradient.

    Raises
    ------
    InputError
        They disagree; the message names the parameter.
    """
    _check_curvature(probe, theta, probe.value, "")


def _check_curvature(probe: Probe, theta: Tensor, value: Value, of: str) -> None:
    """Hold gradient and Hessian of a scalar function of θ, named by `of`, against differences."""

    def value_at(at_theta: Tensor) -> Tensor:
        with probe.at(at_theta) as (there, leaves):
            return value(there, leaves).detach()

    def gradient_at(at_theta: Tensor) -> list[Tensor]:
        with probe.at(at_theta) as (there, leaves):
            return [slope.detach() for slope in gradients(value(there, leaves), leaves)]

    v = direction_at(theta, probe.sizes)
    with probe.at(theta) as (evaluation, leaves):
        slopes = gradients(value(evaluation, leaves), leaves, differentiable=True)
        claimed = [part.detach() for part in pull_back(slopes, leaves, split(v, leaves))]
    custom = _custom_functions(slopes)
    found = disagreement(gradient_at, theta, v, claimed)
    if found is not None:
        what = f"the product of the Hessian{of} with a direction"
        raise wrong(probe.names[found.block], found, what, "differences of the gradient", custom)
    bend = float(join(claimed).norm() * v.norm())
    whole = Function(value_at, theta, probe.layout, "the value", bend)
    check_slopes(whole, join(slopes).detach(), f"the gradient{of}", custom)


def check_gauss_newton(probe: Probe, theta: Tensor, part: Part) -> None:
    """Hold J v, Jᵀ u, ∂ℓ/∂z, its derivative along J v, and the regularizer's Hessian against differences.

    Raises
    ------
    InputError
        They disagree, or the loss depends on θ beside the outputs.
    """
    v = direction_at(theta, probe.sizes)
    counted = [batch for batch in probe.samples if probe.objective.weight(batch) or not probe.objective.is_mean]
    for batch in counted[:: -(-len(counted) // MOST_SHAPES)]:
        _check_outputs(probe, theta, part, batch, v)
        _check_outer(probe, theta, part, batch, v)
    for away in (0.5, 0.1, 0.01):  # where what is zero at θ, with no gradient there, has one
        if _splits(probe, join([leaf.detach() for leaf in probe.binding.perturbed(away)]), part, counted[0]):
            break
    extra = probe.regularization
    if extra is not None:
        _check_curvature(probe, theta, lambda _, leaves: extra.value(leaves, probe.binding), " of the regularizer")


def _check_outputs(probe: Probe, theta: Tensor, part: Part, batch: Batch, v: Tensor) -> None:
    """Hold J v and Jᵀ u against differences of the outputs."""
    random = torch.Generator().manual_seed(1)
    with probe.at(theta) as (evaluation, leaves):
        z = pick(evaluation.outputs(batch), part)
        tangents = [t.detach() for t in push_forward(z, leaves)(split(v, leaves))]
        u = [torch.randn(one.shape, generator=random, dtype=torch.float64).to(one) for one in z]
        back = [slope.detach() for slope in pull_back(z, leaves, u)]

    def outputs(at_theta: Tensor) -> list[Tensor]:
        with probe.at(at_theta) as (there, _):
            return [one.detach() for one in pick(there.outputs(batch), part)]

    def against_u(at_theta: Tensor) -> Tensor:
        return sum(((a * b).sum() for a, b in zip(outputs(at_theta), u, strict=True)), at_theta.new_zeros(()))

    found = disagreement(outputs, theta, v, tangents)
    if found is not None:
        raise wrong(
            "", found, "the derivative of the model's outputs", "differences of the outputs", _custom_functions(z)
        )
    weighted = Function(against_u, theta, probe.layout, "the outputs")
    check_slopes(weighted, join(back), "the adjoint derivative of the model's outputs", _custom_functions(z))


@contextmanager
def _outer_at(
    probe: Probe, theta: Tensor, part: Part, batch: Batch
) -> Iterator[tuple[Outer, Evaluation, list[Tensor]]]:
    """Take the gradient of the loss in the outputs at θ."""
    with probe.at(theta) as (there, leaves):
        again = probe.binding.leaves(leaves)
        reading = Reading(again, probe.binding.reading(there.substitutes, again))
        yield outer_gradient(there, leaves, batch, part, reading), there, leaves


def _splits(probe: Probe, theta: Tensor, part: Part, batch: Batch) -> bool:
    """Say whether a loss that depends on θ through its outputs alone can be told there: its gradient is finite.

    Raises
    ------
    InputError
        It depends on θ in another way, too.
    """
    with _outer_at(probe, theta, part, batch) as ((z, slopes, inputs), evaluation, leaves):
        whole = gradients(evaluation.term(batch), leaves)
        if not bool(torch.isfinite(join(whole)).all()):
            return False
        _check_split(probe.names, z, slopes, len(inputs) > len(z), leaves, whole)
        return True


def _check_outer(probe: Probe, theta: Tensor, part: Part, batch: Batch, v: Tensor) -> None:
    """Hold ∂ℓ/∂z against differences of ℓ, and ∂²ℓ/∂z² J v against differences of ∂ℓ/∂z; z moves with θ."""
    with _outer_at(probe, theta, part, batch) as ((z, slopes, inputs), evaluation, leaves):
        whole = gradients(evaluation.term(batch), leaves)
        _check_split(probe.names, z, slopes, len(inputs) > len(z), leaves, whole)
        moved = [*push_forward(z, leaves)(split(v, leaves)), *split(v, leaves)][: len(inputs)]
        claimed = [slope.detach() for slope in pull_back(slopes, inputs, moved)]

    def slopes_at(at_theta: Tensor) -> list[Tensor]:
        with _outer_at(probe, at_theta, part, batch) as ((_, found, _), _, _):
            return [slope.detach() for slope in found]

    def value_at(at_theta: Tensor) -> list[Tensor]:
        with probe.at(at_theta) as (there, _):
            return [there.term(batch).detach()]

    custom = _custom_functions(slopes)
    found = disagreement(slopes_at, theta, v, claimed)
    if found is not None:
        what = "the second derivative of the loss in the model's outputs"
        raise wrong("", found, what, "differences of its gradient in them", custom)
    bend = float(join(claimed).norm() * join(moved).norm())
    slope = join(whole)
    steep = direction_at(theta, probe.sizes, along=slope)
    found = disagreement(value_at, theta, steep, [(slope @ steep).detach()], size=bend)
    if found is not None:
        raise wrong("", found, "the gradient", "differences of the loss", custom)


def _check_split(
    names: Sequence[str],
    z: Sequence[Tensor],
    slopes: Sequence[Tensor],
    direct: bool,
    leaves: Sequence[Tensor],
    whole: Sequence[Tensor],
) -> None:
    """Refuse a loss that depends on θ in another way than through z (and, where `direct`, by itself)."""
    inner = pull_back(z, leaves, slopes[: len(z)])
    beside = slopes[len(z) :] if direct else [torch.zeros_like(leaf) for leaf in leaves]
    size = float(join(whole).norm())
    for name, one, other, true in zip(names, inner, beside, whole, strict=True):
        if float((one + other - true).detach().norm()) > 1e-6 * size + 1e-4 * float(true.norm()):
            raise InputError(
                f"the loss depends on the parameter {name!r} beside the model's outputs that its Gauss-Newton matrix "
                "is taken in: outputs= names the right part, or use hessian(theta)"
            )


def _custom_functions(outputs: Sequence[Tensor]) -> str:
    """Name the custom autograd functions, and torch's own weight_norm, that a graph goes through."""
    found = dict[str, None]()
    for node in nodes_of(outputs):
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "WeightNorm" in type(node).__name__:
            found[type(node).__name__.removesuffix("Backward")] = None
    return f"; the graph holds {', '.join(found)}" if found else ""
