"""What all results share: table, notebook view, saving and loading of every field, and how a field is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._sitting import Stop
from jvp_ops.errors import DataError
from jvp_ops.parameters import Parameters
from jvp_ops.store import FORMAT, read_run, save_run


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result:
    """A frozen record of what an analysis found, with a table, a picture, and a folder that holds all of it.

    Attributes
    ----------
    seconds : float
        Wall-clock time, of all sittings.
    stopped : Stop
        Why it ended.
    notes : tuple of str
        What a reader should know.
    provenance : dict
        What it was made of, for the fingerprint.
    """

    inner: ClassVar[tuple[type, ...]] = ()  # small records that fields may hold
    figures: ClassVar[tuple[str, ...]]  # what `record` gives, beside what all results have

    seconds: float
    stopped: Stop
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        raise NotImplementedError

    def rows(self) -> list[list[str]]:
        """Write the table as text, under `header`."""
        raise NotImplementedError

    def summary(self) -> str:
        """Say in one line what was found."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """Give the figures, all but vectors and states, as a JSON-able dict; −inf as text, NaN as None."""
        return {name: plain(getattr(self, name)) for name in (*self.figures, "seconds", "stopped", "notes")}

    def __repr__(self) -> str:
        cells = [self.header(), *self.rows()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.summary(), *lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows())
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"<p>{self.summary()}</p><table>{line(self.header(), 'th')}{body}</table>{notes}"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give all arrays, vectors included, as numpy."""
        held = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: value.cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in held.items()
            if isinstance(value, Tensor | np.ndarray)
        }

    def saved(self) -> dict[str, Any]:
        """Give the record, with all that `jvp_ops.load` makes the result of again beside the arrays."""
        held = {entry.name: _written(getattr(self, entry.name)) for entry in fields(self)}
        return {**self.record(), "format": FORMAT, "result": type(self).__name__, "fields": held}

    def save(self, folder: str | Path) -> Path:
        """Write ``run.json`` (figures, fingerprint, versions) and ``arrays.npz`` into a new folder.

        `jvp_ops.load` gives back a result that is equal to this one; its tensors are on the CPU.

        Raises
        ------
        InputError
            The folder exists and is not empty, or cannot be written.
        """
        return save_run(folder, record=self.saved(), arrays=self.arrays(), identity=self.provenance)

    @classmethod
    def read(cls, folder: str | Path) -> "Result":
        """Make the result of a folder again; see `jvp_ops.load`."""
        record, arrays = read_run(folder)
        try:
            held = {name: cls._read(name, value, arrays) for name, value in record["fields"].items()}
            return cls(**held)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{folder} is damaged: its fields make no {cls.__name__} ({error})") from None

    @classmethod
    def _read(cls, name: str, value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """Read what `_written` wrote."""
        if isinstance(value, list):
            return [cls._read(name, entry, arrays) for entry in value]
        if not isinstance(value, dict):
            return value
        ((kind, held),) = value.items()
        if kind == "array":
            return torch.from_numpy(arrays[name]) if held == "tensor" else arrays[name]
        if kind == "tuple":
            return tuple(cls._read(name, entry, arrays) for entry in held)
        if kind == "dict":
            return {key: cls._read(name, entry, arrays) for key, entry in held}
        if kind == "float":
            return float(held)
        if kind == "complex":
            return complex(*map(float, held))
        if kind == "stop":
            return Stop(held)
        if kind == "parameters":
            return Parameters.of({entry: tuple(shape) for entry, shape in held})
        made = {inner.__name__: inner for inner in cls.inner}[kind]
        return made(**{key: cls._read(name, entry, arrays) for key, entry in held.items()})


def plain(value: Any) -> Any:
    """Turn figures into JSON-able ones: NaN becomes None, infinities text, a complex number [real, imaginary]."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return None if value != value else str(float(value))
    return value


def _written(value: Any) -> Any:
    """Write a field as JSON that says what it was; arrays stand in ``arrays.npz`` under the field's name."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Stop):
        return {"stop": str(value)}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return {"array": "tensor" if isinstance(value, Tensor) else "ndarray"}
    if isinstance(value, list):
        return [_written(entry) for entry in value]
    if isinstance(value, tuple):
        return {"tuple": [_written(entry) for entry in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _written(entry)] for key, entry in value.items()]}
    if isinstance(value, float):
        return {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [str(value.real), str(value.imag)]}
    if isinstance(value, Parameters):
        return {"parameters": [[entry.name, list(entry.shape)] for entry in value]}
    return {type(value).__name__: {entry.name: _written(getattr(value, entry.name)) for entry in fields(value)}}
