"""The forward pass of Ginelli's algorithm: an orthonormal frame over the whole orbit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._sitting import Sitting, Stop
from jvp_ops.dynamics._frame import Triangle
from jvp_ops.dynamics._orbit import Orbit
from jvp_ops.dynamics._sweeps import frames
from jvp_ops.errors import ConvergenceError, NonFiniteError


class Forward:
    """The pass on its way; `at` is replaced as one, so that an interruption leaves a whole step.

    Parameters
    ----------
    orbit : Orbit
    Q : Tensor of float64, shape (n, k)
        The frame at the first state.
    start : int
        The first step whose triangle is kept.
    asked : list of int
        The states at which the frame is kept, rising.
    random : numpy.random.Generator
        Draws directions where some are lost.
    sitting : Sitting

    Attributes
    ----------
    bases : Tensor, shape (asked, n, k)
        The frames.
    triangles : list of ndarray
        R of each step from `start` on.
    """

    def __init__(
        self, orbit: Orbit, Q: Tensor, start: int, asked: list[int], random: np.random.Generator, sitting: Sitting
    ) -> None:
        self.orbit, self.start, self.random, self.sitting = orbit, start, random, sitting
        self.rows = {t: row for row, t in enumerate(asked)}
        self.bases = torch.empty(len(asked), *Q.shape, dtype=orbit.dtype, device=orbit.device)
        self.triangles: list[Triangle] = []
        self.at: tuple[int, Tensor, Mapping[str, Any]] = (0, Q, random.bit_generator.state)
        if 0 in self.rows:
            self.bases[0] = Q

    def run(self) -> None:
        """Go on to the end of the orbit.

        Raises
        ------
        ConvergenceError
            The budget of time ran out.
        """
        if kept := self.sitting.resume():
            self._restore(*kept)
        with self.sitting:
            self.sitting.advance(self.at[0])
            stop = self.sitting.run(self._advance, snapshot=self._snapshot, back=self._back)
        if stop == Stop.INTERRUPTED:
            raise KeyboardInterrupt
        if stop != Stop.FINISHED:
            raise ConvergenceError(
                f"{self.sitting.words(stop)} ran out after {self.at[0]} of {self.orbit.steps} steps of the forward "
                "pass: allow more time, or resume from a checkpoint="
            )

    def _advance(self) -> Stop | None:
        t, Q, _ = self.at
        if t == self.orbit.steps:
            return Stop.FINISHED  # a finished pass was resumed
        frame = next(frames(self.orbit, range(t, t + 1), Q, self.random, self.sitting))
        if t >= self.start:
            if frame.lost.any():
                raise NonFiniteError(
                    f"the Jacobian of step {self.orbit.first + t} is singular on vector {int(np.argmax(frame.lost))}"
                    ": a vector that does not grow at all has no covariant one; use a smaller k"
                )
            self.triangles.append(frame.triangle)
        if t + 1 in self.rows:
            self.bases[self.rows[t + 1]] = frame.vectors
        self.at = t + 1, frame.vectors, self.random.bit_generator.state
        return Stop.FINISHED if t + 1 == self.orbit.steps else None

    def _back(self) -> bool:
        """Forget what a step that was not finished left."""
        del self.triangles[max(self.at[0] - self.start, 0) :]
        self.random.bit_generator.state = self.at[2]
        return True

    def _snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        t, Q, state = self.at
        filled = sum(time <= t for time in self.rows)
        arrays = {"frame": Q.cpu().numpy(), "bases": self.bases[:filled].cpu().numpy()}
        kept = np.array(self.triangles[: max(t - self.start, 0)]).reshape(-1, Q.shape[1], Q.shape[1])
        return {**arrays, "triangles": kept}, {"t": t, "rng": state}

    def _restore(self, arrays: dict[str, NDArray[Any]], record: dict[str, Any]) -> None:
        device = self.orbit.device
        self.bases[: len(arrays["bases"])] = torch.from_numpy(arrays["bases"]).to(device)
        self.triangles = list(arrays["triangles"])
        self.at = record["t"], torch.from_numpy(arrays["frame"]).to(device), record["rng"]
        self.random.bit_generator.state = record["rng"]
