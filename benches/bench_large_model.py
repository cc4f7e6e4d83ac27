"""Five leading eigenpairs of a residual CNN of ten million parameters, within a memory budget, on any device."""

import resource
import time
from typing import Any

import torch
from torch import Tensor, nn

import jvp_ops as jo

BUDGET = "3GiB"  # of the basis
PEAK = 6 * 2**30  # with the model's retained graphs, over what was taken before


class Residual(nn.Module):
    """Two 3 × 3 convolutions with a shortcut, which halves the image where the channels double."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, padding=1, stride=1 if into == out else 2)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to its input."""
        y = self.second(torch.tanh(self.first(torch.tanh(x))))
        return self.shortcut(x) + 0.5 * y


def network(width: int) -> nn.Module:
    """Build four stages of two blocks each, as in ResNet-18; width 64 has 11 million parameters."""
    stages = [nn.Conv2d(1, width, 3, padding=1)]
    for into, out in ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)):
        stages.append(Residual(into * width, out * width))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def test_five_pairs_of_ten_million_parameters(device: str, benchmark: Any) -> None:
    smoke = benchmark.disabled
    data = jo.load_digits().subset(32 if smoke else 256, rng=0)
    torch.manual_seed(0)
    model = network(4 if smoke else 62).to(device)
    X = torch.from_numpy(data.inputs).reshape(-1, 1, 8, 8).to(device)
    loss = jo.ModelLoss(model, nn.functional.cross_entropy, (X, torch.tensor(data.labels, device=device)))
    n = loss.parameters.size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    pairs = jo.eigenpairs(
        loss.hessian(loss.initial()), 5, "LA", method="lanczos", tol=1e-4, max_memory=BUDGET, float64=False
    )
    benchmark.extra_info["milliseconds"] = {"ours": 1e3 * (time.perf_counter() - began)}
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    benchmark.extra_info["figures"] = {
        "parameters": n,
        "products": pairs.products,
        "basis budget": BUDGET,
        "GiB over what was taken before": taken / 2**30,
        "values": pairs.values.tolist(),
        "bounds": pairs.bounds.tolist(),
    }
    assert pairs.converged.all()
    assert taken <= PEAK
    if not smoke:
        assert n > 10_000_000
    benchmark.pedantic(lambda: None, rounds=1)
