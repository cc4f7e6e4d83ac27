"""Retained autograd graphs of one chunk of samples, each a product to be applied many times."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops._autodiff import Tensors, gradients, join, pull_back, push_forward, split
from jvp_ops.errors import InputError
from jvp_ops.losses._batches import Batch
from jvp_ops.losses._modules import call

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SampleSum:
    """The sum over samples that a loss function stands for: its mean times the samples, or its own sum."""

    function: Callable[[Any, Any], Tensor]
    is_mean: bool

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        value = self.function(outputs, batch.targets)
        return value * batch.samples if self.is_mean else value


def hessian_graph(model: nn.Module, leaves: Tensors, loss: SampleSum, batch: Batch) -> Product:
    """Record the gradient of one chunk; a product is one backward pass through it."""
    value = loss(call(model, batch.inputs), batch)
    if not value.requires_grad:
        raise InputError("the loss depends on none of the parameters: does the model's forward run another module?")
    slopes = gradients(value, leaves, differentiable=True)

    def product(v: Tensor) -> Tensor:
        return join(pull_back(slopes, leaves, split(v, leaves)))

    return product


def gauss_newton_graph(model: nn.Module, leaves: Tensors, loss: SampleSum, batch: Batch) -> Product:
    """Record Jᵀ (∂²ℓ/∂z²) J of one chunk: forward to the outputs, their Hessian, and back."""
    outputs = _single_output(model, batch)
    push = push_forward([outputs], leaves)
    at = outputs.detach().requires_grad_()
    slopes = gradients(loss(at, batch), [at], differentiable=True)

    def product(v: Tensor) -> Tensor:
        curved = pull_back(slopes, [at], push(split(v, leaves)))
        return join(pull_back([outputs], leaves, curved))

    return product


def _single_output(model: nn.Module, batch: Batch) -> Tensor:
    outputs = call(model, batch.inputs)
    if not isinstance(outputs, Tensor):
        raise InputError(f"gauss_newton needs a model that returns one tensor, not {type(outputs).__name__}")
    return outputs


def refuse_concave(model: nn.Module, loss: SampleSum, batch: Batch) -> None:
    """Probe uᵀ (∂²ℓ/∂z²) u for each sample; a negative one shows that ℓ is not convex in the outputs."""
    at = _single_output(model, batch).detach().requires_grad_()
    slopes = gradients(loss(at, batch), [at], differentiable=True)
    random = torch.Generator().manual_seed(0)
    for _ in range(4):
        u = torch.randn(at.shape, generator=random).to(at)
        curvature = (u * pull_back(slopes, [at], [u])[0]).reshape(batch.samples, -1).sum(1)
        if bool((curvature < -1e-4 * curvature.abs().max()).any()):
            raise InputError(
                "the loss function is not convex in the model's outputs (a curvature of "
                f"{float(curvature.min()):.3g} was met), so it has no Gauss-Newton matrix: use hessian(theta)"
            )
