"""Which eigenvalues are asked for: one place that ranks and cuts them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

SYMMETRIC = ("LA", "SA", "LM", "BE")
GENERAL = ("LM", "LR", "SR", "LI")
MIRRORED = {"LA": "SA", "SA": "LA", "BE": "BE"}


@dataclass(frozen=True)
class Target:
    """What is asked of A = shift·I + scale·B, in terms of B's eigenvalues.

    Ends are told by B's eigenvalues, since the mapped ones may coincide by rounding.

    Parameters
    ----------
    which : str
        One of `SYMMETRIC` or `GENERAL`, of A.
    shift, scale : float
        0 and 1 where A itself is solved for.
    """

    which: str
    shift: float = 0.0
    scale: float = 1.0

    def ranking(self, values: NDArray[Any]) -> NDArray[np.intp]:
        """Rank B's values, best first; complex ones stand beside their conjugates, the upper one first."""
        keys = self._keys(values)
        if np.iscomplexobj(values):
            units = sorted(conjugate_pairs(values), key=lambda unit: float(keys[unit[0]]))
            return np.array([i for unit in units for i in unit], dtype=np.intp)
        return np.argsort(keys, kind="stable")

    def best(self, values: NDArray[Any], k: int) -> NDArray[np.intp]:
        """Choose the k best of B's values as a result lists them; k + 1 where the cut would split a conjugate pair."""
        ranked = self.ranking(values)
        if np.iscomplexobj(values) and 0 < k < len(ranked):
            k += bool(values[ranked[k - 1]].imag > 0 and values[ranked[k]].imag < 0)
        chosen = ranked[:k]
        return chosen[np.argsort(self.sign * values[chosen], kind="stable")] if self.which == "BE" else chosen

    def moved(self, before: NDArray[Any], after: NDArray[Any]) -> float:
        """Say how far the best values have moved, matched one to one, so that a new copy of one is seen.

        Values that tie under `which`, such as ± 5 under ``LM``, may take each other's place: they have not moved.
        """
        distances = np.abs(before[:, None] - after)
        moved = float(distances[linear_sum_assignment(distances)].max(initial=0.0))
        if self.which == "BE":
            return moved
        k = min(len(before), len(after))
        keys = [np.sort(self._keys(values))[:k] for values in (before, after)]
        unit = abs(self.scale) if self.which == "LM" and self.scale else 1.0
        return min(moved, float(np.abs(keys[0] - keys[1]).max(initial=0.0)) / unit)

    @property
    def sign(self) -> int:
        """The direction in which A's eigenvalues grow with B's."""
        return 1 if self.scale > 0 else -1

    def solved_ends(self) -> list[str]:
        """Say in ARPACK's words what to ask of B: both ends where a magnitude of A may come from either."""
        if (self.shift, self.scale) == (0.0, 1.0):
            return [self.which]
        if self.which == "LM":
            return ["LA", "SA"]
        return [self.which if self.scale > 0 else MIRRORED[self.which]]

    def _keys(self, values: NDArray[Any]) -> NDArray[np.float64]:
        if self.which in ("LA", "LR"):
            return np.asarray(-self.sign * values.real)
        if self.which in ("SA", "SR"):
            return np.asarray(self.sign * values.real)
        if self.which == "LM":
            return np.asarray(-np.abs(self.shift + self.scale * values))
        if self.which == "LI":
            return np.asarray(-np.abs(values.imag))
        order = np.argsort(self.sign * values, kind="stable")
        place = np.empty(len(values))
        place[order] = np.arange(len(values))
        from_top = len(values) - 1 - place  # the odd one is of the upper end
        nearest: NDArray[np.float64] = np.minimum(2 * from_top, 2 * place + 1)
        return nearest


def conjugate_pairs(values: NDArray[Any]) -> list[list[int]]:
    """Group each complex value with its conjugate, the upper one first; a real one stands alone."""
    free, units = set(range(len(values))), []
    for i in sorted(free, key=lambda i: -values[i].imag):
        if i not in free or values[i].imag <= 0:
            continue
        others = [j for j in free if values[j].imag < 0]
        partner = min(others, key=lambda j: abs(values[j].conj() - values[i]), default=None)
        unit = [i] if partner is None else [i, partner]
        free -= set(unit)
        units.append(unit)
    return units + [[i] for i in sorted(free)]
