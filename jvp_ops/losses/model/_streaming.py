"""How a data set is divided into chunks whose graphs fit the memory budget, and gone through."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jvp_ops._autodiff import AllocatedBytes, SavedBytes, add_columns, recording
from jvp_ops._memory import require
from jvp_ops.losses.model._batches import Batch, Batches

Builder = Callable[[Batch], Any]
# a graph of this size keeps torch's threads or the GPU busy
CHUNK_BYTES = {"cpu": 20 * 2**20, "cuda": 512 * 2**20}


class Plan:
    """How many samples make a chunk, and how many bytes its graph takes, for samples of each shape that is met.

    Parameters
    ----------
    build : callable
        Records the graph of a batch; that of few samples is measured.
    batches : Batches
        The data.
    known : sequence of Tensor
        Parameters and buffers, which are held anyway.
    size : int
        Of θ.
    budget : int
        Bytes in all: first for the chunk that is worked on, the rest for graphs to keep.

    Raises
    ------
    MemoryBudgetError
        From `chunk`: the graph of one sample does not fit.
    """

    def __init__(self, build: Builder, batches: Batches, known: Sequence[Tensor], size: int, budget: int) -> None:
        self._build, self._known, self.budget = build, known, budget
        self._largest_batch = max(batches.sizes)
        self._device = known[0].device
        self._vectors = 2 * size * known[0].element_size()
        self._costs: dict[Any, tuple[int, int]] = {}

    def bytes_of(self, batch: Batch) -> int:
        """Estimate the graph of a batch."""
        fixed, per_sample = self._cost(batch)
        return fixed + batch.samples * per_sample

    def chunk(self, batch: Batch) -> int:
        """Say how many samples of this shape make a chunk."""
        fixed, per_sample = self._cost(batch)
        remedy = "raise max_memory, or use a smaller model"
        require(self._work(fixed + per_sample), self.budget, "the graph of one sample", remedy)
        target = CHUNK_BYTES.get(self._device.type, CHUNK_BYTES["cuda"])
        fits = (self.budget // 2 - self._vectors) // 2
        most = (min(target, fits) - fixed) // max(per_sample, 1)
        return _evenly(max(batch.samples, self._largest_batch), max(1, most))

    def room(self, batch: Batch) -> int:
        """Say how many bytes of graphs may be kept beside the work on chunks of this shape."""
        fixed, per_sample = self._cost(batch)
        return self.budget - self._work(fixed + min(self.chunk(batch), batch.samples) * per_sample)

    def _work(self, chunk_bytes: int) -> int:
        """Count what work on a chunk holds: its graph, and as much again while it goes backward."""
        return 2 * chunk_bytes + self._vectors

    def _cost(self, batch: Batch) -> tuple[int, int]:
        """Measure what graphs save: bytes in any case, and bytes a sample."""
        shape = tuple(tensor.shape[1:] for tensor in batch.tensors)
        if shape not in self._costs:
            few, more = min(batch.samples, 2), min(batch.samples, 4)
            bytes_few, bytes_more = (_saved_bytes(self._build, batch.rows(0, n), self._known) for n in (few, more))
            per_sample = (bytes_more - bytes_few) // (more - few) if more > few else bytes_few // few
            self._costs[shape] = (max(bytes_few - few * per_sample, 0), per_sample)
        return self._costs[shape]


def _evenly(samples: int, most: int) -> int:
    """Make chunks of at most `most` samples and of equal size."""
    return -(-samples // -(-samples // most))


def _saved_bytes(build: Builder, batch: Batch, known: Sequence[Tensor]) -> int:
    try:
        with recording(), SavedBytes([*known, *batch.tensors]) as saved:
            build(batch)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # which torch.func, inside the model, does not allow
            raise
        with recording(), AllocatedBytes([*known, *batch.tensors]) as saved:
            build(batch)
    return saved.total


class Stream:
    """All chunks of a data set in order: the first ones as recorded graphs, the others recorded anew each time.

    One chunk at a time, over all of torch's threads: a user's code may change what threads share and change it back
    (``torch.func.functional_call`` does, and so does forward-mode differentiation), and so may what it runs on the way
    back. Chunks in threads of their own were measured to be no faster.
    """

    def __init__(self, batches: Batches, plan: Plan, build: Builder | None = None) -> None:
        self._batches, self._plan, self._build = batches, plan, build
        self.graphs: list[Any] = []
        self.complete = False

    @classmethod
    def linearize(cls, batches: Batches, build: Builder, plan: Plan) -> "Stream":
        """Go through the data once and record graphs until the budget is used up."""
        stream = cls(batches, plan, build)
        kept = 0
        for batch in batches:
            room = plan.room(batch)
            for piece in batch.pieces(plan.chunk(batch)):
                kept += plan.bytes_of(piece)
                if kept > room:
                    return stream
                stream.graphs.append(build(piece))
        stream.complete = True
        return stream

    def product(self, V: Tensor) -> Tensor:
        """Sum the products of all chunks with V, shape (n, m)."""

        def add_new(piece: Batch, total: Tensor) -> None:
            assert self._build is not None
            add_columns(self._build(piece), V, total)

        self._batches.check_unchanged()
        with torch.inference_mode(False), torch.no_grad():
            total = torch.zeros_like(V)
            for graph in self.graphs:
                add_columns(graph, V, total)
        return total if self.complete else self.add_all(add_new, total, skip=len(self.graphs))

    def add_all(self, add: Callable[[Batch, Tensor], None], total: Tensor, *, skip: int = 0) -> Tensor:
        """Add each chunk's share to `total`, a batch of the data at a time, but for the first `skip` chunks."""
        with torch.inference_mode(False), torch.no_grad():
            for batch in self._batches:
                pieces = list(batch.pieces(self._plan.chunk(batch)))
                for piece in pieces[skip:]:
                    add(piece, total)
                skip = max(0, skip - len(pieces))
        return total
