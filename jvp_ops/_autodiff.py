"""Linearize once, apply many times: retained autograd graphs as products with matrices.

Nothing here touches ``.grad``, so no cycle keeps a graph alive: it goes when the last product that holds it goes.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Tensors = Sequence[Tensor]
_SWITCHES = threading.RLock()  # torch's choice of kernels is one for all threads


@contextmanager
def recording() -> Iterator[None]:
    """Record graphs whatever the caller's mode: ``no_grad`` and ``inference_mode`` included."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def numerics(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute in `dtype` whatever the process is set to: no autocast, no TF32 or bfloat16 products, that default dtype.

    Only one thread at a time is inside, since these are settings of the process.
    """
    with _SWITCHES, torch.autocast(device.type, enabled=False):
        default, restore = torch.get_default_dtype(), _full_precision(device)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            restore()


@contextmanager
def pinned(device: torch.device, dtype: torch.dtype, *, recurrent: bool = False) -> Iterator[None]:
    """Record graphs that can be differentiated again, by one way of computing whatever the process is set to.

    Fused attention, the encoder's fast path, compiled code and cuDNN's recurrent layers have no second derivatives, or
    are of another function.
    """
    compiles = "torch._dynamo" in sys.modules  # which takes a second to import
    eager = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
    plain = torch.backends.cudnn.flags(enabled=False, allow_tf32=False) if recurrent else nullcontext()
    with numerics(device, dtype), recording(), sdpa_kernel(SDPBackend.MATH), plain, eager:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _full_precision(device: torch.device) -> Callable[[], None]:
    """Let float32 products be of float32 numbers; return what puts the process's own choice back."""
    undo = [_by_legacy_switch() or _by_backends("cuda.matmul", "mkldnn.matmul")]
    if device.type == "cuda":
        undo.append(_by_cudnn_switch() or _by_backends("cudnn.conv", "cudnn.rnn"))

    def restore() -> None:
        for switch_back in undo:
            switch_back()

    return restore


def _by_legacy_switch() -> Callable[[], None] | None:
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # the process uses torch's newer switches, one for each backend
        return None
    return lambda: torch.set_float32_matmul_precision(before)


def _by_cudnn_switch() -> Callable[[], None] | None:
    try:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    except RuntimeError:
        return None
    return lambda: setattr(torch.backends.cudnn, "allow_tf32", before)


def _by_backends(*names: str) -> Callable[[], None]:
    switches = [attrgetter(name)(torch.backends) for name in names]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"

    def restore() -> None:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision

    return restore


def written_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function in plain operations in the place of one whose second derivatives torch has wrong."""
    return _weight_norm if function is torch._weight_norm else function


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Compute v g/‖v‖, the norm over all dimensions but one (-1: over all)."""
    over = [d for d in range(v.ndim) if d != dim]
    scale: Tensor = g / torch.linalg.vector_norm(v, dim=over, keepdim=True)
    return v * scale


class WrittenOut(TorchFunctionMode):
    """Call every torch function as `written_out` gives it."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return written_out(function)(*args, **(kwargs or {}))


def split(flat: Tensor, like: Tensors) -> list[Tensor]:
    """Split one flat vector into views of the shapes of `like`."""
    pieces = flat.split([prod(tensor.shape) for tensor in like])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def join(tensors: Tensors) -> Tensor:
    """Join tensors into one flat vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def pull_back(outputs: Tensors, inputs: Tensors, cotangents: Tensors, *, differentiable: bool = False) -> list[Tensor]:
    """Compute Jᵀu of `outputs` with respect to `inputs`; inputs that the outputs do not use give zeros.

    The graph is retained; with `differentiable` a graph of the result itself is recorded.
    """
    used = [(out, u) for out, u in zip(outputs, cotangents, strict=True) if out.requires_grad]
    if not used:
        return [torch.zeros_like(tensor) for tensor in inputs]
    # torch.autograd.grad is a torch function itself, within which no mode sees what a checkpoint runs again
    found = _engine_run_backward(
        tuple(out for out, _ in used),
        tuple(u for _, u in used),
        True,
        differentiable,
        tuple(inputs),
        True,
        accumulate_grad=False,
    )
    return [torch.zeros_like(z) if slope is None else slope for slope, z in zip(found, inputs, strict=True)]


def nodes_of(outputs: Tensors) -> Iterator[Any]:
    """Go through the nodes of a recorded graph, each once."""
    seen, waiting = set(), [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [inner for inner, _ in node.next_functions]


def gradients(value: Tensor, inputs: Tensors, *, differentiable: bool = False) -> list[Tensor]:
    """Compute the gradient of a scalar; with `differentiable`, with a graph of it."""
    return pull_back([value], inputs, [torch.ones_like(value)], differentiable=differentiable)


def push_forward(outputs: Tensors, inputs: Tensors) -> Callable[[Tensors], list[Tensor]]:
    """Prepare J v: Jᵀu is linear in u, so its own pull-back at any u is J (the double-backward identity).

    References
    ----------
    J. Townsend, "A new trick for calculating Jacobian vector products" (2017).
    """
    dummies = [torch.zeros_like(out, requires_grad=True) for out in outputs]
    pulled = pull_back(outputs, inputs, dummies, differentiable=True)

    def push(tangents: Tensors) -> list[Tensor]:
        return pull_back(pulled, dummies, tangents)

    return push


def add_columns(product: Callable[[Tensor], Tensor], V: Tensor, total: Tensor) -> None:
    """Add ``product(v)`` of each column v of V to the columns of `total`.

    One column at a time: batched backward passes (vmap) were measured two to three times slower per direction
    on convolutions and no faster on attention, and take m times the memory.
    """
    for column in range(V.shape[1]):
        total.select(1, column).add_(product(V.select(1, column)))


def by_columns(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Turn the product of a square map with a vector into its product with the columns of a matrix."""

    def apply(V: Tensor) -> Tensor:
        total = torch.zeros_like(V)
        with pinned(V.device, V.dtype), torch.no_grad():
            add_columns(product, V, total)
        return total

    return apply


def _address(tensor: Tensor) -> int | None:
    """Give the address of a tensor's storage; within torch.func, and sparse, it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


class AllocatedBytes(TorchDispatchMode):
    """Count the bytes of all that is computed while it is active: never less than `SavedBytes` counts."""

    def __init__(self, known: Tensors) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = {_address(tensor) for tensor in known}
        self._kept: list[Tensor] = []  # so that no address is given out twice
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        if (address := _address(tensor)) is None:
            self.total += tensor.numel() * tensor.element_size()
        elif address not in self._seen:
            self._seen.add(address)
            self._kept.append(tensor)
            self.total += tensor.untyped_storage().nbytes()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._kept.clear()


class SavedBytes:
    """Count the bytes that autograd saves for a backward pass while it is active.

    Each storage counts once; those of `known` tensors (parameters, data) do not count.
    """

    def __init__(self, known: Tensors) -> None:
        self._seen = {_address(tensor) for tensor in known}
        self._kept: list[Tensor] = []
        self.total = 0

    def __enter__(self) -> "SavedBytes":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self._kept.clear()  # else outputs saved by their own node would keep themselves alive

    def _pack(self, tensor: Tensor) -> int:
        if (address := _address(tensor)) is None:
            self.total += tensor.numel() * tensor.element_size()
        elif address not in self._seen:
            self._seen.add(address)
            self.total += tensor.untyped_storage().nbytes()
        self._kept.append(tensor)
        return len(self._kept) - 1

    def _unpack(self, index: int) -> Tensor:
        return self._kept[index]
