"""Samples for a model: tensors in memory, or a data loader that must give the same batches on every pass."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jvp_ops._checks import check_finite
from jvp_ops.errors import DataError, InputError
from jvp_ops.store import raw_bytes, sha256_of


@dataclass(frozen=True)
class Batch:
    """Some samples: what the model is given (a tensor, or a tuple or mapping of tensors), and their targets."""

    inputs: Any
    targets: Any

    @property
    def samples(self) -> int:
        """How many samples: the common first dimension of all tensors."""
        return len(all_tensors((self.inputs, self.targets))[0])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        return all_tensors((self.inputs, self.targets))

    def rows(self, start: int, stop: int) -> "Batch":
        """Take some samples, as views."""
        return Batch(
            map_tensors(self.inputs, lambda t: t[start:stop]), map_tensors(self.targets, lambda t: t[start:stop])
        )

    def take(self, index: Tensor) -> "Batch":
        """Take some samples by their numbers, as copies."""
        return Batch(*(map_tensors(part, lambda t: t[index.to(t.device)]) for part in (self.inputs, self.targets)))

    def pieces(self, samples: int) -> Iterator["Batch"]:
        """Divide it into batches of at most `samples`."""
        for start in range(0, self.samples, samples):
            yield self.rows(start, start + samples)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to a device, floating tensors in a dtype."""

        def move(tensor: Tensor) -> Tensor:
            tensor = tensor.clone() if tensor.is_inference() else tensor  # else no graph could hold it
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        return Batch(map_tensors(self.inputs, move), map_tensors(self.targets, move))


class Batches:
    """All batches of a data set, the same on every pass.

    Parameters
    ----------
    data : (inputs, targets), or iterable of them
        A pair of tensors (inputs may also be a tuple or mapping of tensors), or a DataLoader or list of pairs.
    device, dtype
        Where batches go, and what their floating tensors become.

    Raises
    ------
    InputError
        No samples, something that is not a pair, tensors of different lengths, or a one-shot iterator.
    DataError
        A loader that gives other data on a later pass (it shuffles, or transforms at random).
    """

    def __init__(self, data: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._data, self._device, self._dtype = data, device, dtype
        self._in_memory = isinstance(data, tuple) and len(data) == 2
        self.sizes: list[int] = []
        self._checksums: list[int] = []
        if not self._in_memory:
            if not isinstance(data, Iterable):
                raise InputError(f"data must be (inputs, targets) or a DataLoader, not {type(data).__name__}")
            if iter(data) is data:
                raise InputError("data is an iterator that can be read only once: pass tensors, a list or a DataLoader")
        for number, batch in enumerate(self._raw()):
            _check_batch(batch, number, device, dtype)
            self.sizes.append(batch.samples)
            self._checksums.append(_checksum(batch))
        self.samples = sum(self.sizes)
        if self.samples == 0:
            raise InputError("data holds no samples: at least one is needed")
        self._versions = _versions(next(self._raw())) if self._in_memory else []

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batches":
        """Give the same batches on another device or in another dtype."""
        other = object.__new__(Batches)
        other.__dict__.update(self.__dict__)
        other._device, other._dtype = device, dtype
        return other

    def subset(self, index: Tensor) -> "Batches":
        """Take some samples of tensors in memory."""
        if not self._in_memory:
            name = type(self._data).__name__
            raise InputError(
                f"a subset takes samples by their numbers, but the data are a {name}, read batch by batch: "
                "pass (inputs, targets) tensors"
            )
        self.check_unchanged()
        taken = next(self._raw()).take(index)
        return Batches((taken.inputs, taken.targets), self._device, self._dtype)

    def __iter__(self) -> Iterator[Batch]:
        """Go through all batches, and refuse data that are not those of the first pass."""
        self.check_unchanged()
        number = -1
        for number, batch in enumerate(self._raw()):
            if not self._in_memory and (number >= len(self.sizes) or _checksum(batch) != self._checksums[number]):
                raise DataError(self._changed(f"batch {number} differs from the first pass"))
            yield batch.to(self._device, self._dtype)
        if number + 1 != len(self.sizes):
            raise DataError(self._changed(f"it gave {number + 1} batches, {len(self.sizes)} on the first pass"))

    def check_unchanged(self) -> None:
        """Refuse tensors in memory that were changed in place since they were handed over."""
        if self._in_memory and _versions(next(self._raw())) != self._versions:
            raise DataError("the data tensors were changed in place after the loss was made: make a new loss of them")

    def identity(self) -> str:
        """Hash the data."""
        if self._in_memory:
            return sha256_of(*next(self._raw()).tensors)
        return sha256_of(torch.tensor(self.sizes), torch.tensor(self._checksums))

    def _raw(self) -> Iterator[Batch]:
        if self._in_memory:
            yield Batch(*self._data)
            return
        for pair in self._data:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InputError(f"each batch must be (inputs, targets), not {type(pair).__name__}")
            yield Batch(*pair)

    def _changed(self, what: str) -> str:
        name = type(self._data).__name__
        sampler = getattr(self._data, "sampler", None)
        name += f" with a {type(sampler).__name__}" if sampler is not None else ""
        return (
            f"the data loader ({name}) gives other data on each pass: {what}. Every product would be one of another "
            "matrix: use shuffle=False and transforms that are not random, or pass tensors"
        )


def _check_batch(batch: Batch, number: int, device: torch.device, dtype: torch.dtype) -> None:
    tensors = batch.tensors
    if not tensors or any(tensor.ndim == 0 for tensor in tensors):
        raise InputError(f"batch {number} holds no tensors with a dimension of samples")
    lengths = sorted({len(tensor) for tensor in tensors})
    if len(lengths) > 1:
        raise InputError(f"batch {number} holds tensors of different lengths {lengths}: one row a sample is needed")
    for tensor, moved in zip(tensors, batch.to(device, dtype).tensors, strict=True):
        if tensor.is_floating_point():
            check_finite(tensor, f"batch {number} of the data")
            check_finite(moved, f"batch {number} of the data, as {dtype},")


def _checksum(batch: Batch) -> int:
    checksum = 0
    for tensor in batch.tensors:
        checksum = zlib.crc32(raw_bytes(tensor), checksum)
    return checksum


def _versions(batch: Batch) -> list[int]:
    return [-1 if tensor.is_inference() else tensor._version for tensor in batch.tensors]


def map_tensors(structure: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a tensor, tuple, list or mapping."""
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, Mapping):
        return {key: map_tensors(value, function) for key, value in structure.items()}
    if isinstance(structure, tuple | list):
        return tuple(map_tensors(value, function) for value in structure)
    raise InputError(f"data must be made of torch tensors, not {type(structure).__name__}")


def all_tensors(structure: Any) -> list[Tensor]:
    """List every tensor of a tensor, tuple, list or mapping."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(structure, keep)
    return found


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Put batches one behind another; their tensors must agree in all but the number of samples."""
    joined = iter([torch.cat(tensors) for tensors in zip(*(batch.tensors for batch in batches), strict=True)])
    first = batches[0]
    return Batch(map_tensors(first.inputs, lambda _: next(joined)), map_tensors(first.targets, lambda _: next(joined)))
