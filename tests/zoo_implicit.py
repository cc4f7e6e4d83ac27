"""Implicit layers and functions with a backward of their own."""

import torch
from torch import nn
from zoo_entry import REFUSED, RIGHT, Case, entry, numbers, seeded, supervised

X, Y = numbers(1, 8, 4), numbers(2, 8, 3)


class Equilibrium(nn.Module):
    """Finds z = tanh(W z + U x), and differentiates by one of three ways."""

    def __init__(self, way):
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(3, 3, bias=False), nn.Linear(4, 3), nn.Linear(3, 3)
        with torch.no_grad():
            self.inner.weight.mul_(0.5)
        self.way = way

    def cell(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros(len(x), 3, dtype=x.dtype)
            for _ in range(80):
                z = self.cell(z, x)
        return self.head(self.way(self, z, x))


def exact(layer, z, x):
    """Solve the linear system of the implicit function theorem with a step of Newton's, which autograd sees whole."""
    value = layer.cell(z, x)
    slope = (1 - value.square())[:, :, None] * layer.inner.weight
    return z + torch.linalg.solve(torch.eye(3, dtype=z.dtype) - slope, (value - z)[:, :, None])[:, :, 0]


def refined(layer, z, x):
    """Two such steps: the first gives the first derivative of z, the second the second."""
    return exact(layer, exact(layer, z, x), x)


def hooked(layer, z, x):
    """The recipe of the tutorial on deep equilibrium models."""
    z = layer.cell(z, x)
    held = z.clone().detach().requires_grad_()
    again = layer.cell(held, x)

    def backward(upstream):
        g = upstream
        for _ in range(80):
            g = torch.autograd.grad(again, held, g, retain_graph=True)[0] + upstream
        return g

    if z.requires_grad:
        z.register_hook(backward)
    return z


def one_step(layer, z, x):
    return layer.cell(z, x)


@entry(
    RIGHT,
    hard="a fixed point found without gradients, then made differentiable twice",
    source="locuslab/deq: Higher order derivatives",
)
def equilibrium_with_steps_of_newton():
    return Case(seeded(lambda: Equilibrium(refined)), nn.MSELoss(), (X, Y), supervised)


@entry(
    REFUSED,
    fault="second derivative",
    hard="one such step: its value and gradient are right, its second derivative is not",
    source="practice (implicit layers)",
)
def equilibrium_with_one_step_of_newton():
    return Case(seeded(lambda: Equilibrium(exact)), nn.MSELoss(), (X, Y), supervised)


@entry(
    REFUSED,
    fault="second derivative",
    hard="a hook mends the gradient; differentiated again it is silently wrong",
    source="locuslab/deq: Two slightly different process for Deq",
)
def equilibrium_with_a_backward_hook():
    return Case(seeded(lambda: Equilibrium(hooked)), nn.MSELoss(), (X, Y), supervised)


@entry(
    REFUSED,
    fault="no gradient",
    hard="the gradient of one step in place of the fixed point's",
    source="practice (Jacobian-free backpropagation)",
)
def equilibrium_without_its_jacobian():
    return Case(seeded(lambda: Equilibrium(one_step)), nn.MSELoss(), (X, Y), supervised)


class Cubed(torch.autograd.Function):
    """Keeps an intermediate on ctx: to a second derivative it is a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.square = x * x
        return x * ctx.square

    @staticmethod
    def backward(ctx, upstream):
        return upstream * 3 * ctx.square


class CubedAsItShould(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * 3 * x**2


class CubedOnce(CubedAsItShould):
    backward = staticmethod(torch.autograd.function.once_differentiable(CubedAsItShould.backward))


class Activated(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def activated(function):
    return Case(seeded(lambda: Activated(function.apply)), nn.MSELoss(), (X, Y), supervised)


@entry(RIGHT, hard="a function with a backward of its own, and no forward-mode rule or batching", source="practice")
def function_with_its_own_backward():
    return activated(CubedAsItShould)


@entry(
    REFUSED,
    fault="second derivative",
    hard="an intermediate kept for backward: gradients are right, second derivatives silently wrong",
    source="pytorch/pytorch: Ensure custom Function are correct in double backward setting",
)
def function_that_keeps_an_intermediate():
    return activated(Cubed)


@entry(REFUSED, fault="second derivative", hard="a backward that cannot be differentiated", source="practice")
def function_that_is_differentiable_once():
    return activated(CubedOnce)
