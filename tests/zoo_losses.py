"""Losses: weighted, masked, penalized, of several tasks, of teachers and targets."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from zoo_entry import EITHER, REFUSED, RIGHT, Case, classes, entry, numbers, seeded, supervised

X, LABELS, Y = numbers(1, 8, 4), classes(2, 3, 8), numbers(3, 8, 3)
ALL = ("one batch", "ragged batches", "data loader")
RAGGED = ("ragged batches",)


def mlp(inputs=4, outputs=3, seed=0):
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)), seed)


def simple(loss_function, targets, model=None, options=None, **rest):
    return Case(model or mlp(), loss_function, (X, targets), supervised, options or {}, **rest)


# --- means that are not over samples ------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def weighted(outputs, targets):
    return functional.cross_entropy(outputs, targets, weight=WEIGHTS)


@entry(
    RIGHT,
    hard="the mean divides by the classes' weights, so that the weight of a batch is in its labels",
    source="pytorch/pytorch: Counter intuitive behavior of nn.CrossEntropy/nn.NLLLoss with weights ...",
)
def class_weights():
    return simple(nn.CrossEntropyLoss(weight=WEIGHTS), LABELS, forms=ALL)


@entry(
    RIGHT,
    hard="the same inside a function of one's own, whose divisor is told",
    source="pytorch/pytorch: The class weights implementation is incorrect",
)
def class_weights_with_a_normalizer():
    return simple(weighted, LABELS, options={"normalizer": lambda targets: WEIGHTS[targets].sum()}, forms=ALL)


@entry(
    RIGHT,
    hard="the same inside a function of one's own, and nothing says so",
    source="pytorch/pytorch: CrossEntropyLoss mishandles weights",
)
def class_weights_that_nothing_tells():
    return simple(weighted, LABELS, forms=RAGGED)


def weighted_by_hand(outputs, targets):
    each = functional.cross_entropy(outputs, targets, reduction="none") * WEIGHTS[targets]
    return each.sum() / WEIGHTS[targets].sum()


@entry(
    REFUSED,
    fault="coupled samples",
    hard="the same written out, so that nothing can tell",
    source="pytorch/pytorch: CrossEntropyLoss mishandles weights",
)
def class_weights_by_hand_that_nothing_tells():
    return simple(weighted_by_hand, LABELS, forms=RAGGED)


@entry(
    RIGHT,
    hard="three rules for the divisor at once, and one batch with a single sample that counts for nothing",
    source="entmax by deep-spin: ignore_index in loss functions",
)
def label_smoothing_with_class_weights_and_ignored_targets():
    targets = LABELS.clone()
    targets[3] = targets[6] = 9
    return simple(nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=9, label_smoothing=0.1), targets, forms=ALL)


@entry(RIGHT, hard="powers of a probability, a mean by hand", source="practice")
def focal_loss():
    def loss_function(outputs, targets):
        each = functional.cross_entropy(outputs, targets, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()

    return simple(loss_function, LABELS, forms=ALL)


IMPORTANCE = numbers(5, 8).square() + 0.1


@entry(RIGHT, hard="weights of samples come with the targets; the mean is over samples", source="practice")
def sample_weights_under_a_plain_mean():
    def loss_function(outputs, targets):
        labels, weight = targets
        return (weight * functional.cross_entropy(outputs, labels, reduction="none")).mean()

    return simple(loss_function, (LABELS, IMPORTANCE))


def importance_weighted(outputs, targets):
    labels, weight = targets
    return (weight * functional.cross_entropy(outputs, labels, reduction="none")).sum() / weight.sum()


@entry(
    RIGHT,
    hard="a weighted mean whose divisor is told",
    source="songlab-cal/gpn: Loss weighting behavior will give inconsistent upweighting between batches",
)
def sample_weights_under_a_weighted_mean():
    return simple(importance_weighted, (LABELS, IMPORTANCE), options={"normalizer": lambda targets: targets[1].sum()})


@entry(
    REFUSED,
    fault="coupled samples",
    hard="a weighted mean, and nothing says so",
    source="Lightning-AI/pytorch-lightning: Batch weight for accumulating gradients",
)
def sample_weights_that_nothing_tells():
    return simple(importance_weighted, (LABELS, IMPORTANCE), forms=RAGGED)


@entry(RIGHT, hard="divides by samples where 'mean' would divide by elements", source="practice")
def divergence_of_distributions_by_batch():
    model = nn.Sequential(mlp(), nn.LogSoftmax(1))
    return simple(nn.KLDivLoss(reduction="batchmean"), Y.softmax(1), model, forms=ALL)


@entry(RIGHT, hard="a sum: batches add up and are not averaged", source="practice")
def a_sum_and_no_mean():
    return simple(nn.MSELoss(reduction="sum"), Y, forms=ALL)


@entry(RIGHT, hard="weights of positives do not enter the divisor, unlike class weights", source="practice")
def binary_cross_entropy_with_positive_weights():
    return simple(nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (Y > 0).double(), forms=ALL)


@entry(RIGHT, hard="a kink where the residual is zero", source="practice")
def quantile_loss():
    def loss_function(outputs, targets):
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=outputs.dtype)
        error = targets - outputs
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    return simple(loss_function, numbers(6, 8, 1), step=1e-7, forms=ALL, spread=0.02)


@entry(RIGHT, hard="exponentials; a correction by Stirling where the count is above 1", source="practice")
def poisson_counts():
    return simple(nn.PoissonNLLLoss(full=True), classes(7, 5, 8, 3).double(), forms=ALL)


@entry(
    RIGHT,
    hard="two outputs in a dataclass; torch clamps the variance without gradients",
    source="practice (heteroscedastic regression)",
)
def gaussian_with_a_learned_variance():
    @dataclass
    class Prediction:
        mean: torch.Tensor
        variance: torch.Tensor

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.mean, self.spread = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            x = torch.tanh(self.body(x))
            return Prediction(self.mean(x), functional.softplus(self.spread(x)))

    def loss_function(outputs, targets):
        return functional.gaussian_nll_loss(outputs.mean, targets, outputs.variance)

    return simple(loss_function, Y, seeded(Model), forms=ALL)


# --- parameters outside the model ---------------------------------------------------------------------------------


class Uncertainty(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_variances = nn.Parameter(torch.tensor([0.1, -0.3]))

    def forward(self, outputs, targets):
        tasks = torch.stack(
            [functional.mse_loss(outputs[:, :2], targets[0]), functional.cross_entropy(outputs[:, 2:], targets[1])]
        )
        return (torch.exp(-self.log_variances) * tasks + self.log_variances).sum()


@entry(
    RIGHT,
    hard="the loss function has parameters of its own that are trained",
    source="ifzhang/FairMOT: Multitask learning with uncertainty ?",
)
def several_tasks_with_learned_variances():
    return simple(seeded(Uncertainty), (Y[:, :2], LABELS), mlp(outputs=5))


def penalty_of(parameters):
    return sum(0.05 * p.square().sum() + 0.02 * p.abs().sum() for p in parameters if p.ndim > 1)


@entry(
    RIGHT,
    hard="weight decay and a kinked penalty on the matrices only, as a function of named parameters",
    source="discuss.pytorch.org: How does one implement Weight regularization (l1 or l2) manually without optimum?",
)
def elastic_net_on_the_matrices():
    options = {"regularizer": lambda parameters: penalty_of(parameters.values())}
    return simple(
        nn.MSELoss(),
        Y,
        options=options,
        penalty=lambda m: penalty_of(m.parameters()),
        step=1e-7,
        spread=1e-3,
        forms=ALL,
    )


@entry(
    EITHER,
    fault="captured parameters",
    hard="the penalty is on a list of the model's own parameters in a closure: to a copy they are constants",
    source="practice (weight decay on a list of parameters)",
)
def weight_decay_by_a_captured_list():
    model = mlp()
    matrices = [p for p in model.parameters() if p.ndim > 1]

    def loss_function(outputs, targets):
        return functional.mse_loss(outputs, targets) + 0.05 * sum(p.square().sum() for p in matrices)

    return simple(loss_function, Y, model)


@entry(
    REFUSED,
    fault="second derivative",
    hard="the norm of a row that is zero: a gradient by convention, and NaN for a second derivative",
    source="pytorch/functorch: Hessian produces wrong results, but works if I add a perturbation",
)
def group_lasso_at_a_row_of_zeros():
    model = mlp()
    with torch.no_grad():
        model[0].weight[2] = 0
    options = {"regularizer": lambda parameters: 0.1 * parameters["0.weight"].norm(dim=1).sum()}
    return simple(nn.MSELoss(), Y, model, options, penalty=lambda m: 0.1 * m[0].weight.norm(dim=1).sum())
