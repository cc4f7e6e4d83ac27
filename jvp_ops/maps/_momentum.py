"""Gradient descent with momentum: Polyak's heavy ball and Nesterov's form of it."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jvp_ops._checks import finite_number
from jvp_ops.linear import Coupling
from jvp_ops.losses import Loss
from jvp_ops.maps._clip import clip_to
from jvp_ops.maps._optimizer import OptimizerMap, joined
from jvp_ops.maps._schedule import LearningRate, rate_at
from jvp_ops.maps._spectrum import curvatures

TwoByTwo = tuple[tuple[tuple[float, float], tuple[float, float]], tuple[float, float]]


class HeavyBall(OptimizerMap):
    r"""Gradient descent with Polyak's momentum, on the state (θ, v), as ``torch.optim.SGD(momentum=β)``.

    .. math::  v' = β v + (1 - τ)(∇L(θ) + ω θ), \quad θ' = θ - α v',

    with learning rate α, momentum β, dampening τ and weight decay ω. With γ = 1 − τ and H the Hessian plus ωI,

    .. math::  Df = \begin{pmatrix} I - αγH & -αβ I \\ γH & β I \end{pmatrix}, \quad
               μ^2 - (1 + β - αγh) μ + β = 0

    for its two eigenvalues μ over each eigenvalue h of H. Df is not symmetric but conformally symplectic,
    Dfᵀ Ω Df = β Ω, so that det Df = βᵖ; the two eigenvalues coincide, and Df is defective, at αγh = (1 ± √β)².

    Parameters
    ----------
    loss : Loss
        L.
    lr : float or callable
        α, at least 0; or a schedule ``lr(step)``, the steps counted from 0.
    momentum : float
        β; any finite number, so that maps known in closed form are at hand, though optimizers take 0 ≤ β < 1.
    dampening : float
        τ; without effect where β = 0, as in torch.
    weight_decay : float
        ω, at least 0, coupled: the gradient of ½ ω ‖θ‖².
    clip : float, optional
        The norm that ∇L is clipped to as by ``torch.nn.utils.clip_grad_norm_``; the weight decay is not clipped.

    Raises
    ------
    InputError
        A number that is negative or not finite where it may not be.

    Notes
    -----
    torch does not dampen the first gradient. Here every step is the same map; `initial` makes up for it by starting
    from v = τ (∇L(θ) + ωθ)/β, so that its first v' is the undamped gradient. Without dampening it starts from v = 0.

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods" (1964). I. Sutskever et al., "On
    the importance of initialization and momentum in deep learning" (2013).

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> quadratic = jo.FunctionLoss(lambda x: 3 * (x**2).sum() / 2, shapes={"x": (1,)})
    >>> f = jo.HeavyBall(quadratic, lr=0.5, momentum=0.5)
    >>> state = f.initial(torch.tensor([1.0]))
    >>> f(state)
    tensor([-0.5000,  3.0000])
    >>> Df = f.jacobian(state)
    >>> Df.rows, Df.block("theta", "v").dense()
    (<Parameters 2: theta.x 1, v.x 1>, tensor([[-0.2500]]))
    >>> f.phase_space_eigenvalues([3.0]), f.threshold()
    (array([[0.+0.70710678j, 0.-0.70710678j]]), 6.0)
    """

    slots: ClassVar[tuple[str, ...]] = ("v",)
    momentum: float
    dampening: float
    weight_decay: float

    def __init__(
        self,
        loss: Loss,
        lr: LearningRate,
        momentum: float,
        *,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        super().__init__(
            loss,
            lr,
            clip=clip,
            momentum=finite_number(momentum, "momentum"),
            dampening=finite_number(dampening, "dampening"),
            weight_decay=finite_number(weight_decay, "weight_decay", least=0),
        )

    @property
    def _gain(self) -> float:
        return 1 - self.dampening if self.momentum else 1.0

    def initial(self, theta: Tensor) -> Tensor:
        """Make the state that torch's optimizer starts from at θ: (θ, 0), or as in the notes with dampening."""
        if self._gain == 1:
            return super().initial(theta)
        theta = self._checked_theta(theta)
        g = clip_to(self.loss.gradient(theta), self.clip) + self.weight_decay * theta
        return joined([theta, self.dampening / self.momentum * g])

    def phase_space_eigenvalues(self, h: ArrayLike | Tensor, step: int = 0) -> NDArray[np.complex128]:
        """Turn eigenvalues h of the loss's Hessian into the two of Df over each, where the gradient is not clipped.

        Returns
        -------
        numpy.ndarray, complex, shape (..., 2)
            The larger modulus first; of a complex pair, the one above the real axis.
        """
        return Coupling(*self._numbers(rate_at(self.lr, step))).eigenvalues(curvatures(h))

    def threshold(self, step: int = 0) -> float:
        """Give the sharpness h at which an eigenvalue of Df passes −1: 2(1 + β)/((1 − τ)α) − ω.

        It bounds the stable sharpness where |β| < 1; infinite where (1 − τ)α ≤ 0.
        """
        rate = rate_at(self.lr, step) * self._gain
        return 2 * (1 + self.momentum) / rate - self.weight_decay if rate > 0 else math.inf

    def _numbers(self, lr: float) -> TwoByTwo:
        gain, decay = self._gain, self._gain * self.weight_decay
        return ((1 - lr * decay, -lr * self.momentum), (decay, self.momentum)), (-lr * gain, gain)

    def _update(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> list[Tensor]:
        theta, v = parts
        v = self.momentum * v + self._gain * (g + self.weight_decay * theta)
        return [theta - lr * v, v]


class Nesterov(OptimizerMap):
    r"""Gradient descent with Nesterov's momentum, on the state (θ, v), as ``torch.optim.SGD(nesterov=True)``.

    .. math::  g = ∇L(θ) + ω θ, \quad v' = β v + g, \quad θ' = θ - α (g + β v').

    With H the Hessian plus ωI,

    .. math::  Df = \begin{pmatrix} I - α(1 + β)H & -αβ^2 I \\ H & β I \end{pmatrix}, \quad
               μ^2 - (1 + β)(1 - αh) μ + β (1 - αh) = 0

    for its two eigenvalues μ over each eigenvalue h of H; det Df = ∏ β (1 − αh).

    Parameters
    ----------
    loss : Loss
        L.
    lr : float or callable
        α, at least 0; or a schedule ``lr(step)``, the steps counted from 0.
    momentum : float
        β, at least 0.
    weight_decay : float
        ω, at least 0, coupled: the gradient of ½ ω ‖θ‖².
    clip : float, optional
        The norm that ∇L is clipped to as by ``torch.nn.utils.clip_grad_norm_``; the weight decay is not clipped.

    Raises
    ------
    InputError
        A number that is negative or not finite.

    References
    ----------
    Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k²)" (1983), in the
    form of I. Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013).

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> quadratic = jo.FunctionLoss(lambda x: (x**2).sum() / 2, size=1)
    >>> f = jo.Nesterov(quadratic, lr=0.5, momentum=0.5)
    >>> f.jacobian(f.initial(torch.tensor([1.0]))).dense()
    tensor([[ 0.2500, -0.1250],
            [ 1.0000,  0.5000]])
    >>> f.threshold()
    3.0
    """

    slots: ClassVar[tuple[str, ...]] = ("v",)
    momentum: float
    weight_decay: float

    def __init__(
        self,
        loss: Loss,
        lr: LearningRate,
        momentum: float,
        *,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        super().__init__(
            loss,
            lr,
            clip=clip,
            momentum=finite_number(momentum, "momentum", least=0),
            weight_decay=finite_number(weight_decay, "weight_decay", least=0),
        )

    def phase_space_eigenvalues(self, h: ArrayLike | Tensor, step: int = 0) -> NDArray[np.complex128]:
        """Turn eigenvalues h of the loss's Hessian into the two of Df over each; as in `HeavyBall`."""
        return Coupling(*self._numbers(rate_at(self.lr, step))).eigenvalues(curvatures(h))

    def threshold(self, step: int = 0) -> float:
        """Give the sharpness h at which an eigenvalue of Df passes −1: (2 + 2β)/((1 + 2β)α) − ω; infinite at α = 0."""
        rate = rate_at(self.lr, step) * (1 + 2 * self.momentum)
        return (2 + 2 * self.momentum) / rate - self.weight_decay if rate else math.inf

    def _numbers(self, lr: float) -> TwoByTwo:
        both = lr * (1 + self.momentum)
        matrix = ((1 - both * self.weight_decay, -lr * self.momentum**2), (self.weight_decay, self.momentum))
        return matrix, (-both, 1.0)

    def _update(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> list[Tensor]:
        theta, v = parts
        g = g + self.weight_decay * theta
        v = self.momentum * v + g
        return [theta - lr * (g + self.momentum * v), v]
