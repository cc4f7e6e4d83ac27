"""Results as tables: what their texts, notebook views and records share."""

from typing import Any, Protocol

import numpy as np


class Report(Protocol):
    """A result that can be shown."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""

    def summary(self) -> str:
        """Say in one line what was found."""

    def header(self) -> list[str]:
        """Name the columns of `rows`."""

    def rows(self) -> list[list[str]]:
        """Write the table as text."""


def as_text(result: Report) -> str:
    """Write a result as lines of text."""
    cells = [result.header(), *result.rows()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([result.summary(), *lines, *(f"note: {note}" for note in result.notes)])


def as_html(result: Report) -> str:
    """Write a result as an HTML table."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in result.rows())
    notes = "".join(f"<p>{note}</p>" for note in result.notes)
    return f"<p>{result.summary()}</p><table>{line(result.header(), 'th')}{body}</table>{notes}"


def plain(value: Any) -> Any:
    """Turn an array into JSON-able lists: NaN becomes None, and infinities text."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return None if value != value else str(float(value))
    return value
