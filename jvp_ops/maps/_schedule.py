"""Learning rates that may depend on the number of the step."""

import hashlib
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import numpy as np

from jvp_ops._checks import finite_number
from jvp_ops.errors import InputError
from jvp_ops.store import callable_identity

LearningRate = float | Callable[[int], float]
_SAMPLED = (*range(1024), *(step << shift for shift in range(10) for step in (1024, 1280, 1536, 1792)))


def checked_lr(lr: LearningRate) -> LearningRate:
    """Accept a number of at least 0, or a schedule, whose values are checked when they are asked for."""
    return lr if callable(lr) else finite_number(lr, "lr", least=0)


def rate_at(lr: LearningRate, step: int) -> float:
    """Give the learning rate of a step."""
    step = checked_step(step)
    return finite_number(lr(step), f"lr({step})", least=0) if callable(lr) else lr


def checked_step(step: object) -> int:
    """Check the number of a step, which counts from 0."""
    if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
        raise InputError(f"step must be an integer of at least 0 (the first step is 0), not {step!r}")
    return int(step)


def lr_identity(lr: LearningRate) -> Any:
    """Name a learning rate: its number, or a schedule's code with what it holds, and its rates."""
    return [callable_identity(lr), rates_identity(lr, _SAMPLED)] if callable(lr) else lr


def rates_identity(lr: LearningRate, steps: Iterable[int]) -> str | None:
    """Hash a schedule's rates at given steps; None for a number."""
    if not callable(lr):
        return None
    return hashlib.sha256(np.array([_rate_or_nan(lr, step) for step in steps]).tobytes()).hexdigest()


def _rate_or_nan(lr: Callable[[int], float], step: int) -> float:
    try:
        return float(lr(step))
    except Exception:  # a table, say, that ends before this step: which is part of what it is
        return float("nan")


def lr_text(lr: LearningRate) -> str:
    """Write a learning rate for a repr."""
    return getattr(lr, "__name__", type(lr).__name__) if callable(lr) else f"{lr:g}"
