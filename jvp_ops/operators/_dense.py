"""Dense assembly by row blocks, into memory or into a file.

A symmetric matrix with panels (see `Panels`) is built from its upper triangle: the rest of a row is read back from
the rows above it. Any other matrix is built from wide products with unit vectors, from the side with fewer of them;
one that is declared symmetric is compared with its transpose before it is made exactly so.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jvp_ops._checks import check_finite, numpy_dtype
from jvp_ops._memory import require, resolve_budget
from jvp_ops._sitting import Sitting
from jvp_ops.linear import LinearMap, Panels, no_adjoint
from jvp_ops.operators._mirror import AsymmetryError, Mirror
from jvp_ops.store import MatrixFile

WIDEST = 64  # unit vectors in one product
BLOCK_BYTES = 128 * 2**20  # of one row block
MOST_HELD = 2**30  # bytes of images of unit vectors held at once
RowBlocks = list[tuple[int, int]]
Fill = Callable[[int, int, Tensor], None]


class Target(Protocol):
    """Where row blocks go, and come back from."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Give a place to put a row block in."""

    def write(self, start: int, rows: Tensor) -> None:
        """Keep what was put there."""

    def columns(self, before: int, first: int, last: int) -> Tensor:
        """Return columns `first` to `last` of the rows before `before`."""


class _InMemory:
    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def rows(self, start: int, stop: int) -> Tensor:
        return self._matrix[start:stop]

    def write(self, start: int, rows: Tensor) -> None:
        """Do nothing: it is there already."""

    def columns(self, before: int, first: int, last: int) -> Tensor:
        return self._matrix[:before, first:last]


class _InFile:
    def __init__(self, file: MatrixFile, like: Tensor) -> None:
        self._file, self._like = file, like

    def rows(self, start: int, stop: int) -> Tensor:
        return self._like.new_empty(stop - start, self._file.shape[1])

    def write(self, start: int, rows: Tensor) -> None:
        self._file.write(start, rows.cpu().numpy())

    def columns(self, before: int, first: int, last: int) -> Tensor:
        return torch.from_numpy(self._file.columns(before, first, last)).to(self._like)


def assemble(linear: LinearMap, *, dtype: torch.dtype, max_memory: int | str | None, progress: bool) -> Tensor:
    """Assemble the matrix in memory, on the operator's device."""
    rows, columns = linear.rows.size, linear.columns.size
    item = dtype.itemsize
    _check_memory(linear, rows * columns * item, max_memory, f"a dense {rows} × {columns} matrix")
    matrix = torch.empty(rows, columns, dtype=dtype, device=linear.device)
    _write(linear, _InMemory(matrix), row_blocks(linear), progress=progress)
    return matrix


def assemble_into(
    linear: LinearMap,
    path: str | Path,
    *,
    dtype: torch.dtype,
    fingerprint: str,
    probe: Sequence[float],
    max_memory: int | str | None,
    progress: bool,
    resume: bool,
) -> "np.memmap[tuple[int, int], np.dtype[np.floating]]":
    """Assemble the matrix into an ``.npy`` file and return it as a read-only memory map."""
    shape = (linear.rows.size, linear.columns.size)
    _check_memory(linear, 0, max_memory, f"a row block of a {shape[0]} × {shape[1]} matrix")
    file = MatrixFile(
        path,
        shape=shape,
        dtype=numpy_dtype(dtype),
        blocks=row_blocks(linear),
        fingerprint=fingerprint,
        circumstances={
            "threads": torch.get_num_threads(),
            "device": linear.device.type,
            "torch": torch.__version__,
        },
        probe=probe,
        resume=resume,
    )
    try:
        like = torch.empty(0, dtype=dtype, device=linear.device)
        _write(linear, _InFile(file, like), file.missing(), progress=progress)
        whole = file.finish()
    except AsymmetryError:
        file.discard()  # what was written before it was found out is not to be resumed
        raise
    finally:
        file.close()
    return np.load(whole, mmap_mode="r")  # type: ignore[no-any-return]


def row_blocks(linear: LinearMap) -> RowBlocks:
    """Divide the rows into blocks of bounded size; where there are panels, at their boundaries."""
    rows, item = linear.rows.size, linear.dtype.itemsize
    most = max(1, BLOCK_BYTES // max(linear.columns.size * item, 1))
    panels = linear.panels
    if panels is None:
        return _divide(0, rows, most)
    return _divide(0, panels.size, max(most // panels.unit, 1) * panels.unit) + _divide(panels.size, rows, most)


def _divide(start: int, stop: int, most: int) -> RowBlocks:
    return [(first, min(first + most, stop)) for first in range(start, stop, most)]


def _check_memory(linear: LinearMap, matrix: int, max_memory: int | str | None, what: str) -> None:
    """Refuse before anything is taken: the matrix, a row block or two, and what panels or products work on."""
    item = linear.dtype.itemsize
    rows, columns = linear.rows.size, linear.columns.size
    working = min(WIDEST, rows) * (rows + columns) * item + 2 * min(BLOCK_BYTES, rows * columns * item)
    if linear.panels is None and _by_columns(linear):
        working += rows * columns * item
    if linear.panels is not None:
        working += linear.panels.needed + rows * (rows - linear.panels.size) * item
    budget = resolve_budget(max_memory, linear.device)
    remedy = "take one block, raise max_memory, write it to a file (out=), or use jvp_ops.eigenpairs"
    require(matrix + working, budget, f"{what} with what it takes to assemble it", remedy)


def _write(linear: LinearMap, target: Target, blocks: RowBlocks, *, progress: bool) -> None:
    if not blocks:
        return
    panels = linear.panels
    work = [(stop - start) * (linear.columns.size - (start if panels else 0)) for start, stop in blocks]
    with Sitting("dense", unit="entry", total=sum(work), progress=progress) as sitting:
        if panels is not None:
            fill = _symmetric_rows(linear, panels, target)
        elif _by_columns(linear):
            fill = _column_rows(linear)
        else:
            fill = _product_rows(linear, target)
        for (start, stop), amount in zip(blocks, work, strict=True):
            block = target.rows(start, stop)
            fill(start, stop, block)
            check_finite(block, f"the block of rows {start} to {stop}")
            target.write(start, block)
            sitting.advance(amount)
            sitting.check()


def _by_columns(linear: LinearMap) -> bool:
    """Say whether unit vectors for the columns serve: no others do, or they are fewer, and their images fit."""
    rows, columns = linear.rows.size, linear.columns.size
    if linear.adjoint is no_adjoint:
        return True
    return columns < rows and rows * columns * 8 <= MOST_HELD


def _column_rows(linear: LinearMap) -> Fill:
    rows, columns = linear.rows.size, linear.columns.size
    images = torch.empty(rows, columns, dtype=linear.dtype, device=linear.device)
    for first, directions in unit_vectors(linear, columns, 0, columns):
        images[:, first : first + directions.shape[1]] = linear.apply(directions)

    def fill(start: int, stop: int, block: Tensor) -> None:
        block.copy_(images[start:stop])

    return fill


def _product_rows(linear: LinearMap, target: Target) -> Fill:
    """Multiply unit vectors for the rows; a symmetric matrix is made exactly so from what stands above."""
    mirror = Mirror(linear.dtype)

    def fill(start: int, stop: int, block: Tensor) -> None:
        for first, directions in unit_vectors(linear, linear.rows.size, start, stop):
            block[first - start : first - start + directions.shape[1]] = linear.adjoint(directions).mT
        if linear.symmetric:
            check_finite(block, f"the block of rows {start} to {stop}")
            above, corner = target.columns(start, start, stop).mT, block[:, start:stop]
            mirror.see(block)
            mirror.compare(block[:, :start], above, start)
            mirror.compare(corner, corner.mT, start, start)
            block[:, :start] = above
            block[:, start:stop] = (corner + corner.mT) / 2

    return fill


def _symmetric_rows(linear: LinearMap, panels: Panels, target: Target) -> Fill:
    """Join what stands above (read back, transposed), the panel, and the few columns beside the panels."""
    size, n = panels.size, linear.rows.size
    panel = panels.prepare()
    beside = torch.empty(n, n - size, dtype=linear.dtype, device=linear.device)
    for first, directions in unit_vectors(linear, n, size, n):
        beside[:, first - size : first - size + directions.shape[1]] = linear.apply(directions)
    corner, mirror = beside[size:], Mirror(linear.dtype)
    mirror.see(beside)
    mirror.compare(corner, corner.mT, size, size)
    beside[size:] = (corner + corner.mT) / 2  # as exactly symmetric as the rest

    def fill(start: int, stop: int, block: Tensor) -> None:
        if start >= size:
            block.copy_(beside[:, start - size : stop - size].mT)
            return
        block[:, :start] = target.columns(start, start, stop).mT
        block[:, start:size] = panel(start, stop)
        block[:, size:] = beside[start:stop]

    return fill


def unit_vectors(linear: LinearMap, size: int, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """Go through the unit vectors `start` to `stop` of length `size`, a few at a time, as columns."""
    for first in range(start, stop, WIDEST):
        count = min(WIDEST, stop - first)
        directions = torch.zeros(size, count, dtype=linear.dtype, device=linear.device)
        directions[first : first + count].fill_diagonal_(1)
        yield first, directions
