"""Losses that couple the samples of a batch, and generative models."""

import torch
from torch import nn
from torch.nn import functional
from zoo_entry import REFUSED, RIGHT, Case, entry, numbers, seeded, supervised
from zoo_losses import LABELS, RAGGED, X, Y, simple

ONE = ("one batch",)


@entry(RIGHT, hard="three inputs to one network; a kink at the margin", source="practice (metric learning)")
def triplets():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

        def forward(self, anchor, near, far):
            return self.body(anchor), self.body(near), self.body(far)

    def loss_function(outputs, targets):
        return functional.triplet_margin_loss(*outputs, margin=targets.mean())

    inputs = (X, X + numbers(4, 8, 4), X + numbers(5, 8, 4))
    return Case(seeded(Model), loss_function, (inputs, torch.full((8,), 5.0).double()), supervised)


def contrast(outputs, targets):
    near = functional.normalize(outputs) @ functional.normalize(outputs).T / 0.5
    alike = (targets[:, None] == targets) & ~torch.eye(len(targets), dtype=torch.bool)
    near = near.masked_fill(torch.eye(len(targets), dtype=torch.bool), -1e9).log_softmax(1)
    return -(near * alike).sum() / len(targets)


def dice(outputs, targets):
    chances, wanted = outputs.sigmoid(), (targets > 0).double()
    return 1 - 2 * (chances * wanted).sum() / (chances.sum() + wanted.sum())


def risk(outputs, targets):
    """Take Cox's partial likelihood, of patients in the order of their times."""
    order = targets[:, 0].argsort(descending=True)
    score = outputs[order, 0]
    return (torch.logcumsumexp(score, 0) - score).mean()


def root_mean_square(outputs, targets):
    return functional.mse_loss(outputs, targets).sqrt()


@entry(RIGHT, hard="every pair of samples", source="practice (contrastive learning)")
def contrastive_loss_with_coupled_batches():
    return simple(contrast, LABELS, options={"coupled": True}, forms=ONE)


@entry(REFUSED, fault="coupled samples", hard="every pair of samples, and nothing says so", source="practice")
def contrastive_loss_that_hides_its_coupling():
    return simple(contrast, LABELS)


@entry(RIGHT, hard="a quotient of two sums over the batch", source="practice (segmentation)")
def dice_loss_with_coupled_batches():
    return simple(dice, Y, options={"coupled": True}, forms=ONE)


@entry(RIGHT, hard="each sample against all that outlive it", source="practice (survival analysis)")
def partial_likelihood_with_coupled_batches():
    return simple(risk, Y, options={"coupled": True}, forms=ONE)


@entry(
    REFUSED,
    fault="coupled samples",
    hard="the root of a mean, in batches: no mean of the batches' roots",
    source="practice",
)
def root_of_a_mean_in_batches():
    return simple(root_mean_square, Y, forms=RAGGED)


@entry(REFUSED, fault="coupled samples", hard="the root of a mean, in one batch that may be cut", source="practice")
def root_of_a_mean_in_one_batch():
    return simple(root_mean_square, Y, forms=ONE)


@entry(RIGHT, hard="the root of a mean, named as coupled", source="practice")
def root_of_a_mean_with_coupled_batches():
    return simple(root_mean_square, Y, options={"coupled": True}, forms=ONE)


# --- generative models --------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.body, self.center, self.spread = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)
        self.decoder, self.draw = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)), draw

    def forward(self, x, noise=None):
        h = torch.tanh(self.body(x))
        center, spread = self.center(h), self.spread(h)
        return self.decoder(center + torch.exp(spread / 2) * self.draw(center, noise)), center, spread


def evidence(outputs, targets):
    again, center, spread = outputs
    divergence = -0.5 * (1 + spread - center.square() - spread.exp()).sum()
    return functional.binary_cross_entropy_with_logits(again, targets, reduction="sum") + divergence


def autoencoder(draw, inputs=X, **rest):
    return Case(seeded(lambda: Autoencoder(draw)), evidence, (inputs, (X > 0).double()), supervised, **rest)


@entry(RIGHT, hard="three outputs, a sum of two terms, noise as an input", source="practice (variational autoencoder)")
def autoencoder_with_given_noise():
    return autoencoder(lambda like, noise: noise, (X, numbers(6, 8, 2)))


@entry(REFUSED, fault="random", hard="noise drawn in each call", source="practice (variational autoencoder)")
def autoencoder_that_draws_noise():
    return autoencoder(lambda like, noise: torch.randn_like(like))


def drawn_from_a_seed(like, noise):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype)


@entry(
    REFUSED,
    fault="coupled samples",
    hard="noise from a seed in each call: it repeats, and each sample's depends on its place in the batch",
    source="practice (variational autoencoder)",
)
def autoencoder_with_noise_from_a_seed():
    return autoencoder(drawn_from_a_seed)


@entry(RIGHT, hard="the same on one batch that is never cut", source="practice (variational autoencoder)")
def autoencoder_with_noise_from_a_seed_and_coupled_batches():
    return autoencoder(drawn_from_a_seed, options={"coupled": True}, forms=ONE)


class Flow(nn.Module):
    """Returns its own loss: the mean of -log p(x), by the change of variables of two couplings."""

    def __init__(self):
        super().__init__()
        self.couplings = nn.ModuleList(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2))
        self.mix = nn.Parameter(torch.eye(4) + 0.1 * torch.randn(4, 4))

    def forward(self, x):
        volume = 0
        for coupling in self.couplings:
            x = x @ self.mix
            still, moved = x.chunk(2, 1)
            scale, shift = coupling(still).chunk(2, 1)
            x = torch.cat([moved * torch.exp(torch.tanh(scale)) + shift, still], 1)
            volume = volume + torch.tanh(scale).sum(1) + torch.linalg.slogdet(self.mix)[1]
        return (0.5 * x.square().sum(1) - volume).mean()


@entry(
    RIGHT,
    hard="the loss is the model's output; determinants",
    source="pytorch/pytorch: `torch.func` second-order AD through `linalg.det` returns NaN or silently wrong values",
)
def normalizing_flow():
    return Case(seeded(Flow), None, {"x": X}, lambda model, _, batch: model(**batch))


class Critic(nn.Module):
    """Returns the loss of a critic with a penalty on the norm of its gradient in x."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, true, false, share):
        between = (share[:, None] * true + (1 - share[:, None]) * false).requires_grad_()
        slope = torch.autograd.grad(self.body(between).sum(), between, create_graph=True)[0]
        return (self.body(false) - self.body(true)).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


@entry(
    RIGHT,
    hard="a gradient inside the loss, so that the Hessian is a third derivative",
    source="pytorch/pytorch: the derivative for 'cudnn_batch_norm_backward save_mean' is not implemented",
)
def critic_with_a_gradient_penalty():
    batch = {"true": X, "false": numbers(7, 8, 4), "share": torch.sigmoid(numbers(8, 8))}
    return Case(seeded(Critic), None, batch, lambda model, _, batch: model(**batch))


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 9))

    def forward(self, x):
        weight, center, spread = self.head(x).chunk(3, 1)
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=weight), torch.distributions.Normal(center, spread.exp())
        )


@entry(RIGHT, hard="the output is a distribution and no tensor", source="practice (mixture density networks)")
def mixture_density_network():
    return Case(seeded(Mixture), lambda outputs, targets: -outputs.log_prob(targets).mean(), (X, Y[:, 0]), supervised)
