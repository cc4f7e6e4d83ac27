"""Repeating a map."""

from collections.abc import Callable

import torch
from torch import Tensor

from jvp_ops._checks import whole_number
from jvp_ops._sitting import Sitting
from jvp_ops.errors import NonFiniteError


def run(
    step: Callable[[Tensor, int], Tensor],
    state: Tensor,
    *,
    steps: int,
    first: int = 0,
    progress: bool,
    callback: Callable[[int, Tensor], object] | None,
) -> Tensor:
    """Apply `step` so many times; see the maps' ``run``."""
    whole_number(steps, "steps")
    whole_number(first, "first")
    with Sitting("training", unit="step", total=steps, progress=progress, callback=callback) as sitting:
        for number in range(1, steps + 1):
            state = step(state, first + number - 1)
            if not bool(torch.isfinite(state).all()):
                raise NonFiniteError(
                    f"the state became NaN or Inf at step {first + number - 1}: the run diverges; a smaller lr may help"
                )
            sitting.tell(number, state)
            sitting.advance()
            sitting.check()
            if sitting.obstacle():
                break
    return state
