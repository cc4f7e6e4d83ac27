"""What every loss offers, so that maps and solvers need not know which one they have."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from jvp_ops.operators import GaussNewtonOperator, HessianOperator
from jvp_ops.parameters import Parameters


class Loss(Protocol):
    """A scalar function L of a flat vector θ."""

    @property
    def parameters(self) -> Parameters:
        """The layout of θ: names, shapes, slices."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of θ, and that L is computed in."""

    @property
    def device(self) -> torch.device:
        """Where θ lives and L is computed."""

    def value(self, theta: Tensor) -> Tensor:
        """Return L(θ), a tensor of no dimensions."""

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L(θ), shape (n,)."""

    def hessian(self, theta: Tensor) -> HessianOperator:
        """Return ∇²L(θ) as an operator."""

    def gauss_newton(self, theta: Tensor) -> GaussNewtonOperator:
        """Return the generalized Gauss-Newton matrix at θ as an operator."""

    def to(self, *, dtype: torch.dtype | str | None = None) -> "Loss":
        """Return the same loss computed in another dtype."""

    def identity(self) -> dict[str, Any]:
        """Return all that L depends on, as a JSON-able dict."""


class SampledLoss(Loss, Protocol):
    """A loss over samples that can be had on some of them."""

    @property
    def samples(self) -> int:
        """How many samples the loss runs over."""

    def subset(self, index: Sequence[int] | Tensor) -> Loss:
        """Return the same loss on some samples only."""
