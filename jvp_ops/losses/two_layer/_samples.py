"""The samples of a two-layer network: checked, in chunks, and known as exactly as they were given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jvp_ops._checks import check_finite, sample_numbers
from jvp_ops.data import Dataset
from jvp_ops.errors import InputError
from jvp_ops.losses.two_layer._chunks import Chunk, chunks, samples_of
from jvp_ops.store import sha256_of


@dataclass(frozen=True)
class Samples:
    """Samples as exactly as they are known, on the CPU, in an order that groups those of similar support.

    Parameters
    ----------
    chunks : list of Chunk
        Those of a `Dataset` as bytes, others as floats: in the dtype that is computed in where that holds them exactly.
    in_float32 : bool
        Whether float32 holds every input exactly.
    maximum : int, optional
        What the bytes of a `Dataset` are divided by.
    sha256 : str
        Of inputs and labels in their order; the same in every dtype that they are computed in, and on every device.
    width : int
        Inputs of a sample.
    """

    chunks: list[Chunk]
    in_float32: bool
    maximum: int | None
    sha256: str
    width: int

    @classmethod
    def of(cls, X: Tensor, t: Tensor, *, maximum: int | None, dtype: torch.dtype) -> "Samples":
        """Take samples on the CPU, the inputs as bytes over `maximum` or as floats."""
        narrow = maximum is None and _float32_holds(X)
        sha256 = sha256_of(X.to(torch.float32) if narrow else X, t)
        return cls(list(chunks(X, t)), narrow, maximum, sha256, X.shape[1]).to(dtype)

    def to(self, dtype: torch.dtype) -> "Samples":
        """Keep the samples in a dtype that is to be computed in, so that they are there once; where it holds them."""
        if self.maximum is not None or not (self.in_float32 or dtype == torch.float64):
            return self
        return replace(self, chunks=[chunk.to(torch.device("cpu"), dtype) for chunk in self.chunks])

    def subset(self, index: Sequence[int] | Tensor, dtype: torch.dtype) -> "Samples":
        """Take some samples by their numbers; one that is there twice counts twice."""
        X, t = samples_of(self.chunks, sample_numbers(index, len(self)), self.width)
        return Samples.of(X, t, maximum=self.maximum, dtype=dtype)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Put all samples together, in their order: inputs as they are known, and labels."""
        return samples_of(self.chunks, torch.arange(len(self)), self.width)

    def dead(self) -> Tensor:
        """Give the numbers of the inputs that are zero in all samples, on the CPU."""
        used = torch.zeros(self.width, dtype=torch.bool)
        for chunk in self.chunks:
            used[chunk.live.cpu()] = True
        return torch.nonzero(~used)[:, 0]

    def identity(self) -> dict[str, Any]:
        """Name the samples: the hash of what was given, and what bytes are divided by."""
        return {"data": self.sha256} | ({} if self.maximum is None else {"maximum": self.maximum})

    def __len__(self) -> int:
        return sum(len(chunk.labels) for chunk in self.chunks)


def checked_samples(
    inputs: Dataset | ArrayLike | Tensor, labels: ArrayLike | Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, int | None]:
    """Check inputs and labels; return them on the CPU, with the maximum where the inputs are a data set's bytes."""
    if isinstance(inputs, Dataset):
        if labels is not None:
            raise InputError(
                "a Dataset brings its labels with it, but labels are given too: leave them out, or pass its .inputs "
                "with other labels"
            )
        pixels = torch.from_numpy(np.array(inputs.images.reshape(len(inputs), -1)))  # a copy: torch wants it writable
        return pixels, torch.from_numpy(np.array(inputs.labels)), inputs.maximum
    if labels is None:
        raise InputError("labels are missing: pass the class of each sample, or a jvp_ops Dataset, which has them")
    X, t = _checked_inputs(inputs, dtype), _checked_labels(labels)
    if len(X) != len(t):
        raise InputError(f"{len(X)} inputs but {len(t)} labels: there must be one label a sample")
    return X, t, None


def _checked_inputs(inputs: ArrayLike | Tensor, dtype: torch.dtype) -> Tensor:
    """Check inputs; keep them in float64 where float32 may not hold what was given."""
    X = _as_tensor(inputs, "inputs", "real numbers of shape (samples, inputs)")
    if X.ndim != 2 or X.numel() == 0:
        raise InputError(f"inputs have shape {tuple(X.shape)}; expected (samples, inputs), at least one of each")
    if X.is_complex():
        raise InputError(f"inputs are {X.dtype}; expected real numbers")
    check_finite(X, "inputs")
    fits = X.dtype == torch.float32 or X.dtype.itemsize <= 2
    if not fits and dtype == torch.float32:
        check_finite(X.to(dtype), f"inputs, as {dtype},")
    return X.to(dtype if fits else torch.float64)


def _checked_labels(labels: ArrayLike | Tensor) -> Tensor:
    t = _as_tensor(labels, "labels", "integers of shape (samples,)")
    if t.ndim != 1 or t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise InputError(f"labels are {t.dtype} of shape {tuple(t.shape)}; expected integers of shape (samples,)")
    return t.to(torch.int64)


def _as_tensor(values: ArrayLike | Tensor, name: str, expected: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError):  # text, objects, ragged lists
        raise InputError(
            f"{name} are {type(values).__name__}, which makes no array of numbers; expected {expected}"
        ) from None


def _float32_holds(values: Tensor) -> bool:
    return values.dtype == torch.float32 or bool((values.to(torch.float32) == values).all())
