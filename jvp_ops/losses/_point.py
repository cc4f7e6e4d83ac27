"""A loss at one θ: what one forward pass gives."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jvp_ops._checks import speaks_for
from jvp_ops.operators import GaussNewtonOperator, HessianOperator
from jvp_ops.store import sha256_of


@dataclass(frozen=True)
class Derivatives:
    """What a loss gives from one pass at θ, each on demand."""

    value: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    hessian: Callable[[], HessianOperator]
    gauss_newton: Callable[[], GaussNewtonOperator]


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    """A loss at one θ, immutable: value, gradient, Hessian and Gauss-Newton matrix there; ``loss.at(theta)`` makes it.

    The forward pass is made when something is first asked for, and once.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> loss = jo.FunctionLoss(lambda x: (x**4).sum(), size=2)
    >>> here = loss.at(torch.tensor([1.0, 2.0]))
    >>> here.value.item(), here.gradient.tolist(), here.hessian().dense().diagonal().tolist()
    (17.0, [4.0, 32.0], [12.0, 48.0])
    """

    loss: Any
    frozen: Tensor
    differentiate: Callable[[Tensor], Derivatives]

    def __repr__(self) -> str:
        return f"<Point of {self.loss!r}>"

    @property
    def theta(self) -> Tensor:
        """θ, shape (n,)."""
        return self.frozen.clone()

    @property
    def value(self) -> Tensor:
        """L(θ), a tensor of no dimensions."""
        return self._value.clone()

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (n,)."""
        return self._gradient.clone()

    def hessian(self) -> HessianOperator:
        """Give the Hessian ∇²L(θ) as an operator."""
        with torch.inference_mode(False):
            return self._derivatives.hessian().made_by(self.loss.hessian, self.frozen)

    def gauss_newton(self) -> GaussNewtonOperator:
        """Give the generalized Gauss-Newton matrix at θ as an operator; of a `ModelLoss` from a pass of its own."""
        with torch.inference_mode(False):
            return self._derivatives.gauss_newton().made_by(self.loss.gauss_newton, self.frozen)

    def identity(self) -> dict[str, Any]:
        """Name L and θ, as a JSON-able dict, without any pass."""
        return {"at": self._sha256, **self.loss.identity()}

    @cached_property
    def _derivatives(self) -> Derivatives:
        return self.differentiate(self.frozen)

    @cached_property
    def _value(self) -> Tensor:
        with torch.inference_mode(False):
            return self._derivatives.value()

    @cached_property
    def _gradient(self) -> Tensor:
        with torch.inference_mode(False):
            return self._derivatives.gradient()

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self.frozen)


def point_at(loss: Any, theta: Tensor) -> Point:
    """Take a loss at θ: by its own ``at``, or, where a user's loss has none or overrides the rest, by its methods."""
    if speaks_for(loss, "at", ("value", "gradient", "hessian", "gauss_newton")):
        return loss.at(theta)  # type: ignore[no-any-return]
    return Point(
        loss,
        theta.detach().clone(),
        lambda at: Derivatives(
            lambda: loss.value(at), lambda: loss.gradient(at), lambda: loss.hessian(at), lambda: loss.gauss_newton(at)
        ),
    )
