"""The loss of all the data with its regularization: summed over chunks, with θ in the modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import Tensors, by_columns, gradients, join, recording, split
from jvp_ops._explained import explained
from jvp_ops._memory import resolve_budget
from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch, Batches
from jvp_ops.losses.model._binding import Binding
from jvp_ops.losses.model._evaluation import Evaluation, Objective, bound
from jvp_ops.losses.model._findings import Findings
from jvp_ops.losses.model._fitness import fit
from jvp_ops.losses.model._graphs import Passed, Reading, curvature
from jvp_ops.losses.model._reduction import find_totals
from jvp_ops.losses.model._regularization import Regularization
from jvp_ops.losses.model._streaming import Builder, Plan, Stream
from jvp_ops.losses.model._verify import Probe
from jvp_ops.store import callable_identity, module_identity, sha256_of

Graph = Callable[[Evaluation, Tensors], Builder]


@dataclass(frozen=True)
class Total:
    """All that a loss is a sum of, in one dtype on one device.

    Parameters
    ----------
    findings : Findings
        What is evaluated, and how it adds up.
    binding : Binding
        The modules.
    batches : Batches
        The data.
    regularization : Regularization or None
        Added once to the whole.
    max_memory : int or None
        Bytes for graphs and the work on them.
    divides_as_found : bool
        The means divide by what was found; not so in a subset.
    """

    findings: Findings
    binding: Binding
    batches: Batches
    regularization: Regularization | None
    max_memory: int | None
    divides_as_found: bool = True

    def value(self, theta: Tensor) -> Tensor:
        """Compute the value, a tensor of no dimensions."""
        with self.at(theta) as (at, leaves):

            def add(batch: Batch, total: Tensor) -> None:
                with recording():
                    value = at.term(batch)
                total += value.detach()

            value = self._sum_over(add, leaves[0].new_zeros(()))
            at.check_weights()
            extra = self._regularized(leaves)
            return value if extra is None else value + extra.detach()

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute the gradient, shape (n,)."""
        with self.at(theta) as (at, leaves):

            def add(batch: Batch, total: Tensor) -> None:
                with recording(), at.passing():  # a checkpoint runs the model again on the way back
                    total += join(gradients(at.term(batch), leaves)).detach()

            slope = self._sum_over(add, torch.zeros_like(theta))
            at.check_weights()
            with at.passing():
                extra = self._regularized(leaves)
                return slope if extra is None else slope + join(gradients(extra, leaves)).detach()

    def linearize(self, theta: Tensor, graph: Graph, passed: Passed | None = None) -> Callable[[Tensor], Tensor]:
        """Record graphs at θ, and return the product of their sum with a matrix.

        `passed` is told the value and gradient that come by, where all chunks are gone through.
        """
        with self.at(theta) as (at, leaves), explained("the loss cannot be differentiated twice"):
            record = graph(at, leaves)

            def build(batch: Batch) -> Any:
                with recording(), at.passing():
                    product = record(batch)
                return at.within(product)

            plan = self._plan(build, leaves)
            at.start_over()
            if passed is not None:
                passed.begin(theta)
            stream = Stream.linearize(self.batches, build, plan)
            if passed is not None:
                passed.end(self._scale if stream.complete else None)
            if stream.complete:
                at.check_weights()
            elif self.objective.totals is not None:
                self.value(theta)  # which checks them
            with at.passing():
                extra = self._regularized(leaves)
                regular = None if extra is None else by_columns(at.within(curvature(extra, leaves, passed)))

        def apply(V: Tensor) -> Tensor:
            with self.binding.holding(at.substitutes), explained("a product of the linearized loss failed"):
                product = stream.product(V) * self._scale
                return product if regular is None else product + regular(V)

        return apply

    @contextmanager
    def at(self, theta: Tensor) -> Iterator[tuple[Evaluation, list[Tensor]]]:
        """Put θ into the modules for a pass, as leaves."""
        leaves = self.binding.leaves(split(theta, self.binding.initial()))
        with bound(self.objective, self.binding, self.binding.substitutes(leaves)) as at:
            yield at, leaves

    def reading(self, at: Evaluation, leaves: Tensors) -> Reading:
        """Give θ once more, as the loss function reads it apart from the model."""
        again = self.binding.leaves(leaves)
        return Reading(again, self.binding.reading(at.substitutes, again))

    def identity(self) -> dict[str, Any]:
        """Name model, functions and data, as a JSON-able dict."""
        objective, binding = self.objective, self.binding
        regularizer = None if self.regularization is None else self.regularization.function
        named = {"regularizer": regularizer, "normalizer": objective.normalizer}
        with binding.holding(binding.substitutes(binding.leaves(binding.initial()))):
            code = {name: callable_identity(function) for name, function in named.items() if function is not None}
            model, function = module_identity(objective.model), objective.function
            code["function"] = "the model's own" if function is None else callable_identity(function)
        modes = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
        constants = sha256_of(*binding.constants)
        return {"model": model, "constants": constants, "data": self.batches.identity(), **code, **modes}

    def to(self, device: torch.device, dtype: torch.dtype) -> "Total":
        """Move all of it, from the values and data as they were given."""
        moved = replace(self, binding=self.binding.to(device, dtype), batches=self.batches.to(device, dtype))
        if dtype not in (self.binding.dtype, torch.float64):  # float64 was tried when the loss was made
            fit(self.findings.objective, moved.binding, self.findings.samples[0].to(device, dtype))
        return moved

    def subset(self, index: Tensor) -> "Total":
        """Take some samples only."""
        plain = self.findings.objective.totals is None
        return replace(self, batches=self.batches.subset(index), divides_as_found=plain)

    def probe(self) -> Probe:
        """Take some samples for a check; not to be kept, since it holds the model in float64."""
        dtype = torch.float64 if self.findings.in_float64 else self.binding.dtype
        objective, binding = self.objective, self.binding.to(self.binding.device, dtype)
        samples = [batch.to(self.binding.device, dtype) for batch in self.findings.samples]
        if objective.totals is not None:
            objective = find_totals(replace(objective, totals=None), binding, samples, self.findings.scale)
        return Probe(objective, binding, samples, self.regularization)

    @cached_property
    def objective(self) -> Objective:
        """What is evaluated; what the means of a subset divide by is found when it is first needed."""
        found = self.findings.objective
        if self.divides_as_found:
            return found
        return find_totals(replace(found, totals=None), self.binding, self.batches, self.findings.scale)

    @cached_property
    def _weight(self) -> float:
        """What the whole divides by: the samples, or the normalizer's weights."""
        if self.objective.normalizer is None:
            return float(self.batches.samples)
        weight = sum(self.objective.weight(batch) for batch in self.batches)
        if not weight > 0:
            raise InputError("normalizer(targets) is 0 for all batches: the loss counts no sample")
        return weight

    @property
    def _scale(self) -> float:
        return 1 / self._weight if self.objective.is_mean else 1.0

    @cached_property
    def _gradient_plan(self) -> Plan:
        with self.at(join(self.binding.initial())) as (at, leaves):
            return self._plan(at.term, leaves)

    def _plan(self, build: Builder, leaves: Tensors) -> Plan:
        budget = resolve_budget(self.max_memory, self.binding.device)
        size = sum(leaf.numel() for leaf in leaves)
        plan = Plan(build, self.batches, [*leaves, *self.binding.held], size, budget)
        for batch in self.batches:  # measured while the modules hold θ
            plan.chunk(batch)
        return plan

    def _sum_over(self, add: Callable[[Batch, Tensor], None], total: Tensor) -> Tensor:
        return Stream(self.batches, self._gradient_plan).add_all(add, total) * self._scale

    def _regularized(self, leaves: Tensors) -> Tensor | None:
        return None if self.regularization is None else self.regularization.value(leaves, self.binding)
