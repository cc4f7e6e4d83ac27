"""Any torch module with any loss function over any data."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops._autodiff import gradients, join, recording, twice_differentiable
from jvp_ops._checks import check_state, resolve_device, resolve_dtype, sample_numbers
from jvp_ops._memory import parse_bytes, resolve_budget
from jvp_ops._random import Rng
from jvp_ops.losses._batches import Batch, Batches
from jvp_ops.losses._graphs import gauss_newton_graph, hessian_graph, refuse_concave
from jvp_ops.losses._modules import bind, call, common_dtype, redraw, refuse_training_mode, trainable
from jvp_ops.losses._reduction import find_reduction, spread_samples
from jvp_ops.losses._streaming import Builder, Plan, Stream
from jvp_ops.operators import GaussNewtonOperator, HessianOperator, Linearization
from jvp_ops.store import callable_identity, module_identity, sha256_of


class ModelLoss:
    r"""The loss of any torch module over a whole data set, as a function of its flat parameters θ.

    .. math::  L(θ) = \frac1N \sum_n ℓ(f_θ(x_n), t_n) \quad\text{or}\quad \sum_n ℓ(f_θ(x_n), t_n),

    by the loss function's own reduction, which is found out by trying. Sums are weighted by samples, so ragged
    batches are right. ``hessian`` and ``gauss_newton`` linearize once: they record the graphs of as many chunks
    as the memory budget holds and record the others anew in each product.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode where it has dropout or batch-norm. It is copied, and never changed.
    loss_function : callable
        ``loss_function(outputs, targets)``, a scalar: the mean or the sum over samples.
    data : (inputs, targets), DataLoader, or list of batches
        Inputs may be a tensor, a tuple (positional arguments) or a mapping (keyword arguments) of tensors with
        one row a sample. A loader is read anew on each pass and must give the same batches each time.
    parameters : str or sequence of str, optional
        Names or globs of the parameters that make up θ; by default all that require gradients. The others are
        constants.
    device : str or torch.device, optional
        Where to compute; by default where the model is.
    dtype : torch.dtype or str, optional
        float32 or float64; by default the model's own.
    max_memory : int or str, optional
        Bytes that recorded graphs and the work of one product may take; by default half of what is free.

    Raises
    ------
    InputError
        Dropout or batch-norm in training mode, a random model, a loss that is no mean or sum over samples, no
        parameters, no data.
    DataError
        A data loader that changes between passes.
    MemoryBudgetError
        The budget does not hold the graph of one sample.

    Notes
    -----
    A product is one backward pass through the recorded gradient. Attention is computed by its plain formula,
    since the fused kernels cannot be differentiated twice. Parameters that the loss does not use give zeros.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> data = jo.load_digits().subset(50)
    >>> pair = (torch.tensor(data.inputs), torch.tensor(data.labels))
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.Tanh(), torch.nn.Linear(6, 10))
    >>> loss = jo.ModelLoss(model, torch.nn.functional.cross_entropy, pair, parameters="2.*")
    >>> loss.parameters
    <Parameters 70: 2.weight 10×6, 2.bias 10>
    >>> loss.hessian(loss.initial()).block("2.bias", "2.weight")
    <10x60 HessianOperator with dtype=float32>
    """

    def __init__(
        self,
        model: nn.Module,
        loss_function: Callable[[Any, Any], Tensor],
        data: Any,
        *,
        parameters: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        max_memory: int | str | None = None,
    ) -> None:
        self.parameters = trainable(model, parameters)
        refuse_training_mode(model)
        self.dtype = common_dtype(model) if dtype is None else resolve_dtype(dtype)
        self.device = next(model.parameters()).device if device is None else resolve_device(device)
        self.max_memory = None if max_memory is None else parse_bytes(max_memory)
        self._model = copy.deepcopy(model).to(self.device, self.dtype)
        self._batches = Batches(data, self.device, self.dtype)
        self._loss = find_reduction(self._model, loss_function, self._batches)

    def __repr__(self) -> str:
        name, n = type(self._model).__name__, self.parameters.size
        return f"<ModelLoss {name} with {n} parameters, {self.samples} samples, {self.dtype}, {self.device}>"

    @property
    def samples(self) -> int:
        """How many samples the loss runs over."""
        return self._batches.samples

    def initial(self, rng: Rng | None = None) -> Tensor:
        """Return a start θ, shape (n,): the model's own values, or drawn anew from a seed.

        Parameters
        ----------
        rng : int or numpy Generator, optional
            Draw as the modules' own ``reset_parameters`` do.

        Raises
        ------
        InputError
            A parameter belongs to a module that has no ``reset_parameters``.
        """
        model = self._model if rng is None else redraw(self._model, self.parameters, rng)
        return self.parameters.flatten({name: p.detach() for name, p in model.named_parameters()}).to(self.device)

    def value(self, theta: Tensor) -> Tensor:
        """Compute L(θ), a tensor of no dimensions."""
        model, _ = self._bind(theta)

        def add(batch: Batch, total: Tensor) -> None:
            total += self._loss(call(model, batch.inputs), batch)

        return self._sum_over(add, torch.zeros((), dtype=self.dtype, device=self.device))

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute ∇L(θ), shape (n,)."""
        model, leaves = self._bind(theta)

        def add(batch: Batch, total: Tensor) -> None:
            with recording():
                value = self._loss(call(model, batch.inputs), batch)
            total += join(gradients(value, leaves))

        with twice_differentiable(recurrent=self._recurrent):  # cuDNN's recurrent layers have no gradient in eval mode
            return self._sum_over(add, torch.zeros_like(theta))

    def hessian(self, theta: Tensor) -> HessianOperator:
        """Linearize at θ and return the Hessian ∇²L(θ) as an operator."""
        return HessianOperator(self._linearize(theta, hessian_graph, "hessian"))

    def gauss_newton(self, theta: Tensor) -> GaussNewtonOperator:
        """Linearize at θ and return the generalized Gauss-Newton matrix as an operator.

        Raises
        ------
        InputError
            The loss function is not convex in the model's outputs.
        """
        model, _ = self._bind(theta)
        with twice_differentiable(recurrent=self._recurrent):
            for sample in spread_samples(self._batches):
                refuse_concave(model, self._loss, sample)
        return GaussNewtonOperator(self._linearize(theta, gauss_newton_graph, "gauss_newton"))

    def to(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> "ModelLoss":
        """Make the same loss in another dtype or on another device."""
        other = object.__new__(ModelLoss)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_gradient_plan"})
        other.dtype = self.dtype if dtype is None else resolve_dtype(dtype)
        other.device = self.device if device is None else resolve_device(device)
        other._model = copy.deepcopy(self._model).to(other.device, other.dtype)
        other._batches = self._batches.to(other.device, other.dtype)
        return other

    def subset(self, index: Sequence[int] | Tensor) -> "ModelLoss":
        """Make the same loss on some samples only, where the data are tensors.

        Parameters
        ----------
        index : sequence of int or integer Tensor, shape (m,)
            Their numbers, in any order; one that is there twice counts twice.

        Raises
        ------
        InputError
            No numbers, or one that is no sample's; or the data come from a loader or a list of batches.
        """
        other = object.__new__(ModelLoss)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_gradient_plan"})
        other._batches = self._batches.subset(sample_numbers(index, self.samples))
        return other

    def identity(self) -> dict[str, Any]:
        """All that L depends on, as a JSON-able dict; of code, the names and the compiled instructions."""
        constants = {**dict(self._model.named_buffers()), **dict(self._model.named_parameters())}
        held = sorted(set(constants) - set(self.parameters.names))
        return {
            "loss": "ModelLoss",
            "model": module_identity(self._model),
            "constants": sha256_of(*(constants[name] for name in held)),
            "function": callable_identity(self._loss.function),
            "data": self._batches.identity(),
            "shapes": {entry.name: entry.shape for entry in self.parameters},
            "dtype": str(self.dtype),
        }

    def _bind(self, theta: Tensor) -> tuple[nn.Module, list[Tensor]]:
        n = self.parameters.size
        theta = check_state(theta, "theta", size=n, dtype=self.dtype, device=self.device)
        with torch.inference_mode(False), torch.no_grad():
            return bind(self._model, self.parameters, theta.clone())

    @property
    def _recurrent(self) -> bool:
        return any(isinstance(module, nn.RNNBase) for module in self._model.modules())

    @property
    def _scale(self) -> float:
        return 1 / self.samples if self._loss.is_mean else 1.0

    @cached_property
    def _gradient_plan(self) -> Plan:
        model, _ = self._bind(self.initial())

        def forward(batch: Batch) -> Any:
            return self._loss(call(model, batch.inputs), batch)

        return self._plan(forward, model)

    def _plan(self, build: Builder, model: nn.Module) -> Plan:
        known = [*model.parameters(), *model.buffers()]
        budget = resolve_budget(self.max_memory, self.device)
        return Plan(build, self._batches, known, self.parameters.size, budget)

    def _sum_over(self, add: Callable[[Batch, Tensor], None], total: Tensor) -> Tensor:
        return Stream(self._batches, self._gradient_plan).add_all(add, total) * self._scale

    def _linearize(self, theta: Tensor, graph: Any, kind: str) -> Linearization:
        model, leaves = self._bind(theta)
        with torch.inference_mode(False):
            frozen = theta.detach().clone()

        def build(batch: Batch) -> Any:
            with recording():
                return graph(model, leaves, self._loss, batch)

        with twice_differentiable(recurrent=self._recurrent):
            stream = Stream.linearize(self._batches, build, self._plan(build, model))

        def apply(V: Tensor) -> Tensor:
            with twice_differentiable(recurrent=self._recurrent):
                return stream.product(V) * self._scale

        return Linearization.symmetric_of(
            apply,
            self.parameters,
            self.dtype,
            self.device,
            identity=lambda: {"at": sha256_of(frozen), **self.identity()},
            in_float64=lambda: getattr(self.to(dtype=torch.float64), kind)(frozen.to(torch.float64)),
        )
