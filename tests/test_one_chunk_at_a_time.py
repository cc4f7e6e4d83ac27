"""Code of the user's that cannot run twice at once: what one pass changes for a while, another must not see."""

import time

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, smallest_budget
from torch import nn
from torch.func import functional_call
from torch.nn import functional

import jvp_ops as jo
from jvp_ops.losses.model import _streaming

X, T = numbers(820, 12, 5), labels_of(821, 12, 3)


class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(0.002)
        return super().forward(x)


class Swapping(nn.Module):
    """It lends its inner network other weights while it runs."""

    def __init__(self):
        super().__init__()
        self.shape, self.w, self.b = Slow(5, 3), nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3))
        self.shape.requires_grad_(False)

    def forward(self, x):
        weights = {"weight": torch.tanh(self.w), "bias": self.b}
        return functional_call(self.shape, weights, (x,)) + functional_call(self.shape, {"bias": 2 * self.b}, (x,))


class Alone(torch.autograd.Function):
    """x², which notices if it runs twice at once, on its way there or back."""

    running = False

    @staticmethod
    def _take_time(value):
        assert not Alone.running, "run twice at once"
        Alone.running = True
        try:
            time.sleep(0.002)
            return value
        finally:
            Alone.running = False

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return Alone._take_time(x * x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return Alone._take_time(2 * x * grad)


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(Alone.apply(self.a(x)))


def swapped_by_hand(model, theta, x):
    return x @ (torch.tanh(theta[:15].reshape(3, 5)) + model.shape.weight).T + 3 * theta[15:]


def squared_by_hand(model, theta, x):
    return (x @ theta[:20].reshape(4, 5).T + theta[20:24]) ** 2 @ theta[24:36].reshape(3, 4).T + theta[36:]


@pytest.mark.parametrize("budget", [None, "least"])
@pytest.mark.parametrize("kind, by_hand", [(Swapping, swapped_by_hand), (Squared, squared_by_hand)])
def test_many_chunks_on_many_threads_never_run_at_once(kind, by_hand, budget, threads, monkeypatch):
    threads(4)
    monkeypatch.setitem(_streaming.CHUNK_BYTES, "cpu", 1)  # a sample each
    model = seeded(kind)

    def made(max_memory=None):
        return jo.ModelLoss(model, functional.cross_entropy, (X, T), max_memory=max_memory)

    loss = made(smallest_budget(made, "hessian")[0] if budget else None)
    assert_matches(loss, lambda theta: functional.cross_entropy(by_hand(model, theta, X), T))
