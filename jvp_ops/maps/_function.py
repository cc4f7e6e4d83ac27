"""Any torch function of a flat state as a map."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import WrittenOut, by_columns, pinned, pull_back, push_forward
from jvp_ops._checks import check_second_derivatives, check_state, resolve_device, resolve_dtype, speaks_for
from jvp_ops._differences import (
    UNCHECKED,
    Function,
    check_product,
    check_slopes,
    in_float64_if_it_runs,
    pieces,
    refuse_random,
    somewhere_near,
)
from jvp_ops._explained import explained
from jvp_ops.errors import InputError
from jvp_ops.linear import LinearMap
from jvp_ops.maps._protocol import STEP
from jvp_ops.maps._run import run
from jvp_ops.operators import JacobianOperator
from jvp_ops.parameters import Parameters, layout
from jvp_ops.store import callable_identity, sha256_of


class FunctionMap:
    """Any torch function f: ℝⁿ → ℝⁿ of a flat state, with true jvp and vjp.

    Parameters
    ----------
    function : callable
        ``function(state)`` for a state of shape (n,), returning a tensor of shape (n,) that autograd can
        differentiate.
    size : int, optional
        n; the state is then one parameter named ``theta``.
    shapes : mapping of str to shape, optional
        Names and shapes of the parts of the state, instead of `size`.
    second_derivatives : {"checked", "unchecked"}
        Whether the first Jacobian is held against differences of f (a step that takes gradients has their derivatives
        in it); an unchecked one says so in the notes of every result.
    device, dtype
        Of the state; by default the CPU and float32.

    Raises
    ------
    InputError
        Neither or both of `size` and `shapes`; a function that returns another shape. From `jacobian`, the first
        time: products that are not the derivative of f.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> henon = jo.FunctionMap(lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2)
    >>> state = torch.tensor([0.5, 0.0])
    >>> henon.jacobian(state).dense()
    tensor([[-1.4000,  1.0000],
            [ 0.3000,  0.0000]])
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
        return f"<FunctionMap of {self.parameters.size} numbers, {self.dtype}, {self.device}>"

    def __call__(self, state: Tensor, step: int = 0) -> Tensor:
        """Apply the map once; every `step` is the same."""
        return self._image_of(self._checked(state))

    def run(
        self,
        state: Tensor,
        *,
        steps: int,
        first: int = 0,
        progress: bool = False,
        callback: Callable[[int, Tensor], object] | None = None,
    ) -> Tensor:
        """Apply the map `steps` times and return the last state; as in `GradientDescent.run`."""
        return run(self, state, steps=steps, first=first, progress=progress, callback=callback)

    def jacobian(self, state: Tensor, step: int = 0) -> JacobianOperator:
        """Record the graph of f at a state once and return Df as an operator.

        ``apply`` is the jvp and ``apply_adjoint`` the vjp; each direction is one backward pass.
        """
        return self._linearized(state, step)[1]

    def linearize(self, state: Tensor, step: int = 0) -> tuple[Tensor, JacobianOperator]:
        """Compute f(state) and Df from one recorded graph."""
        if not speaks_for(self, "linearize", STEP):
            return self(state, step), self.jacobian(state, step)
        return self._linearized(state, step)

    def _linearized(self, state: Tensor, step: int) -> tuple[Tensor, JacobianOperator]:
        with torch.inference_mode(False):
            frozen = self._checked(state).clone()
        if not self._checked_once:
            sizes = [entry.size for entry in pieces(self.parameters)]
            in_float64_if_it_runs(lambda at: somewhere_near(self._hold_against_differences, at, sizes), frozen)
            self._checked_once = True
        leaf, image, push = self._record(frozen)
        linear = LinearMap(
            apply=by_columns(lambda v: push([v])[0]),
            adjoint=by_columns(lambda u: pull_back([image], [leaf], [u])[0]),
            rows=self.parameters,
            columns=self.parameters,
            dtype=self.dtype,
            device=self.device,
            symmetric=False,
            identity=lambda: {"at": sha256_of(frozen), **self.identity()},
            in_float64=lambda: self._in_float64().jacobian(frozen.to(torch.float64)).linear,
            notes=self.notes,
        )
        return image.detach().clone(), JacobianOperator(linear).made_by(FunctionMap.jacobian, self, frozen, step)

    def identity_at(self, state: Tensor, step: int = 0) -> dict[str, Any]:
        """Name Df at a state as its operator does, without linearizing."""
        if not speaks_for(self, "identity_at", STEP):
            return self.jacobian(state, step).identity()
        return {"operator": "JacobianOperator", "at": sha256_of(self._checked(state)), **self.identity()}

    def identity(self) -> dict[str, Any]:
        """Name the map, as a JSON-able dict; of functions, their code and what they hold."""
        shapes = {entry.name: entry.shape for entry in self.parameters}
        return {"map": "FunctionMap", "function": callable_identity(self.function), "shapes": shapes}

    def _in_float64(self) -> "FunctionMap":
        shapes = {entry.name: entry.shape for entry in self.parameters}
        other = FunctionMap(self.function, shapes=shapes, device=self.device, dtype=torch.float64)
        other._checked_once, other.notes = self._checked_once, self.notes
        return other

    def _checked(self, state: Tensor) -> Tensor:
        return check_state(state, "state", size=self.parameters.size, dtype=self.dtype, device=self.device)

    def _record(self, at: Tensor) -> tuple[Tensor, Tensor, Callable[[list[Tensor]], list[Tensor]]]:
        """Record the graph of f; return the leaf, the image, and J as a product."""
        with pinned(at.device, at.dtype):
            leaf = at.detach().clone().requires_grad_()
            image = self._call(leaf)
            if not image.requires_grad:
                raise InputError(
                    "the function's result does not depend on the state by operations that autograd records: "
                    "is there a detach() or no_grad() in it? Inside it, take derivatives by torch.func.grad"
                )
            with explained("the function cannot be differentiated"):
                return leaf, image, push_forward([image], [leaf])

    def _image_of(self, at: Tensor) -> Tensor:
        with pinned(at.device, at.dtype):  # as for a Jacobian: the function may take gradients of its own
            return self._call(at.detach().clone().requires_grad_()).detach()

    def _hold_against_differences(self, at: Tensor) -> None:
        """See once that J v is the derivative of f, and Jᵀ u that of u·f."""
        refuse_random(self._image_of, at)
        leaf, image, push = self._record(at)
        layout = pieces(self.parameters)
        check_product(Function(self._image_of, at, layout, "the function"), lambda v: push([v])[0], "the product Df v")
        u = torch.randn(at.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(at)
        weighted = Function(lambda x: self._image_of(x) @ u, at, layout, "the function")
        check_slopes(weighted, pull_back([image], [leaf], [u])[0], "the adjoint product Dfᵀ u")

    def _call(self, state: Tensor) -> Tensor:
        with WrittenOut(), explained("the function does not run on the state"):
            image = self.function(state.clone())  # a copy, so that it may change its argument in place
        if not isinstance(image, Tensor) or image.shape != state.shape:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"the function must return a tensor of shape {tuple(state.shape)}, not {shape}")
        if image.dtype != state.dtype:
            raise InputError(f"the function must return {state.dtype} as it is given, not {image.dtype}")
        return image
