"""Where a file may lie on this machine: the user's folder first, then the cache."""

import os
import sys
from pathlib import Path

from jvp_ops.data._registry import SOURCES, Source, SourceFile
from jvp_ops.data._verify import verified_content
from jvp_ops.errors import DataError

DATA_VARIABLE = "JVP_OPS_DATA"
_PACKAGED = Path(__file__).parent / "files"


def find_file(source: Source, file: SourceFile) -> Path | None:
    """Return the first file of that name in the places of `source`, unverified, or None."""
    names = [f"{file.name}.gz"] if file.over == "gzip" else [f"{file.name}.gz", file.name]
    shared = user_folder() if source.mirrors else None
    for folder in places(source):
        for path in (folder / name for name in names):
            # The data sets use the same file names, so a folder that holds one must not pass for another.
            if path.is_file() and not (folder == shared and _is_of_another(path, source, file)):
                return path
    return None


def places(source: Source) -> list[Path]:
    """List the folders to look in, in order."""
    if not source.mirrors:
        return [_PACKAGED]
    folder = user_folder()
    return [*([] if folder is None else [folder / source.name, folder]), cache_folder(source)]


def describe_places(source: Source, file: SourceFile) -> str:
    """Say in words where `file` was looked for and, where a file was passed over, why."""
    words = [] if not source.mirrors or user_folder() else [f"{DATA_VARIABLE} (not set)"]
    for folder in places(source):
        unchecked = file.over == "gzip" and (folder / file.name).is_file()
        words.append(f"{folder} (only {file.name} without .gz, which cannot be checked)" if unchecked else str(folder))
    return ", ".join(words)


def user_folder() -> Path | None:
    """Return the folder that JVP_OPS_DATA names, None where it is not set."""
    value = os.environ.get(DATA_VARIABLE, "")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{DATA_VARIABLE} is {value!r}, which is not a folder: expected the one that holds the data "
            f"files; set it to that or unset it"
        )
    return folder


def cache_folder(source: Source) -> Path:
    """Return the folder in the user's cache where downloads of `source` are kept; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if root and Path(root).is_absolute():  # the XDG specification says to ignore a relative one
        base = Path(root)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "jvp_ops" / source.name


def is_cached(path: Path, source: Source) -> bool:
    """Say whether `path` lies in the cache, where a damaged file is ours to replace."""
    return path.parent == cache_folder(source)


def _is_of_another(path: Path, source: Source, file: SourceFile) -> bool:
    """Say whether `path` is, by its checksum, not `file` but its namesake in another data set."""
    if _is(path, file):
        return False
    others = [other for other in SOURCES.values() if other.name != source.name]
    return any(_is(path, namesake) for other in others for namesake in other.files if namesake.name == file.name)


def _is(path: Path, file: SourceFile) -> bool:
    """Say whether the checksum of `path` is that of `file`."""
    try:
        verified_content(path, file)
    except DataError:
        return False
    return True
