"""Plain gradient descent."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from jvp_ops._checks import finite_number
from jvp_ops.losses import Loss
from jvp_ops.maps._optimizer import Numbers, OptimizerMap
from jvp_ops.maps._schedule import LearningRate, rate_at
from jvp_ops.maps._spectrum import curvatures


class GradientDescent(OptimizerMap):
    r"""Full-batch gradient descent, f(θ) = θ − α (∇L(θ) + ω θ) with learning rate α and weight decay ω.

    .. math::  Df(θ) = (1 - αω) I - α H(θ),

    symmetric, with eigenvalues 1 − αω − αh over the eigenvalues h of the Hessian H. Where the gradient is clipped to
    the norm c,

    .. math::  Df(θ) = (1 - αω) I - α \frac{c}{‖g‖} (I - ĝĝᵀ) H(θ), \quad g = ∇L(θ), \; ĝ = g/‖g‖,

    which is not symmetric; without weight decay ĝᵀ Df = ĝᵀ.

    Parameters
    ----------
    loss : Loss
        L.
    lr : float or callable
        α, at least 0; or a schedule ``lr(step)``, the steps counted from 0.
    weight_decay : float
        ω, at least 0; as in ``torch.optim.SGD``, the gradient of ½ ω ‖θ‖².
    clip : float, optional
        c, the norm that ∇L is clipped to as by ``torch.nn.utils.clip_grad_norm_`` (which divides by ‖g‖ + 1e-6, and
        so do f and its Jacobian here); the weight decay is not clipped.

    Raises
    ------
    InputError
        `lr` or `weight_decay` is negative or not finite, or `clip` is not above 0.

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
    >>> f.threshold()
    4.0
    """

    weight_decay: float

    def __init__(self, loss: Loss, lr: LearningRate, *, weight_decay: float = 0.0, clip: float | None = None) -> None:
        super().__init__(loss, lr, clip=clip, weight_decay=finite_number(weight_decay, "weight_decay", least=0))

    def phase_space_eigenvalues(self, h: ArrayLike | Tensor, step: int = 0) -> Any:
        """Turn eigenvalues h of H into those of Df, μ = 1 − αω − αh, where the gradient is not clipped.

        Returns
        -------
        numpy.ndarray of the shape of `h`
        """
        lr = rate_at(self.lr, step)
        return np.asarray(1 - lr * self.weight_decay - lr * curvatures(h))

    def threshold(self, step: int = 0) -> float:
        """Give the sharpness h at which an eigenvalue of Df passes −1: 2/α − ω; infinite where α = 0."""
        lr = rate_at(self.lr, step)
        return 2 / lr - self.weight_decay if lr else math.inf

    def _numbers(self, lr: float) -> Numbers:
        return [[1 - lr * self.weight_decay]], [-lr]

    def _update(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> list[Tensor]:
        return [(1 - lr * self.weight_decay) * parts[0] - lr * g]
