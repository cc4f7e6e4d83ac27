"""Samples for a model: tensors in memory, or a data loader that must give the same batches on every pass."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jvp_ops._checks import check_finite
from jvp_ops.errors import DataError, InputError
from jvp_ops.losses.model._items import LABELS, REMEDY, is_one_batch
from jvp_ops.losses.model._structures import all_tensors, layout_of, map_tensors, put_together
from jvp_ops.store import raw_bytes, sha256_of

Unpack = Callable[[Any], tuple[Any, Any]]
PAIR = str(["tensor", "tensor"])  # the layout of inputs and targets that are one tensor each


@dataclass(frozen=True)
class Batch:
    """Some samples: what the model is given (a tensor, or a tuple or mapping of tensors), and their targets.

    Numbers, text and None among them are the same for every sample.
    """

    inputs: Any
    targets: Any
    whole: bool = False  # its samples are coupled: it counts as one, and nothing is taken out of it

    @property
    def samples(self) -> int:
        """How many samples: the common first dimension of all tensors."""
        return 1 if self.whole else len(self.tensors[0])

    @property
    def counted(self) -> Any:
        """What a normalizer is given: the targets, or where the model is given all, its labels, or all."""
        if self.targets is not None:
            return self.targets
        return self.inputs.get(LABELS, self.inputs) if isinstance(self.inputs, Mapping) else self.inputs

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        return all_tensors((self.inputs, self.targets), strict=True)

    def rows(self, start: int, stop: int) -> "Batch":
        """Take some samples, as views."""
        return self if self.whole else self._each(lambda t: t[start:stop])

    def take(self, index: Tensor) -> "Batch":
        """Take some samples by their numbers, as copies."""
        return self if self.whole else self._each(lambda t: t[index.to(t.device)])

    def pieces(self, samples: int) -> Iterator["Batch"]:
        """Divide it into batches of at most `samples`."""
        for start in range(0, self.samples, samples):
            yield self.rows(start, start + samples)

    def copied(self) -> "Batch":
        """Copy its tensors."""
        return self._each(lambda t: t.detach().clone().requires_grad_(t.requires_grad))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to a device, floating tensors in a dtype."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.clone() if tensor.is_inference() else tensor.detach()  # else no graph could hold it
            if tensor.is_complex():
                return moved.to(device, dtype.to_complex())
            moved = moved.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            return moved.requires_grad_(tensor.requires_grad)

        return self._each(move)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        parts = (map_tensors(part, function, strict=True) for part in (self.inputs, self.targets))
        return Batch(next(parts), next(parts), self.whole)


class Batches:
    """All batches of a data set, the same on every pass.

    Parameters
    ----------
    data : one batch, or iterable of them
        A pair of tensors (inputs may also be a tuple or mapping of tensors), a mapping or a tuple of tensors; or a
        DataLoader or list of those.
    unpack : callable
        Divides what stands for a batch into (inputs, targets).
    device, dtype
        Where batches go, and what their floating tensors become.
    coupled : bool
        The data are one batch, which stays whole.

    Raises
    ------
    InputError
        No samples, something that is not a pair, tensors of different lengths, or a one-shot iterator.
    DataError
        A loader that gives other data on a later pass (it shuffles, or transforms at random).
    """

    def __init__(
        self, data: Any, unpack: Unpack, device: torch.device, dtype: torch.dtype, *, coupled: bool = False
    ) -> None:
        self._in_memory = is_one_batch(data)
        self._data = map_tensors(data, _countable) if self._in_memory else data
        self._unpack, self._device, self._dtype = unpack, device, dtype
        self._coupled = coupled
        self.sizes: list[int] = []
        self._checksums: list[int] = []
        if not self._in_memory:
            if not isinstance(data, Iterable):
                raise InputError(f"data must be (inputs, targets) or a DataLoader, not {type(data).__name__}")
            if isinstance(data, Tensor):
                raise InputError(f"each batch must be (inputs, targets), but data are one tensor; {REMEDY}")
            if iter(data) is data:
                raise InputError("data is an iterator that can be read only once: pass tensors, a list or a DataLoader")
        for number, batch in enumerate(self._raw()):
            _check_batch(batch, number, device, dtype, coupled=coupled)
            self.sizes.append(batch.samples)
            self._checksums.append(_checksum(batch))
        self.samples = sum(self.sizes)
        if self.samples == 0:
            raise InputError("data holds no samples: at least one is needed")
        if coupled and len(self.sizes) > 1:
            raise InputError(
                "coupled=True needs the data as one batch, since samples of different batches never meet; there are "
                f"{len(self.sizes)}: pass (inputs, targets) tensors, or make the batches one"
            )
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
        pair = (taken.inputs, taken.targets)
        return Batches(pair, _as_given, self._device, self._dtype, coupled=self._coupled)

    def __iter__(self) -> Iterator[Batch]:
        """Go through all batches, and refuse data that are not those of the first pass."""
        self.check_unchanged()
        number = -1
        for number, batch in enumerate(self._raw()):
            if not self._in_memory and (number >= len(self.sizes) or _checksum(batch) != self._checksums[number]):
                raise DataError(self._changed(f"batch {number} differs from the first pass"))
            yield replace(batch.to(self._device, self._dtype), whole=self._coupled)
        if number + 1 != len(self.sizes):
            raise DataError(self._changed(f"it gave {number + 1} batches, {len(self.sizes)} on the first pass"))

    def check_unchanged(self) -> None:
        """Refuse tensors in memory that were changed in place since they were handed over."""
        if self._in_memory and _versions(next(self._raw())) != self._versions:
            raise DataError("the data tensors were changed in place after the loss was made: make a new loss of them")

    def identity(self) -> str:
        """Hash the data."""
        if not self._in_memory:
            return sha256_of(torch.tensor(self.sizes), torch.tensor(self._checksums))
        batch = next(self._raw())
        laid_out = str(layout_of([batch.inputs, batch.targets]))
        return f"{sha256_of(*batch.tensors)} {laid_out if laid_out != PAIR else ''}".strip()

    def _raw(self) -> Iterator[Batch]:
        """Go through the batches as they are; those without samples are left out."""
        for item in [self._data] if self._in_memory else self._data:
            batch = Batch(*self._unpack(item))
            tensors = batch.tensors
            if self._in_memory or not tensors or any(tensor.ndim == 0 or len(tensor) for tensor in tensors):
                yield batch

    def _changed(self, what: str) -> str:
        name = type(self._data).__name__
        sampler = getattr(self._data, "sampler", None)
        name += f" with a {type(sampler).__name__}" if sampler is not None else ""
        return (
            f"the data loader ({name}) gives other data on each pass: {what}. Every product would be one of another "
            "matrix: use shuffle=False and transforms that are not random, or pass tensors"
        )


def _check_batch(batch: Batch, number: int, device: torch.device, dtype: torch.dtype, *, coupled: bool) -> None:
    tensors = batch.tensors
    if not tensors or any(tensor.ndim == 0 for tensor in tensors):
        raise InputError(f"batch {number} holds no tensors with a dimension of samples")
    for tensor in tensors:
        kind = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else "sparse"
        if tensor.layout != torch.strided or kind != "sparse":
            raise InputError(f"batch {number} holds a {kind} tensor, whose rows cannot be taken: pass a dense one")
    lengths = sorted({len(tensor) for tensor in tensors})
    if len(lengths) > 1 and not coupled:
        raise InputError(f"batch {number} holds tensors of different lengths {lengths}: one row a sample is needed")
    for tensor, moved in zip(tensors, batch.to(device, dtype).tensors, strict=True):
        if tensor.is_floating_point():
            check_finite(tensor, f"batch {number} of the data")
            check_finite(moved, f"batch {number} of the data, as {dtype},")


def _checksum(batch: Batch) -> int:
    checksum = zlib.crc32(str(layout_of([batch.inputs, batch.targets])).encode())
    for tensor in batch.tensors:
        checksum = zlib.crc32(raw_bytes(tensor), checksum)
    return checksum


def _versions(batch: Batch) -> list[int]:
    return [tensor._version for tensor in batch.tensors]


def _countable(tensor: Tensor) -> Tensor:
    """Copy a tensor that was made in inference mode: changes of it in place are not counted."""
    return tensor.clone() if tensor.is_inference() else tensor


def _as_given(pair: Any) -> tuple[Any, Any]:
    return pair[0], pair[1]


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Put batches one behind another; their tensors must agree in all but the number of samples."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        *(put_together([getattr(batch, part) for batch in batches], torch.cat) for part in ("inputs", "targets"))
    )
