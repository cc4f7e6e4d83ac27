"""What is found out about a model and its loss when they are handed over."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch, Batches
from jvp_ops.losses.model._binding import Binding
from jvp_ops.losses.model._evaluation import Objective
from jvp_ops.losses.model._fitness import fit, settle_padding
from jvp_ops.losses.model._reduction import find_reduction, find_totals, spread, spread_samples

FEWEST, MOST = 8, 32  # samples that a product is checked on


@dataclass(frozen=True)
class Findings:
    """How a loss adds up, and on what its products are checked.

    Parameters
    ----------
    objective : Objective
        With what its means divide by.
    in_float64 : bool
        Whether the model and the loss function run in float64.
    scale : float
        Of the perturbation of θ at which the sum was tried.
    samples : sequence of Batch
        Some from all over the data, in the dtype that checks are made in.
    """

    objective: Objective
    in_float64: bool
    scale: float
    samples: Sequence[Batch]


def find_out(objective: Objective, binding: Binding, batches: Batches, *, coupled: bool) -> Findings:
    """Try the model and the loss function: in float64 too where they run in it, since that tells more.

    Raises
    ------
    InputError
        They do not run, are random or no function of θ alone, or their losses do not add up.
    """
    sample = [batch.copied() for batch in spread_samples(batches)]  # a model may write into what it is given
    settle_padding(objective, binding, sample[0])
    fit(objective, binding, sample[0])
    exact = binding.to(binding.device, torch.float64)
    tried = sample if binding.dtype == torch.float64 else spread_samples(batches.to(binding.device, torch.float64))
    in_float64 = True
    try:
        fit(objective, exact, tried[0])
    except InputError:
        exact, tried, in_float64 = binding, sample, False
    if coupled:
        objective, scale = replace(objective, is_mean=False), 0.0
    else:
        objective, scale = find_reduction(objective, exact, tried)
        objective = find_totals(objective, binding, batches, scale)
    few = min(max(batches.samples // 16, FEWEST), MOST)
    count = min(len(tried), -(-few // min(4, *(batch.samples for batch in tried))))
    chosen = [tried[number] for number in torch.linspace(0, len(tried) - 1, count).round().long().tolist()]
    return Findings(objective, in_float64, scale, [spread(batch, -(-few // len(chosen))) for batch in chosen])
