"""Maps whose growth is known, for the tests of `jvp_ops.dynamics`."""

import math

import torch

import jvp_ops as jo

GOLDEN = math.log((3 + math.sqrt(5)) / 2)
DOUBLE = torch.float64


def henon(a=1.4, b=0.3):
    return jo.FunctionMap(
        lambda s: torch.stack([1 - a * s[0] ** 2 + s[1], b * s[0]]), size=2, dtype="float64"
    ), torch.tensor([0.1, 0.1], dtype=DOUBLE)


def cat():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    return jo.FunctionMap(lambda s: (matrix @ s) % 1, size=2, dtype="float64"), torch.tensor([0.1, 0.27], dtype=DOUBLE)


def linear(matrix, *, dtype=DOUBLE):
    """θ → A θ, so that every product and exponent is that of A."""
    matrix = torch.as_tensor(matrix, dtype=dtype)
    f = jo.FunctionMap(lambda s: matrix @ s, size=len(matrix), dtype=dtype)
    return f, torch.ones(len(matrix), dtype=dtype)


def heavy_ball(slope, size, *, lr=1.0, beta):
    """(θ, v) → (θ + v', v') with v' = βv − α L'(θ)."""

    def step(s):
        v = beta * s[size:] - lr * slope(s[:size])
        return torch.cat([s[:size] + v, v])

    return jo.FunctionMap(step, size=2 * size, dtype="float64")


def rotation(n, seed=0):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))[0]


def network(samples=40, hidden=3, lr=0.5):
    """A small two-layer network in float64 under gradient descent, and its start."""
    data = jo.load_digits().subset(samples)
    inputs = torch.as_tensor(data.inputs)[:, 18:24]
    loss = jo.TwoLayerLoss(inputs, data.labels, hidden=hidden, dtype=DOUBLE)
    return jo.GradientDescent(loss, lr), loss.initial(rng=0)


def twisted(n=6, seed=1):
    """A smooth map with a dense non-symmetric Jacobian that changes from step to step."""
    random = torch.Generator().manual_seed(seed)
    A, B = torch.randn(2, n, n, generator=random, dtype=DOUBLE) / n**0.5
    f = jo.FunctionMap(lambda s: torch.sin(A @ s) + 1.2 * B @ s / (1 + s.square().sum()), size=n, dtype="float64")
    return f, torch.randn(n, generator=random, dtype=DOUBLE)


def dense_product(orbit, start=0, stop=None):
    """Multiply the dense Jacobians of an orbit, in order."""
    product = torch.eye(orbit.parameters.size, dtype=orbit.dtype)
    for t in range(start, orbit.steps if stop is None else stop):
        product = orbit.map.jacobian(orbit[t], orbit.first + t).dense() @ product
    return product
