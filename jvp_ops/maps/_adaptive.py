"""Optimizers that divide by a running average of squared gradients: RMSProp, Adam and AdamW."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from jvp_ops._checks import finite_number
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.losses import Loss, Point
from jvp_ops.maps._clip import clip_to
from jvp_ops.maps._optimizer import OptimizerMap
from jvp_ops.maps._preconditioned import preconditioned
from jvp_ops.maps._schedule import LearningRate, checked_step, rate_at
from jvp_ops.operators import HessianOperator


class RMSProp(OptimizerMap):
    r"""RMSProp on the state (θ, v), as ``torch.optim.RMSprop``.

    .. math::  g = ∇L(θ) + ω θ, \quad v' = β_2 v + (1 - β_2) g^2, \quad θ' = θ - α \frac{g}{\sqrt{v'} + ε},

    entrywise. With P = 1/(√v' + ε), the preconditioner, and H the Hessian plus ωI,
    det Df = β₂ᵖ ∏ (1 − α eig(P^½ H P^½)).

    Parameters
    ----------
    loss : Loss
        L.
    lr : float or callable
        α, at least 0; or a schedule ``lr(step)``, the steps counted from 0.
    alpha : float
        β₂ by torch's name for it, at least 0 and less than 1.
    eps : float
        ε, above 0.
    weight_decay : float
        ω, at least 0, coupled: the gradient of ½ ω ‖θ‖².
    clip : float, optional
        The norm that ∇L is clipped to as by ``torch.nn.utils.clip_grad_norm_``; the weight decay is not clipped.

    Raises
    ------
    InputError
        A number out of its range; a state whose v has negative entries.

    Notes
    -----
    Where v' = 0 (v = 0 and g = 0: an input that is zero in all samples) the root is not differentiable but f is, for
    ε > 0: there ∂θ'/∂g = −α/ε and ∂θ'/∂v = 0, and these are used. torch allows ε = 0, where f is 0/0 there.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera (2012).

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> quadratic = jo.FunctionLoss(lambda x: (x**2).sum() / 2, size=1)
    >>> f = jo.RMSProp(quadratic, lr=0.5, alpha=0.75)
    >>> state = f.initial(torch.tensor([2.0]))
    >>> f(state), f.preconditioner(state)
    (tensor([1., 1.]), tensor([1.]))
    >>> f.jacobian(state).dense()
    tensor([[1.0000, 0.3750],
            [1.0000, 0.7500]])
    """

    slots: ClassVar[tuple[str, ...]] = ("v",)
    nonnegative: ClassVar[tuple[str, ...]] = ("v",)
    alpha: float
    eps: float
    weight_decay: float

    def __init__(
        self,
        loss: Loss,
        lr: LearningRate,
        alpha: float = 0.99,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        super().__init__(
            loss,
            lr,
            clip=clip,
            alpha=_decay_rate(alpha, "alpha"),
            eps=_above_zero(eps, "eps"),
            weight_decay=finite_number(weight_decay, "weight_decay", least=0),
        )

    def preconditioner(self, state: Tensor, step: int = 0, *, at: Point | None = None) -> Tensor:
        """Compute P = 1/(√v' + ε) of the step from a state, shape (p,), positive."""
        with torch.no_grad():
            theta, v = self._parts(self._checked(state))
            g = clip_to(self._gradient(theta, at), self.clip) + self.weight_decay * theta
            return 1 / (_root(self.alpha * v + (1 - self.alpha) * g**2) + self.eps)

    def curvature(self, state: Tensor, step: int = 0, *, at: Point | None = None) -> HessianOperator:
        """Make P^½ (H + ωI) P^½ of step number `step` as an operator."""
        at = self.point(state, at)
        P = self.preconditioner(state, step, at=at)
        return preconditioned(at.hessian(), P, self.weight_decay).made_by(RMSProp.curvature, self, state.clone(), step)

    def threshold(self, step: int = 0) -> float:
        """Give the largest eigenvalue of P^½ (H + ωI) P^½ up to which the step is stable: 2/α; infinite at α = 0."""
        lr = rate_at(self.lr, step)
        return 2 / lr if lr else math.inf

    def _update(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> list[Tensor]:
        theta, v = parts
        g = g + self.weight_decay * theta
        v = self.alpha * v + (1 - self.alpha) * g**2
        return [theta - lr * (g / (_root(v) + self.eps)), v]


class Adam(OptimizerMap):
    r"""Adam on the state (θ, m, v), as ``torch.optim.Adam``.

    .. math::  g = ∇L(θ) + ω θ, \quad m' = β_1 m + (1 - β_1) g, \quad v' = β_2 v + (1 - β_2) g^2, \quad
               θ' = θ - \frac{α}{1 - β_1^t} \frac{m'}{\sqrt{v'/(1 - β_2^t)} + ε},

    entrywise; t = step + 1 is no part of the state, so f differs from step to step. det Df = (β₁β₂)ᵖ for every loss.

    Parameters
    ----------
    loss : Loss
        L.
    lr : float or callable
        α, at least 0; or a schedule ``lr(step)``, the steps counted from 0.
    betas : pair of float
        β₁ and β₂, at least 0 and less than 1.
    eps : float
        ε, above 0.
    weight_decay : float
        ω, at least 0, coupled: the gradient of ½ ω ‖θ‖². `AdamW` decouples it.
    clip : float, optional
        The norm that ∇L is clipped to as by ``torch.nn.utils.clip_grad_norm_``; the weight decay is not clipped.

    Raises
    ------
    InputError
        A number out of its range; a state whose v has negative entries.

    Notes
    -----
    Where v' = 0 the root is not differentiable. If m' = 0 too (an input that is zero in all samples), f is for ε > 0,
    with ∂θ'/∂v = 0, which is used; if m' ≠ 0, ∂θ'/∂v is infinite and ``jacobian`` refuses. torch allows ε = 0, where f
    is 0/0.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015). Threshold: J. M. Cohen et al.,
    "Adaptive gradient methods at the edge of stability" (2022).

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> quadratic = jo.FunctionLoss(lambda x: (torch.tensor([1.0, 3.0]) * x**2).sum() / 2, size=2, dtype="float64")
    >>> f = jo.Adam(quadratic, lr=0.5, betas=(0.5, 0.75))
    >>> state = f.initial(torch.ones(2, dtype=torch.float64))
    >>> state = f.run(state, steps=5)
    >>> f.theta(state).norm() < 0.9
    tensor(True)
    >>> f.jacobian(state, step=5).dense().det()  # (0.5 · 0.75)²
    tensor(0.1406, dtype=torch.float64)
    """

    slots: ClassVar[tuple[str, ...]] = ("m", "v")
    nonnegative: ClassVar[tuple[str, ...]] = ("v",)
    timed: ClassVar[bool] = True
    _decoupled: ClassVar[bool] = False
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    def __init__(
        self,
        loss: Loss,
        lr: LearningRate,
        betas: Sequence[float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise InputError(f"betas must be a pair of numbers such as (0.9, 0.999), not {betas!r}")
        super().__init__(
            loss,
            lr,
            clip=clip,
            betas=(_decay_rate(betas[0], "betas[0]"), _decay_rate(betas[1], "betas[1]")),
            eps=_above_zero(eps, "eps"),
            weight_decay=finite_number(weight_decay, "weight_decay", least=0),
        )

    def preconditioner(self, state: Tensor, step: int = 0, *, at: Point | None = None) -> Tensor:
        """Compute P of step number `step` from a state, θ' = θ − α P m', shape (p,), positive.

        P = 1/((1 − β₁ᵗ)(√(v'/(1 − β₂ᵗ)) + ε)) with t = step + 1 and v' that of after the step.
        """
        with torch.no_grad():
            theta, _, v = self._parts(self._checked(state))
            g = self._with_decay(theta, clip_to(self._gradient(theta, at), self.clip))
            return 1 / self._divisor(self.betas[1] * v + (1 - self.betas[1]) * g**2, checked_step(step))

    def curvature(self, state: Tensor, step: int = 0, *, at: Point | None = None) -> HessianOperator:
        """Make P^½ (H + ωI) P^½ of step number `step` as an operator; without ω where it is decoupled."""
        decay = 0.0 if self._decoupled else self.weight_decay
        at = self.point(state, at)
        P = self.preconditioner(state, step, at=at)
        return preconditioned(at.hessian(), P, decay).made_by(Adam.curvature, self, state.clone(), step)

    def threshold(self, step: int = 0) -> float:
        """Give the largest eigenvalue of P^½ (H + ωI) P^½ up to which the step is stable, v standing still.

        2(1 + β₁)/((1 − β₁)α), infinite at α = 0. For `AdamW`, whose ω is not in the gradient, that of P^½ H P^½:
        (2 − αω)(1 + β₁)/((1 − β₁)α).
        """
        lr, beta = rate_at(self.lr, step), self.betas[0]
        kept = lr * self.weight_decay if self._decoupled else 0.0
        return (2 - kept) * (1 + beta) / ((1 - beta) * lr) if lr else math.inf

    def _refuse_kinks(self, parts: Sequence[Tensor], g: Tensor, step: int) -> None:
        _, m, v = self._update(parts, g, 0.0, step)
        beta2 = self.betas[1]
        # as much of the square as v is made of, so that what underflows in v does here too
        kinks = int(((v == 0) & ((1 - beta2) * m**2 > 0)).sum()) if beta2 else 0
        if kinks:
            raise NonFiniteError(
                f"f has an infinite derivative at this state: in {kinks} of {m.numel()} entries v stays 0 while m is "
                "not 0, which a run from initial(theta) meets only where v underflows"
            )

    def _with_decay(self, theta: Tensor, g: Tensor) -> Tensor:
        return g if self._decoupled else g + self.weight_decay * theta

    def _divisor(self, v: Tensor, step: int) -> Tensor:
        first, second = (1 - beta ** (step + 1) for beta in self.betas)
        return (_root(v) / math.sqrt(second) + self.eps) * first

    def _update(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> list[Tensor]:
        theta, m, v = parts
        g = self._with_decay(theta, g)
        m = self.betas[0] * m + (1 - self.betas[0]) * g
        v = self.betas[1] * v + (1 - self.betas[1]) * g**2
        kept = 1 - lr * self.weight_decay if self._decoupled else 1.0
        return [kept * theta - lr * (m / self._divisor(v, step)), m, v]


class AdamW(Adam):
    r"""Adam with decoupled weight decay on the state (θ, m, v), as ``torch.optim.AdamW``.

    .. math::  θ' = (1 - αω) θ - \frac{α}{1 - β_1^t} \frac{m'}{\sqrt{v'/(1 - β_2^t)} + ε},

    with m', v' of g = ∇L(θ) and all else as in `Adam`. det Df = (β₁β₂(1 − αω))ᵖ for every loss.

    Parameters
    ----------
    loss, lr, betas, eps, clip
        As in `Adam`.
    weight_decay : float
        ω, at least 0; by default torch's 0.01.

    Raises
    ------
    InputError
        A number out of its range; a state whose v has negative entries.

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization" (2019).

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> quadratic = jo.FunctionLoss(lambda x: (x**2).sum() / 2, size=1)
    >>> f = jo.AdamW(quadratic, lr=0.5, weight_decay=0.5)
    >>> f(f.initial(torch.tensor([2.0])))[:1]  # 0.75 · 2 − 0.5
    tensor([1.])
    """

    _decoupled: ClassVar[bool] = True

    def __init__(
        self,
        loss: Loss,
        lr: LearningRate,
        betas: Sequence[float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = None,
    ) -> None:
        super().__init__(loss, lr, betas, eps=eps, weight_decay=weight_decay, clip=clip)


def _root(v: Tensor) -> Tensor:
    """Take the root of numbers of at least 0; its derivative at 0 is given as 0, where f's own is finite."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1).sqrt(), 0)


def _decay_rate(value: object, name: str) -> float:
    rate = finite_number(value, name, least=0)
    if rate >= 1:
        raise InputError(f"{name} must be less than 1, not {value!r}")
    return rate


def _above_zero(value: object, name: str) -> float:
    number = finite_number(value, name)
    if number <= 0:
        raise InputError(f"{name} must be above 0, not {value!r}: without it f is 0/0 where the gradient is 0")
    return number
