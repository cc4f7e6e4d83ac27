"""A file from the network: it gets its name only after its checksum agreed, so nothing half-written stays."""

import os
import tempfile
from pathlib import Path

from jvp_ops.data._find import DATA_VARIABLE, cache_folder, describe_places
from jvp_ops.data._registry import Source, SourceFile
from jvp_ops.data._verify import verified_content
from jvp_ops.errors import DataError, MissingExtraError

OFFLINE_VARIABLE = "JVP_OPS_OFFLINE"
_TIMEOUT = 30.0  # seconds without a byte, not seconds in all


def fetch_file(source: Source, file: SourceFile) -> Path:
    """Download `file` from the first mirror that has it whole, and return its path in the cache.

    Raises DataError if the network is ruled out or every mirror failed, MissingExtraError without pooch.
    """
    remedy = f"place the .gz files of {source.title} in a folder and set {DATA_VARIABLE} to it"
    missing = f"{source.title}: {file.name} was not found in {describe_places(source, file)}"
    if not source.mirrors:
        raise DataError(f"{missing}; it comes with the package, so install jvp-ops again")
    if os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        raise DataError(f"{missing}; downloading is off since {OFFLINE_VARIABLE} is set: unset it, or {remedy}")
    _require_pooch(source, missing, remedy)
    folder = _writable(cache_folder(source))
    reasons = []
    for mirror in source.mirrors:
        url = f"{mirror}{file.name}.gz"
        try:
            return _download(url, folder, file)
        except (OSError, DataError) as error:  # every error of requests is an OSError
            reasons.append(f"{url}: {_short(error)}")
    raise DataError(f"{missing}, and no mirror gave it ({'; '.join(reasons)}): {remedy}")


def _require_pooch(source: Source, missing: str, remedy: str) -> None:
    """Say what to install where pooch is not there."""
    try:
        import pooch  # noqa: F401
    except ImportError:
        naming = MissingExtraError.naming("pooch", extra="data", purpose=f"{missing}; downloading {source.title}")
        raise MissingExtraError(f"{naming}, or {remedy}") from None


def _writable(folder: Path) -> Path:
    """Make the folder, and say what to do where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(folder, os.W_OK) else "permission denied"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise DataError(f"the cache folder {folder} cannot be written ({problem}): set XDG_CACHE_HOME to one that can")
    return folder


def _download(url: str, folder: Path, file: SourceFile) -> Path:
    """Download to a temporary name in the same folder, verify, and only then rename."""
    from pooch import HTTPDownloader

    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        # A server that decompresses on the way would change the bytes that the checksum is over.
        download = HTTPDownloader(timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"})
        download(url, str(part), None)
        verified_content(part, file, "what it sent")
        target = folder / f"{file.name}.gz"
        part.replace(target)
        return target
    finally:
        part.unlink(missing_ok=True)


def _short(error: Exception) -> str:
    """Cut an error down to its first line: the chains of the HTTP stack are long."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(cause, Exception):  # what urllib3 wraps, and requests wraps again
        error = cause
    words = (str(error) or type(error).__name__).splitlines()[0]
    return words if len(words) <= 300 else f"{words[:297]}..."
