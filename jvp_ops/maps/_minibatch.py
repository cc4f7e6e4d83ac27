"""Stochastic gradient descent: a fixed random sequence of batches under any optimizer."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from jvp_ops._checks import positive_int, speaks_for
from jvp_ops._random import Rng, generator
from jvp_ops.errors import InputError
from jvp_ops.losses import Loss, SampledLoss
from jvp_ops.maps._gradient_descent import GradientDescent
from jvp_ops.maps._optimizer import OptimizerMap
from jvp_ops.maps._protocol import STEP
from jvp_ops.maps._run import run
from jvp_ops.maps._schedule import checked_step
from jvp_ops.operators import JacobianOperator
from jvp_ops.parameters import Parameters


def _descent(loss: Loss) -> OptimizerMap:
    return GradientDescent(loss, lr=0.1)


class MinibatchSGD:
    r"""Steps of an optimizer on mini-batches, in a sequence that the seed fixes once and for all.

    .. math::  f_s(θ) = θ - α ∇L_{B(s)}(θ), \quad Df_s(θ) = I - α H_{B(s)}(θ)

    for gradient descent, with L_B the loss over the samples in B; any optimizer map may stand in its place. Each
    epoch goes through a permutation of the samples drawn from (seed, epoch), so that every step s can be had at once
    and again. For gradient descent each Df is symmetric, but products of them are not.

    Parameters
    ----------
    loss : TwoLayerLoss or ModelLoss
        L over all samples; a loss with ``samples`` and ``subset(index)``.
    batch_size : int
        Samples in a batch.
    optimizer : callable
        ``optimizer(loss)``, a map such as `GradientDescent` or `Adam`; called once, and then used on every batch's
        loss. By default gradient descent with α = 0.1.
    rng : int or numpy Generator
        Seed of the permutations; from a Generator one is drawn.
    drop_last : bool
        Leave out the last batch of an epoch where it would be smaller than the others.

    Attributes
    ----------
    loss : Loss or None
        L; None where the map was made by `of`.
    optimizer : OptimizerMap
        The map over the whole of L (the first of the losses, by `of`).
    steps_per_epoch : int
    seed : int
    parameters, dtype, device
        Of the state.

    Raises
    ------
    InputError
        A loss without samples, a batch larger than the data, or an `optimizer` that makes no optimizer map.

    Examples
    --------
    >>> import jvp_ops as jo
    >>> data = jo.load_digits().subset(100)
    >>> loss = jo.TwoLayerLoss(data, hidden=5)
    >>> f = jo.MinibatchSGD(loss, 32, optimizer=lambda loss: jo.HeavyBall(loss, lr=0.1, momentum=0.9))
    >>> f.steps_per_epoch, [len(f.batch(step)) for step in range(5)]
    (4, [32, 32, 32, 4, 32])
    >>> state = f.run(f.initial(loss.initial(rng=0)), steps=8)
    >>> f.jacobian(state, step=8)
    <770x770 JacobianOperator with dtype=float32>
    """

    def __init__(
        self,
        loss: SampledLoss,
        batch_size: int,
        *,
        optimizer: Callable[[Loss], OptimizerMap] = _descent,
        rng: Rng = 0,
        drop_last: bool = False,
    ) -> None:
        if not callable(getattr(loss, "subset", None)) or not hasattr(loss, "samples"):
            raise InputError(
                f"loss must be over samples, as TwoLayerLoss and ModelLoss are, not {type(loss).__name__}: "
                "MinibatchSGD.of(losses) takes one loss for each batch"
            )
        loss.subset([0])  # which refuses data that cannot be taken apart
        self._prepare(loss, [loss], loss.samples, batch_size, optimizer, rng, drop_last)

    @classmethod
    def of(cls, losses: Sequence[Loss], *, optimizer: Callable[[Loss], OptimizerMap] = _descent, rng: Rng = 0) -> Self:
        """Make the map whose step takes one of several losses; an epoch takes each once.

        Parameters
        ----------
        losses : sequence of Loss
            Of the same parameters, dtype and device.
        optimizer, rng
            As in `MinibatchSGD`.

        Raises
        ------
        InputError
            No losses, or losses of different parameters, dtypes or devices.

        Examples
        --------
        >>> import torch, jvp_ops as jo
        >>> losses = [jo.FunctionLoss(lambda x, h=h: h * (x**2).sum() / 2, size=1) for h in (1.0, 3.0)]
        >>> f = jo.MinibatchSGD.of(losses, optimizer=lambda loss: jo.GradientDescent(loss, lr=0.5))
        >>> sorted(f.jacobian(torch.ones(1), step).dense().item() for step in (0, 1))
        [-0.5, 0.5]
        """
        if not isinstance(losses, Sequence) or not losses:
            raise InputError(f"losses must be a sequence of at least one loss, not {losses!r}")
        if strange := [type(loss).__name__ for loss in losses if not callable(getattr(loss, "hessian", None))]:
            raise InputError(f"losses must hold losses such as TwoLayerLoss, not {strange[0]}")
        kinds = {(str(getattr(loss, "parameters", None)), str(loss.dtype), str(loss.device)) for loss in losses}
        if len(kinds) > 1:
            raise InputError(f"the losses must have the same parameters, dtype and device, not {sorted(kinds)}")
        made, chosen = object.__new__(cls), list(losses)
        made._prepare(None, chosen, len(chosen), 1, optimizer, rng, False)
        return made

    def _prepare(
        self,
        loss: Loss | None,
        losses: list[Loss],
        count: int,
        batch_size: int,
        optimizer: Callable[[Loss], OptimizerMap],
        rng: Rng,
        drop_last: bool,
    ) -> None:
        self.loss, self._losses, self._count = loss, losses, count
        self.batch_size = positive_int(batch_size, "batch_size")
        if self.batch_size > count:
            raise InputError(f"batch_size must be at most the {count} samples there are, not {batch_size}")
        ready = isinstance(optimizer, OptimizerMap) or not callable(optimizer)
        made = None if ready else optimizer(losses[0])
        if not isinstance(made, OptimizerMap):
            kind = f"it is a {type(optimizer).__name__}" if ready else f"it gave {type(made).__name__}"
            raise InputError(
                "optimizer must make an optimizer map of a loss, such as lambda loss: GradientDescent(loss, lr=0.1); "
                f"{kind}"
            )
        self.optimizer = made
        self.drop_last = bool(drop_last)
        self.steps_per_epoch = count // self.batch_size if drop_last else -(-count // self.batch_size)
        random = generator(rng)
        self.seed = int(random.integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
        self.parameters: Parameters = self.optimizer.parameters
        self._latest: tuple[int, OptimizerMap] | None = None

    def __repr__(self) -> str:
        over = "" if self.loss is not None else f"{self._count} losses, "
        return f"<MinibatchSGD {over}batches of {self.batch_size}, seed {self.seed}: {self.optimizer!r}>"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""
        return self.optimizer.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.optimizer.device

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of any result of this map must know."""
        return self.optimizer.notes

    def batch(self, step: int) -> Tensor:
        """Say which samples (by `of`: which loss) step number `step` takes: integers on the CPU."""
        epoch, place = divmod(checked_step(step), self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self._count)
        return torch.from_numpy(order[place * self.batch_size : (place + 1) * self.batch_size])

    def at(self, step: int) -> OptimizerMap:
        """Give the optimizer map of step number `step`, over the loss of its batch."""
        step = checked_step(step)
        latest = self._latest  # read once: another thread may put its own there
        if latest is None or latest[0] != step:
            latest = self._latest = (step, self.optimizer.over(self._pick(self.batch(step))))
        return latest[1]

    def _pick(self, index: Tensor) -> Loss:
        """Take the loss of a batch: over its samples, or the one it names."""
        subset = getattr(self.loss, "subset", None)
        return self._losses[int(index[0])] if subset is None else subset(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}

    def __call__(self, state: Tensor, step: int = 0) -> Tensor:
        """Take step number `step`: f(state), shape (n,)."""
        return self.at(step)(state, step)

    def run(
        self,
        state: Tensor,
        *,
        steps: int,
        first: int = 0,
        progress: bool = False,
        callback: Callable[[int, Tensor], object] | None = None,
    ) -> Tensor:
        """Take `steps` steps, the first of them number `first`; as in `GradientDescent.run`."""
        return run(self, state, steps=steps, first=first, progress=progress, callback=callback)

    def initial(self, theta: Tensor, step: int = 0) -> Tensor:
        """Make the state that the optimizer starts from at θ, where `step` is the first step."""
        return self.at(step).initial(theta)

    def theta(self, state: Tensor) -> Tensor:
        """Take θ out of a state, as a view."""
        return self.optimizer.theta(state)

    def jacobian(self, state: Tensor, step: int = 0) -> JacobianOperator:
        """Linearize step number `step` at a state and return Df; as the optimizer's own on that batch."""
        return self.at(step).jacobian(state, step)

    def linearize(self, state: Tensor, step: int = 0) -> tuple[Tensor, JacobianOperator]:
        """Take step number `step` and linearize it: f(state) and Df, from one pass of the batch's loss."""
        if not speaks_for(self, "linearize", STEP):
            return self(state, step), self.jacobian(state, step)
        return self.at(step).linearize(state, step)

    def identity_at(self, state: Tensor, step: int = 0) -> dict[str, Any]:
        """Name Df of step number `step` at a state as its operator does, without linearizing."""
        if not speaks_for(self, "identity_at", STEP):
            return self.jacobian(state, step).identity()
        return self.at(step).identity_at(state, step)

    def identity(self) -> dict[str, Any]:
        """All that f depends on, as a JSON-able dict."""
        return {
            "map": "MinibatchSGD" if self.loss is not None else "MinibatchSGD.of",
            "batch_size": self.batch_size,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "optimizer": self.optimizer.identity(),
            "losses": [loss.identity() for loss in self._losses[1:]],
        }
