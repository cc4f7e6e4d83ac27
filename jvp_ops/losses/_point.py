"""A loss at one θ: what one forward pass gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor

from jvp_ops._checks import speaks_for
from jvp_ops.operators import GaussNewtonOperator, HessianOperator
from jvp_ops.store import sha256_of

Given = TypeVar("Given")


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

    The forward pass is made when something is first asked for, and once. Of a subclass that overrides one of these
    methods beside ``at``, each is asked for by itself.

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
    named: Callable[[], dict[str, Any]] | None = None  # where loss and θ alone do not say it
    lock: Any = field(default_factory=RLock)  # two threads that ask one point make one pass

    def __repr__(self) -> str:
        return f"<Point of {self.loss!r}>"

    def __reduce__(self) -> Any:
        return point_at, (self.loss, self.frozen)

    def __copy__(self) -> "Point":
        return self  # which never changes

    def __deepcopy__(self, memo: Any) -> "Point":
        return self

    @property
    def theta(self) -> Tensor:
        """θ, shape (n,)."""
        return self.frozen.clone()

    @property
    def value(self) -> Tensor:
        """L(θ), a tensor of no dimensions."""
        return self._asked(lambda: self._value).clone()

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (n,)."""
        return self._asked(lambda: self._gradient).clone()

    def hessian(self) -> HessianOperator:
        """Give the Hessian ∇²L(θ) as an operator."""
        return self._asked(lambda: self._derivatives.hessian())

    def gauss_newton(self) -> GaussNewtonOperator:
        """Give the generalized Gauss-Newton matrix at θ as an operator; of a `ModelLoss` from a pass of its own."""
        return self._asked(lambda: self._derivatives.gauss_newton())

    def identity(self) -> dict[str, Any]:
        """Name L and θ as the Hessian does, as a JSON-able dict: without any pass, but of a loss by its methods."""
        return {"at": self._sha256, **self.loss.identity()} if self.named is None else self.named()

    def _asked(self, give: Callable[[], Given]) -> Given:
        with self.lock, torch.inference_mode(False):
            return give()

    @cached_property
    def _derivatives(self) -> Derivatives:
        return self.differentiate(self.frozen)

    @cached_property
    def _value(self) -> Tensor:
        return self._derivatives.value()

    @cached_property
    def _gradient(self) -> Tensor:
        return self._derivatives.gradient()

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self.frozen)


def point_at(loss: Any, theta: Tensor) -> Point:
    """Take a loss at θ: by its own ``at``, or, where a user's loss has none, by its other methods."""
    return loss.at(theta) if hasattr(type(loss), "at") else point_by_methods(loss, theta)


def own_point(loss: Any, theta: Tensor) -> Point:
    """Take a loss of this package at θ, by its class's own functions."""
    with torch.inference_mode(False):
        return Point(loss, loss._checked(theta).detach().clone(), loss._differentiate)


def point_of(loss: Any, theta: Tensor) -> Point:
    """Take a loss of this package at θ; by its methods, where a subclass overrides one of them beside ``at``."""
    speaks = speaks_for(loss, "at", ("value", "gradient", "hessian", "gauss_newton"))
    return own_point(loss, theta) if speaks else point_by_methods(loss, loss._checked(theta))


def point_by_methods(loss: Any, theta: Tensor) -> Point:
    """Take a loss at θ by its methods, one pass each."""
    frozen = theta.detach().clone()
    return Point(
        loss,
        frozen,
        lambda at: Derivatives(
            lambda: loss.value(at), lambda: loss.gradient(at), lambda: loss.hessian(at), lambda: loss.gauss_newton(at)
        ),
        named=lambda: loss.hessian(frozen).linear.identity(),
    )
