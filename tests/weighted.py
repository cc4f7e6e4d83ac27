"""Losses whose means divide by weights, each with its data: what their parts add up to is the loss of one batch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from cases import labels_of, numbers, seeded
from oracles import exact, exact_gauss_newton, outputs_at
from torch import nn
from torch.nn import functional

import jvp_ops as jo

SAMPLES = 40
X = numbers(300, SAMPLES, 5)
T = labels_of(301, SAMPLES, 3).sort().values  # by class, so that every batch weighs differently
HOLES = torch.where(torch.arange(SAMPLES) % 3 == 0, -100, T)
OTHER_HOLES = torch.where(torch.arange(SAMPLES) > 25, -100, T.flip(0))
PROBABLE = torch.softmax(numbers(302, SAMPLES, 3), 1)
REAL, WEIGHTS = numbers(303, SAMPLES, 3), numbers(304, SAMPLES).abs() + 0.1
MASK = numbers(305, SAMPLES, 3) > 0.3
CLASS = torch.tensor([1.0, 5.0, 20.0]).double()
NEARLY = torch.tensor([1.0, 1.0 + 1e-6, 1.0]).double()
SIZES = [1, 13, 7, 3, 16]
SHUFFLED = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))


def mlp(outputs=3):
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs))


def head_of(std):
    """Make a network whose head is all zeros (`std` 0), small, or (None) as torch draws it."""
    model = seeded(mlp)
    if std is not None:
        with torch.no_grad():
            model[2].weight.mul_(std), model[2].bias.mul_(std)
    return model


def parts(structure, index):
    return tuple(t[index] for t in structure) if isinstance(structure, tuple) else structure[index]


@dataclass(frozen=True)
class Weighted:
    function: Callable
    targets: object
    options: dict = field(default_factory=dict)
    convex: bool = True

    def batches(self, how):
        """Give the data in one batch, in batches of several sizes, or in another order."""
        if how == "one batch":
            return X, self.targets
        order = SHUFFLED if how == "shuffled" else torch.arange(SAMPLES)
        return [(X[index], parts(self.targets, index)) for index in order.split(SIZES)]

    def loss(self, model, how="one batch", **options):
        return jo.ModelLoss(model, self.function, self.batches(how), **self.options, **options)

    def true(self, model):
        return lambda theta: self.function(outputs_at(model, theta, X), self.targets)

    def on(self, model, index):
        """The loss of some samples in one batch."""
        return lambda theta: self.function(outputs_at(model, theta, X[index]), parts(self.targets, index))

    def exact(self, model, theta):
        return exact(self.true(model), theta)

    def G(self, model, theta):
        return exact_gauss_newton(lambda t: outputs_at(model, t, X), lambda z: self.function(z, self.targets), theta)


def by_sample(outputs, targets):
    labels, weights = targets
    return (weights * functional.cross_entropy(outputs, labels, reduction="none")).sum() / weights.sum()


def by_mask(outputs, targets):
    values, mask = targets
    return (mask * (outputs - values) ** 2).sum() / mask.sum()


def two_means(outputs, targets):
    return functional.cross_entropy(outputs, targets[0], weight=CLASS) + functional.mse_loss(outputs, targets[1]) / 2


def two_tasks(outputs, targets):
    left, right = (functional.cross_entropy(outputs, labels) for labels in targets)
    return left + 0.25 * right


def advantage(outputs, targets):
    actions, gains = targets
    return -(torch.log_softmax(outputs, 1).gather(1, actions[:, None])[:, 0] * gains).mean()


GAINS = torch.where(torch.arange(SAMPLES) % 2 == 0, 1.0, -1.0).double()

WEIGHTED = {
    "class weights": Weighted(nn.CrossEntropyLoss(weight=CLASS), T),
    "class weights in a function": Weighted(lambda o, t: functional.cross_entropy(o, t, weight=CLASS), T),
    "class weights nearly 1": Weighted(nn.CrossEntropyLoss(weight=NEARLY), T),
    "class weights and smoothing": Weighted(nn.CrossEntropyLoss(weight=CLASS, label_smoothing=0.1), T),
    "smoothing": Weighted(nn.CrossEntropyLoss(label_smoothing=0.1), T),
    "ignored targets": Weighted(functional.cross_entropy, HOLES),
    "an ignored class": Weighted(nn.CrossEntropyLoss(ignore_index=1), T),
    "ignored targets and class weights": Weighted(nn.CrossEntropyLoss(weight=CLASS), HOLES),
    "ignored targets and smoothing": Weighted(nn.CrossEntropyLoss(label_smoothing=0.1), HOLES),
    "negative log-likelihood": Weighted(
        lambda o, t: functional.nll_loss(functional.log_softmax(o, 1), t, weight=CLASS), T
    ),
    "soft targets": Weighted(functional.cross_entropy, PROBABLE),
    "soft targets and class weights": Weighted(nn.CrossEntropyLoss(weight=CLASS), PROBABLE),
    "positive weights": Weighted(
        lambda o, t: functional.binary_cross_entropy_with_logits(o, t, pos_weight=CLASS), (REAL > 0).double()
    ),
    "two means": Weighted(two_means, (T, REAL)),
    "two tasks with missing labels": Weighted(two_tasks, (HOLES, OTHER_HOLES)),
    "a scaled mean": Weighted(lambda o, t: 3 * functional.cross_entropy(o, t, weight=CLASS) / 7, T),
    "labelled samples only": Weighted(lambda o, t: functional.cross_entropy(o[t >= 0], t[t >= 0]), HOLES),
    "terms that cancel": Weighted(advantage, (T, GAINS), convex=False),
    "weights of samples": Weighted(by_sample, (T, WEIGHTS), {"normalizer": lambda targets: targets[1].sum()}),
    "a mask over outputs": Weighted(by_mask, (REAL, MASK), {"normalizer": lambda targets: targets[1].sum()}),
    "a sum with class weights": Weighted(nn.CrossEntropyLoss(weight=CLASS, reduction="sum"), T),
}
