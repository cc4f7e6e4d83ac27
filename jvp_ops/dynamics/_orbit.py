"""The states along training, and the ordered product of the Jacobians there."""

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jvp_ops._checks import check_state, positive_int, whole_number
from jvp_ops._memory import format_bytes, resolve_budget
from jvp_ops._sitting import Sitting
from jvp_ops.dynamics._frame import check_map, check_range
from jvp_ops.dynamics._states import DiskStates, MemoryStates, States, stride_in_memory, stride_on_disk
from jvp_ops.errors import DataError, InputError, NonFiniteError
from jvp_ops.linear import LinearMap, product
from jvp_ops.maps import Map, jacobian_identity, linearized
from jvp_ops.maps._schedule import rates_identity
from jvp_ops.operators import JacobianOperator


class Orbit:
    r"""The states θ₀, θ₁ = f₀(θ₀), …, θ_T along training, kept within a budget and given back bit for bit.

    Where all states do not fit, every so many are kept, and the segments between are computed again when they are
    asked for: one walk over the orbit, forward or backward, then takes one more forward pass.

    Parameters
    ----------
    f : map
        Such as `GradientDescent` or `FunctionMap`; a step must give the same bits each time.
    state : Tensor, shape (n,)
        θ₀; not changed.
    steps : int
        T, at least 1.
    first : int
        The number of the first step, for maps that depend on it.
    max_memory : int or str, optional
        Bytes for states in memory, such as ``"2GiB"``; by default half of what is free on the map's device.
    folder : str or Path, optional
        Keep the states in ``states.npy`` in this folder, new or empty, with a fingerprint beside it. A folder that
        already holds this orbit is opened instead of computing it again.
    progress : bool
        Show a progress bar.

    Attributes
    ----------
    steps : int
        T, or the number of finite steps where the run diverged.
    map, first, parameters, dtype, device
        As given, and as those of the map.
    stride : int
        How many steps lie between states that are kept; 1 where all are.

    Raises
    ------
    NonFiniteError
        The run diverges; the message says at which step, and the error's ``partial`` is the orbit up to there.
    MemoryBudgetError
        Not even the snapshots fit; the message gives both sizes.
    DataError
        The folder holds another orbit or a damaged one; or, later, a state computed again has other bits than
        before, so that the map is not deterministic.
    InputError
        A state of another shape, dtype or device; a count out of range; a folder that cannot be written.

    Examples
    --------
    >>> import jvp_ops as jo, torch
    >>> henon = jo.FunctionMap(lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2)
    >>> orbit = jo.Orbit(henon, torch.tensor([0.5, 0.0]), steps=3)
    >>> len(orbit), orbit[1]
    (4, tensor([0.6500, 0.1500]))
    >>> orbit.jacobian().dense()                          # Df(θ₂) Df(θ₁) Df(θ₀)
    tensor([[-4.8737,  3.1461],
            [ 0.8544, -0.5460]])
    """

    def __init__(
        self,
        f: Map,
        state: Tensor,
        steps: int,
        *,
        first: int = 0,
        max_memory: int | str | None = None,
        folder: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        check_map(f)
        self.map, self.steps, self.first = f, positive_int(steps, "steps"), whole_number(first, "first")
        self.parameters, self.dtype, self.device = f.parameters, f.dtype, f.device
        start = check_state(state, "state", size=f.parameters.size, dtype=f.dtype, device=f.device).clone()
        self._identity = {**run_identity(f, start, self.first, self.steps), "steps": self.steps}
        self._segment: tuple[int, list[Tensor]] = (-1, [])
        self.stride = 1
        self._asked = steps = self.steps
        budget = resolve_budget(max_memory, f.device)
        state_bytes = start.nbytes
        if folder is None:
            self.stride = stride_in_memory(steps, state_bytes, budget)
            self._states: States = MemoryStates(self._rows(), start.numel(), f.dtype, f.device)
            self._fill(start, progress)
        elif DiskStates.holds_orbit(Path(folder)):
            self._states, self.steps, self.stride = DiskStates.find(Path(folder), self._identity, f.device)
            self._check_found()
        else:
            self.stride = stride_on_disk(steps, state_bytes, budget, Path(folder))
            self._states = kept = DiskStates(Path(folder), self._rows(), start.numel(), f.dtype, f.device)
            try:
                self._fill(start, progress)
                kept.finish(self.steps, self.stride, self._identity)
            except BaseException:
                kept.discard()
                raise
        if self.steps < self._asked:
            raise self._diverged()

    def __len__(self) -> int:
        return self.steps + 1

    def __repr__(self) -> str:
        size = format_bytes(self._rows() * self.parameters.size * self.dtype.itemsize)
        kept = "all kept" if self.stride == 1 else f"every {self.stride}th kept"
        return f"<Orbit of {self.steps} steps of {self.parameters.size} numbers, {kept}, {size}>"

    def __getitem__(self, t: int) -> Tensor:
        """Give θ_t for t = 0 … T (negative t from the end), as a tensor of its own."""
        if isinstance(t, bool) or not hasattr(t, "__index__"):
            raise InputError(f"an orbit is indexed by one step, an integer, not {t!r}")
        number = t.__index__()
        number += len(self) if number < 0 else 0
        if not 0 <= number <= self.steps:
            raise IndexError(f"step {t} is outside of this orbit of {self.steps} steps")
        row, offset = divmod(number, self.stride)
        if offset == 0:
            return self._states.read(row)
        kept = self._segment  # read once: another thread may put another one there
        if kept[0] != row:
            kept = self._segment = (-1, [])  # the old one goes first
            kept = self._segment = (row, self._recomputed(row))
        return kept[1][offset - 1].clone()

    def jacobian(self, start: int = 0, stop: int | None = None) -> JacobianOperator:
        r"""Give the ordered product of the Jacobians of steps `start` to `stop` (not included) as an operator.

        .. math::  P = Df(θ_{\text{stop}-1}) \cdots Df(θ_{\text{start}+1})\, Df(θ_{\text{start}}).

        ``apply`` runs forward through time, and ``apply_adjoint``, with Pᵀ = Df(θ_start)ᵀ ⋯ Df(θ_{stop−1})ᵀ,
        backward; each step is linearized once for all directions of a block. The product over one step is that
        step's own operator.

        Raises
        ------
        InputError
            Not 0 ≤ start < stop ≤ T.
        NonFiniteError
            From a product, when it overflows; `finite_time_exponents` keeps logarithms instead.
        """
        start, stop = check_range(start, stop, self.steps)
        if stop == start + 1:
            return self.at(start)
        exact = self.at(start).linear.in_float64 is not None
        steps = product(*(self._step(t, exact=exact) for t in reversed(range(start, stop))))
        named = replace(steps, identity=lambda: {"product of steps": [start, stop], "orbit": self.identity()})
        return JacobianOperator(named).made_by(Orbit.jacobian, self, start, stop)

    def at(self, t: int) -> JacobianOperator:
        """Linearize at θ_t: the Jacobian of the step from there."""
        return self.map.jacobian(self[t], self.first + t)

    def identity(self) -> dict[str, Any]:
        """All that the orbit depends on, as a JSON-able dict."""
        return dict(self._identity)

    def _step(self, t: int, *, exact: bool, dtype: torch.dtype | None = None) -> LinearMap:
        """Make the Jacobian of step t as a factor, linearized anew each time that it is multiplied."""

        def through(V: Tensor, product: str) -> Tensor:
            factor: Any = self.at(t) if dtype is None else self.at(t).in_float64()
            try:
                return getattr(factor, product)(V)  # type: ignore[no-any-return]
            except NonFiniteError as error:
                raise NonFiniteError(f"in the product over an orbit, at step {t}: {error}") from None

        return LinearMap(
            apply=lambda V: through(V, "apply"),
            adjoint=lambda U: through(U, "apply_adjoint"),
            rows=self.parameters,
            columns=self.parameters,
            dtype=self.dtype if dtype is None else dtype,
            device=self.device,
            symmetric=False,
            identity=lambda: {"step": t, "orbit": self.identity()},
            in_float64=(lambda: self._step(t, exact=False, dtype=torch.float64)) if exact else None,
        )

    def _rows(self) -> int:
        return ceil((self.steps + 1) / self.stride)

    def _fill(self, state: Tensor, progress: bool) -> None:
        self._states.write(0, state)
        with Sitting("orbit", unit="step", total=self.steps, progress=progress) as sitting:
            for t in range(self.steps):
                state = self.map(state, self.first + t)
                if not bool(torch.isfinite(state).all()):
                    self.steps = t
                    return
                if (t + 1) % self.stride == 0:
                    self._states.write((t + 1) // self.stride, state)
                sitting.advance()
                sitting.check()

    def _recomputed(self, row: int) -> list[Tensor]:
        """Compute the states between two snapshots again, and check them by the second."""
        start = row * self.stride
        state, found = self._states.read(row), []
        for t in range(start, min(start + self.stride, self.steps)):
            state = self.map(state, self.first + t)
            found.append(state)
        if len(found) == self.stride and not torch.equal(found.pop(), self._states.read(row + 1)):
            raise DataError(
                f"the states {start} to {start + self.stride} of this orbit, computed again, have other bits than "
                "before: the map is not deterministic, or not the one that the orbit was made with"
            )
        return found

    def _check_found(self) -> None:
        """Take one step of an orbit from disk again: a fingerprint does not see all that a function depends on."""
        if self.steps == 0:
            return
        before, after = self[0], self[1]
        eps = torch.finfo(self.dtype).eps
        allowed = eps**0.5 * (after - before).norm() + 100 * eps * after.norm()  # other threads round otherwise
        if (self.map(before, self.first) - after).norm() > allowed:
            raise DataError("the orbit in this folder was made with another map: its first step differs")

    def _diverged(self) -> NonFiniteError:
        error = NonFiniteError(
            f"the state became NaN or Inf at step {self.first + self.steps} (of {self._asked} from {self.first}): the "
            f"run diverges; a smaller lr may help. The {self.steps} finite steps are the error's `partial`"
        )
        error.partial = self
        return error


def check_orbit(orbit: object) -> None:
    """Refuse what is not an orbit."""
    if not isinstance(orbit, Orbit):
        raise InputError(f"orbit must be an Orbit, not {type(orbit).__name__}: Orbit(f, state, steps) makes one")


def probe(f: Map, state: Tensor, step: int, V: Tensor) -> list[float]:
    """Compute a few numbers from a step and its Jacobian on V: they see what no fingerprint does."""
    after, jacobian = linearized(f, state, step)
    image, moved = after - state, jacobian.apply(V)
    return [float(part.double().sum()) for part in (*image.tensor_split(2), *moved.flatten().tensor_split(4))]


def rounding_of(dtype: torch.dtype) -> float:
    """Say how far a `probe` computed again may differ: as other threads round otherwise, enlarged by cancellation."""
    return float(torch.finfo(dtype).eps ** 0.5)


def run_identity(f: Map, state: Tensor, first: int, steps: int) -> dict[str, Any]:
    """Name a run by all that it depends on: the loss and data are known to the Jacobian, rates to each step."""
    rates = rates_identity(getattr(getattr(f, "optimizer", f), "lr", 0.0), range(first, first + steps))
    start = {"from": jacobian_identity(f, state, first), "first": first, "rates": rates}
    return {"map": f.identity(), "dtype": str(f.dtype), **start}
