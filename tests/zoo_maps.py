"""Steps and scalar functions as people write them, for FunctionMap and FunctionLoss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import grad, jacrev
from zoo_entry import REFUSED, RIGHT, Entry, entry, numbers

A = numbers(1, 5, 5)
STATE = numbers(2, 5, scale=0.5)


def energy(theta):
    return torch.cos(A @ theta).sum() + 0.1 * (theta**4).sum()


@dataclass(frozen=True)
class MapCase:
    """A function of a flat state; `scalar` ones are for FunctionLoss."""

    function: Callable[[torch.Tensor], torch.Tensor]
    scalar: bool = False
    state: Any = STATE
    sizes: Any = None  # instead of one size: the shapes of the parts


@entry(RIGHT, hard="a gradient inside the step, by autograd.grad with a graph", source="practice")
def descent_by_autograd():
    def step(theta):
        theta = theta if theta.requires_grad else theta.detach().requires_grad_()
        return theta - 0.1 * torch.autograd.grad(energy(theta), theta, create_graph=True)[0]

    return MapCase(step)


@entry(RIGHT, hard="a gradient inside the step, by torch.func", source="practice")
def descent_by_functional_gradient():
    return MapCase(lambda theta: theta - 0.1 * grad(energy)(theta))


@entry(
    REFUSED,
    fault="no derivative",
    hard="the gradient has no graph: to autograd the step is the identity plus a constant",
    source="practice (create_graph forgotten)",
)
def descent_without_a_graph():
    def step(theta):
        inner = theta.detach().requires_grad_()
        return theta - 0.1 * torch.autograd.grad(energy(inner), inner)[0]

    return MapCase(step)


@entry(RIGHT, hard="updates in place, of a copy", source="practice")
def descent_in_place_on_a_copy():
    def step(theta):
        new = theta.clone()
        new[:3] -= 0.1 * grad(energy)(theta)[:3]
        new.mul_(0.9).add_(theta.square(), alpha=0.01)
        return new

    return MapCase(step)


@entry(
    REFUSED,
    fault="moves its state",
    hard="updates in place, of the state that was given: it moves the caller's, and breaks the graph of its gradient",
    source="practice (torch.no_grad steps)",
)
def descent_in_place_on_the_state():
    def step(theta):
        slope = grad(energy)(theta)
        return theta.sub_(0.1 * slope)

    return MapCase(step)


@entry(
    REFUSED,
    fault="no derivative",
    hard="an optimizer of torch inside: its step leaves no graph",
    source="facebookresearch/higher: practice (differentiable optimizers)",
)
def step_of_a_torch_optimizer():
    def step(theta):
        weights = torch.nn.Parameter(theta.detach().clone())
        optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
        energy(weights).backward()
        optimizer.step()
        return weights.detach()

    return MapCase(step)


@entry(REFUSED, fault="no derivative", hard="numpy inside: the graph ends there", source="practice")
def step_in_numpy():
    def step(theta):
        moved = np.tanh(A.numpy() @ theta.detach().cpu().double().numpy())
        return torch.as_tensor(moved, dtype=theta.dtype)

    return MapCase(step)


@entry(RIGHT, hard="a Hessian and a linear solve inside the step", source="practice")
def step_of_newton():
    def step(theta):
        curvature = jacrev(grad(energy))(theta) + 12 * torch.eye(5, dtype=theta.dtype)
        return theta - torch.linalg.solve(curvature, grad(energy)(theta))

    return MapCase(step)


@entry(RIGHT, hard="a map of the sphere: its Jacobian is singular", source="practice")
def step_of_power_iteration():
    def step(theta):
        moved = (A + A.T) @ theta
        return moved / moved.norm()

    return MapCase(step)


@entry(RIGHT, hard="a state of two named parts, not symmetric", source="practice")
def step_with_momentum():
    def step(state):
        theta, velocity = state[:5], state[5:]
        velocity = 0.9 * velocity + grad(energy)(theta)
        return torch.cat([theta - 0.1 * velocity, velocity])

    return MapCase(step, state=numbers(3, 10, scale=0.5), sizes={"theta": (5,), "velocity": (5,)})


@entry(RIGHT, hard="a projection onto a box, in parts at its wall", source="practice")
def projected_descent():
    return MapCase(lambda theta: (theta - 0.1 * grad(energy)(theta)).clamp(-0.4, 0.3))


@entry(REFUSED, fault="random", hard="another noise in each call", source="practice (Langevin steps)")
def step_with_noise():
    return MapCase(lambda theta: theta - 0.1 * grad(energy)(theta) + 0.01 * torch.randn_like(theta))


@entry(
    REFUSED,
    fault="no derivative",
    hard="signs of the gradient, passed straight through",
    source="practice (sign descent with a straight-through gradient)",
)
def descent_by_signs_straight_through():
    def step(theta):
        slope = grad(energy)(theta)
        return theta - 0.1 * (slope + (slope.sign() - slope).detach())

    return MapCase(step)


@entry(RIGHT, hard="a determinant and a matrix made of the state", source="practice")
def log_determinant_of_a_covariance():
    def function(theta):
        factor = torch.zeros(3, 3, dtype=theta.dtype)
        rows, cols = torch.tril_indices(3, 3)
        factor = factor.index_put((rows, cols), theta)
        return torch.logdet(factor @ factor.T + torch.eye(3, dtype=theta.dtype)) + theta.square().sum()

    return MapCase(function, scalar=True, state=numbers(4, 6))


@entry(RIGHT, hard="another gradient inside the loss", source="practice (flatness penalties)")
def loss_with_the_norm_of_its_gradient():
    return MapCase(lambda theta: energy(theta) + 0.5 * grad(energy)(theta).square().sum(), scalar=True)


@entry(
    REFUSED,
    fault="no derivative",
    hard="a part of the loss is detached",
    source="practice (stop-gradient)",
)
def loss_with_a_detached_part():
    return MapCase(lambda theta: (theta.detach() * torch.sin(A @ theta)).sum(), scalar=True)


@entry(REFUSED, fault="no derivative", hard="a loss that is computed in numpy", source="practice")
def loss_in_numpy():
    def function(theta):
        return torch.as_tensor(np.cos(A.numpy() @ theta.detach().cpu().double().numpy()).sum(), dtype=theta.dtype)

    return MapCase(function, scalar=True)


@entry(
    REFUSED,
    fault="second derivative",
    hard="the norm of a vector at zero: a gradient by convention, NaN for a second derivative",
    source="pytorch/functorch: Hessian produces wrong results, but works if I add a perturbation",
)
def norm_at_zero():
    return MapCase(lambda theta: theta.norm() + theta.square().sum(), scalar=True, state=torch.zeros(5).double())


MAPS = [found for found in list(globals().values()) if isinstance(found, Entry)]
