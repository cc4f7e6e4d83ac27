"""Central differences at several steps: which are tried, and how far from them a derivative may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Blocks = Sequence[Tensor]


@dataclass(frozen=True)
class Ladder:
    """Steps that are tried in turn, and how far from a difference a derivative may be.

    Small steps avoid kinks (ReLU, max-pooling): the error that one makes goes when the step no longer reaches it, that
    of a wrong derivative stays. Large ones are for functions whose own rounding is coarse.
    """

    steps: tuple[float, ...]
    coarse: tuple[float, ...]
    tolerance: float


LADDERS = {
    torch.float64: Ladder((1e-5, 1e-6, 1e-7, 1e-8, 1e-4, 1e-3), (1e-2, 3e-2), 1e-4),
    torch.float32: Ladder((1e-2, 1e-3, 3e-2), (1e-2, 3e-2), 2e-2),
}


@dataclass(frozen=True)
class Disagreement:
    """A block whose derivative is not that of the function: its number, the derivative's size and how far it is off."""

    block: int
    size: float
    off: float
    exactly: bool = False  # at the point, and not beside it


def compared_with(plus: Tensor, minus: Tensor, claimed: Tensor, step: float) -> tuple[Tensor, float, float]:
    """Return a central difference, the derivative's size, and how far what is claimed is off."""
    difference, given = (plus.double() - minus.double()) / (2 * step), claimed.double()
    return difference, max(norm_of([given]), norm_of([difference])), norm_of([difference - given])


def rounding_of(values: Blocks, claimed: Blocks, size: float, step: float) -> float:
    """Bound what rounding makes of a difference."""
    return 100 * torch.finfo(values[0].dtype).eps * max(norm_of(values), norm_of(claimed), size) / step


def norm_of(blocks: Blocks) -> float:
    return math.sqrt(sum(float(block.detach().double().square().sum()) for block in blocks))
