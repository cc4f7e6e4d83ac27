"""A matrix in an ``.npy`` file, written by row blocks, that survives any interruption.

Until it is whole the file is called ``NAME.partial``; beside it ``NAME.manifest.json`` holds the fingerprint of what
is computed, and the sha256 of each block that is finished. A resumed file has the bytes of an uninterrupted one.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jvp_ops._memory import format_bytes
from jvp_ops.errors import DataError, InputError, MemoryBudgetError

Blocks = Sequence[tuple[int, int]]


class MatrixFile:
    """A file that is being written.

    Parameters
    ----------
    path : str or Path
        What it is called when it is whole.
    shape, dtype
        Of the matrix.
    blocks : sequence of (start, stop)
        The row blocks that it is written in.
    fingerprint : str
        Of what is computed; a partial file of another is refused.
    resume : bool
        Go on with a partial file where there is one.

    Raises
    ------
    InputError
        The path is taken, a folder, or not writable; a partial file is there and `resume` is not asked for.
    DataError
        The partial file is of another computation, or its manifest is damaged.
    MemoryBudgetError
        The disk has too little room; the message gives both sizes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shape: tuple[int, int],
        dtype: "np.dtype[Any]",
        blocks: Blocks,
        fingerprint: str,
        resume: bool,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.manifest = self.path.with_name(self.path.name + ".manifest.json")
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._blocks = [(int(start), int(stop)) for start, stop in blocks]
        self._head: dict[str, Any] = {
            "fingerprint": fingerprint,
            "shape": list(shape),
            "dtype": self.dtype.str,
            "blocks": [list(block) for block in self._blocks],
        }
        self._checksums: list[str | None] = [None] * len(blocks)
        check_output(self.path)
        if self.partial.exists() and not resume:
            raise InputError(f"{self.partial} is there from an interrupted run: resume it (resume=True), or remove it")
        if self.partial.exists():
            self._checksums = self._read_manifest()
        else:
            self._check_disk()
        self._handle = self._open()
        try:
            self._verify()
        except BaseException:
            self._handle.close()
            raise

    def missing(self) -> list[tuple[int, int]]:
        """List the blocks that are still to be written."""
        return [block for block, checksum in zip(self._blocks, self._checksums, strict=True) if checksum is None]

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """Write one block, then note its checksum; a block without one does not count."""
        block = np.ascontiguousarray(rows, dtype=self.dtype)
        number = self._blocks.index((start, start + len(block)))
        self._handle.seek(self._offset(start))
        self._handle.write(block.data)
        self._handle.flush()
        self._checksums[number] = hashlib.sha256(block.data).hexdigest()
        self._write_manifest()

    def columns(self, before: int, first: int, last: int) -> NDArray[Any]:
        """Read columns `first` to `last` of the rows before `before`."""
        part = np.empty((before, last - first), dtype=self.dtype)
        offset, length = self._offset(0) + first * self.dtype.itemsize, self.shape[1] * self.dtype.itemsize
        for row in range(before):
            os.preadv(self._handle.fileno(), [part[row].data], offset + row * length)
        return part

    def finish(self) -> Path:
        """Give the whole file its name."""
        if self.missing():
            raise DataError(f"{self.partial} is not whole: blocks {self.missing()} are missing")
        os.fsync(self._handle.fileno())
        self.close()
        os.replace(self.partial, self.path)
        return self.path

    def close(self) -> None:
        """Close the file and keep it as it is."""
        self._handle.close()

    def _open(self) -> Any:
        try:
            if not self.partial.exists():
                with self.partial.open("wb") as new:
                    header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
                    np.lib.format.write_array_header_1_0(new, header)
                    new.truncate(new.tell() + self.shape[0] * self.shape[1] * self.dtype.itemsize)
                self._write_manifest()
            return self.partial.open("r+b")
        except OSError as error:
            raise InputError(f"cannot write {self.partial}: {error.strerror}; choose another place") from None

    def _offset(self, row: int) -> int:
        total = self.partial.stat().st_size
        return total - (self.shape[0] - row) * self.shape[1] * self.dtype.itemsize

    def _check_disk(self) -> None:
        needed = self.shape[0] * self.shape[1] * self.dtype.itemsize
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise MemoryBudgetError(
                f"a {self.shape[0]} × {self.shape[1]} matrix of {self.dtype} takes {format_bytes(needed)} on disk, but "
                f"{self.path.parent} has {format_bytes(free)} free: choose another place, one block, or float32"
            )

    def _read_manifest(self) -> list[str | None]:
        try:
            manifest = json.loads(self.manifest.read_text())
            head, checksums = manifest["head"], manifest["checksums"]
            if len(checksums) != len(head["blocks"]):
                raise ValueError("lengths differ")
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.manifest} is missing or damaged, so that {self.partial} cannot be resumed: remove both"
            ) from None
        for name, value in self._head.items():
            if head.get(name) != value:
                raise DataError(
                    f"{self.partial} was begun with another {name} (state, data, hyper-parameters or options differ): "
                    "resume with the same ones, or remove it"
                )
        return list(checksums)

    def _verify(self) -> None:
        """Read every finished block again, and do over what is damaged."""
        size, least = self.partial.stat().st_size, self.shape[0] * self.shape[1] * self.dtype.itemsize
        if not least < size <= least + 4096:
            raise DataError(f"{self.partial} is not of the size {least} bytes and a header, but {size}: remove it")
        for number, (start, stop) in enumerate(self._blocks):
            if self._checksums[number] is None:
                continue
            self._handle.seek(self._offset(start))
            content = self._handle.read((stop - start) * self.shape[1] * self.dtype.itemsize)
            if hashlib.sha256(content).hexdigest() != self._checksums[number]:
                message = f"rows {start} to {stop} of {self.partial} are damaged and are computed again"
                warnings.warn(message, RuntimeWarning, stacklevel=5)
                self._checksums[number] = None

    def _write_manifest(self) -> None:
        new = self.manifest.with_name(self.manifest.name + ".new")
        new.write_text(json.dumps({"head": self._head, "checksums": self._checksums}))
        os.replace(new, self.manifest)


def check_output(path: str | Path) -> None:
    """Refuse a place where no new file can be written, before any work is done for it."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder: name a file in it")
    if target.exists():
        raise InputError(f"{target} exists already: choose another name or remove it")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: the folder {target.parent} is not writable")
