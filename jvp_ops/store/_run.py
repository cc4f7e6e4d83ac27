"""Run folders: ``run.json`` for figures and provenance, ``arrays.npz`` for arrays, written whole or not at all."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from jvp_ops._version import __version__
from jvp_ops.errors import DataError, InputError
from jvp_ops.store._fingerprint import fingerprint

FORMAT = 2  # of a result's folder: 1 held figures and arrays, but not every field


def save_run(
    folder: str | Path, *, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], identity: Mapping[str, Any]
) -> Path:
    """Write a run folder; it appears under its name only when it is whole.

    Raises
    ------
    InputError
        The folder exists and is not empty, or cannot be written.
    """
    target = Path(folder)
    check_run_folder(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write the run folder {target}: {error.strerror}; choose another place") from None
    try:
        np.savez(partial / "arrays.npz", **arrays)  # type: ignore[arg-type]
        whole = {**record, **provenance(identity), "arrays_sha256": _sha256(partial / "arrays.npz")}
        whole["record_sha256"] = _sum_of(whole)
        text = json.dumps(whole, indent=2, allow_nan=False)
        (partial / "run.json").write_text(text + "\n")
        partial.chmod(0o755)
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"cannot write the run folder {target}: {error.strerror}; choose another place") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def read_record(folder: str | Path) -> dict[str, Any]:
    """Read ``run.json`` of a folder that holds a result in the present format.

    Raises
    ------
    DataError
        It is not there, damaged, of another format, or no result's.
    """
    file = Path(folder) / "run.json"
    try:
        record = json.loads(file.read_text())
    except OSError as error:
        raise DataError(f"{folder} is no run folder: {file.name} cannot be read ({error.strerror})") from None
    except ValueError:
        raise DataError(f"{folder} is damaged: {file.name} is no JSON") from None
    if not isinstance(record, dict) or "fingerprint" not in record:
        raise DataError(f"{folder} is no run folder: {file.name} has no fingerprint")
    found = record.get("format", 1)
    if found != FORMAT and ("format" in record or "command" not in record):
        versions = record.get("versions")
        version = versions.get("jvp_ops", "unknown") if isinstance(versions, dict) else "unknown"
        less = "does not hold all fields of the result" if found == 1 else "this version does not know"
        raise DataError(
            f"{folder} is in format {found} (jvp_ops {version}), which {less}; this version reads format {FORMAT}: "
            "compute and save it anew, or read its arrays.npz with numpy"
        )
    if not isinstance(record.get("result"), str) or not isinstance(record.get("fields"), dict):
        raise DataError(f"{folder} holds no result of one analysis: read its run.json and arrays.npz")
    if record.pop("record_sha256", None) != _sum_of(record):
        raise DataError(f"{folder} is damaged: {file.name} is not as it was written")
    return record


def read_run(folder: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the record of a result and its arrays, whose checksum must be the record's."""
    record, file = read_record(folder), Path(folder) / "arrays.npz"
    try:
        if _sha256(file) != record.get("arrays_sha256"):
            raise DataError(f"{folder} is damaged: arrays.npz is not the one that was written with run.json")
        with np.load(file, allow_pickle=False) as held:
            return record, {name: held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder} is damaged: arrays.npz cannot be read ({error})") from None


def _sum_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_run_folder(folder: str | Path) -> None:
    """Refuse a place that is taken."""
    target = Path(folder)
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise InputError(f"cannot write the run folder {target}: {error.strerror}; choose another place") from None
    if taken or not target.name:
        raise InputError(
            f"{str(folder)!r} exists already and is not an empty folder: choose another place or remove it"
        )


def prepare_run_folder(folder: str | Path) -> None:
    """Refuse a place that is taken or cannot be written, before any work is done for it."""
    check_run_folder(folder)
    parent = Path(folder).parent
    made = [place for place in (parent, *parent.parents) if not place.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".jvp_ops"):
            pass
    except OSError as error:
        raise InputError(f"cannot write the run folder {folder}: {error.strerror}; choose another place") from None
    finally:
        for place in made:  # it is made again when there is something to put in
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def provenance(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Say what was computed from what, where and when."""
    return {
        "identity": dict(identity),
        "fingerprint": fingerprint(identity),
        "versions": {
            "jvp_ops": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "threads": torch.get_num_threads(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
