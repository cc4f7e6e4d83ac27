"""Where the states of an orbit are kept: in memory, or in a folder on disk."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from math import ceil, isqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jvp_ops._checks import numpy_dtype
from jvp_ops._memory import format_bytes, require
from jvp_ops.errors import DataError, InputError
from jvp_ops.store import fingerprint

_STATES, _ABOUT = "states.npy", "orbit.json"


class States(Protocol):
    """Rows of states."""

    def write(self, row: int, state: Tensor) -> None:
        """Keep a state."""

    def read(self, row: int) -> Tensor:
        """Give a state that was kept, as a tensor of its own."""


class MemoryStates:
    """States in memory, on the device."""

    def __init__(self, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._states = torch.empty(rows, size, dtype=dtype, device=device)

    def write(self, row: int, state: Tensor) -> None:
        """Keep a state."""
        self._states[row] = state

    def read(self, row: int) -> Tensor:
        """Give a state that was kept."""
        return self._states[row].clone()


class DiskStates:
    """States in ``states.npy`` of a folder; ``orbit.json``, written last, says what they are and their sha256."""

    def __init__(self, folder: Path, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._device, self._folder = device, folder
        self._partial = folder / (_STATES + ".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise InputError(f"{folder} is not empty, and holds no whole orbit: choose another folder")
            self._map: Any = np.lib.format.open_memmap(
                self._partial, mode="w+", dtype=numpy_dtype(dtype), shape=(rows, size)
            )
        except OSError as error:
            raise _unwritable(folder, error) from None

    def write(self, row: int, state: Tensor) -> None:
        """Keep a state."""
        self._map[row] = state.cpu().numpy()

    def read(self, row: int) -> Tensor:
        """Give a state that was kept."""
        return torch.tensor(np.asarray(self._map[row]), device=self._device)  # a copy in torch's own memory

    def finish(self, steps: int, stride: int, identity: Mapping[str, Any]) -> None:
        """Give the whole file its name, then write what it is."""
        about = {"fingerprint": fingerprint(identity), "steps": steps, "stride": stride, "sha256": _sha256(self._map)}
        new = self._folder / (_ABOUT + ".new")
        try:
            self._map.flush()
            os.replace(self._partial, self._folder / _STATES)
            new.write_text(json.dumps({**about, "identity": dict(identity)}, indent=2) + "\n")
            os.replace(new, self._folder / _ABOUT)
        except OSError as error:
            raise _unwritable(self._folder, error) from None

    def discard(self) -> None:
        """Remove what is unfinished."""
        self._partial.unlink(missing_ok=True)

    @classmethod
    def find(cls, folder: Path, identity: Mapping[str, Any], device: torch.device) -> "tuple[DiskStates, int, int]":
        """Open the orbit that a folder holds; also give its steps and stride.

        Raises
        ------
        DataError
            It is of another map, start or length, or it is damaged.
        """
        try:
            about = json.loads((folder / _ABOUT).read_text())
            states = np.load(folder / _STATES, mmap_mode="r", allow_pickle=False)
            made_of, steps, stride = str(about["fingerprint"]), int(about["steps"]), int(about["stride"])
            damaged = _sha256(states) != about["sha256"]
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            damaged = True
        if damaged:
            raise DataError(f"the orbit in {folder} is damaged: remove it and begin again")
        if made_of != fingerprint(identity):
            raise DataError(
                f"{folder} holds another orbit (fingerprint {made_of[:12]}, this one's {fingerprint(identity)[:12]}): "
                "map, start, number of steps or version differ; choose another folder"
            )
        found = cls.__new__(cls)
        found._device, found._folder, found._map, found._partial = device, folder, states, folder / _STATES
        return found, steps, stride

    @staticmethod
    def holds_orbit(folder: Path) -> bool:
        """Say whether there is a finished orbit in a folder."""
        return (folder / _ABOUT).exists()


def stride_in_memory(steps: int, state_bytes: int, budget: int) -> int:
    """Find the smallest distance of snapshots for which they and one segment between them fit the budget."""
    states, fit = steps + 1, budget // max(state_bytes, 1)
    least = 2 * isqrt(states) + 2
    if fit >= states:
        return 1
    what = f"an orbit of {steps} steps of {format_bytes(state_bytes)}, kept every {isqrt(states) + 1} steps,"
    require(least * state_bytes, budget, what, "raise max_memory, or name a folder= on disk")
    return next(s for s in range(2, states + 1) if ceil(states / s) + s <= fit)


def stride_on_disk(steps: int, state_bytes: int, budget: int, folder: Path) -> int:
    """Find the smallest distance of snapshots for which they fit half of the free disk, and a segment the budget."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    room = shutil.disk_usage(there).free // 2
    stride = max(1, ceil((steps + 1) * state_bytes / max(room, 1)))
    if stride > 1:
        what = f"an orbit of {steps} steps on {folder}, kept every {stride} steps, recomputes segments, and one"
        require(stride * state_bytes, budget, what, "choose a larger disk or max_memory, or fewer steps")
    return stride


def _sha256(states: Any) -> str:
    digest = hashlib.sha256(f"{states.dtype.str} {states.shape}".encode())
    for row in states:
        digest.update(np.ascontiguousarray(row).data)
    return digest.hexdigest()


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write the orbit into {folder}: {error.strerror}; choose another place")
