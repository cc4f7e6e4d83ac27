"""The IDX format of MNIST, read with distrust: nothing is allocated because a header says so."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jvp_ops.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_DIMENSIONS = 32  # numpy 1.26 has no more
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an IDX file, gzip-compressed or plain, into an array.

    Parameters
    ----------
    path : str or path-like
        The file; whether it is gzip-compressed is seen from its first bytes, not from its name.

    Returns
    -------
    numpy.ndarray
        Of the type and shape that the header names (uint8, int8, int16, int32, float32 or float64), in the
        machine's byte order.

    Raises
    ------
    DataError
        If the file is missing, empty, no IDX file, a damaged gzip file, or shorter or longer than its
        header promises. The header's promise is compared with what is there, never allocated.

    Notes
    -----
    The format: two zero bytes, a type byte, a byte for the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values, big-endian, the last dimension fastest.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from jvp_ops.data import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "three-labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    where = Path(path)
    try:
        with where.open("rb") as file, plain_stream(file, str(where)) as stream:
            return parse_idx(stream, str(where))
    except OSError as error:
        raise DataError(
            f"{where} cannot be read ({error.strerror or error}): expected an IDX file, give the path of one"
        ) from None


@contextmanager
def plain_stream(file: BinaryIO, where: str) -> Iterator[BinaryIO]:
    """Give the decompressed bytes of a gzip stream, and any other stream as it is."""
    start = file.read(2)
    file.seek(0)
    if start != _GZIP_MAGIC:
        yield file
        return
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream  # type: ignore[misc]  # GzipFile reads as a BinaryIO does
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{where} is a damaged gzip file ({error}): expected a whole one, replace it with a fresh copy"
        ) from None


def read_at_most(stream: BinaryIO, limit: int) -> tuple[bytearray, int]:
    """Read to the end, keep at most `limit` bytes, and return them with the number of bytes that there were.

    Reading to the end also makes gzip check its own sum.
    """
    kept, found = bytearray(), 0
    while chunk := stream.read(_CHUNK):
        kept += chunk[: max(0, limit - found)]
        found += len(chunk)
    return kept, found


def parse_idx(stream: BinaryIO, where: str) -> NDArray[Any]:
    """Parse the bytes of an IDX file; `where` names it in messages."""
    start = stream.read(4)
    if not start:
        raise DataError(f"{where} is empty (0 bytes): expected an IDX file, replace it with a fresh copy")
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not 1 <= start[3] <= _MOST_DIMENSIONS:
        types = ", ".join(f"{code:02x}" for code in _TYPES)
        raise DataError(
            f"{where} is not an IDX file: it starts with the bytes {start.hex(' ')}, expected 00 00, a "
            f"type (one of {types}) and a number of dimensions (01 to {_MOST_DIMENSIONS:02x}); "
            f"check what was saved there"
        )
    dtype, rank = np.dtype(_TYPES[start[2]]), start[3]
    header = stream.read(4 * rank)
    if len(header) < 4 * rank:
        raise DataError(
            f"{where} is truncated: found {4 + len(header)} bytes, expected a header of {4 + 4 * rank} "
            f"bytes for {rank} dimensions; replace it with a fresh copy"
        )
    shape = struct.unpack(f">{rank}I", header)
    expected = math.prod(shape) * dtype.itemsize
    body, found = read_at_most(stream, expected)
    if found != expected:
        fault = "truncated" if found < expected else "too long"
        raise DataError(
            f"{where} is {fault}: found {found} bytes after the header, expected {expected} (shape {shape} "
            f"of {dtype.itemsize}-byte values); replace it with a fresh copy"
        )
    try:
        array = np.frombuffer(body, dtype=dtype).reshape(shape)
    except ValueError as error:  # a zero among huge dimensions: no bytes, yet no shape of numpy's either
        raise DataError(f"{where} has the shape {shape}, which numpy cannot hold ({error}): replace it") from None
    return array.astype(dtype.newbyteorder("="), copy=False)
