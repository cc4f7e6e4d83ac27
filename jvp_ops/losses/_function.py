"""Any scalar function of a flat vector."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from jvp_ops._autodiff import WrittenOut, by_columns, gradients, pinned, pull_back
from jvp_ops._checks import check_second_derivatives, check_state, resolve_device, resolve_dtype
from jvp_ops._differences import (
    UNCHECKED,
    Function,
    check_product,
    check_slopes,
    direction_at,
    in_float64_if_it_runs,
    pieces,
    refuse_random,
    somewhere_near,
)
from jvp_ops._explained import explained
from jvp_ops._random import Rng, generator, normal
from jvp_ops.errors import InputError
from jvp_ops.linear import LinearMap
from jvp_ops.losses._point import Derivatives, Point, own_point, point_of
from jvp_ops.operators import HessianOperator
from jvp_ops.parameters import Parameters, layout
from jvp_ops.store import callable_identity, sha256_of


class FunctionLoss:
    """Any scalar torch function L of a flat vector θ.

    Parameters
    ----------
    function : callable
        ``function(theta)`` for θ of shape (n,), returning a scalar tensor that autograd can differentiate twice.
    size : int, optional
        n; θ is then one parameter named ``theta``.
    shapes : mapping of str to shape, optional
        Names and shapes of the parameters that make up θ, instead of `size`.
    second_derivatives : {"checked", "unchecked"}
        Whether the first Hessian is held against differences of gradients, and they against differences of values; an
        unchecked one says so in the notes of every result.
    device, dtype
        Of θ; by default the CPU and float32.

    Raises
    ------
    InputError
        Neither or both of `size` and `shapes`; a function that does not return a scalar. From `hessian`, the first
        time: a product that is no derivative.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> rosenbrock = jo.FunctionLoss(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, size=2)
    >>> rosenbrock.hessian(torch.ones(2)).dense()
    tensor([[ 802., -400.],
            [-400.,  200.]])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        size: int | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        second_derivatives: str = "checked",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        check_second_derivatives(second_derivatives)
        if not callable(function):
            raise InputError(f"function must be callable, not {type(function).__name__}")
        self.function = function
        self._checked_once = second_derivatives == "unchecked"
        self.notes: tuple[str, ...] = (UNCHECKED,) if self._checked_once else ()
        self.parameters: Parameters = layout(size, shapes)
        self.device, self.dtype = resolve_device(device), resolve_dtype(dtype)

    def __repr__(self) -> str:
        return f"<FunctionLoss of {self.parameters.size} numbers, {self.dtype}, {self.device}>"

    def initial(self, rng: Rng = 0) -> Tensor:
        """Draw a start θ of standard normal numbers, shape (n,)."""
        return normal(generator(rng), self.parameters.size, dtype=self.dtype, device=self.device)

    def value(self, theta: Tensor) -> Tensor:
        """Compute L(θ), a tensor of no dimensions."""
        return self._value_of(self._checked(theta).clone())

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute ∇L(θ), shape (n,)."""
        return self._gradient_of(self._checked(theta))

    def at(self, theta: Tensor) -> Point:
        """Take L at θ: value, gradient and Hessian from one recorded graph."""
        return point_of(self, theta)

    def hessian(self, theta: Tensor) -> HessianOperator:
        """Record the gradient's graph at θ once and return the Hessian ∇²L(θ) as an operator."""
        return own_point(self, theta).hessian()

    def _differentiate(self, frozen: Tensor) -> Derivatives:
        if not self._checked_once:
            self._hold_against_differences(frozen)
        leaf, value, slope = self._record(frozen)
        linear = LinearMap.symmetric_of(
            by_columns(lambda v: pull_back([slope], [leaf], [v])[0]),
            self.parameters,
            self.dtype,
            self.device,
            identity=lambda: {"at": sha256_of(frozen), **self.identity()},
            in_float64=lambda: self.to(dtype=torch.float64).hessian(frozen.to(torch.float64)).linear,
            notes=self.notes,
        )
        return Derivatives(
            value.detach,
            slope.detach,
            lambda: HessianOperator(linear).made_by(FunctionLoss.hessian, self, frozen),
            lambda: self.gauss_newton(frozen),
        )

    def gauss_newton(self, theta: Tensor) -> NoReturn:
        """Refuse: a bare function has no model outputs to split at; `ModelLoss` has."""
        raise InputError(
            "a FunctionLoss has no model outputs, so no Gauss-Newton matrix: use ModelLoss, or hessian(theta)"
        )

    def subset(self, index: Any) -> NoReturn:
        """Refuse: a bare function has no samples; ``MinibatchSGD.of(losses)`` takes one loss for each batch."""
        raise InputError(
            "a FunctionLoss has no samples to take some of: use ModelLoss, or MinibatchSGD.of(losses) with one loss "
            "for each batch"
        )

    def to(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> "FunctionLoss":
        """Make the same loss in another dtype or on another device; the function must accept it."""
        other = FunctionLoss(
            self.function,
            shapes={entry.name: entry.shape for entry in self.parameters},
            device=self.device if device is None else device,
            dtype=self.dtype if dtype is None else dtype,
        )
        other._checked_once, other.notes = self._checked_once, self.notes
        return other

    def identity(self) -> dict[str, Any]:
        """All that L depends on, as a JSON-able dict; of functions, their code and what they hold."""
        shapes = {entry.name: entry.shape for entry in self.parameters}
        function = callable_identity(self.function)
        return {"loss": "FunctionLoss", "function": function, "shapes": shapes, "dtype": str(self.dtype)}

    def _checked(self, theta: Tensor) -> Tensor:
        return check_state(theta, "theta", size=self.parameters.size, dtype=self.dtype, device=self.device)

    def _record(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Record the gradient's graph; return the leaf, the value and the gradient."""
        with pinned(at.device, at.dtype):
            leaf = at.detach().clone().requires_grad_()
            value = self._call(leaf)
            if not value.requires_grad:
                raise InputError(
                    "the function's value does not depend on theta by operations that autograd records: "
                    "is there a detach() or no_grad() in it? Inside it, take derivatives by torch.func.grad"
                )
            with explained("the function cannot be differentiated"):
                return leaf, value, gradients(value, [leaf], differentiable=True)[0]

    def _value_of(self, at: Tensor) -> Tensor:
        with pinned(at.device, at.dtype):
            return self._call(at.detach().clone().requires_grad_()).detach()

    def _gradient_of(self, at: Tensor) -> Tensor:
        with pinned(at.device, at.dtype):
            leaf = at.detach().clone().requires_grad_()
            value = self._call(leaf)
            with explained("the function cannot be differentiated"):
                return gradients(value, [leaf])[0].detach()

    def _hold_against_differences(self, frozen: Tensor) -> None:
        """See once that the gradient is that of L, and a product with H its derivative; in float64 if L runs in it."""
        layout = pieces(self.parameters)

        def check(at: Tensor) -> None:
            refuse_random(self._value_of, at)
            leaf, _, slope = self._record(at)
            gradient = Function(self._gradient_of, at, layout, "the gradient")
            v = direction_at(at, [entry.size for entry in layout])
            bend = float(pull_back([slope], [leaf], [v])[0].norm() * v.norm())
            check_product(
                gradient, lambda v: pull_back([slope], [leaf], [v])[0], "the product of the Hessian with a direction"
            )
            check_slopes(Function(self._value_of, at, layout, "the value", bend), slope.detach(), "the gradient")

        sizes = [entry.size for entry in layout]
        in_float64_if_it_runs(lambda at: somewhere_near(check, at, sizes), frozen)
        self._checked_once = True

    def _call(self, theta: Tensor) -> Tensor:
        with WrittenOut(), explained("the function does not run on theta"):
            value = self.function(theta.clone())  # a copy, so that it may change its argument in place
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the function must return a scalar tensor, not {shape}")
        return value.reshape(())
