"""Learning rates that may depend on the number of the step."""

import inspect
from collections.abc import Callable
from numbers import Integral
from typing import Any

from jvp_ops._checks import finite_number
from jvp_ops.errors import InputError
from jvp_ops.store import callable_identity

LearningRate = float | Callable[[int], float]


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
    """Name a learning rate: its number, or a schedule's code and the plain values it closes over."""
    if not callable(lr):
        return lr
    try:
        seen = inspect.getclosurevars(lr)
    except TypeError:  # not a Python function
        return callable_identity(lr)
    plain = {k: v for k, v in {**seen.globals, **seen.nonlocals}.items() if isinstance(v, bool | int | float | str)}
    return [callable_identity(lr), plain]


def lr_text(lr: LearningRate) -> str:
    """Write a learning rate for a repr."""
    return getattr(lr, "__name__", type(lr).__name__) if callable(lr) else f"{lr:g}"
