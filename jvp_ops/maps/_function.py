"""Any torch function of a flat state as a map."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import by_columns, pull_back, push_forward, twice_differentiable
from jvp_ops._checks import check_state, resolve_device, resolve_dtype
from jvp_ops.errors import InputError
from jvp_ops.maps._run import run
from jvp_ops.operators import JacobianOperator, Linearization
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
    device, dtype
        Of the state; by default the CPU and float32.

    Raises
    ------
    InputError
        Neither or both of `size` and `shapes`; a function that returns another shape.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        self.function = function
        self.parameters: Parameters = layout(size, shapes)
        self.device, self.dtype = resolve_device(device), resolve_dtype(dtype)

    def __repr__(self) -> str:
        return f"<FunctionMap of {self.parameters.size} numbers, {self.dtype}, {self.device}>"

    def __call__(self, state: Tensor, step: int = 0) -> Tensor:
        """Apply the map once; every `step` is the same."""
        with torch.no_grad():
            return self._call(self._checked(state).clone())

    def run(
        self,
        state: Tensor,
        *,
        steps: int,
        first: int = 0,
        progress: bool = False,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Apply the map `steps` times and return the last state; as in `GradientDescent.run`."""
        return run(self, state, steps=steps, first=first, progress=progress, callback=callback)

    def jacobian(self, state: Tensor, step: int = 0) -> JacobianOperator:
        """Record the graph of f at a state once and return Df as an operator.

        ``apply`` is the jvp and ``apply_adjoint`` the vjp; each direction is one backward pass.
        """
        with twice_differentiable():
            frozen = self._checked(state).clone()
            leaf = frozen.clone().requires_grad_()
            image = self._call(leaf)
            if not image.requires_grad:
                raise InputError(
                    "the function's result does not depend on the state by operations that autograd records: "
                    "is there a detach() or no_grad() in it? Inside it, take derivatives by torch.func.grad"
                )
            push = push_forward([image], [leaf])

        return JacobianOperator(
            Linearization(
                apply=by_columns(lambda v: push([v])[0]),
                adjoint=by_columns(lambda u: pull_back([image], [leaf], [u])[0]),
                rows=self.parameters,
                columns=self.parameters,
                dtype=self.dtype,
                device=self.device,
                symmetric=False,
                identity=lambda: {"at": sha256_of(frozen), **self.identity()},
                in_float64=lambda: self._in_float64().jacobian(frozen.to(torch.float64)),
            )
        )

    def identity(self) -> dict[str, Any]:
        """Name the map, as a JSON-able dict; of code, the names and the compiled instructions."""
        shapes = {entry.name: entry.shape for entry in self.parameters}
        return {"map": "FunctionMap", "function": callable_identity(self.function), "shapes": shapes}

    def _in_float64(self) -> "FunctionMap":
        shapes = {entry.name: entry.shape for entry in self.parameters}
        return FunctionMap(self.function, shapes=shapes, device=self.device, dtype=torch.float64)

    def _checked(self, state: Tensor) -> Tensor:
        return check_state(state, "state", size=self.parameters.size, dtype=self.dtype, device=self.device)

    def _call(self, state: Tensor) -> Tensor:
        image = self.function(state)
        if not isinstance(image, Tensor) or image.shape != state.shape:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"the function must return a tensor of shape {tuple(state.shape)}, not {shape}")
        if image.dtype != state.dtype:
            raise InputError(f"the function must return {state.dtype} as it is given, not {image.dtype}")
        return image
