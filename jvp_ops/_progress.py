"""Progress bars: one place that decides whether and where they show."""

from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, *, show: bool, description: str, unit: str) -> Any:
    """Make a tqdm bar on standard error that leaves no trace when it is not wanted."""
    return tqdm(total=total, desc=description, unit=unit, disable=not show, leave=False, dynamic_ncols=True)
