"""One mechanism for all optimizers: an elementwise update of (θ, slots) by the gradient, around one Hessian."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from jvp_ops._autodiff import recording
from jvp_ops._checks import check_state, check_tensor, speaks_for
from jvp_ops.errors import InputError
from jvp_ops.linear import Coefficient, Coefficients, coupled, product
from jvp_ops.losses import Loss, Point, point_at
from jvp_ops.maps._clip import checked_clip, clip_to, clipping_at
from jvp_ops.maps._protocol import STEP
from jvp_ops.maps._run import run
from jvp_ops.maps._schedule import LearningRate, checked_lr, lr_identity, lr_text, rate_at
from jvp_ops.operators import HessianOperator, JacobianOperator
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of

Numbers = tuple[Sequence[Coefficients], Coefficients]  # A, in rows, and b


class OptimizerMap:
    r"""A step of an optimizer, f(θ, slots) = update(θ, slots, g) with g the gradient of L at θ, perhaps clipped.

    A subclass names its slots and gives `_update`, which is elementwise in all its tensors: its Jacobian is then a
    few diagonals, found once by autograd, around one product with the Hessian H:

    .. math::  Df = A + B\,C\,H\,E, \quad A_{ab} = \operatorname{diag} ∂a'/∂b, \quad
               B_a = \operatorname{diag} ∂a'/∂g,

    where E takes θ out of the state and C is the derivative of the clipping.

    Parameters
    ----------
    loss : Loss
        L.
    lr : float or callable
        α, or ``lr(step)``.
    clip : float, optional
        The largest norm of the gradient.
    hyper : float
        All else that the update depends on, kept as attributes.

    Attributes
    ----------
    parameters : Parameters
        The layout of the state: that of θ where there are no slots, else named ``theta.W1``, ``v.W1``, …
    """

    slots: ClassVar[tuple[str, ...]] = ()
    nonnegative: ClassVar[tuple[str, ...]] = ()  # slots that a square root is taken of
    timed: ClassVar[bool] = False  # whether the update depends on the number of the step beside lr

    def __init__(self, loss: Loss, lr: LearningRate, *, clip: float | None, **hyper: Any) -> None:
        if not callable(getattr(loss, "gradient", None)):
            raise InputError(f"loss must be a loss such as TwoLayerLoss or ModelLoss, not {type(loss).__name__}")
        self.loss = loss
        self.lr = checked_lr(lr)
        self.clip = checked_clip(clip)
        self._hyper = hyper
        self.__dict__.update(hyper)
        groups = [f"{part}." for part in ("theta", *self.slots)] if self.slots else [""]
        self.parameters = Parameters.of({group + p.name: p.shape for group in groups for p in loss.parameters})

    def __repr__(self) -> str:
        shown = {**self._hyper, "clip": self.clip}
        options = "".join(f", {name}={value!r}" for name, value in shown.items() if value not in (0, None))
        return f"{type(self).__name__}({self.loss!r}, lr={lr_text(self.lr)}{options})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""
        return self.loss.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.loss.device

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of any result of this map must know: what its loss says."""
        return tuple(getattr(self.loss, "notes", ()))

    def __call__(self, state: Tensor, step: int = 0) -> Tensor:
        """Take step number `step`: f(state), shape (n,)."""
        lr = rate_at(self.lr, step)
        with torch.no_grad():
            parts = self._parts(self._checked(state))
            return joined(self._update(parts, clip_to(self.loss.gradient(parts[0]), self.clip), lr, step))

    def run(
        self,
        state: Tensor,
        *,
        steps: int,
        first: int = 0,
        progress: bool = False,
        callback: Callable[[int, Tensor], object] | None = None,
    ) -> Tensor:
        """Take `steps` steps from a state and return the last state.

        Parameters
        ----------
        state : Tensor, shape (n,)
            The start; not changed. `initial` makes one.
        steps : int
            How many.
        first : int
            The number of the first of them.
        progress : bool
            Show a progress bar.
        callback : callable, optional
            ``callback(number, state)`` after each step; True ends the run there. Ctrl-C ends it after a step, by
            `KeyboardInterrupt`.

        Raises
        ------
        NonFiniteError
            The state became NaN or Inf; the message says at which step.
        """
        return run(self, state, steps=steps, first=first, progress=progress, callback=callback)

    def initial(self, theta: Tensor) -> Tensor:
        """Make the state that torch's optimizer starts from at θ: θ itself, and slots of zeros."""
        theta = self._checked_theta(theta)
        return joined([theta, *(torch.zeros_like(theta) for _ in self.slots)])

    def theta(self, state: Tensor) -> Tensor:
        """Take θ out of a state, as a view."""
        rows = self.parameters.size
        return check_tensor(state, "state", rows=rows, dtype=self.dtype, device=self.device)[
            : self.loss.parameters.size
        ]

    def jacobian(self, state: Tensor, step: int = 0) -> JacobianOperator:
        """Linearize step number `step` at a state and return Df as an operator, in the loss's dtype.

        ``apply`` is the jvp and ``apply_adjoint`` the vjp; each takes one Hessian product for each direction.

        Raises
        ------
        InputError
            The state is of another shape, dtype or device, or the step's number is no integer of at least 0.
        NonFiniteError
            NaN or Inf in the state, or f has no derivative there.

        Warns
        -----
        RuntimeWarning
            The gradient's norm is exactly at the clipping threshold, where f has a kink; the derivative is that of
            the unclipped side.
        """
        frozen = self._frozen(state)
        return self._linearized(frozen, step, point_at(self.loss, self._parts(frozen)[0]))

    def linearize(self, state: Tensor, step: int = 0) -> tuple[Tensor, JacobianOperator]:
        """Take step number `step` and linearize it, from one pass of the loss: f(state) and Df, as `jacobian`."""
        if not speaks_for(self, "linearize", STEP):
            return self(state, step), self.jacobian(state, step)
        frozen = self._frozen(state)
        point = point_at(self.loss, self._parts(frozen)[0])
        g = clip_to(point.gradient, self.clip)  # first: so it is made on the way
        operator = self._linearized(frozen, step, point)
        with torch.no_grad():
            return joined(self._update(self._parts(frozen), g, rate_at(self.lr, step), step)), operator

    def identity_at(self, state: Tensor, step: int = 0) -> dict[str, Any]:
        """Name Df at a state as its operator does, without linearizing."""
        if not speaks_for(self, "identity_at", STEP):
            return self.jacobian(state, step).identity()
        frozen = self._frozen(state)
        point = point_at(self.loss, self._parts(frozen)[0])
        return {"operator": "JacobianOperator", **self._identity_at(rate_at(self.lr, step), step, frozen, point)}

    def _frozen(self, state: Tensor) -> Tensor:
        """Copy a state, so that the operator stays there, whatever becomes of the caller's."""
        with torch.inference_mode(False), torch.no_grad():
            return self._checked(state).clone()

    def _linearized(self, frozen: Tensor, step: int, point: Point) -> JacobianOperator:
        lr, parts = rate_at(self.lr, step), self._parts(frozen)
        with torch.inference_mode(False), torch.no_grad():
            numbers, clipping = self._numbers(lr), None
            if numbers is None or self.clip is not None:  # else f is linear in the gradient, which does not matter
                g = point.gradient
                clipping = clipping_at(g, self.clip, self.loss.parameters)
            H = point.hessian().linear
        inside, gain = numbers or self._diagonals(parts, clip_to(g, self.clip), lr, step)
        linear = coupled(inside, gain, H if clipping is None else product(clipping, H), self.parameters)
        linear = replace(linear, identity=lambda: self._identity_at(lr, step, frozen, point))
        if H.in_float64 is not None and (numbers is None or clipping is not None):  # what was computed at θ, anew
            linear = replace(
                linear,
                in_float64=lambda: OptimizerMap.jacobian(self._in_float64(), frozen.to(torch.float64), step).linear,
            )
        return JacobianOperator(linear).made_by(OptimizerMap.jacobian, self, frozen, step)

    def curvature(self, state: Tensor, step: int = 0, *, at: Point | None = None) -> HessianOperator:
        """Make the symmetric operator whose largest eigenvalue `threshold` is about: the Hessian of L at θ.

        For `RMSProp`, `Adam` and `AdamW` it is that of the coordinates P^{-½}θ, P^½ (H + ωI) P^½ with P the
        preconditioner of step number `step` (for `AdamW` without ω). `at` is the loss at θ, where it was taken before.
        """
        return self.point(state, at).hessian()

    def point(self, state: Tensor, at: Point | None = None) -> Point:
        """Take the loss at a state's θ; or give back `at`, where that has been done."""
        return point_at(self.loss, self.theta(state)) if at is None else at

    def _gradient(self, theta: Tensor, at: Point | None) -> Tensor:
        return self.loss.gradient(theta) if at is None else at.gradient

    def over(self, loss: Loss) -> Self:
        """Make the same optimizer of another loss of the same parameters."""
        other = copy.copy(self)
        other.loss = loss
        return other

    def identity(self) -> dict[str, Any]:
        """All that f depends on, as a JSON-able dict."""
        return {**self._settings(lr_identity(self.lr)), "loss": self.loss.identity()}

    def _update(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> list[Tensor]:
        """Update (θ, slots) by the clipped gradient g, elementwise."""
        raise NotImplementedError

    def _numbers(self, lr: float) -> Numbers | None:
        """Give the numbers A and b that Df is made of beside H, where the update is linear."""
        return None

    def _diagonals(self, parts: Sequence[Tensor], g: Tensor, lr: float, step: int) -> Numbers:
        """Differentiate the update: ∂a'/∂b for all parts a, b, and ∂a'/∂g.

        Since entry i of the result depends on entry i of each input only, the gradient of the sum is the diagonal.
        """
        self._refuse_kinks(parts, g, step)
        with torch.inference_mode(False), recording():
            leaves = [tensor.detach().clone().requires_grad_() for tensor in (*parts, g)]
            found = [
                torch.autograd.grad(image.sum(), leaves, retain_graph=True, allow_unused=True)
                for image in self._update(leaves[:-1], leaves[-1], lr, step)
            ]
        rows = [[_compact(diagonal) for diagonal in row] for row in found]
        return [row[:-1] for row in rows], [row[-1] for row in rows]

    def _refuse_kinks(self, parts: Sequence[Tensor], g: Tensor, step: int) -> None:
        """Refuse a state at which a derivative of the update is infinite."""

    def _settings(self, lr: Any) -> dict[str, Any]:
        return {"map": type(self).__name__, "lr": lr, **self._hyper, "clip": self.clip}

    def _identity_at(self, lr: float, step: int, state: Tensor, point: Point) -> dict[str, Any]:
        """Name the matrix: of a schedule only the rate of this step matters; the Hessian names loss and θ."""
        return {
            **self._settings(lr),
            "step": step if self.timed else None,
            "slots": [sha256_of(part) for part in self._parts(state)[1:]],
            "hessian": point.identity(),
        }

    def _in_float64(self) -> Self:
        return self.over(self.loss.to(dtype=torch.float64))

    def _checked_theta(self, theta: Tensor) -> Tensor:
        size = self.loss.parameters.size
        return check_state(theta, "theta", size=size, dtype=self.dtype, device=self.device)

    def _checked(self, state: Tensor) -> Tensor:
        if not self.slots:
            return self._checked_theta(state)
        state = check_state(state, "state", size=self.parameters.size, dtype=self.dtype, device=self.device)
        for name, part in zip(self.slots, self._parts(state)[1:], strict=True):
            if name in self.nonnegative and bool((part < 0).any()):
                raise InputError(
                    f"{name} in the state holds {int((part < 0).sum())} negative numbers, but it is an average of "
                    f"squares whose root is taken: start from {type(self).__name__}.initial(theta)"
                )
        return state

    def _parts(self, state: Tensor) -> tuple[Tensor, ...]:
        return state.tensor_split(1 + len(self.slots))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Join parts of a state into a new vector."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0].clone()


def _compact(diagonal: Tensor | None) -> Coefficient:
    """Keep one number where all entries are the same, and nothing where all are zero."""
    if diagonal is None or diagonal.numel() == 0:
        return None
    low, high = (float(end) for end in diagonal.aminmax())
    if low == high:
        return low or None
    return diagonal[:, None]
