"""Teachers, target networks and mixed samples: what may not be differentiated, and what must be."""

import torch
from torch import nn
from torch.nn import functional
from zoo_entry import REFUSED, RIGHT, Case, entry, numbers, seeded, supervised
from zoo_losses import ALL, LABELS, X, Y, mlp, simple


class Distilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.Tanh())

    def forward(self, x):
        with torch.no_grad():
            soft = self.teacher(x).softmax(1)
        return self.student(x), soft


def distillation(outputs, targets):
    student, soft = outputs
    return functional.cross_entropy(student, targets) + functional.cross_entropy(student, soft)


@entry(
    REFUSED,
    fault="no gradient",
    hard="a teacher under no_grad whose parameters require gradients: the loss moves with them, the gradient is zero",
    source="practice (distillation)",
)
def teacher_without_gradients_among_the_parameters():
    return simple(distillation, LABELS, seeded(Distilled))


@entry(RIGHT, hard="the same, with the student's parameters chosen", source="practice (distillation)")
def teacher_that_is_left_out_by_name():
    return simple(distillation, LABELS, seeded(Distilled), {"parameters": "student.*"}, forms=ALL)


class Teaching(nn.Module):
    def __init__(self, trained):
        super().__init__()
        self.teacher = nn.Linear(3, 3).requires_grad_(trained)

    def forward(self, outputs, targets):
        with torch.no_grad():
            soft = self.teacher(targets).softmax(1)
        return functional.cross_entropy(outputs, soft)


@entry(
    REFUSED,
    fault="no gradient",
    hard="the same teacher inside a loss function that is a module",
    source="practice (distillation)",
)
def teacher_inside_the_loss_function():
    return simple(seeded(lambda: Teaching(True)), Y)


@entry(RIGHT, hard="and frozen as it should be", source="practice (distillation)")
def frozen_teacher_inside_the_loss_function():
    return simple(seeded(lambda: Teaching(False)), Y, forms=ALL)


class Bootstrap(nn.Module):
    """Predicts a target network's view (BYOL), or its own without gradients (SimSiam)."""

    def __init__(self, own):
        super().__init__()
        self.online, self.predictor = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), nn.Linear(3, 3)
        self.target = None if own else nn.Linear(4, 3).requires_grad_(False)

    def forward(self, first, second):
        with torch.no_grad():
            wanted = (self.target or self.online)(second)
        return 1 - functional.cosine_similarity(self.predictor(self.online(first)), wanted).mean()


def views(own):
    return Case(
        seeded(lambda: Bootstrap(own)),
        None,
        {"first": X, "second": X + numbers(8, 8, 4, scale=0.2)},
        lambda model, _, batch: model(**batch),
    )


@entry(
    RIGHT,
    hard="a moving average as target, frozen; two views; the loss inside the model",
    source="lucidrains/byol-pytorch: Only Tensors created explicitly by the user (graph leaves) support ...",
)
def bootstrap_with_a_target_network():
    return views(own=False)


@entry(
    REFUSED,
    fault="no gradient",
    hard="stop-gradient on the network itself: no function has this gradient",
    source="practice (SimSiam)",
)
def stop_gradient_on_the_network_itself():
    return views(own=True)


@entry(RIGHT, hard="mixed inputs with a coefficient for each sample; three targets", source="practice (mixup)")
def mixup_with_fixed_coefficients():
    share = torch.sigmoid(numbers(9, 8))

    def loss_function(outputs, targets):
        first, second, part = targets
        losses = [functional.cross_entropy(outputs, labels, reduction="none") for labels in (first, second)]
        return (part * losses[0] + (1 - part) * losses[1]).mean()

    mixed = share[:, None] * X + (1 - share[:, None]) * X.flip(0)
    return Case(mlp(), loss_function, (mixed, (LABELS, LABELS.flip(0), share)), supervised)
