"""One file against what is known of it: bytes leave here only after their checksum agreed."""

import hashlib
import io
from pathlib import Path

from jvp_ops.data._idx import plain_stream, read_at_most
from jvp_ops.data._registry import SourceFile
from jvp_ops.errors import DataError


def verified_content(path: Path, file: SourceFile, where: str | None = None) -> bytearray:
    """Return the decompressed bytes of `path`, checked to be those of `file`; DataError if they are not.

    The sum is checked on the very bytes that are returned, so a change in between cannot slip through.
    `where` names the bytes in messages; without it, `path` does.
    """
    where = where or str(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror or error}): check its permissions") from None
    if not raw:
        raise DataError(f"{where} is empty (0 bytes), expected {file.name}: replace it with a fresh copy")
    if file.over == "gzip":
        _compare(where, file, raw, "the published .gz file")
    with plain_stream(io.BytesIO(raw), where) as stream:
        content, found = read_at_most(stream, file.size)
    if found != file.size:
        fault = "truncated" if found < file.size else "too long"
        raise DataError(
            f"{where} is {fault}: found {found} decompressed bytes, expected {file.size}; replace it with a fresh copy"
        )
    if file.over == "content":
        _compare(where, file, content, "the decompressed bytes")
    return content


def _compare(where: str, file: SourceFile, data: bytes | bytearray, what: str) -> None:
    """Compare the sha256 of `data` with the known one."""
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{where} is not {file.name} as published: found sha256 {found}, expected {file.sha256} over "
            f"{what}; replace it with a fresh copy"
        )
