"""Progress bars: one place that decides whether and where they show."""

from typing import Any

from tqdm import tqdm


class NoBar:
    """A bar that is not shown: tqdm takes a lock of the whole process even for those."""

    def update(self, count: int = 1) -> None:
        """Do nothing."""

    def set_postfix_str(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def progress_bar(total: int | None, *, show: bool, description: str, unit: str) -> Any:
    """Make a tqdm bar on standard error that leaves no trace; one that does nothing where it is not wanted."""
    if not show:
        return NoBar()
    return tqdm(total=total, desc=description, unit=unit, leave=False, dynamic_ncols=True)
