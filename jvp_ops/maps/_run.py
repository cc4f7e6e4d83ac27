"""Repeating a map."""

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from jvp_ops._progress import progress_bar
from jvp_ops.errors import InputError, NonFiniteError


def run(
    step: Callable[[Tensor], Tensor],
    state: Tensor,
    *,
    steps: int,
    progress: bool,
    callback: Callable[[int, Tensor], None] | None,
) -> Tensor:
    """Apply `step` so many times; see the maps' ``run``."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0:
        raise InputError(f"steps must be an integer of at least 0, not {steps!r}")
    with progress_bar(steps, show=progress, description="training", unit="step") as bar:
        for number in range(1, steps + 1):
            state = step(state)
            if not bool(torch.isfinite(state).all()):
                raise NonFiniteError(
                    f"the state became NaN or Inf at step {number} of {steps}: the run diverges; a smaller lr may help"
                )
            if callback is not None:
                callback(number, state)
            bar.update()
    return state
