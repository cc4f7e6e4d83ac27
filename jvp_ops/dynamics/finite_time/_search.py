"""The search for the leading singular triplets: pairs of sweeps until what goes out and what comes back agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._sitting import Sitting, Stop
from jvp_ops.dynamics._orbit import Orbit
from jvp_ops.dynamics.finite_time._triplets import Triplets, doubt, extended, iterate, widened, with_random

HOPELESS = 3  # pairs of sweeps after which P and Pᵀ will not agree better
BLOCKS, MILD_BLOCKS = 4, 8  # in a basis before it is restarted
_MILD = 6.0  # e-folds between the values asked for, up to which images of a basis can be kept as plain numbers


@dataclass(frozen=True)
class _Boundary:
    """What a whole pair of sweeps left; replaced as one, so that an interruption leaves it whole."""

    found: Triplets | None
    worst: tuple[float, ...]  # the largest residual of each pair of sweeps
    lost: tuple[float, ...]  # the part of it that P and Pᵀ disagree by
    products: int
    random: Mapping[str, Any]


class Search:
    """A search on its way.

    Parameters
    ----------
    orbit : Orbit
    window : range
        Steps of the orbit.
    begin : Tensor of float64, shape (n, k)
        Orthonormal directions to start from.
    block : int
        Directions that come back in a backward sweep.
    random : numpy.random.Generator
    sitting : Sitting
    limit : float
        The residual to reach.
    most : int
        Pairs of sweeps.
    """

    def __init__(
        self,
        orbit: Orbit,
        window: range,
        begin: Tensor,
        block: int,
        random: np.random.Generator,
        sitting: Sitting,
        *,
        limit: float,
        most: int,
    ) -> None:
        self.orbit, self.window, self.begin, self.block = orbit, window, begin, block
        self.random, self.sitting, self.limit, self.most = random, sitting, limit, most
        self.k = begin.shape[1]
        self.at = _Boundary(None, (), (), 0, random.bit_generator.state)

    def run(self) -> tuple[Stop, Triplets, NDArray[np.float64] | None]:
        """Sweep until something stops it; give why, what was found, and how far rounding moves it, where measured."""
        if kept := self.sitting.resume():
            self._restore(*kept)
        with self.sitting:
            stop = self.sitting.run(self._advance, snapshot=self._snapshot, back=lambda: self.at.found is not None)
            found = self.at.found
            assert found is not None  # one pair of sweeps, at least
            if stop == Stop.INTERRUPTED:
                return stop, found, None
            try:
                return stop, found, doubt(self.orbit, self.window, found, self.sitting)
            except KeyboardInterrupt:
                return Stop.INTERRUPTED, found, None

    def _advance(self) -> Stop | None:
        if stop := self._settled():
            return stop  # a finished search was resumed
        if self.at.found is None:
            V = with_random(self.begin, self.block - self.k, self.random)
            found, swept = self._around(V), V.shape[1]
        else:
            found, swept = self._wider(self.at.found)
        products = self.at.products + (swept + self.block) * len(self.window)
        worst = (*self.at.worst, float(found.residuals[: self.k].max()))
        lost = (*self.at.lost, float(found.lost[: self.k].max()))
        self.at = _Boundary(found, worst, lost, products, self.random.bit_generator.state)
        self.sitting.tell(len(worst), found.logs[: self.k] / len(self.window))
        return self._settled()

    def _wider(self, found: Triplets) -> tuple[Triplets, int]:
        """Go out with what came back beside the leading right vectors; also say how many were swept forward."""
        mild = bool(found.logs[0] - found.logs[self.k - 1] <= _MILD and abs(found.logs[0]) < 300)
        most = min(len(self.begin), (MILD_BLOCKS if mild else BLOCKS) * self.block)
        kept, fresh = widened(found, most, self.random)
        if not mild:
            V = torch.cat([kept, fresh], dim=1)
            return self._around(V), V.shape[1]
        args = (self.orbit, self.window, found, kept, fresh, self.block, self.random, self.sitting)
        return extended(*args), fresh.shape[1]

    def _around(self, V: Tensor) -> Triplets:
        return iterate(self.orbit, self.window, V, self.block, self.random, self.sitting)

    def _settled(self) -> Stop | None:
        worst = self.at.worst
        if not worst:
            return None
        if worst[-1] <= self.limit:
            return Stop.CONVERGED
        if _stalls(worst, self.orbit.dtype) or (len(worst) >= HOPELESS and min(self.at.lost[-HOPELESS:]) > self.limit):
            return Stop.ROUNDING
        return Stop.MAX_ITERATIONS if len(worst) >= self.most else None

    def _snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        at, found = self.at, self.at.found
        record = {"worst": at.worst, "lost": at.lost, "products": at.products, "rng": at.random}
        if found is None:
            return {}, record
        tensors = {"right": found.right, "left": found.left, "back": found.back}
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        arrays |= {"logs": found.logs, "residuals": found.residuals, "lost": found.lost}
        return arrays, {**record, "strained": found.strained}

    def _restore(self, arrays: dict[str, NDArray[Any]], record: dict[str, Any]) -> None:
        found = None
        if record["worst"]:
            right, left, back = (torch.from_numpy(arrays[x]).to(self.orbit.device) for x in ("right", "left", "back"))
            found = Triplets(arrays["logs"], right, left, back, arrays["residuals"], arrays["lost"], record["strained"])
        worst, lost = tuple(record["worst"]), tuple(record["lost"])
        self.at = _Boundary(found, worst, lost, record["products"], record["rng"])
        self.random.bit_generator.state = record["rng"]


def _stalls(worst: tuple[float, ...], dtype: torch.dtype) -> bool:
    """Say whether the residuals no longer fall, at a level where rounding can be the reason."""
    small = worst[-1] < 10 * torch.finfo(dtype).eps ** 0.5
    return len(worst) > 3 and small and worst[-1] > 0.5 * worst[-4]
