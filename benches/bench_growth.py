"""Growth along training on the reference problem: what a step of ten exponents costs, and what warm starts save."""

from typing import Any

import torch
from paired import ratio
from torch import Tensor

import jvp_ops as jo

K = 10


def problem(data: Any, device: str, smoke: bool) -> tuple[jo.GradientDescent, Tensor]:
    """Train 784-50-10 a little at learning rate 0.1; a small network on 600 images in a smoke run."""
    chosen = data.subset(600, rng=0) if smoke else data
    loss = jo.TwoLayerLoss(chosen.inputs, chosen.labels, hidden=5 if smoke else 50, device=device)
    f = jo.GradientDescent(loss, lr=0.1)
    return f, f.run(loss.initial(rng=0), steps=2 if smoke else 20)


def test_a_step_of_ten_exponents(mnist: Any, device: str, race: Any, request: Any) -> None:
    f, theta = problem(mnist, device, request.config.getoption("benchmark_disable"))
    steps = 8
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


def test_warm_starts(mnist: Any, device: str, benchmark: Any) -> None:
    smoke = benchmark.disabled
    f, theta = problem(mnist, device, smoke)
    steps, every = (20, 10) if smoke else (1000, 100)
    warm = jo.track_eigenpairs(f, theta, steps, every=every, k=3, which="LA")
    cold, state = 0, theta
    for number in range(steps + 1):
        if number % every == 0:
            pairs = jo.eigenpairs(f.loss.hessian(state), 3, "LA", method="lanczos")
            cold += pairs.products
            sharpness = float(warm.values[number // every, 0])
            assert abs(pairs.values[0] - sharpness) <= 1e-4 * sharpness
        state = f(state)
    warm_products = int(warm.products.sum())
    benchmark.extra_info["milliseconds"] = {}
    benchmark.extra_info["products"] = {"warm": warm_products, "cold": cold}
    benchmark.extra_info["ratios"] = {"cold products / warm": cold / warm_products}
    benchmark.pedantic(lambda: None, rounds=1)
