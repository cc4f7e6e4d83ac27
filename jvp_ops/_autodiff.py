"""Linearize once, apply many times: retained autograd graphs as products with matrices.

Nothing here touches ``.grad``, so no cycle keeps a graph alive: it goes when the last product that holds it goes.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = Sequence[Tensor]
_SWITCHES = threading.RLock()  # torch's choice of kernels is one for all threads


@contextmanager
def recording() -> Iterator[None]:
    """Record graphs whatever the caller's mode: ``no_grad`` and ``inference_mode`` included."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def twice_differentiable(*, recurrent: bool = False) -> Iterator[None]:
    """Record graphs that can be differentiated again: fused attention and cuDNN's recurrent layers cannot."""
    plain = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    with _SWITCHES, recording(), sdpa_kernel(SDPBackend.MATH), plain:
        yield


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
    found = torch.autograd.grad(
        [out for out, _ in used],
        list(inputs),
        [u for _, u in used],
        retain_graph=True,
        create_graph=differentiable,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


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
        total[:, column] += product(V[:, column])


def by_columns(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Turn the product of a square map with a vector into its product with the columns of a matrix."""

    def apply(V: Tensor) -> Tensor:
        total = torch.zeros_like(V)
        add_columns(product, V, total)
        return total

    return apply


class SavedBytes:
    """Count the bytes that autograd saves for a backward pass while it is active.

    Each storage counts once; those of `known` tensors (parameters, data) do not count.
    """

    def __init__(self, known: Tensors) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
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
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        self._kept.append(tensor)
        return len(self._kept) - 1

    def _unpack(self, index: int) -> Tensor:
        return self._kept[index]
