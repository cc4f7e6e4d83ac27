"""A function of the parameters alone, added once to the whole loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import Tensors, recording
from jvp_ops._explained import explained
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.losses.model._binding import Binding
from jvp_ops.losses.model._evaluation import Objective, checked_scalar, seeing
from jvp_ops.losses.model._fitness import refuse_strangers, release_trained_padding, strangers

Regularizer = Callable[[Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Regularization:
    """A regularizer and the tensors that it is given.

    Parameters
    ----------
    function : callable
        Of the model's parameters by name.
    numbers : mapping of str to int
        Which tensor of the binding each of them is.
    """

    function: Regularizer
    numbers: Mapping[str, int]

    def value(
        self,
        leaves: Tensors,
        binding: Binding,
        *,
        padding: bool = True,
        instead: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Compute it with its graph, at leaves; `instead` are tensors that stand in for others."""
        values = binding.substitutes(leaves, padding=padding) | dict(instead or {})
        seen = {name: values[number] for name, number in self.numbers.items()}
        with recording(), explained("the regularizer does not run on the parameters"), seeing(values, binding):
            return checked_scalar("the regularizer", self.function(seen))

    def try_out(self, objective: Objective, binding: Binding) -> None:
        """Run it once: it must be a finite scalar, and read nothing else that requires gradients.

        Raises
        ------
        InputError
            It is not, or it does.
        """
        for trial in (binding, binding.to(binding.device, torch.float64)):
            leaves = trial.leaves(trial.initial())
            foreign, names = strangers(trial, objective)
            try:
                value = self.value(leaves, trial, instead=foreign)
            except InputError as error:
                if error.__cause__ is None:
                    raise
                trial.cast_closures()
                foreign, names = strangers(trial, objective)
                value = self.value(leaves, trial, instead=foreign)
            if not bool(torch.isfinite(value)):
                raise NonFiniteError(f"the regularizer is {float(value.detach())} at the model's own values")
            if not torch.equal(value, self.value(leaves, trial, instead=foreign)):
                raise InputError(
                    "the regularizer gave two values for one set of parameters: it is random, or keeps state"
                )
            refuse_strangers(value, leaves, names)
        release_trained_padding(binding, lambda leaves: self.value(leaves, binding, padding=False))
