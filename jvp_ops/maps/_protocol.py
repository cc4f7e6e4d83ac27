"""What every map offers, so that solvers and analyses need not know which one they have."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from jvp_ops.operators import JacobianOperator
from jvp_ops.parameters import Parameters

STEP = ("__call__", "jacobian")


class Map(Protocol):
    """A step f: state → state', which may depend on the number of the step (a schedule, a sequence of batches)."""

    @property
    def parameters(self) -> Parameters:
        """The layout of the state."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""

    @property
    def device(self) -> torch.device:
        """Where the state lives."""

    def __call__(self, state: Tensor, step: int = 0) -> Tensor:
        """Take step number `step`: f(state), shape (n,)."""

    def run(
        self,
        state: Tensor,
        *,
        steps: int,
        first: int = 0,
        progress: bool = False,
        callback: Callable[[int, Tensor], object] | None = None,
    ) -> Tensor:
        """Take `steps` steps, the first of them number `first`, and return the last state."""

    def jacobian(self, state: Tensor, step: int = 0) -> JacobianOperator:
        """Linearize step number `step` at a state and return Df."""

    def identity(self) -> dict[str, Any]:
        """Return all that f depends on, as a JSON-able dict."""


def linearized(f: Any, state: Tensor, step: int) -> tuple[Tensor, JacobianOperator]:
    """Take a step and linearize it, at once where the map can (``f.linearize``), else one after the other."""
    if hasattr(type(f), "linearize"):
        return f.linearize(state, step)  # type: ignore[no-any-return]
    return f(state, step), f.jacobian(state, step)


def jacobian_identity(f: Any, state: Tensor, step: int) -> dict[str, Any]:
    """Name the Jacobian of a step at a state: without linearizing where the map can."""
    if hasattr(type(f), "identity_at"):
        return f.identity_at(state, step)  # type: ignore[no-any-return]
    return f.jacobian(state, step).identity()  # type: ignore[no-any-return]
