"""Samples in chunks of similar support, each holding only the inputs that are not zero in all of it.

The order of the samples does not matter to a sum. Where inputs hold many exact zeros (81 % of MNIST's pixels),
samples of one class, split further by which inputs they use, share their zeros, and every large product shrinks
by what is left out: on MNIST to 0.61 of the full width. The result is the same sum: only zeros are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_ROWS = 1024  # whatever the threads, so that sums have the same bits on any number of them


@dataclass(frozen=True)
class Chunk:
    """Some samples: inputs (rows, live), the indices of their live inputs (live,), labels (rows,).

    The inputs are floats, or a data set's bytes. `numbers` (rows,), on the CPU, says which samples of the data set
    they are.
    """

    inputs: Tensor
    live: Tensor
    labels: Tensor
    numbers: Tensor

    def to(self, device: torch.device, dtype: torch.dtype, maximum: int | None = None) -> "Chunk":
        """Copy to a device, with the inputs in a dtype, divided by a `maximum` where they are bytes."""
        inputs = self.inputs.to(dtype)
        if maximum is not None:
            inputs.div_(maximum)  # before it moves: CUDA multiplies by the reciprocal, which rounds otherwise
        return Chunk(inputs.to(device), self.live.to(device), self.labels.to(device), self.numbers)


def chunks(inputs: Tensor, labels: Tensor) -> Iterator[Chunk]:
    """Divide samples into chunks; every sample is in exactly one."""
    used, classes = (inputs != 0).numpy(), labels.numpy()
    for rows in _groups(used, classes, np.arange(len(classes)), MOST_ROWS):
        live = torch.from_numpy(np.flatnonzero(used[rows].any(axis=0)))
        index = torch.from_numpy(rows)
        yield Chunk(inputs[index[:, None], live[None, :]].contiguous(), live, labels[index], index)


def samples_of(held: Sequence[Chunk], wanted: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Put samples together again by their numbers, on the CPU: inputs (samples, inputs) and labels (samples,)."""
    X = torch.zeros(len(wanted), inputs, dtype=held[0].inputs.dtype)
    t = torch.zeros(len(wanted), dtype=torch.int64)
    order = torch.cat([chunk.numbers for chunk in held])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    start = 0
    for chunk in held:
        row = place[wanted] - start
        here = torch.nonzero((row >= 0) & (row < len(chunk.labels)))[:, 0]
        row = row[here].to(chunk.labels.device)
        X[here[:, None], chunk.live.cpu()] = chunk.inputs[row].cpu()
        t[here] = chunk.labels[row].cpu()
        start += len(chunk.labels)
    return X, t


def _groups(
    used: NDArray[np.bool_], classes: NDArray[np.int64], rows: NDArray[np.int64], most: int
) -> Iterator[NDArray[np.int64]]:
    """Halve rows until they are few enough: by class, then by the input that most nearly half of them use."""
    if len(rows) <= most:
        yield rows
        return
    if (present := np.unique(classes[rows])).size > 1:
        chosen = classes[rows] < present[present.size // 2]
    else:
        share = used[rows].mean(axis=0)
        chosen = used[rows, int(np.argmin(np.abs(share - 0.5)))]
        if not 0.1 < chosen.mean() < 0.9:  # nothing divides them: all use nearly the same inputs
            yield from (rows[start : start + most] for start in range(0, len(rows), most))
            return
    yield from _groups(used, classes, rows[chosen], most)
    yield from _groups(used, classes, rows[~chosen], most)
