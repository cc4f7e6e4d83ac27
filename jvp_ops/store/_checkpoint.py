"""Checkpoints: the arrays and figures of a computation on its way, in one file that is whole or not there.

The file is an ``.npz`` without pickle. Beside the arrays it holds a header: the fingerprint of what is computed, a
record of plain figures, and a sha256 over all of it.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jvp_ops.errors import DataError, InputError
from jvp_ops.store._fingerprint import fingerprint

FORMAT = 2
_HEADER = "header"
_PREFIX = "array."


def prepare_checkpoint(path: str | Path | None, *, resume: bool) -> bool:
    """Check a ``checkpoint=`` and ``resume=`` before any work is done, and say whether there is one to load.

    Raises
    ------
    InputError
        `resume` without a path; a file that is there without `resume`; a place that cannot be written.
    """
    if not isinstance(resume, bool):
        raise InputError(f"resume must be True or False, not {resume!r}")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise InputError(f"checkpoint must be the path of a file, not {path!r}")
    if path is None:
        if resume:
            raise InputError("to resume is to go on from a checkpoint, but no checkpoint was named")
        return False
    target = Path(path)
    try:
        if target.is_dir():
            raise InputError(f"{target} is a folder: name a file in it for the checkpoint")
        if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
            raise InputError(f"cannot write the checkpoint {target}: {target.parent} is not a writable folder")
        there = target.exists()
    except OSError as error:
        raise _unwritable(target, error) from None
    if there and not resume:
        raise InputError(f"{target} is there from an earlier run: resume it, or remove it")
    return there


def save_checkpoint(
    path: str | Path,
    arrays: Mapping[str, NDArray[Any]],
    record: Mapping[str, Any],
    identity: Mapping[str, Any],
    *,
    new: bool = False,
) -> Path:
    """Write a checkpoint, over an older one; a reader sees the old or the new one, never a part.

    Parameters
    ----------
    path : str or Path
        The file; its folder must exist.
    arrays : mapping of str to ndarray
        Any plain dtypes; kept bit for bit.
    record : mapping
        JSON-able figures, the state of a random generator for one.
    identity : mapping
        JSON-able: all that the computation depends on. `load_checkpoint` refuses a file with another one.
    new : bool
        Refuse to write over a file: another run made it since this one began.

    Raises
    ------
    InputError
        The file cannot be written, is there where it must not be, or an array holds Python objects.
    """
    target = Path(path)
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    if objects := [name for name, array in plain.items() if array.dtype.hasobject]:
        raise InputError(f"a checkpoint holds plain numbers, but {', '.join(objects)} holds Python objects")
    text = json.dumps(dict(record), sort_keys=True)
    header = {"format": FORMAT, "fingerprint": fingerprint(identity), "identity": dict(identity), "record": text}
    header["sha256"] = _sha256(plain, text)
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    try:
        _write_whole(target, {_HEADER: encoded, **{_PREFIX + name: array for name, array in plain.items()}}, new=new)
    except FileExistsError:
        raise InputError(
            f"cannot write the checkpoint {target}: another run, begun meanwhile, made it; name one file for each run"
        ) from None
    except OSError as error:
        raise _unwritable(target, error) from None
    return target


def load_checkpoint(path: str | Path, identity: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays and the record of a checkpoint back.

    Raises
    ------
    DataError
        There is no such file; it is cut or damaged; or it is a checkpoint of another computation, by its identity.
    """
    target = Path(path)
    try:
        with target.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            header = json.loads(bytes(file[_HEADER]))
            arrays = {name.removeprefix(_PREFIX): file[name] for name in file.files if name != _HEADER}
        form = header.get("format", 1)
        text, checksum, made_of = header["record"], header["sha256"], header["fingerprint"]
        saved = _flat(header["identity"])
        if _sha256(arrays, text) != checksum:
            raise ValueError("the checksum differs")
        record = dict(json.loads(text))
    except FileNotFoundError:
        raise DataError(f"there is no checkpoint {target}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"the checkpoint {target} is damaged ({error}): remove it and begin again") from None
    if form != FORMAT:
        raise DataError(
            f"the checkpoint {target} is of format {form}, of another version of jvp_ops; this one reads format "
            f"{FORMAT}, which holds the probe of every run: begin again, or go on with that version"
        )
    if made_of != fingerprint(identity):
        asked = _flat(json.loads(json.dumps(dict(identity))))
        other = sorted(name for name in {*saved, *asked} if saved.get(name) != asked.get(name))
        raise DataError(
            f"the checkpoint {target} is of another run (fingerprint {made_of[:12]}, this one's "
            f"{fingerprint(identity)[:12]}): {_list(other) or 'the version of jvp_ops'} differs; resume with what it "
            "was begun with, or remove it"
        )
    return arrays, record


def probes_agree(found: Sequence[float], expected: Sequence[float], *, rtol: float, atol: float) -> bool:
    """Say whether a few numbers, computed again, are the same but for rounding; `atol` is relative to the largest."""
    scale = max(map(abs, expected), default=0.0)
    return len(found) == len(expected) and bool(np.allclose(found, expected, rtol=rtol, atol=atol * scale))


def _flat(identity: Any, name: str = "") -> dict[str, Any]:
    """Lay nested dicts out, their keys joined by dots."""
    if not isinstance(identity, dict):
        return {name: identity}
    found: dict[str, Any] = {}
    for key, value in identity.items():
        found |= _flat(value, f"{name}.{key}" if name else str(key))
    return found


def _list(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _sha256(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write_whole(target: Path, arrays: Mapping[str, NDArray[Any]], *, new: bool) -> None:
    """Write under a temporary name, array by array, make sure that it is on the disk, then rename."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:  # not np.savez, whose keywords cannot have every name
                for key, array in arrays.items():
                    with archive.open(key + ".npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if new:
            os.link(name, target)  # which fails where there is one
            os.unlink(name)
        else:
            os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(target.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(f"cannot write the checkpoint {target}: {error.strerror or error}; choose another place")
