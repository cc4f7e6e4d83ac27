"""Run folders: ``run.json`` for figures and provenance, ``arrays.npz`` for arrays, written whole or not at all."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from jvp_ops._version import __version__
from jvp_ops.errors import InputError
from jvp_ops.store._fingerprint import fingerprint


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
        text = json.dumps({**record, **provenance(identity)}, indent=2, allow_nan=False)
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
