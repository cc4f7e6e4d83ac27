"""What holding products against differences costs, once for a loss, in units of one gradient over all the data.

The first linearization of a loss has the check in it and a later one has not: their difference, in turns, each round
on a loss that was just made. Both are of a small subset, which is checked on samples of the whole: the rest of the work
would hide the check in its noise. Making a loss tries it, too, and is timed beside them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from bench_modules import SAMPLES, Transformer, cnn
from paired import paired_times
from torch import Tensor, nn

import jvp_ops as jo

GRADIENT = "gradient"
ROUNDS = 3
FEW = range(64)


def network() -> nn.Module:
    """Build the reference problem's network for images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.Sigmoid(), nn.Linear(50, 10))


class Counted:
    """Cross-entropy that notes the dtype of each evaluation: a check's are in float64, all others in float32."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean over samples."""
        self.dtypes.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    def during(self, function: Callable[[], Any]) -> tuple[int, int]:
        """Count the evaluations that a call makes: all, and those in float64."""
        self.dtypes.clear()
        function()
        return len(self.dtypes), self.dtypes.count(torch.float64)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize(
    ("make", "samples"),
    [(network, 60_000), (cnn, SAMPLES), (Transformer, SAMPLES)],
    ids=["784-50-10", "cnn", "transformer"],
)
def test_the_check(make: Any, samples: int, kind: str, mnist: Any, device: str, benchmark: Any) -> None:
    samples = 500 if benchmark.disabled else samples
    torch.manual_seed(0)
    model = make().to(device).eval()
    X = torch.from_numpy(mnist.inputs[:samples]).reshape(-1, 1, 28, 28).to(device)
    y = torch.tensor(mnist.labels[:samples], device=device)
    counted = Counted()
    new = partial(jo.ModelLoss, model, counted, (X, y))
    known = new()
    theta = known.initial()

    later = partial(getattr(known, kind), theta)
    evaluations, in_float64 = counted.during(later)
    assert in_float64 > 0
    without, in_float64 = counted.during(later)
    assert in_float64 == 0
    assert (without, 0) == counted.during(later)
    assert without < evaluations

    unused = [new()]  # the last that was made, for the next first linearization
    few = getattr(known.subset(FEW), kind)
    rounds = 1 if benchmark.disabled else ROUNDS
    first = "first linearization"
    times = paired_times(
        {
            "making the loss": lambda: unused.append(new()),
            first: lambda: getattr(unused.pop().subset(FEW), kind)(theta),
            "later linearization": lambda: few(theta),
            GRADIENT: lambda: known.gradient(theta),
        },
        rounds=rounds,
        seconds=20.0,
    )
    benchmark.extra_info["milliseconds"] = {name: round(1e3 * float(np.median(t)), 3) for name, t in times.items()}
    benchmark.extra_info["evaluations"] = {"first linearization": evaluations, "later linearization": without}
    check = times[first] - times["later linearization"]
    benchmark.extra_info["ratios"] = {
        "check / gradient": float(np.median(check / times[GRADIENT])),
        "making the loss / gradient": float(np.median(times["making the loss"] / times[GRADIENT])),
    }
    benchmark.pedantic(lambda: few(theta), rounds=rounds)
