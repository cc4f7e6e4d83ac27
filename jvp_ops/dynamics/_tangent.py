"""A state and its tangent vectors, stepped together."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import check_state, whole_number
from jvp_ops._random import Rng, generator
from jvp_ops.dynamics._frame import Frame, check_frame, check_map, orthonormal
from jvp_ops.errors import NonFiniteError
from jvp_ops.maps import Map, linearized


class TangentSystem:
    r"""A state θ and k tangent vectors, which `step` moves on together; every growth analysis is a loop over it.

    .. math::  θ_{t+1} = f_t(θ_t), \qquad V_{t+1} = Df_t(θ_t)\, V_t.

    Parameters
    ----------
    f : map
        Such as `GradientDescent` or `FunctionMap`.
    state : Tensor, shape (n,)
        θ at the start; not changed.
    vectors : int or Tensor, shape (n, k)
        k ≤ n for k random directions, or the directions themselves; they are made orthonormal.
    first : int
        The number of the first step, for maps that depend on it.
    rng : int or numpy Generator
        Draws the directions, and new ones where some are lost.

    Attributes
    ----------
    state : Tensor, shape (n,)
        θ now.
    vectors : Tensor, shape (n, k)
        V now, in the map's dtype.
    number : int
        The number of the step to come.
    frame : Frame
        The last QR decomposition: ``frame.triangle`` is R, and ``frame.spread`` says how many e-folds of the
        precision it used up: keep it under about 18 in float64, 7 in float32.

    Raises
    ------
    InputError
        A state or vectors of another shape, dtype or device; more vectors than n; dependent ones.
    MemoryBudgetError
        The vectors do not fit; the message gives both sizes.

    Examples
    --------
    >>> import jvp_ops as jo, torch
    >>> cat = jo.FunctionMap(lambda s: torch.stack([2 * s[0] + s[1], s[0] + s[1]]) % 1, size=2, dtype="float64")
    >>> system = jo.TangentSystem(cat, torch.tensor([0.1, 0.2], dtype=torch.float64), 2)
    >>> growth = []
    >>> for _ in range(30):
    ...     system.step()
    ...     growth.append(system.orthonormalize())
    >>> growth[-1].round(12)
    array([ 0.96242365, -0.96242365])
    """

    def __init__(self, f: Map, state: Tensor, vectors: int | Tensor, *, first: int = 0, rng: Rng = 0) -> None:
        check_map(f)
        size = f.parameters.size
        self.map = f
        self.state = check_state(state, "state", size=size, dtype=f.dtype, device=f.device).clone()
        self._random = generator(rng)
        start = check_frame(vectors, size=size, dtype=f.dtype, device=f.device, random=self._random)
        # losses are refilled from a seed, so that a resumed run, which draws the same start, draws the same again
        self.seed = int(self._random.integers(2**62))
        self.vectors = self._own(start)
        self.number = whole_number(first, "first")
        self.frame = Frame(start, np.eye(start.shape[1]), np.zeros(start.shape[1], dtype=bool))
        self._since = 0

    def __repr__(self) -> str:
        n, k = self.vectors.shape
        return f"<TangentSystem of {k} vectors of {n} numbers before step {self.number}>"

    def step(self) -> None:
        """Move the state and the vectors on by one step.

        Raises
        ------
        NonFiniteError
            NaN or Inf in the new state or vectors; the message says at which step, and all stays as it was.
        """
        state, jacobian = linearized(self.map, self.state, self.number)
        if not bool(torch.isfinite(state).all()):
            raise NonFiniteError(
                f"the state became NaN or Inf at step {self.number}: the run diverges; a smaller lr may help"
            )
        try:
            vectors = jacobian.apply(self.vectors)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"the tangent vectors became NaN or Inf at step {self.number}, {self._since} steps after they were "
                f"orthonormal ({error})"
            ) from None
        self.state, self.vectors = state, vectors
        self.number += 1
        self._since += 1

    def orthonormalize(self) -> NDArray[np.float64]:
        """Make the vectors orthonormal again and return their log growth since they last were.

        Returns
        -------
        ndarray of float64, shape (k,)
            ln R_ii of V = Q R. Where a vector is in the span of those before it, to rounding, it is replaced by a
            new direction, and its growth is −inf after one step (Df is singular to rounding), NaN after more (the
            vectors were left too long: they lost rank, and how much this one grew is not known).
        """
        waited = self._since
        random = np.random.default_rng([self.seed, self.number])
        self.frame = orthonormal(self.vectors, rounding=torch.finfo(self.map.dtype).eps, random=random)
        self.vectors = self._own(self.frame.vectors)
        self._since = 0
        return np.where(self.frame.lost & (waited > 1), np.nan, self.frame.growth)

    def position(self) -> tuple[Any, ...]:
        """Give all that `return_to` needs to come back here."""
        return self.state, self.vectors, self.number, self.frame, self._since

    def return_to(self, position: tuple[Any, ...]) -> None:
        """Go back to a `position`; states and vectors are never changed in place."""
        self.state, self.vectors, self.number, self.frame, self._since = position

    def _own(self, vectors: Tensor) -> Tensor:
        """Copy to the map's dtype, always in the same memory layout, on which the last bits of products depend."""
        return vectors.to(self.map.dtype).clone(memory_format=torch.contiguous_format)
