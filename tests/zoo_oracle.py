"""The oracle of the zoo: the user's own training loss on the user's own model, its backward, and differences of that.

Values are moved by copying them into the model's own parameters, as an optimizer's step does.
"""

import copy
from dataclasses import replace
from itertools import pairwise

import torch
from zoo_entry import rows, samples


def real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class Oracle:
    """The loss of a case at any values of its parameters, by name, in float64."""

    def __init__(self, case):
        self.case = case
        self.parameters = trained(case)
        self.names = list(self.parameters)

    def start(self):
        return {name: real(p.detach()).clone() for name, p in self.parameters.items()}

    def noise(self, seed, size=None):
        """Draw a direction, of norm 1 or of a size for each number; rows that are constants stay."""
        drawn = torch.Generator().manual_seed(seed)
        moved = {
            name: torch.randn(real(p.detach()).shape, generator=drawn, dtype=torch.float64)
            for name, p in self.parameters.items()
        }
        for name, held in self.case.held.items():
            moved[name][held] = 0
        return scaled(moved, size if size else 1 / norm(moved))

    def places(self):
        """Where the entries are tested: at the start, and away from it."""
        return [self.start(), plus(self.start(), self.noise(77, size=self.case.spread))]

    def move(self, values):
        with torch.no_grad():
            for name, p in self.parameters.items():
                real(p).copy_(values[name])

    def loss(self, batch=None):
        case = self.case
        loss = case.train(case.model, case.loss_function, case.batch if batch is None else batch)
        return loss if case.penalty is None else loss + case.penalty(case.model)

    def value(self, values):
        self.move(values)
        return self.loss().detach().double()

    def gradient(self, values):
        self.move(values)
        for p in self.parameters.values():
            p.grad = None
        self.loss().backward()
        return {
            name: torch.zeros_like(real(p)) if p.grad is None else real(p.grad).clone()
            for name, p in self.parameters.items()
        }

    def product(self, values, direction, step=None):
        """Difference the gradient along a direction."""
        return difference(lambda t: self.gradient(plus(values, direction, t)), step or self.case.step)

    def slope(self, values, direction, step=None):
        """Difference the value along a direction."""
        return difference(lambda t: {"": self.value(plus(values, direction, t))}, step or self.case.step)[""]

    def double_backward(self, values, direction):
        """Differentiate the gradient with torch, as every tool for Hessians does."""
        self.move(values)
        parameters = list(self.parameters.values())
        first = torch.autograd.grad(self.loss(), parameters, create_graph=True, allow_unused=True)
        dot = sum((real(g) * direction[name]).sum() for name, g in zip(self.names, first, strict=True) if g is not None)
        second = torch.autograd.grad(dot, parameters, allow_unused=True, materialize_grads=True)
        return {name: real(g) for name, g in zip(self.names, second, strict=True)}


def trained(case):
    """Name what the optimizer has: the parameters that require gradients, of the model and of the loss function."""
    found = dict(case.model.named_parameters())
    if isinstance(case.loss_function, torch.nn.Module):
        found |= {f"loss_function.{name}": p for name, p in case.loss_function.named_parameters()}
    chosen = case.options.get("parameters")
    prefix = "" if chosen is None else chosen.removesuffix("*")
    return {name: p for name, p in found.items() if p.requires_grad and name.startswith(prefix)}


def difference(function, h):
    """Differentiate a function of one number at zero by the central rule of fourth order."""
    near, far = (plus(function(t), function(-t), -1) for t in (h, 2 * h))
    return plus(scaled(near, 8 / (12 * h)), far, -1 / (12 * h))


def plus(a, b, scale=1.0):
    return {name: a[name] + scale * b[name] for name in a}


def scaled(a, scale):
    return {name: scale * part for name, part in a.items()}


def inner(a, b):
    return sum((a[name] * b[name]).sum() for name in a)


def norm(a):
    return torch.sqrt(inner(a, a))


def relative(found, wanted):
    """Measure how far numbers by name are from others, relative to the latter's norm."""
    apart = norm(plus(found, wanted, -1))
    return float(apart / norm(wanted)) if norm(wanted) > 0 else float(apart)


# --- what the oracle itself must satisfy ---------------------------------------------------------------------------


def gradient_fault(oracle, values):
    """How far backward's gradient is from differences of the value, in the worst of some directions."""
    gradient = oracle.gradient(values)
    return max(
        float(abs(oracle.slope(values, v) - inner(gradient, v)) / norm(gradient))
        for v in (oracle.noise(seed) for seed in range(3))
    )


def random_fault(oracle, values):
    return float(abs(oracle.value(values) / oracle.value(values) - 1))


def state_fault(oracle, values):
    """How much the value at a place depends on where the model has been."""
    here = oracle.value(values)
    for seed in range(3):
        oracle.value(plus(values, oracle.noise(seed, size=0.1)))
    return float(abs(oracle.value(values) / here - 1))


def batch_fault(oracle, values):
    """How far the loss of all data is from both the mean and the sum of the losses of its parts."""
    whole, batch = oracle.value(values), oracle.case.batch
    edges = [0, 2, 5, samples(batch)]
    sizes = torch.tensor([stop - start for start, stop in pairwise(edges)]) / samples(batch)
    parts = torch.stack([oracle.loss(rows(batch, *pair)).detach() for pair in pairwise(edges)])
    return float(min(abs((sizes * parts).sum() / whole - 1), abs(parts.sum() / whole - 1)))


def form_fault(oracle, values):
    """Whether there is nothing to cut by: unequal numbers of rows, or a model that takes its whole batch only."""
    if len({len(part) for part in tensors(oracle.case.batch)}) > 1:
        return 1.0
    try:
        oracle.loss(rows(oracle.case.batch, 0, 3))
    except RuntimeError:
        return 1.0
    return 0.0


def tensors(data):
    if isinstance(data, torch.Tensor):
        return [data]
    return [t for part in (data.values() if isinstance(data, dict) else data) for t in tensors(part)]


def second_fault(oracle, values):
    """How far torch's second derivative is from differences of the gradient; infinitely, where it has none."""
    v = oracle.noise(0)
    try:
        twice = oracle.double_backward(values, v)
    except RuntimeError:
        return float("inf")
    error = relative(twice, oracle.product(values, v))
    return float("inf") if error != error else error


def stale_fault(oracle, values):
    """How far the value at a second place is from that of a model which has not been called before."""
    fresh = Oracle(replace(oracle.case, model=copy.deepcopy(oracle.case.model)))
    there = plus(values, oracle.noise(0, size=0.1))
    oracle.value(values)
    return float(abs(oracle.value(there) / fresh.value(there) - 1))


def capture_fault(oracle, values):
    """How far the loss of a copy of the model is from that of the model itself, at the same place."""
    other = Oracle(replace(oracle.case, model=copy.deepcopy(oracle.case.model)))
    there = plus(values, oracle.noise(0, size=0.1))
    oracle.move(values)
    apart = other.value(there)
    return float(abs(oracle.value(there) / apart - 1))


FAULTS = {
    "no gradient": gradient_fault,
    "random": random_fault,
    "stateful": state_fault,
    "coupled samples": batch_fault,
    "no rows": form_fault,
    "second derivative": second_fault,
    "stale": stale_fault,
    "captured parameters": capture_fault,
}
