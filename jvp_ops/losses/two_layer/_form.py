"""The seam of the two-layer network: what an implementation of its sums over the samples gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Panel = Callable[[int, int], Tensor]  # inputs `first` to `last` to ((last − first)·h, (d − first)·h) of the W1·W1 block


@dataclass(frozen=True)
class Weights:
    """θ taken apart: W1 (d, h), b1 (h,), W2 (h, c), b2 (c,)."""

    W1: Tensor
    b1: Tensor
    W2: Tensor
    b2: Tensor


class Linearized(Protocol):
    """What one forward pass leaves, and what follows from it; all are sums over the samples."""

    def value(self) -> Tensor:
        """Sum the cross-entropy."""

    def gradient(self) -> Tensor:
        """Sum the gradient, shape (n,)."""

    def product(self, V: Tensor, *, gauss_newton: bool) -> Tensor:
        """Sum the products with V, shape (n, m), without waiting for the device."""

    def panels(self, *, gauss_newton: bool) -> Panel:
        """Prepare row panels of the W1·W1 block."""


class Form(Protocol):
    """The samples on a device, in the arrangement that an implementation works on."""

    def value(self, weights: Weights) -> Tensor:
        """Sum the cross-entropy."""

    def gradient(self, weights: Weights) -> Tensor:
        """Sum the gradient, shape (n,)."""

    def linearize(self, weights: Weights, *, gradient: bool) -> Linearized:
        """Go forward once, and keep all that no direction changes; `gradient` says that it will be asked for too."""

    def bytes_needed(self, hidden: int, classes: int) -> int:
        """Count what a linearization keeps, and what one of its products works on."""

    def panel_bytes(self, hidden: int) -> int:
        """Count what panels keep and work on, beside the panel."""
