"""Every optimizer map beside its update written out by hand, and beside torch's own optimizer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import jacrev

import jvp_ops as jo

LR, DECAY, BETA, DAMPENING, SQUARES, EPS, CLIP = 0.125, 0.25, 0.75, 0.5, 0.875, 0.0625, 0.375


def clipped(g, most):
    norm = torch.sqrt((g**2).sum())
    return g * most / (norm + 1e-6) if most / (norm + 1e-6) < 1 else g


def descent(g, theta, t, lr, decay=0.0):
    return (theta - lr * (g + decay * theta),)


def heavy_ball(g, theta, v, t, lr, decay=0.0, dampening=0.0):
    v = BETA * v + (1 - dampening) * (g + decay * theta)
    return theta - lr * v, v


def nesterov(g, theta, v, t, lr, decay=0.0):
    g = g + decay * theta
    v = BETA * v + g
    return theta - lr * g - lr * BETA * v, v


def rmsprop(g, theta, v, t, lr, decay=0.0):
    g = g + decay * theta
    v = SQUARES * v + (1 - SQUARES) * g * g
    return theta - lr * g / (v**0.5 + EPS), v


def adam(g, theta, m, v, t, lr, decay=0.0, decoupled=0.0):
    g = g + decay * theta
    m = BETA * m + (1 - BETA) * g
    v = SQUARES * v + (1 - SQUARES) * g * g
    corrected = m / (1 - BETA**t)
    return (1 - lr * decoupled) * theta - lr * corrected / ((v / (1 - SQUARES**t)) ** 0.5 + EPS), m, v


@dataclass(frozen=True)
class Optimizer:
    """`make` a map of a loss, `update` by hand with `options`, and torch's optimizer of the same numbers."""

    make: Callable
    update: Callable
    torch: Callable
    options: dict
    slots: int
    clip: float | None = None

    def step(self, gradient, state, number=0, lr=LR):
        """Take step `number` by hand, from a flat state."""
        parts = state.chunk(1 + self.slots)
        g = gradient(parts[0])
        g = g if self.clip is None else clipped(g, self.clip)
        return torch.cat(self.update(g, *parts, t=number + 1, lr=lr, **self.options))

    def state(self, theta, seed=0):
        """Make a state that is no start: numbers exact in float32, the last slot of Adam and RMSProp positive."""
        drawn = np.random.default_rng(seed).standard_normal((self.slots, len(theta))) / 2
        slots = torch.from_numpy(drawn)
        if self.update in (rmsprop, adam):
            slots[-1] = slots[-1].abs() + 0.25
        return torch.cat([theta, slots.reshape(-1)]).float().double()

    def jacobian(self, value, state, number=0):
        """Differentiate the hand-written step in reverse."""
        return jacrev(lambda s: self.step(jacrev(value), s, number))(state).detach()


def _sgd(**options):
    return lambda p, lr=LR: torch.optim.SGD(p, lr=lr, **options)


_ADAM = {"betas": (BETA, SQUARES), "eps": EPS}
OPTIMIZERS = {
    "descent": Optimizer(lambda loss, lr=LR: jo.GradientDescent(loss, lr), descent, _sgd(), {}, 0),
    "clipped descent": Optimizer(
        lambda loss, lr=LR: jo.GradientDescent(loss, lr, clip=CLIP), descent, _sgd(), {}, 0, CLIP
    ),
    "clipped descent with decay": Optimizer(
        lambda loss, lr=LR: jo.GradientDescent(loss, lr, clip=CLIP, weight_decay=DECAY),
        descent,
        _sgd(weight_decay=DECAY),
        {"decay": DECAY},
        0,
        CLIP,
    ),
    "heavy ball": Optimizer(lambda loss, lr=LR: jo.HeavyBall(loss, lr, BETA), heavy_ball, _sgd(momentum=BETA), {}, 1),
    "heavy ball with all": Optimizer(
        lambda loss, lr=LR: jo.HeavyBall(loss, lr, BETA, dampening=DAMPENING, weight_decay=DECAY, clip=CLIP),
        heavy_ball,
        _sgd(momentum=BETA, dampening=DAMPENING, weight_decay=DECAY),
        {"decay": DECAY, "dampening": DAMPENING},
        1,
        CLIP,
    ),
    "nesterov": Optimizer(
        lambda loss, lr=LR: jo.Nesterov(loss, lr, BETA, weight_decay=DECAY),
        nesterov,
        _sgd(momentum=BETA, nesterov=True, weight_decay=DECAY),
        {"decay": DECAY},
        1,
    ),
    "rmsprop": Optimizer(
        lambda loss, lr=LR: jo.RMSProp(loss, lr, SQUARES, eps=EPS, weight_decay=DECAY),
        rmsprop,
        lambda p, lr=LR: torch.optim.RMSprop(p, lr=lr, alpha=SQUARES, eps=EPS, weight_decay=DECAY),
        {"decay": DECAY},
        1,
    ),
    "adam": Optimizer(
        lambda loss, lr=LR: jo.Adam(loss, lr, **_ADAM, weight_decay=DECAY),
        adam,
        lambda p, lr=LR: torch.optim.Adam(p, lr=lr, **_ADAM, weight_decay=DECAY),
        {"decay": DECAY},
        2,
    ),
    "adam clipped": Optimizer(
        lambda loss, lr=LR: jo.Adam(loss, lr, **_ADAM, clip=CLIP),
        adam,
        lambda p, lr=LR: torch.optim.Adam(p, lr=lr, **_ADAM),
        {},
        2,
        CLIP,
    ),
    "adamw": Optimizer(
        lambda loss, lr=LR: jo.AdamW(loss, lr, **_ADAM, weight_decay=DECAY),
        adam,
        lambda p, lr=LR: torch.optim.AdamW(p, lr=lr, **_ADAM, weight_decay=DECAY),
        {"decoupled": DECAY},
        2,
    ),
}
