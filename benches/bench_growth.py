"""Growth along training on the reference problem: what a step of ten exponents costs, and what warm starts save."""

from typing import Any

import pytest
import torch
from paired import ratio
from torch import Tensor

import jvp_ops as jo

K = 10
COLD = ("cold", "cold, unverified")


def problem(data: Any, device: str, smoke: bool) -> tuple[jo.GradientDescent, Tensor]:
    """Train 784-50-10 a little at learning rate 0.1; a small network on 600 images in a smoke run."""
    chosen = data.subset(600, rng=0) if smoke else data
    loss = jo.TwoLayerLoss(chosen, hidden=5 if smoke else 50, device=device)
    f = jo.GradientDescent(loss, lr=0.1)
    return f, f.run(loss.initial(rng=0), steps=2 if smoke else 20)


def test_a_step_of_ten_exponents(mnist: Any, device: str, race: Any, request: Any) -> None:
    f, theta = problem(mnist, device, request.config.getoption("benchmark_disable"))
    steps = 16
    V = torch.linalg.qr(torch.randn(len(theta), K, generator=torch.Generator().manual_seed(0)))[0].to(theta)

    def parts() -> None:
        state = theta
        for _ in range(steps):
            f.jacobian(state).apply(V)
            state = f(state)

    times = race(
        {"ours": lambda: jo.lyapunov_spectrum(f, theta, K, steps), "products and steps alone": parts}, rounds=5
    )
    race.info["ratios"] = {
        "ours / (a linearization, a product of ten and a gradient step)": ratio(
            times, "ours", "products and steps alone"
        )
    }


@pytest.mark.parametrize("every", [20, 100])
def test_warm_starts(every: int, mnist: Any, device: str, benchmark: Any) -> None:
    smoke = benchmark.disabled
    f, theta = problem(mnist, device, smoke)
    steps = 2 * every if smoke else 1000
    warm = jo.track_eigenpairs(f, theta, steps, every=every, k=3, which="LA")
    products, state = {"warm": int(warm.products.sum()), "cold": 0, "cold, unverified": 0}, theta
    for row in range(steps // every + 1):
        state = state if row == 0 else f.run(state, steps=every)
        for name, verify in (("cold", True), ("cold, unverified", False)):
            pairs = jo.eigenpairs(f.loss.hessian(state), 3, "LA", method="lanczos", verify=verify)
            products[name] += pairs.products + pairs.float64_products
            assert abs(pairs.values[0] - warm.values[row, 0]) <= 1e-4 * warm.values[row, 0]
    benchmark.extra_info["milliseconds"] = {}
    benchmark.extra_info["products"] = products
    benchmark.extra_info["ratios"] = {f"{name} products / warm": products[name] / products["warm"] for name in COLD}
    benchmark.pedantic(lambda: None, rounds=1)
