"""How a data set is divided into chunks whose graphs fit the memory budget, and gone through."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import SavedBytes, add_columns, recording
from jvp_ops._memory import require
from jvp_ops._parallel import accumulate, worker_count
from jvp_ops.losses._batches import Batch, Batches

Builder = Callable[[Batch], Any]
# a graph of this size keeps the threads or the GPU busy
CHUNK_BYTES = {"cpu": 20 * 2**20, "cuda": 512 * 2**20}


@dataclass(frozen=True)
class Plan:
    """How many samples make a chunk, and how many bytes may be kept in graphs at `chunk_bytes` for each."""

    chunk: int
    chunk_bytes: int
    keep_bytes: int


def plan_chunks(build: Builder, batches: Batches, known: Sequence[Tensor], size: int, budget: int) -> Plan:
    """Measure what graphs of few samples save, and divide the budget: work of the threads first, then graphs to keep.

    Raises
    ------
    MemoryBudgetError
        The graph of one sample in each thread does not fit.
    """
    batch = next(iter(batches))
    device = known[0].device
    few = min(batch.samples, 2)
    more = min(batch.samples, 4)
    bytes_few, bytes_more = (_saved_bytes(build, batch.rows(0, count), known) for count in (few, more))
    per_sample = (bytes_more - bytes_few) // (more - few) if more > few else bytes_few
    fixed = max(bytes_few - few * per_sample, 0)
    workers = worker_count(device)
    vectors = 2 * workers * size * known[0].element_size()

    def work(samples: int) -> int:
        """Count what the threads hold: a chunk's graph each, and as much again while it goes backward."""
        return 2 * workers * (fixed + samples * per_sample) + vectors

    remedy = "raise max_memory, or use a smaller model"
    require(work(1), budget, "the graph of one sample in each thread", remedy)
    target = (CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) - fixed) // max(per_sample, 1)
    fits = ((budget // 2 - vectors) // (2 * workers) - fixed) // max(per_sample, 1)
    chunk = _evenly(max(batches.sizes), max(1, min(target, fits)), workers)  # no chunk spans two batches
    return Plan(chunk, fixed + chunk * per_sample, budget - work(chunk))


def _evenly(samples: int, most: int, workers: int) -> int:
    """Make chunks of at most `most` samples and of equal size, as many for each worker."""
    count = -(-samples // most)
    return -(-samples // (-(-count // workers) * workers))


def _saved_bytes(build: Builder, batch: Batch, known: Sequence[Tensor]) -> int:
    with recording(), SavedBytes([*known, *batch.tensors]) as saved:
        build(batch)
    return saved.total


class Stream:
    """All chunks of a data set in order: the first ones as recorded graphs, the others recorded anew each time."""

    def __init__(self, batches: Batches, chunk: int, build: Builder | None = None) -> None:
        self._batches, self._chunk, self._build = batches, chunk, build
        self.graphs: list[Any] = []
        self.complete = False

    @classmethod
    def linearize(cls, batches: Batches, build: Builder, plan: Plan) -> "Stream":
        """Go through the data once and record graphs until the budget is used up."""
        stream = cls(batches, plan.chunk, build)
        room = plan.keep_bytes // max(plan.chunk_bytes, 1)
        for piece in stream._pieces():
            if len(stream.graphs) >= room:
                return stream
            stream.graphs.append(build(piece))
        stream.complete = True
        return stream

    def product(self, V: Tensor) -> Tensor:
        """Sum the products of all chunks with V, shape (n, m)."""

        def add_kept(graph: Any, total: Tensor) -> None:
            add_columns(graph, V, total)

        def add_new(piece: Batch, total: Tensor) -> None:
            assert self._build is not None
            add_columns(self._build(piece), V, total)

        self._batches.check_unchanged()
        total = accumulate(add_kept, self.graphs, torch.zeros_like(V))
        return total if self.complete else self.add_all(add_new, total, skip=len(self.graphs))

    def add_all(self, add: Callable[[Batch, Tensor], None], total: Tensor, *, skip: int = 0) -> Tensor:
        """Add each chunk's share to `total`, a batch of the data at a time, but for the first `skip` chunks."""
        for batch in self._batches:
            pieces = list(batch.pieces(self._chunk))
            total = accumulate(add, pieces[skip:], total)
            skip = max(0, skip - len(pieces))
        return total

    def _pieces(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield from batch.pieces(self._chunk)
