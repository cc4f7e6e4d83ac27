"""Convolutions, normalizations, and weights that are computed from parameters."""

import warnings

import torch
from torch import nn
from torch.nn import functional
from zoo_entry import EITHER, REFUSED, RIGHT, Case, classes, entry, numbers, seeded, settled, supervised

IMAGES, LABELS = numbers(1, 8, 2, 6, 6), classes(2, 3, 8)
POINTS, KINDS = numbers(3, 8, 4), classes(4, 3, 8)
ALL = ("one batch", "ragged batches", "data loader")


def classifier(model, **rest):
    return Case(model, functional.cross_entropy, (POINTS, KINDS), supervised, **rest)


def images(model, **rest):
    return Case(model, nn.CrossEntropyLoss(), (IMAGES, LABELS), supervised, **rest)


def small_convnet(norm):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), norm(4), nn.Tanh(), nn.Conv2d(4, 3, 3), norm(3), nn.Flatten(), nn.Linear(12, 3)
    )


@entry(
    RIGHT,
    hard="running statistics are constants that no derivative may touch",
    source="pytorch/functorch: Having BatchNorm2D raises in-place operation error",
)
def convnet_with_batch_norm_in_eval_mode():
    return images(settled(seeded(lambda: small_convnet(nn.BatchNorm2d))), forms=ALL)


@entry(
    REFUSED,
    fault="coupled samples",
    hard="each sample's output depends on its batch, and each call moves the running statistics",
    source="pytorch/pytorch: [functorch] transforms like jacrev, jacfwd, grad, etc don't work with BatchNorm",
)
def batch_norm_in_training_mode():
    return classifier(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(x + self.norm(self.conv(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


@entry(
    RIGHT,
    hard="kinks of ReLU and max-pool; in-place and fused batch-norm",
    source="amirgholami/PyHessian: Unexpected shape issue in Hessian-Vector computation",
)
def residual_network_with_relu_and_max_pool():
    return images(settled(seeded(Residual)), forms=ALL, step=1e-7, spread=0.02)


@entry(RIGHT, hard="statistics of each sample, in any mode", source="practice")
def group_norm_and_instance_norm():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.InstanceNorm2d(4, affine=True), nn.Flatten(),
            nn.Linear(64, 3),
        )
    )  # fmt: skip
    return images(model)


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.skip = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        y = functional.gelu(self.down(x))
        wide = functional.interpolate(y[:, :3], scale_factor=2, mode="bilinear", align_corners=False)
        return {"out": self.up(y) + self.skip(x) + wide}


class OnPixels(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs["out"], targets)


@entry(
    RIGHT,
    hard="classes along dimension 1, a mean over the pixels that are not void: batches weigh unequally",
    source="aleximmer/Laplace: Conform to PyTorch convention in the loss",
)
def segmentation_with_void_pixels():
    masks = classes(5, 3, 8, 6, 6)
    masks[:3, 2:] = 255
    loss_function = nn.CrossEntropyLoss(ignore_index=255)
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 1)))
    return Case(model, loss_function, (IMAGES, masks), supervised, forms=ALL)


@entry(
    RIGHT,
    hard="the loss is built-in only by inheritance and the output is a mapping: the divisor must be told",
    source="practice (the output of torchvision's segmentation models)",
)
def segmentation_with_a_mapping_for_output():
    masks = classes(5, 3, 8, 6, 6)
    masks[:3, 2:] = 255
    options = {"normalizer": lambda targets: (targets != 255).sum()}
    return Case(seeded(Segmenter), OnPixels(ignore_index=255), (IMAGES, masks), supervised, options)


# --- weights that are computed from parameters --------------------------------------------------------------------


@entry(
    RIGHT,
    hard="the weight is computed from a parameter of another name, with power iteration held in eval mode",
    source="pytorch/pytorch: Fix more spectral norm bugs",
)
def spectral_norm_as_a_parametrization():
    norm = nn.utils.parametrizations.spectral_norm
    return classifier(seeded(lambda: nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), norm(nn.Linear(5, 3)))).eval())


@entry(
    RIGHT,
    hard="a hook computes the weight anew in each call and sets it as an attribute",
    source="pytorch/pytorch: Spectral norm improvements",
)
def spectral_norm_as_a_hook():
    norm = nn.utils.spectral_norm
    model = seeded(lambda: nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)))
    model(POINTS)
    return classifier(model.eval())


@entry(
    REFUSED,
    fault="stateful",
    hard="each call in training mode iterates the singular vectors: the loss depends on how often it was asked",
    source="pytorch/pytorch: Spectral norm improvements",
)
def spectral_norm_in_training_mode():
    norm = nn.utils.parametrizations.spectral_norm
    return classifier(seeded(lambda: nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))), fault=1e-6)


# decided as right; then the oracle found what torch does here, which is what EITHER stands for
@entry(
    EITHER,
    fault="second derivative",
    hard="torch's second derivative of the norm is silently wrong, by half of it; its own gradgradcheck fails",
    source="practice",
)
def weight_norm_as_a_parametrization():
    norm = nn.utils.parametrizations.weight_norm
    return classifier(seeded(lambda: nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), norm(nn.Linear(5, 3)))))


@entry(
    EITHER,
    fault="second derivative",
    hard="the same; and after a call the computed weight is no leaf, so that deepcopy fails",
    source="pytorch/pytorch: weight_norm cannot be deepcopy",
)
def weight_norm_as_a_hook():
    def build():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))

    model = seeded(build)
    model(POINTS)
    return classifier(model)


@entry(RIGHT, hard="a weight on the orthogonal group, through a matrix exponential", source="practice")
def orthogonal_parametrization():
    orthogonal = nn.utils.parametrizations.orthogonal
    build = lambda: nn.Sequential(orthogonal(nn.Linear(4, 4), orthogonal_map="matrix_exp"), nn.Tanh(), nn.Linear(4, 3))  # noqa: E731
    return classifier(seeded(build))
