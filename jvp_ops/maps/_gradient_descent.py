"""Plain gradient descent."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jvp_ops._checks import finite_number
from jvp_ops.errors import InputError
from jvp_ops.losses import Loss
from jvp_ops.maps._run import run
from jvp_ops.operators import Affine, JacobianOperator, Linearization, Panels
from jvp_ops.parameters import Parameters


class GradientDescent:
    r"""Full-batch gradient descent, f(θ) = θ − α (∇L(θ) + ω θ) with learning rate α and weight decay ω.

    .. math::  Df(θ) = (1 - αω) I - α H(θ),

    symmetric, with eigenvalues 1 − αω − αh over the eigenvalues h of the Hessian H.

    Parameters
    ----------
    loss : Loss
        L.
    lr : float
        α, at least 0.
    weight_decay : float
        ω, at least 0; as in ``torch.optim.SGD``, the gradient of ½ ω ‖θ‖².

    Raises
    ------
    InputError
        `lr` or `weight_decay` is negative or not finite.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> quadratic = jo.FunctionLoss(lambda x: (torch.tensor([1.0, 3.0]) * x**2).sum() / 2, size=2)
    >>> f = jo.GradientDescent(quadratic, lr=0.5)
    >>> f(torch.tensor([1.0, 1.0]))
    tensor([ 0.5000, -0.5000])
    >>> f.jacobian(torch.tensor([1.0, 1.0])).dense()
    tensor([[ 0.5000,  0.0000],
            [ 0.0000, -0.5000]])
    """

    def __init__(self, loss: Loss, lr: float, *, weight_decay: float = 0.0) -> None:
        if not callable(getattr(loss, "gradient", None)):
            raise InputError(f"loss must be a loss such as TwoLayerLoss or ModelLoss, not {type(loss).__name__}")
        self.loss = loss
        self.lr = finite_number(lr, "lr", least=0)
        self.weight_decay = finite_number(weight_decay, "weight_decay", least=0)

    def __repr__(self) -> str:
        decay = f", weight_decay={self.weight_decay:g}" if self.weight_decay else ""
        return f"GradientDescent({self.loss!r}, lr={self.lr:g}{decay})"

    @property
    def parameters(self) -> Parameters:
        """The layout of the state, which is θ."""
        return self.loss.parameters

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""
        return self.loss.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.loss.device

    def __call__(self, theta: Tensor, step: int = 0) -> Tensor:
        """Take one step: f(θ), shape (n,); every `step` is the same."""
        gradient = self.loss.gradient(theta)  # which checks theta
        return (1 - self.lr * self.weight_decay) * theta - self.lr * gradient

    def run(
        self,
        theta: Tensor,
        *,
        steps: int,
        first: int = 0,
        progress: bool = False,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Take `steps` steps from θ and return the last state.

        Parameters
        ----------
        theta : Tensor, shape (n,)
            The start; not changed.
        steps : int
            How many.
        first : int
            The number of the first of them.
        progress : bool
            Show a progress bar.
        callback : callable, optional
            ``callback(number, state)`` after each step.

        Raises
        ------
        NonFiniteError
            The state became NaN or Inf; the message says at which step.
        """
        return run(self, theta, steps=steps, first=first, progress=progress, callback=callback)

    def jacobian(self, theta: Tensor, step: int = 0) -> JacobianOperator:
        """Linearize at θ and return Df(θ) as an operator, its products formed in the loss's dtype."""
        hessian = self.loss.hessian(theta)
        frozen = theta.detach().clone()
        curvature = hessian.linearization
        shift, scale = 1 - self.lr * self.weight_decay, -self.lr

        def apply(V: Tensor) -> Tensor:
            return torch.add(shift * V if self.weight_decay else V, curvature.apply(V), alpha=scale)

        def in_float64() -> JacobianOperator:
            wide = GradientDescent(self.loss.to(dtype=torch.float64), self.lr, weight_decay=self.weight_decay)
            return wide.jacobian(frozen.to(torch.float64))

        return JacobianOperator(
            Linearization.symmetric_of(
                apply,
                self.parameters,
                curvature.dtype,
                curvature.device,
                identity=lambda: {**self.identity(), "hessian": curvature.identity()},
                in_float64=None if curvature.in_float64 is None else in_float64,
                affine=Affine(shift, scale, hessian),
                panels=None if curvature.panels is None else _shifted(curvature.panels, shift, scale),
            )
        )

    def identity(self) -> dict[str, Any]:
        """Name the map and its hyper-parameters, as a JSON-able dict."""
        return {"map": "GradientDescent", "lr": self.lr, "weight_decay": self.weight_decay}


def _shifted(panels: Panels, shift: float, scale: float) -> Panels:
    """Turn panels of H into panels of shift·I + scale·H."""

    def prepare() -> Callable[[int, int], Tensor]:
        panel = panels.prepare()

        def shifted(start: int, stop: int) -> Tensor:
            rows = panel(start, stop).mul_(scale)
            rows.diagonal().add_(shift)
            return rows

        return shifted

    return replace(panels, prepare=prepare)
