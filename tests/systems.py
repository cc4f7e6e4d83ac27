"""Maps whose growth is known, for the tests of `jvp_ops.dynamics`."""

import math

import torch

import jvp_ops as jo

GOLDEN = math.log((3 + math.sqrt(5)) / 2)
DOUBLE = torch.float64


class Held:
    """An object that no fingerprint looks into: what it holds is seen by probes alone."""

    def __init__(self, value):
        self.value = value


def henon(a=1.4, b=0.3):
    a, b = Held(a), Held(b)
    return jo.FunctionMap(
        lambda s: torch.stack([1 - a.value * s[0] ** 2 + s[1], b.value * s[0]]), size=2, dtype="float64"
    ), torch.tensor([0.1, 0.1], dtype=DOUBLE)


def cat():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    return jo.FunctionMap(lambda s: (matrix @ s) % 1, size=2, dtype="float64"), torch.tensor([0.1, 0.27], dtype=DOUBLE)


def linear(matrix, *, dtype=DOUBLE):
    """θ → A θ, so that every product and exponent is that of A."""
    matrix = torch.as_tensor(matrix, dtype=dtype)
    f = jo.FunctionMap(lambda s: matrix @ s, size=len(matrix), dtype=dtype)
    return f, torch.ones(len(matrix), dtype=dtype)


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


class Cocycle:
    """θ → A_t θ, with the matrices taken in turns by the number of the step."""

    def __init__(self, matrices):
        self.matrices = [torch.as_tensor(matrix, dtype=DOUBLE) for matrix in matrices]
        self.maps = [linear(matrix)[0] for matrix in self.matrices]
        one = self.maps[0]
        self.parameters, self.dtype, self.device = one.parameters, one.dtype, one.device

    def __call__(self, state, step=0):
        return self.maps[step % len(self.maps)](state)

    def jacobian(self, state, step=0):
        return self.maps[step % len(self.maps)].jacobian(state)

    def identity(self):
        return {"map": "Cocycle", "matrices": [matrix.tolist() for matrix in self.matrices]}


def cubics(rates, lr=3.0, seed=0):
    """Gradient descent on a rotated sum of cubics, each of which is the logistic map at one of the rates r.

    L = Σ c (y²/2 − y³/3) has the step y → (1 − αc) y + αc y², whose fixed points 1 and 0 have slopes r and 2 − r for
    αc = r − 1.
    """
    Q = rotation(len(rates), seed)
    c = (torch.tensor(rates, dtype=DOUBLE) - 1) / lr

    def value(x):
        y = Q.T @ x
        return (c * (y**2 / 2 - y**3 / 3)).sum()

    f = jo.GradientDescent(jo.FunctionLoss(value, size=len(rates), dtype="float64"), lr)
    return f, Q @ torch.linspace(0.31, 0.62, len(rates), dtype=DOUBLE)


def logistic_exponent(r):
    """The exponent of the logistic map at r = 4, with a stable fixed point (r < 3), or a stable 2-cycle."""
    if r == 4:
        return math.log(2)
    return math.log(abs(2 - r)) if r < 3 else math.log(abs(4 + 2 * r - r * r)) / 2
