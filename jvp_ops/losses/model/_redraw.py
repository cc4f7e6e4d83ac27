"""A start drawn anew, as the modules' own ``reset_parameters`` draw it."""

import torch
from torch import Tensor

from jvp_ops._random import Rng, generator
from jvp_ops.errors import InputError
from jvp_ops.losses.model._binding import Binding


def redraw(binding: Binding, rng: Rng) -> list[Tensor]:
    """Let the modules draw the parameters of θ anew.

    Raises
    ------
    InputError
        A parameter that no ``reset_parameters`` writes to, such as one that a parametrization computes from others.
    """
    here = binding.to(torch.device("cpu"), binding.dtype)  # on the CPU: one seed, the same start everywhere
    leaves = here.leaves(here.initial())
    versions = [leaf._version for leaf in leaves]
    held = here.substitutes(leaves, padding=False)
    held |= {number: tensor.clone() for number, tensor in held.items() if not tensor.requires_grad}  # written to, too
    with torch.random.fork_rng(devices=[]), here.holding(held), torch.no_grad():
        torch.default_generator.manual_seed(int(generator(rng).integers(2**63)))
        for module in here.modules:
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
    drawn = zip(here.named, leaves, versions, strict=True)
    if missed := [name for name, leaf, version in drawn if leaf._version == version]:
        raise InputError(
            f"{', '.join(missed)} cannot be drawn anew: the module has no reset_parameters() that writes to it. "
            "loss.initial() without rng returns the model's own values"
        )
    return [leaf.detach() for leaf in leaves]
