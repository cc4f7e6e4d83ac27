"""Quantization, mixed precision, checkpointing, filters, dropout: what stands between a model and its derivatives."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from zoo_entry import EITHER, REFUSED, RIGHT, entry, seeded
from zoo_vision import ALL, classifier

# --- quantization and precision -----------------------------------------------------------------------------------


class Quantized(nn.Module):
    def __init__(self, quantize):
        super().__init__()
        self.first, self.last, self.quantize = nn.Linear(4, 5), nn.Linear(5, 3), quantize

    def forward(self, x):
        x = functional.linear(x, self.quantize(self.first.weight), self.first.bias)
        return self.last(torch.tanh(x))


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx, upstream):
        return upstream


def detached_round(x):
    return x + (torch.round(x * 8) / 8 - x).detach()


def torch_round(x):
    return torch.fake_quantize_per_tensor_affine(x, 0.125, 0, -128, 127)


STRAIGHT = "the gradient of training is no gradient: the loss is piecewise constant in the weights"


@entry(REFUSED, fault="no gradient", hard=STRAIGHT, source="practice (straight-through by detach)")
def quantization_with_a_detached_difference():
    return classifier(seeded(lambda: Quantized(detached_round)))


@entry(
    REFUSED,
    fault="no gradient",
    hard=STRAIGHT,
    source="IntelLabs/distiller: Post Training Quantization General Questions",
)
def quantization_with_a_function_of_its_own():
    return classifier(seeded(lambda: Quantized(Round.apply)))


@entry(
    REFUSED,
    fault="no gradient",
    hard=STRAIGHT,
    source="pytorch/ao: Restore straight-through estimator at the fake-quant clamp boundary",
)
def fake_quantization_of_torch():
    return classifier(seeded(lambda: Quantized(torch_round)))


class Mixed(nn.Module):
    def __init__(self, cast):
        super().__init__()
        self.first, self.last, self.cast = nn.Linear(4, 5), nn.Linear(5, 3), cast

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.tanh(self.first(x))
        return self.last(self.cast(x))


@entry(
    RIGHT,
    hard="autocast keeps casts of the weights between calls; float64 is exempt from it",
    source="pytorch/pytorch: autocast + torch.no_grad inference cause backward graph nodes to be lost",
)
def autocast_inside_the_forward_pass():
    return classifier(seeded(lambda: Mixed(lambda x: x)), forms=ALL)


@entry(
    REFUSED,
    fault="no gradient",
    hard="a cast to bfloat16 makes the loss a staircase on the scale of any small step",
    source="practice",
)
def cast_to_bfloat16_inside_the_forward_pass():
    return classifier(seeded(lambda: Mixed(lambda x: x.bfloat16().double())))


# --- memory savers and filters ------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.block = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.last, self.reentrant = nn.Linear(5, 3), reentrant

    def forward(self, x):
        return self.last(checkpoint(self.block, torch.tanh(self.first(x)), use_reentrant=self.reentrant))


@entry(
    RIGHT,
    hard="the forward pass runs again inside each backward pass",
    source="pytorch/functorch: Check that checkpointing works with functorch grad transforms",
)
def gradient_checkpointing():
    return classifier(seeded(lambda: Checkpointed(reentrant=False)))


@entry(
    EITHER,
    fault="second derivative",
    hard="works with backward() only: torch has no second derivative of it",
    source="pytorch/pytorch: torch.utils.checkpoint fails with torch.autograd.grad even when use_reentrant=False",
)
def reentrant_gradient_checkpointing():
    return classifier(seeded(lambda: Checkpointed(reentrant=True)))


class SincFilters(nn.Module):
    def __init__(self):
        super().__init__()
        self.cutoffs, self.last = nn.Parameter(torch.rand(3) * 0.3 + 0.1), nn.Linear(3, 3)

    def forward(self, x):
        taps = torch.arange(-2.0, 3.0, dtype=x.dtype)
        filters = 2 * self.cutoffs[:, None] * torch.sinc(2 * self.cutoffs[:, None] * taps)
        return self.last(torch.tanh(functional.conv1d(x[:, None], filters[:, None], padding=2)).mean(2))


@entry(
    EITHER,
    fault="second derivative",
    hard="torch's second derivative of sinc is NaN at the middle tap, where the true one is finite",
    source="pytorch/pytorch: torch.sinc produces NaN in the second derivative at its removable singularity",
)
def learned_sinc_filters():
    return classifier(seeded(SincFilters))


# --- randomness ---------------------------------------------------------------------------------------------------


class MonteCarloDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(functional.dropout(torch.tanh(self.first(x)), 0.5, training=True))


@entry(
    REFUSED,
    fault="random",
    hard="dropout that stays on in eval mode, by a function and not a module",
    source="practice (Monte Carlo dropout)",
)
def dropout_that_is_always_on():
    return classifier(seeded(MonteCarloDropout).eval())
