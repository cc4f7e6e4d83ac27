"""`track_eigenpairs`: an end of the Hessian's spectrum along training, each solve started from the last one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm

from jvp_ops._checks import finite_number, positive_int, time_budget, whole_number
from jvp_ops._random import Rng, generator
from jvp_ops._sitting import BY_HAND, Checkpoint, Sitting, Stop
from jvp_ops.dynamics._frame import optimizer_under
from jvp_ops.dynamics._orbit import probe, rounding_of, run_identity
from jvp_ops.dynamics.tracking._result import Tracking
from jvp_ops.eigen import eigenpairs
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.losses import point_at

ENDS = ("LA", "SA", "LM", "BE")
COLUMNS = (
    *("at", "values", "bounds", "converged", "thresholds", "losses"),
    *("gradient_norms", "gradient_overlap", "continuity", "products", "verified"),
)


def track_eigenpairs(
    f: Any,
    state: Tensor,
    steps: int,
    *,
    every: int = 10,
    k: int = 3,
    which: str = "LA",
    preconditioned: bool | None = None,
    tol: float = 1e-3,
    verify_every: int = 10,
    warm: bool = True,
    float64: bool = False,
    first: int = 0,
    rng: Rng = 0,
    progress: bool = False,
    callback: Callable[[int, NDArray[np.float64]], object] | None = None,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Tracking:
    r"""Follow eigenvalues of the Hessian along training, and compare them with the threshold of stability.

    .. math::  H(θ_t)\, x = h\, x, \quad t = 0, e, 2e, …, \qquad h \lessgtr \frac{2}{α}
               \text{ (gradient descent)}, \; \frac{2(1+β)}{α} \text{ (heavy ball)}, \; …

    Each solve starts from the eigenvectors of the last one, which are nearly those that are looked for.

    Parameters
    ----------
    f : optimizer map or MinibatchSGD
        Such as `GradientDescent`, `HeavyBall` or `Adam`. Of `MinibatchSGD`, curvature, gradient and threshold are
        those of the loss over all samples (for `MinibatchSGD.of`, of the first loss).
    state : Tensor, shape (n,)
        Where to begin; ``f.initial(theta)`` makes one.
    steps : int
        Steps to take.
    every : int
        Steps between two measurements; the last one is after the last step.
    k : int
        Eigenvalues to follow, fewer than parameters.
    which : str
        ``LA`` (largest), ``SA``, ``LM`` or ``BE``, of the Hessian.
    preconditioned : bool, optional
        Whether to take P^½ (H + ωI) P^½ in place of H; by default where the threshold is about it: for `RMSProp`,
        `Adam` and `AdamW`.
    tol : float
        Residual of the eigenpairs relative to ‖H‖; the eigenvalues' errors are of the order of its square.
    verify_every : int
        Verify each so many-th measurement, the first for one: look from fresh random directions for eigenvalues that
        were missed. Between them an eigenvector that overtakes the others is met only through the residuals of
        theirs. 1 verifies each.
    warm : bool
        False starts every solve at random: for comparison.
    float64 : bool
        Certify by the Hessian in float64 where the loss is in float32, which is linearized again for it.
    first : int
        The number of the first step, for maps that depend on it.
    rng : int or numpy Generator
        Draws start vectors; the same seed gives the same result on one device.
    progress : bool
        Show a progress bar of steps.
    callback : callable, optional
        ``callback(step, values)`` after each measurement; True stops the run.
    max_seconds : float, optional
        Stop after so long, in this sitting.
    checkpoint : str or Path, optional
        A file to keep the work in, every half minute and whenever the run ends or is stopped.
    resume : bool
        Go on from the checkpoint where there is one; the result is that of an uninterrupted run.

    Returns
    -------
    Tracking
        Also where `callback`, `max_seconds` or Ctrl-C stopped the run: then with a note, and not `complete`.

    Raises
    ------
    InputError
        A map without a loss, k or a count out of range, a checkpoint that is there without `resume`.
    NonFiniteError
        The run diverges; the error's ``partial`` is what was measured until then.
    DataError
        The checkpoint is of another run, or damaged.

    Notes
    -----
    Full-batch training raises the sharpness to the threshold and holds it there, the edge of stability, where the
    loss no longer falls at every step. The threshold is that of a quadratic: for Adam with v standing still.

    References
    ----------
    J. M. Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021), and
    "Adaptive gradient methods at the edge of stability" (2022).

    Examples
    --------
    >>> import jvp_ops as jo
    >>> data = jo.load_digits().subset(200)
    >>> loss = jo.TwoLayerLoss(data, hidden=10)
    >>> track = jo.track_eigenpairs(jo.GradientDescent(loss, lr=0.5), loss.initial(rng=0), steps=60, every=20, k=2)
    >>> track.at.tolist(), track.values.shape, bool((track.sharpness < track.thresholds).all())
    ([0, 20, 40, 60], (4, 2), True)
    """
    optimizer = optimizer_under(f)
    for name, value in (("steps", steps), ("every", every), ("verify_every", verify_every)):
        positive_int(value, name)
    whole_number(first, "first")
    size = optimizer.loss.parameters.size
    if positive_int(k, "k") >= size:
        raise InputError(f"k must be less than the {size} parameters, not {k}")
    if which not in ENDS or (which == "BE" and k < 2):
        raise InputError(f"which must be one of {', '.join(ENDS)} (BE with k of at least 2), not {which!r}")
    adaptive = callable(getattr(optimizer, "preconditioner", None))
    if preconditioned and not adaptive:
        raise InputError(f"{type(optimizer).__name__} has no preconditioner: leave preconditioned out")
    sitting = Sitting(
        "tracking",
        unit="step",
        total=int(steps),
        progress=progress,
        max_seconds=time_budget(max_seconds),
        callback=callback,
    )
    request: dict[str, Any] = {"steps": int(steps), "every": int(every), "k": k, "which": which}
    request |= {"tol": finite_number(tol, "tol", least=0), "verify_every": int(verify_every), "warm": bool(warm)}
    request |= {"preconditioned": adaptive if preconditioned is None else bool(preconditioned)}
    request |= {"float64": bool(float64), "first": int(first)}
    request["seed"] = int(generator(rng).integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
    generator(request["seed"])
    identity = {"analysis": "track_eigenpairs", **request, **run_identity(f, state, int(first), int(steps))}
    sitting.checkpoint = Checkpoint.at(
        checkpoint,
        resume=resume,
        identity=lambda: identity,
        probe=lambda: probe(f, state, int(first), state[:, None]),
        close=rounding_of(f.dtype),
    )
    return _Tracker(f, optimizer, state, request, identity, sitting).run()


@dataclass
class _Tracker:
    """A run on its way; `position` and `table` each change as one, so that an interruption leaves them whole."""

    f: Any
    optimizer: Any
    begin: Tensor
    request: dict[str, Any]
    identity: dict[str, Any]
    sitting: Sitting
    table: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.position = self.begin, 0

    @property
    def state(self) -> Tensor:
        """The state that is next to be measured, or was measured last."""
        return self.position[0]

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.position[1]

    @property
    def vectors(self) -> Tensor | None:
        """The eigenvectors of the last row."""
        return self.table[-1]["vectors"] if self.table else None

    def run(self) -> Tracking:
        """Go on to the end, or until something stops it, and make the result."""
        if kept := self.sitting.resume():
            self._restore(*kept)
        try:
            with self.sitting:
                self.sitting.advance(self.done)
                stop = self.sitting.run(self._advance, snapshot=self._snapshot, back=lambda: True)
        except NonFiniteError as error:
            error.partial = self.result(Stop.FAILED) if self.table else None
            raise
        if not self.table:
            raise KeyboardInterrupt  # there is nothing to give back yet
        return self.result(stop)

    def _advance(self) -> Stop | None:
        """Measure the state, or take the steps to the next one that is measured."""
        steps, first = self.request["steps"], self.request["first"]
        if self._is_measured():
            if self.done == steps:
                return Stop.FINISHED
            count = min(self.request["every"], steps - self.done)
            state = self.f.run(self.state, steps=count, first=first + self.done)
            self.position = state, self.done + count
            self.sitting.advance(count)
        try:
            if not self._measure():
                return Stop.INTERRUPTED
        except NonFiniteError as error:
            raise NonFiniteError(f"at the state before step {first + self.done}: {error}") from None
        row = self.table[-1]
        self.sitting.bar.set_postfix_str(f"h = {row['values'][0]:.5g}")
        self.sitting.tell(row["at"], row["values"].copy())
        return Stop.FINISHED if self.done == steps else None

    def _is_measured(self) -> bool:
        return bool(self.table) and self.table[-1]["at"] == self.request["first"] + self.done

    def _measure(self) -> bool:
        """Solve at the state, and add a row; False where Ctrl-C stopped the solve."""
        request, number = self.request, self.request["first"] + self.done
        theta, k = self.optimizer.theta(self.state), request["k"]
        here = point_at(self.optimizer.loss, theta)
        if request["preconditioned"]:
            g = here.gradient
            operator = self.optimizer.curvature(self.state, number, at=here)
            seen = g * self.optimizer.preconditioner(self.state, number, at=here).sqrt()
        else:
            seen = g = here.gradient
            operator = here.hessian()
        start = self.vectors if request["warm"] else None
        verify = start is None or len(self.table) % request["verify_every"] == 0
        try:
            pairs = eigenpairs(
                operator,
                k,
                request["which"],
                method="lanczos",
                tol=request["tol"],
                float64=request["float64"],
                verify=verify,
                block=None if verify else max(2, k),  # as wide as the start: more would be random
                start=start,
                rng=np.random.default_rng([request["seed"], len(self.table)]),
            )
        except KeyboardInterrupt:  # before the first product
            return False
        if pairs.stopped in BY_HAND:
            return False
        X, before = pairs.vectors.double(), None if self.vectors is None else self.vectors.double()
        length = float(vector_norm(seen.double()))
        row = {
            "at": number,
            "values": pairs.values,
            "bounds": pairs.bounds,
            "converged": pairs.converged,
            "thresholds": self.optimizer.threshold(number),
            "losses": float(here.value),
            "gradient_norms": float(vector_norm(g.double())),
            "gradient_overlap": float(vector_norm(X.mT @ seen.double())) / length if length > 0 else np.nan,
            "continuity": np.nan if before is None else float((before.mT @ X).square().sum()) / k,
            "products": pairs.products + pairs.float64_products,
            "verified": verify,
        }
        self.table.append({**row, "vectors": pairs.vectors})
        for earlier in self.table[-2:-1]:
            earlier.pop("vectors", None)
        return True

    def result(self, stop: Stop) -> Tracking:
        """Make the result of what was measured up to now."""
        request, columns = self.request, self._columns()
        notes = []
        if stop != Stop.FINISHED:
            notes.append(f"stopped by {self.sitting.words(stop)} after {self.done} of {request['steps']} steps")
        if (missed := int((~columns["converged"]).any(axis=1).sum())) > 0:
            notes.append(f"in {missed} of {len(self.table)} rows not every pair converged to tol={request['tol']:.1e}")
        assert self.vectors is not None
        return Tracking(
            **columns,
            vectors=self.vectors,
            state=self.state,
            which=request["which"],
            operator="preconditioned hessian" if request["preconditioned"] else "hessian",
            steps=self.done,
            asked=request["steps"],
            first=request["first"],
            stopped=stop,
            complete=stop == Stop.FINISHED,
            seconds=self.sitting.seconds,
            parameters=self.optimizer.loss.parameters,
            notes=(*getattr(self.f, "notes", ()), *notes, *self.sitting.notes),
            provenance=self.identity,
        )

    def _columns(self) -> dict[str, Any]:
        return {name: np.array([row[name] for row in self.table]) for name in COLUMNS}

    def _snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Give the rows and where the run is; of a run with no row yet, its start."""
        arrays = {**self._columns(), "state": self.state.cpu().numpy()}
        if self.vectors is not None:
            arrays["vectors"] = self.vectors.cpu().numpy()
        return arrays, {"done": self.done}

    def _restore(self, arrays: dict[str, NDArray[Any]], kept: dict[str, Any]) -> None:
        """Go to where a checkpoint ends."""
        self.table = [{name: arrays[name][i] for name in COLUMNS} for i in range(len(arrays["at"]))]
        if self.table:
            self.table[-1]["vectors"] = torch.tensor(arrays["vectors"], device=self.f.device)
        self.position = torch.tensor(arrays["state"], device=self.f.device), kept["done"]
