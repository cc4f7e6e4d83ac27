"""Thick-restart block Krylov iteration: Lanczos for symmetric operators, Krylov–Schur for others."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._sitting import Stop
from jvp_ops.eigen._monitor import Monitor, SolveStatus
from jvp_ops.eigen._rounding import Rounding, check_scale, check_symmetric
from jvp_ops.eigen._target import Target
from jvp_ops.krylov import BlockBasis, Ritz, TwoSidedBasis, groups_within, residual_lengths, scaled_gram
from jvp_ops.operators import TensorOperator

VERIFY_VECTORS = 64
CHECK_EVERY = 2
STALLED_CHECKS = 24
STAGNANT_CHECKS = 500
GROWN = 2
HALF = 0.5  # of the tolerance is for residuals; the rest is for rounding, so that the certificate finds it met


@dataclass(frozen=True)
class Plan:
    """What is asked of the iteration.

    Attributes
    ----------
    k, target
        How many eigenvalues, and which.
    tol : float
        Residual to reach, relative to ‖A‖.
    block, capacity, kept : int
        Vectors multiplied at once; the most the basis holds; how many a restart keeps.
    verify : bool
        Whether to look for missed eigenvalues from fresh random directions before stopping.
    refine : bool
        Whether to go on with the operator in float64 where its own dtype cannot reach `tol`.
    """

    k: int
    target: Target
    tol: float
    block: int
    capacity: int
    kept: int
    verify: bool
    refine: bool


@dataclass
class Progress:
    """What an iteration has to remember beside its basis; all of it goes into a checkpoint."""

    norm: float = 0.0
    level: float = -1.0  # measured at the first check of each dtype, and again when the norm has grown
    norm_at_level: float = 0.0
    in_float64: bool = False
    verifying: bool = False
    verified: bool = False
    single: bool = False  # the look for what was missed is with one vector
    looked: int = 0  # vectors in the last such look
    redrawn: int = 0  # left vectors of zero singular values that were drawn anew
    gave_up: bool = False  # each look from fresh directions found more
    rounds: int = 0
    blocks: int = 0  # since the last restart
    least: float = np.inf
    stalled: int = 0
    products: int = 0
    history: list[list[float]] = field(default_factory=list)


class Iteration:
    """One solve, as a short loop over a `BlockBasis`.

    A restart keeps the best Ritz (Schur) vectors and goes on from the residuals of those that have not converged, so
    converged vectors stay in the basis, are tested anew at each check, and may cease to count (soft locking).

    Parameters
    ----------
    operator : TensorOperator
        A.
    rounding : Rounding
        Knows the operator in float64, where there is one; the norm and level are measured as the solve goes.
    plan : Plan
    basis : BlockBasis
        Empty.
    start : Tensor, shape (n, m)
        The first block, not yet orthonormal.
    monitor : Monitor
    """

    def __init__(
        self,
        operator: TensorOperator,
        rounding: Rounding,
        plan: Plan,
        basis: BlockBasis,
        start: Tensor,
        monitor: Monitor,
    ) -> None:
        self.operator, self.rounding, self.plan, self.basis = operator, rounding, plan, basis
        self.monitor = monitor
        self.block = basis.orthonormal(start, max(plan.block, start.shape[1]))
        self.progress = Progress()
        self.settled: NDArray[Any] = np.zeros(0)
        self._looks: list[SolveStatus] = []  # at the Ritz values, until they are reported
        self._whole = True

    @property
    def multiplied(self) -> TensorOperator:
        """The operator that is multiplied by now."""
        return self.rounding.exact or self.operator if self.progress.in_float64 else self.operator

    def run(self) -> Stop:
        """Iterate until something stops it, and say what."""
        return self.monitor.sitting.run(self._advance, snapshot=self.snapshot, back=lambda: self._whole)

    def found(self) -> Ritz:
        """Give the wanted part of the projected problem; empty where nothing was multiplied yet."""
        return self._wanted(self._ritz())

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Give all that `restore` needs to go on bit for bit."""
        self.progress.products = self.monitor.products
        progress = {**asdict(self.progress), "least": min(self.progress.least, float(np.finfo(float).max))}
        arrays = {**self.basis.arrays(), "block": self.block.cpu().numpy(), "settled": self.settled}
        return arrays, {"progress": progress, "rng": self.basis.rng.bit_generator.state}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Go back to what `snapshot` gave."""
        self.basis.restore(arrays)
        self.block = torch.from_numpy(arrays["block"]).to(self.basis.device)
        self.settled = arrays["settled"]
        self.progress = Progress(**state["progress"])
        self.basis.rng.bit_generator.state = state["rng"]
        self.monitor.products = self.progress.products

    def _advance(self) -> Stop | None:
        self._whole = False
        stop, looks = self._step(), self._looks
        self._whole, self._looks = True, []
        for status in looks:  # whatever the callback does, it meets a whole state
            self.monitor.report(status)
        return stop

    def _step(self) -> Stop | None:
        block = self.block
        if stop := self.monitor.obstacle(self.basis.cost * block.shape[1]):
            return stop
        if block.shape[1] == 0:  # the whole space is spanned, or a finished solve was resumed
            return self._check(self.basis.image, True)
        image = self.basis.grow(self.multiplied, block)
        self._count(block.shape[1], image)
        self.block = block[:, :0]
        self.progress.blocks += 1
        width = 1 if self.progress.verifying and self.progress.single else self.plan.block
        following = min(width, self.basis.room)
        full = following == 0 or self.basis.size + following > self.plan.capacity or block.shape[1] > self.plan.block
        if self.progress.verifying:
            due = full or self.progress.blocks * width >= VERIFY_VECTORS
        else:
            due = full or (self.progress.blocks % CHECK_EVERY == 0 and self.basis.size > self.plan.k)
        if due:
            return self._check(image, full)
        self.block = self.basis.orthonormal(image, following)
        return None

    def _count(self, directions: int, image: Tensor) -> None:
        if self.progress.norm == 0:
            check_scale(float(image.abs().max()))
        self.monitor.count(self.basis.cost * directions)
        longest = float(torch.linalg.vector_norm(image.double(), dim=0).max())  # in float64, or squares overflow
        self.progress.norm = max(self.progress.norm, longest)

    def _check(self, image: Tensor, full: bool) -> Stop | None:
        """Look at the Ritz pairs; stop, verify, refine, restart, or just go on."""
        found = self._ritz()
        wanted = self._wanted(found)
        looked_at = len(wanted.values) + self.plan.block
        looked_at += found.splits_pair(looked_at)
        residuals = self.basis.residuals(found.first(looked_at))
        self._measure(found)
        errors = residual_lengths(residuals[:, : len(wanted.values)], wanted, self._blur())
        converged = errors <= self._reach()
        self._note(wanted, errors, converged)
        progress, whole = self.progress, self.basis.room == 0
        if progress.verifying:
            settled, progress.verifying = self._is_settled(wanted.values), False
            progress.looked = progress.blocks if progress.single else 0
            progress.verified = settled and progress.single
            progress.gave_up = not progress.verified and progress.rounds > self.plan.k + 20
        if len(wanted.values) >= self.plan.k and (converged.all() or self._stalls(errors)):
            if not whole and self.plan.verify and not (progress.verified or progress.gave_up):
                self._verify(found, wanted.values)
                return None
            if self.plan.refine and not progress.in_float64 and 2 * progress.level > HALF * self.plan.tol:
                return self._refine(found)
            return Stop.CONVERGED if self._reach() <= self.plan.tol * progress.norm else Stop.ROUNDING
        if whole:
            return Stop.ROUNDING
        if progress.stalled >= STAGNANT_CHECKS:
            return Stop.STAGNATION
        if full:
            self._restart(found, residuals, np.flatnonzero(~converged))
        else:
            self.block = self.basis.orthonormal(image, self.plan.block)
        return None

    def _ritz(self) -> Ritz:
        found = self.basis.solve(self.plan.target.ranking, self.plan.kept)
        return self._sorted_out(found) if self.basis.hermitian and self.progress.level > 0 else found

    def _sorted_out(self, found: Ritz) -> Ritz:
        """Among values that rounding does not tell apart, such as copies of a multiple one, put what converged first.

        Else new copies, which rounding makes the larger ones at random, would drive converged ones out for ever.
        """
        values, Q, S, P = (array.copy() for array in (found.values, found.Q, found.S, found.P))
        for group in groups_within(values, self._blur()):
            if len(group) == 1 or group[0] >= self.plan.k:
                continue
            square = np.ix_(group, group)
            _, gram = scaled_gram(self.basis.residuals(found.only(group)))
            U = torch.linalg.eigh(torch.from_numpy(gram))[1].numpy()  # least residual first
            Q[:, group], P[:, group], S[square] = Q[:, group] @ U, P[:, group] @ U, U.T @ S[square] @ U
            values[group] = np.diag(S)[group]
        return Ritz(values, Q, S, P)

    def _wanted(self, found: Ritz) -> Ritz:
        k = min(self.plan.k, len(found.values))
        return found.first(k + found.splits_pair(k))

    def _reach(self) -> float:
        return max(HALF * self.plan.tol, 2 * self.progress.level) * self.progress.norm

    def _blur(self) -> float:
        """How far apart two values must be for rounding to tell them apart."""
        return 2 * max(self.progress.level, 0.0) * self.progress.norm

    def _measure(self, found: Ritz) -> None:
        """Measure the size of A from below, its rounding at that size, and whether it is symmetric if it says so."""
        progress, projection = self.progress, self.basis.projection
        largest = float(torch.linalg.matrix_norm(torch.from_numpy(projection), 2))
        progress.norm = max(progress.norm, largest)
        if progress.level < 0 or progress.norm > GROWN * progress.norm_at_level:
            progress.norm_at_level = progress.norm
            leading = self.basis.combine(found.Q[:, :1])
            dtypes = (self.multiplied.torch_dtype, self.basis.dtype)  # directions and images are rounded to these
            rounded = max(torch.finfo(dtype).eps for dtype in dtypes) / 2
            progress.level = max(self.rounding.at(self.multiplied, leading, progress.norm), rounded)
            check_symmetric(self.basis.asymmetry, progress.norm, progress.level, self.basis)

    def _note(self, wanted: Ritz, errors: NDArray[np.float64], converged: NDArray[np.bool_]) -> None:
        progress = self.progress
        progress.products, seconds = self.monitor.products, self.monitor.sitting.seconds
        relative = errors / progress.norm if progress.norm > 0 else errors
        count = int(converged.sum())
        if progress.history and progress.history[-1][0] == progress.products:
            progress.history.pop()  # a finished solve was resumed: the same look
        progress.history.append([progress.products, count, float(relative.max(initial=0.0))])
        phase = "verifying" if progress.verifying else "float64" if progress.in_float64 else "solving"
        status = SolveStatus(progress.products, count, self.plan.k, wanted.values, relative, seconds, phase)
        self._looks.append(status)

    def _stalls(self, errors: NDArray[np.float64]) -> bool:
        """Notice residuals that rounding keeps from shrinking, near the level that was measured at one vector."""
        progress, worst = self.progress, float(errors.max())
        progress.stalled = 0 if worst < 0.7 * progress.least else progress.stalled + 1
        progress.least = min(progress.least, worst)
        if progress.stalled < STALLED_CHECKS or worst > 100 * progress.level * progress.norm:
            return False
        progress.level = worst / progress.norm if progress.norm > 0 else 0.0
        return True

    def _is_settled(self, values: NDArray[Any]) -> bool:
        """Whether fresh directions have changed nothing: new copies need not have converged to be known as such."""
        progress, allowed = self.progress, 2 * self._reach()
        if not self.basis.hermitian:
            allowed = np.sqrt(allowed * progress.norm)  # rounding moves a defective eigenvalue so far
        moved = self.plan.target.moved(self.settled, values)
        return bool(moved <= allowed)

    def _verify(self, found: Ritz, values: NDArray[Any]) -> None:
        """Look for what was missed, with one fresh vector, which sees the smallest gaps.

        Where that found more, the next look is with a block, which finds many copies at once; the last one is with one
        vector again.
        """
        progress = self.progress
        self.settled = values
        progress.verifying, progress.single = True, not progress.single
        progress.rounds += 1
        self._keep(self._wanted(found) if progress.single else found)
        empty = torch.empty(self.basis.n, 0, dtype=self.basis.dtype, device=self.basis.device)
        self.block = self.basis.orthonormal(empty, 1 if progress.single else self.plan.block)

    def _restart(self, found: Ritz, residuals: Tensor, unconverged: NDArray[np.intp]) -> None:
        later = np.arange(len(self._wanted(found).values), residuals.shape[1])
        chosen = np.concatenate([unconverged, later])[: self.plan.block]
        directions = residuals[:, torch.from_numpy(chosen).to(residuals.device)]
        self._keep(found)
        if isinstance(self.basis, TwoSidedBasis):
            directions = self._with_left_null(self.basis, found, unconverged, directions)
        self.block = self.basis.orthonormal(directions, self.plan.block)

    def _with_left_null(
        self, basis: TwoSidedBasis, found: Ritz, unconverged: NDArray[np.intp], directions: Tensor
    ) -> Tensor:
        """Draw left vectors for right ones that A takes to zero, once for each, and go on from their images first."""
        zero = 10 * self.progress.level * self.progress.norm
        zeros = [int(i) for i in unconverged if found.values[i] <= zero]
        drawn = zeros[self.progress.redrawn :]
        if not drawn or self.monitor.obstacle(len(drawn)):
            return directions
        image = basis.redraw(self.multiplied, drawn)
        self.monitor.count(len(drawn))
        self.progress.redrawn += len(drawn)
        return torch.cat([image, directions], dim=1)[:, : self.plan.block]

    def _keep(self, found: Ritz) -> None:
        most = max(self.plan.capacity - 2 * self.plan.block, 1)
        p = min(len(found.values), most)
        self.basis.restart(found.first(p + found.splits_pair(p)))
        self.progress.blocks = 0

    def _refine(self, found: Ritz) -> Stop | None:
        """Go on in float64 from the vectors found: a Rayleigh–Ritz pass, then as many blocks as it takes."""
        progress, exact = self.progress, self.rounding.exact
        assert exact is not None
        p = min(len(found.values), max(self.plan.k + self.plan.block, 2 * self.plan.k))
        if obstacle := self.monitor.obstacle(self.basis.cost * p):
            return obstacle
        self._keep(found.first(p + found.splits_pair(p)))
        progress.in_float64, progress.verifying, progress.level, progress.redrawn = True, False, -1.0, 0
        self.basis.renew(exact)
        self._count(self.basis.size, self.basis.image)
        progress.least, progress.stalled = np.inf, 0
        return self._check(self.basis.image, True)
