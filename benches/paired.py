"""Time functions against each other in one process, in turns, so that a noisy machine is noisy for all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def paired_times(functions: Mapping[str, Callable[[], Any]], *, rounds: int, seconds: float = 30.0) -> dict[str, Any]:
    """Call each function once a round, in turns; return the seconds of each call, by name.

    Stops early, after at least three rounds, when `seconds` are used up.
    """
    for function in functions.values():
        function()
        _wait()
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            _wait()
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: Mapping[str, Any], slow: str, fast: str) -> float:
    """Return the median over rounds of how many times longer `slow` took than `fast`."""
    return float(np.median(times[slow] / times[fast]))


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return ‖ours − theirs‖ / ‖theirs‖, in float64."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
