"""Retained autograd graphs of one chunk of samples, each a product to be applied many times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import Tensors, gradients, join, pull_back, push_forward, split
from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch
from jvp_ops.losses.model._binding import Substitutes
from jvp_ops.losses.model._evaluation import Evaluation
from jvp_ops.losses.model._structures import all_tensors, map_tensors

Product = Callable[[Tensor], Tensor]
Part = str | int | None
Outer = tuple[list[Tensor], list[Tensor], list[Tensor]]  # z, the gradient of the loss, and what that is taken in


@dataclass(frozen=True)
class Reading:
    """θ once more, as the loss function reads it apart from the model: its leaves, and what stands in for what."""

    leaves: list[Tensor]
    substitutes: Substitutes


class Passed:
    """The value and gradient that a linearization goes by: None before it, and where it did not go through all."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.gradient: Tensor | None = None

    def begin(self, theta: Tensor) -> None:
        """Begin to add up."""
        self.value, self.gradient = theta.new_zeros(()), torch.zeros_like(theta)

    def add(self, value: Tensor, slopes: Tensors) -> None:
        """Add those of one chunk."""
        if self.value is not None and self.gradient is not None:
            self.value = self.value + value.detach()
            self.gradient += join(slopes).detach()

    def end(self, scale: float | None) -> None:
        """Turn sums into means; None where chunks are missing."""
        if scale is None or self.value is None or self.gradient is None:
            self.value = self.gradient = None
        else:
            self.value, self.gradient = self.value * scale, self.gradient * scale


def hessian_graph(at: Evaluation, leaves: Tensors, batch: Batch, passed: Passed | None = None) -> Product:
    """Record the gradient of one chunk; a product is one backward pass through it."""
    if at.counts_nothing(batch):
        return torch.zeros_like
    value = at.term(batch)
    if not value.requires_grad:
        raise InputError("the loss depends on none of the parameters: does the model's forward run another module?")
    return curvature(value, leaves, passed)


def curvature(value: Tensor, leaves: Tensors, passed: Passed | None = None) -> Product:
    """Record the gradient of a scalar; the product with its Hessian is one backward pass through it."""
    slopes = gradients(value, leaves, differentiable=True)
    if passed is not None:
        with torch.no_grad():
            passed.add(value, slopes)

    def product(v: Tensor) -> Tensor:
        return join(pull_back(slopes, leaves, split(v, leaves)))

    return product


def gauss_newton_graph(at: Evaluation, leaves: Tensors, batch: Batch, part: Part, again: Reading) -> Product:
    """Record Jᵀ (∂²ℓ/∂z²) J of one chunk: forward to the outputs, their Hessian, and back.

    `again` is θ as the loss function itself reads it: where ℓ depends on θ beside z, z and θ are its outputs.
    """
    if at.counts_nothing(batch):
        return torch.zeros_like
    outputs, slopes, inputs = outer_gradient(at, leaves, batch, part, again)
    push = push_forward(outputs, leaves)

    def product(v: Tensor) -> Tensor:
        direct = split(v, leaves)
        curved = pull_back(slopes, inputs, [*push(direct), *direct][: len(inputs)])
        inner = join(pull_back(outputs, leaves, curved[: len(outputs)]))
        return inner if len(inputs) == len(outputs) else inner + join(curved[len(outputs) :])

    return product


def outer_gradient(
    at: Evaluation, leaves: Tensors, batch: Batch, part: Part, again: Reading, *, elsewhere: bool = False
) -> Outer:
    """Record the loss of a chunk as a function of the outputs z, and its gradient in them; at others, `elsewhere`.

    Returns
    -------
    outputs
        z as functions of θ.
    slopes
        ∂ℓ/∂z, and ∂ℓ/∂θ where the loss function reads θ itself.
    inputs
        What the slopes are taken in.
    """
    means = at.means(batch)
    found = at.outputs(batch, means)
    chosen = pick(found, part)
    if at.objective.function is None:  # the loss is there already, computed from z within the model
        value = at.objective.term(at.loss(found, batch), batch)
        at.note(means)
        return chosen, gradients(value, chosen, differentiable=True), chosen
    random = torch.Generator().manual_seed(0)
    others = [torch.randn(z.shape, generator=random).to(z) if elsewhere else z.detach() for z in chosen]
    cut = {id(z): other.requires_grad_() for z, other in zip(chosen, others, strict=True)}
    seen = map_tensors(found, lambda z: cut.get(id(z), z.detach()))
    value = at.objective.term(at.loss(seen, batch, means, again.substitutes), batch)
    at.note(means)
    inputs = [*cut.values(), *again.leaves]
    if not value.requires_grad:
        raise InputError(f"the loss does not depend on the model's outputs{'' if part is None else f' {part!r}'}")
    found_slopes = torch.autograd.grad(value, inputs, create_graph=True, retain_graph=True, allow_unused=True)
    if all(slope is None for slope in found_slopes[len(cut) :]):
        found_slopes, inputs = found_slopes[: len(cut)], inputs[: len(cut)]
    if all(slope is None for slope in found_slopes[: len(cut)]):
        raise InputError(f"the loss does not depend on the model's outputs{'' if part is None else f' {part!r}'}")
    slopes = [torch.zeros_like(z) if slope is None else slope for slope, z in zip(found_slopes, inputs, strict=True)]
    return chosen, slopes, inputs


def pick(outputs: Any, part: Part) -> list[Tensor]:
    """Choose the floating tensors of the outputs that make up z: all, or those of one part."""
    if part is not None:
        try:
            outputs = (
                outputs[part] if not isinstance(part, str) or isinstance(outputs, Mapping) else getattr(outputs, part)
            )
        except (KeyError, IndexError, AttributeError, TypeError):
            found = f"{type(outputs).__name__}{names_of(outputs)}"
            raise InputError(f"outputs={part!r} names no part of what the model returns, a {found}") from None
    chosen = list({id(z): z for z in all_tensors(outputs) if z.is_floating_point() and z.requires_grad}.values())
    if not chosen:
        raise InputError("the model's outputs depend on none of the parameters, so there is no Gauss-Newton matrix")
    return chosen


def parts_of(outputs: Any) -> list[tuple[str | int, Any]]:
    if isinstance(outputs, Mapping):
        return list(outputs.items())
    if isinstance(outputs, tuple | list):
        return list(enumerate(outputs))
    return list(vars(outputs).items()) if hasattr(outputs, "__dict__") else []


def names_of(outputs: Any) -> str:
    names = [name for name, _ in parts_of(outputs)]
    return f" of {', '.join(map(str, names))}" if names else ""
