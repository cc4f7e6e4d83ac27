"""A matrix in an ``.npy`` file, written by row blocks, that survives any interruption.

Until it is whole the file is called ``NAME.partial``; beside it ``NAME.manifest.json`` holds the fingerprint of what
is computed, and the sha256 of each block that is finished. A resumed file has the bytes of an uninterrupted one.
"""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jvp_ops._memory import format_bytes
from jvp_ops.errors import DataError, InputError, JvpOpsWarning, MemoryBudgetError
from jvp_ops.store._checkpoint import probes_agree

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

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
    circumstances : mapping
        What the last bits depend on (threads, device, versions); a partial file made under others is refused.
    probe : sequence of float
        A few numbers computed from the matrix, for what no fingerprint sees; a partial file with others is refused.
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
        circumstances: Mapping[str, Any],
        probe: Sequence[float],
        resume: bool,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.manifest = self.path.with_name(self.path.name + ".manifest.json")
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._blocks = [(int(start), int(stop)) for start, stop in blocks]
        self._head: dict[str, Any] = {
            "fingerprint": fingerprint,
            "circumstances": dict(circumstances),
            "shape": list(shape),
            "dtype": self.dtype.str,
            "blocks": [list(block) for block in self._blocks],
        }
        self._probe = [float(value) for value in probe]
        self._checksums: list[str | None] = [None] * len(blocks)
        header = io.BytesIO()
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(header, fields)
        self._header = header.getvalue()
        self._size = len(self._header) + shape[0] * shape[1] * self.dtype.itemsize
        check_output(self.path)
        if self.partial.exists() and not resume:
            raise InputError(f"{self.partial} is there from an interrupted run: resume it (resume=True), or remove it")
        if self.partial.exists():
            self._checksums = self._read_manifest()
        else:
            self._check_disk()
            self._create()
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
        try:
            self._handle.seek(self._offset(start))
            self._handle.write(block.data)
            self._handle.flush()
            self._checksums[number] = hashlib.sha256(block.data).hexdigest()
            self._write_manifest()
        except OSError as error:
            raise DataError(
                f"cannot write {self.partial}: {error.strerror}; it is kept: make room and resume"
            ) from None

    def columns(self, before: int, first: int, last: int) -> NDArray[Any]:
        """Read columns `first` to `last` of the rows before `before`."""
        part = np.empty((before, last - first), dtype=self.dtype)
        offset, length = self._offset(0) + first * self.dtype.itemsize, self.shape[1] * self.dtype.itemsize
        wanted = (last - first) * self.dtype.itemsize
        for row in range(before):
            content = os.pread(self._handle.fileno(), wanted, offset + row * length)
            if len(content) != wanted:
                raise DataError(f"{self.partial} became shorter while it was written: another program changed it")
            part[row] = np.frombuffer(content, dtype=self.dtype)
        return part

    def finish(self) -> Path:
        """Give the whole file its name."""
        if self.missing():
            raise DataError(f"{self.partial} is not whole: blocks {self.missing()} are missing")
        os.fsync(self._handle.fileno())
        if not self.partial.exists() or not os.path.samestat(os.fstat(self._handle.fileno()), self.partial.stat()):
            raise DataError(f"{self.partial} was removed or replaced while it was written: begin again")
        os.replace(self.partial, self.path)
        self.close()
        return self.path

    def close(self) -> None:
        """Close the file and keep it as it is."""
        self._handle.close()

    def discard(self) -> None:
        """Remove what was written, so that nothing goes on from it."""
        self.manifest.unlink(missing_ok=True)  # first: without it no file is resumed
        if self.partial.exists() and os.path.samestat(os.fstat(self._handle.fileno()), self.partial.stat()):
            self.partial.unlink()
        self.close()

    def _create(self) -> None:
        """Make the manifest, then the file with its header and room for all rows; it gets its name last."""
        new = self.partial.with_name(self.partial.name + ".new")
        try:
            self._write_manifest()
            with new.open("wb") as handle:
                handle.write(self._header)
                handle.flush()
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle.fileno(), 0, self._size)  # the disk cannot fill up on the way
                handle.truncate(self._size)
            os.link(new, self.partial)  # fails where another process was faster
        except OSError as error:
            raise InputError(f"cannot write {self.partial}: {error.strerror}; choose another place") from None
        finally:
            new.unlink(missing_ok=True)

    def _open(self) -> Any:
        try:
            handle = self.partial.open("r+b")
        except OSError as error:
            raise InputError(f"cannot write {self.partial}: {error.strerror}; choose another place") from None
        try:
            if fcntl is not None:
                fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise InputError(f"another process is writing {self.partial}: wait for it, or name another file") from None
        return handle

    def _offset(self, row: int) -> int:
        return len(self._header) + row * self.shape[1] * self.dtype.itemsize

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
                    f"{self.partial} was begun with another {name} ({head.get(name)}, now {value}): "
                    "resume with what it was begun with, or remove it"
                )
        if not probes_agree(manifest.get("probe", []), self._probe, rtol=1e-4, atol=1e-6):
            raise DataError(f"{self.partial} was begun with another matrix: a product with it has changed; remove it")
        return list(checksums)

    def _verify(self) -> None:
        """Read every finished block again, and do over what is damaged."""
        size = self.partial.stat().st_size
        self._handle.seek(0)
        if size != self._size or self._handle.read(len(self._header)) != self._header:
            raise DataError(f"{self.partial} is not of the size {self._size} with its header, but of {size}: remove it")
        for number, (start, stop) in enumerate(self._blocks):
            if self._checksums[number] is None:
                continue
            self._handle.seek(self._offset(start))
            content = self._handle.read((stop - start) * self.shape[1] * self.dtype.itemsize)
            if hashlib.sha256(content).hexdigest() != self._checksums[number]:
                message = f"rows {start} to {stop} of {self.partial} are damaged and are computed again"
                warnings.warn(message, JvpOpsWarning, stacklevel=5)
                self._checksums[number] = None

    def _write_manifest(self) -> None:
        new = self.manifest.with_name(self.manifest.name + ".new")
        new.write_text(json.dumps({"head": self._head, "probe": self._probe, "checksums": self._checksums}))
        os.replace(new, self.manifest)


def check_output(path: str | Path) -> None:
    """Refuse a place where no new file can be written, before any work is done for it."""
    try:
        target = Path(path)
        if target.is_dir():
            raise InputError(f"{target} is a folder: name a file in it")
        if target.exists():
            raise InputError(f"{target} exists already: choose another name or remove it")
        if not target.parent.is_dir():
            raise InputError(f"cannot write {target}: there is no folder {target.parent}")
        if not os.access(target.parent, os.W_OK):
            raise InputError(f"cannot write {target}: the folder {target.parent} is not writable")
        target.with_name(target.name + ".manifest.json.new").exists()  # too long a name is an error
    except (OSError, TypeError) as error:
        raise InputError(f"cannot write {path!r}: {error}; choose another place") from None
