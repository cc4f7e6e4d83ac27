"""What the loss of a module is and how it curves, by plain double autograd in float64, without the package.

`exact` differentiates a function of a flat θ twice; `differences` takes it by differences, which owe nothing to double
autograd. `assert_matches` holds a loss against the first.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import jvp_ops as jo


def theta_of(model, *more):
    """Put all parameters that require a gradient into one flat θ in float64; complex ones as real and imaginary."""
    parts = [p.detach() for module in (model, *more) for p in module.parameters() if p.requires_grad]
    return torch.cat([(torch.view_as_real(p) if p.is_complex() else p).double().reshape(-1) for p in parts])


def weights_at(model, theta):
    """Cut a flat θ into the parameters that require a gradient; what is left of θ comes second."""
    weights, start = {}, 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            shape = (*p.shape, 2) if p.is_complex() else p.shape
            piece = theta[start : (start := start + shape_size(shape))].reshape(shape)
            weights[name] = torch.view_as_complex(piece) if p.is_complex() else piece
    return weights, theta[start:]


def shape_size(shape):
    return int(torch.Size(shape).numel())


def outputs_at(model, theta, *inputs, **keywords):
    """Run a module at a flat θ; the gradients that this records can be differentiated again."""
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, weights_at(model, theta)[0], inputs, keywords)


def in_float64(model):
    """Copy a module into float64, complex parameters and buffers into complex128."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        held = (*module._parameters.values(), *(b for b in module._buffers.values()))
        for tensor in held:
            if tensor is not None and (tensor.is_complex() or tensor.is_floating_point()):
                tensor.data = tensor.data.to(torch.complex128 if tensor.is_complex() else torch.float64)
    return twin


@dataclass(frozen=True)
class Exact:
    value: Tensor
    gradient: Tensor
    hessian: Tensor


def exact(function, theta):
    """Differentiate a scalar function of a flat θ twice, in reverse."""
    leaf = theta.clone().requires_grad_()
    value = function(leaf)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    if not slope.requires_grad:  # a linear function
        return Exact(value.detach(), slope, torch.zeros(len(theta), len(theta), dtype=theta.dtype))
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True, materialize_grads=True)[0] for entry in slope]
    return Exact(value.detach(), slope.detach(), torch.stack(rows))


def exact_gauss_newton(outputs, loss_of, theta):
    """Multiply out Jᵀ (∂²ℓ/∂z²) J, for outputs z(θ) in one tensor and the loss ℓ(z) of all of them."""
    J = torch.autograd.functional.jacobian(lambda t: outputs(t).reshape(-1), theta)
    z = outputs(theta).detach()
    curvature = exact(lambda flat: loss_of(flat.reshape(z.shape)), z.reshape(-1)).hessian
    return J.mT @ curvature @ J


def training_gradient(model, function, inputs, targets):
    """Give the gradient that training itself uses, by backward(), as a function of θ; the model stays as it is."""
    parameters = list(model.parameters())

    def gradient(theta):
        before, slopes = theta_of(model), [p.grad for p in parameters]
        torch.nn.utils.vector_to_parameters(theta.clone(), parameters)  # a forward pass may renormalize in place
        for p in parameters:
            p.grad = None
        with sdpa_kernel(SDPBackend.MATH):
            function(model(inputs), targets).backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        for p, slope in zip(parameters, slopes, strict=True):
            p.grad = slope
        torch.nn.utils.vector_to_parameters(before, parameters)
        return torch.cat([slope.reshape(-1) for slope in found])

    return gradient


def differences(function, theta, h=2e-3, along=None):
    """Differentiate by central differences of sixth order: row i is the change along θ_i, or along some directions."""
    rows = []
    for step in h * (torch.eye(len(theta), dtype=theta.dtype) if along is None else along):
        near, far, farther = ((function(theta + n * step) - function(theta - n * step)) for n in (1, 2, 3))
        rows.append((45 * near - 9 * far + farther) / (60 * h))
    return torch.stack(rows)


def assert_near(found, true, rtol=1e-12, floor=0.0):
    """Compare by norm, relative to the larger of the true norm and a floor."""
    error, size = float((found.double() - true).norm()), max(float(true.norm()), floor)
    assert found.shape == true.shape
    assert error <= rtol * size, f"off by {error:.3g} of {size:.3g}"


def assert_matches(loss, function, theta=None, rtol=1e-12):
    """Hold value, gradient, products and dense Hessian of a loss against a function of a flat θ."""
    theta = loss.initial() if theta is None else theta
    true = exact(function, theta.double())
    H = loss.hessian(theta)
    assert_near(loss.value(theta), true.value, rtol, floor=1.0)
    assert_near(loss.gradient(theta), true.gradient, rtol, floor=1e-3)
    assert_near(H.apply(torch.eye(len(theta), dtype=theta.dtype)), true.hessian, rtol)
    assert_near(H.dense(), true.hessian, rtol)
    return true


def smallest_budget(loss_of, kind):
    """Find a budget at which a linearization is still possible, within a quarter of the least."""
    budget = 1024
    while True:
        loss = loss_of(budget)
        try:
            return budget, getattr(loss, kind)(loss.initial())
        except jo.MemoryBudgetError:
            budget = budget * 5 // 4
