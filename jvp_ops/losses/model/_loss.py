"""Any torch module with any loss function over any data."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from jvp_ops._autodiff import join
from jvp_ops._checks import check_state, resolve_device, resolve_dtype, sample_numbers
from jvp_ops._differences import UNCHECKED, somewhere_near
from jvp_ops._memory import parse_bytes
from jvp_ops._random import Rng
from jvp_ops.linear import LinearMap
from jvp_ops.losses._point import Derivatives, Point, own_point, point_of
from jvp_ops.losses.model._again import MadeAgain
from jvp_ops.losses.model._batches import Batches
from jvp_ops.losses.model._binding import Binding
from jvp_ops.losses.model._captured import Captured
from jvp_ops.losses.model._convexity import convex_part
from jvp_ops.losses.model._evaluation import Evaluation, LossFunction, Objective
from jvp_ops.losses.model._findings import find_out
from jvp_ops.losses.model._fitness import refuse_shared_memory, refuse_unfit
from jvp_ops.losses.model._graphs import Part, Passed, gauss_newton_graph, hessian_graph
from jvp_ops.losses.model._items import Unpacking
from jvp_ops.losses.model._options import check_options
from jvp_ops.losses.model._parameters import common_dtype, real_shape, trainable
from jvp_ops.losses.model._redraw import redraw
from jvp_ops.losses.model._reduction import spread_samples
from jvp_ops.losses.model._regularization import Regularization, Regularizer
from jvp_ops.losses.model._streaming import Builder
from jvp_ops.losses.model._total import Graph, Total
from jvp_ops.losses.model._verify import Probe, check_gauss_newton, check_hessian
from jvp_ops.operators import GaussNewtonOperator, HessianOperator
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of

FEW = 2  # samples on which θ itself is looked at


class ModelLoss(MadeAgain):
    r"""The loss of any torch module over a whole data set, as a function of its flat parameters θ.

    .. math::  L(θ) = \frac1N \sum_n ℓ(f_θ(x_n), t_n) \quad\text{or}\quad \sum_n ℓ(f_θ(x_n), t_n),

    by the loss function's own reduction, which is found out by trying. Sums are weighted by samples, so ragged
    batches are right. ``hessian`` and ``gauss_newton`` linearize once: they record the graphs of as many chunks
    as the memory budget holds and record the others anew in each product.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode where it has dropout or batch-norm. It holds θ while a pass runs, and afterwards is as it was;
        what becomes of it later is not seen.
    loss_function : callable or None
        ``loss_function(outputs, targets)``, a scalar: the mean or the sum over samples. None where the model computes
        the loss itself, and returns it as its output, as ``output.loss`` or as ``output["loss"]``.
    data : (inputs, targets), DataLoader, or list of batches
        Inputs may be a tensor, a tuple (positional arguments) or a mapping (keyword arguments) of tensors with
        one row a sample. A batch may also be a mapping, whose ``"labels"`` are the targets (without a
        `loss_function` the model is given all of it), or hold more than two tensors: the model is given as many as
        its forward requires. A loader is read anew on each pass and must give the same batches each time.
    parameters : str or sequence of str, optional
        Names or globs of the parameters that make up θ; by default all that require gradients, those of a
        `loss_function` that is a module among them (as ``loss_function.NAME``). The others are constants.
    regularizer : callable, optional
        ``regularizer(tensors)`` of the model's parameters by name, a scalar that is added once to the whole loss (never
        per batch, and not divided); the Gauss-Newton matrix takes its Hessian, and every subset has it whole.
    normalizer : callable, optional
        ``normalizer(targets)``, the number that the loss of a batch divides by, where it is a weighted mean that is
        not one of torch's own losses (whose class weights and ignored targets are recognized).
    coupled : bool
        The samples belong together, as with batch statistics or contrastive losses: the data must be one batch, whose
        loss is taken as it is.
    outputs : str or int, optional
        The part of the model's outputs that the loss is convex in, for `gauss_newton`; by default the only one that
        the loss depends on.
    unpack : callable, optional
        ``unpack(batch)``, the (inputs, targets) of what the data hold as a batch.
    second_derivatives : {"checked", "unchecked"}
        Whether the first Hessian and the first Gauss-Newton matrix are held against differences; an unchecked one says
        so in the notes of every result (of `eigenpairs`, say).
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
        parameters, no data; tensors that require gradients and are not in θ. From `hessian` and `gauss_newton`: a
        product that is no derivative.
    NonFiniteError
        NaN or Inf in the data, the outputs, the regularizer or θ.
    DataError
        A data loader that changes between passes, or tensors that were changed in place.
    MemoryBudgetError
        From `value`, `gradient`, `hessian` and `gauss_newton`: the budget does not hold the graph of one sample.

    Notes
    -----
    A product is one backward pass through the recorded gradient. Attention is computed by its plain formula,
    since the fused kernels cannot be differentiated twice; autocast and TF32 are off. Parameters that the loss does not
    use give zeros, and so do the rows of embeddings at ``padding_idx``, which torch never trains: they are constants. A
    complex parameter is in θ as its real and imaginary parts. docs/trust.md says what is checked, and what is not seen.

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

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        loss_function: LossFunction | None,
        data: Any,
        *,
        parameters: str | Sequence[str] | None = None,
        regularizer: Regularizer | None = None,
        normalizer: Callable[[Any], Any] | None = None,
        coupled: bool = False,
        outputs: Part = None,
        unpack: Callable[[Any], Any] | None = None,
        second_derivatives: str = "checked",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        max_memory: int | str | None = None,
    ) -> None:
        named = trainable(model, loss_function, parameters)
        check_options(loss_function, regularizer, normalizer, unpack, second_derivatives, coupled)
        self.parameters = Parameters.of({name: real_shape(tensor) for name, tensor in named.items()})
        captured = Captured()
        captured.visit(model, "model")
        captured.visit(loss_function, "loss_function")
        captured.visit(regularizer, "regularizer")
        refuse_unfit(model, captured, coupled=coupled)
        refuse_shared_memory(named, captured)
        self.dtype = common_dtype(model) if dtype is None else resolve_dtype(dtype)
        self.device = next(model.parameters()).device if device is None else resolve_device(device)
        self.max_memory = None if max_memory is None else parse_bytes(max_memory)
        self._outputs, self._coupled, self._unchecked = outputs, coupled, second_derivatives == "unchecked"
        self._passed: set[str] = set()  # the checks; subsets share them
        unpacking = Unpacking(model, loss_function is None, unpack)
        batches = Batches(data, unpacking, self.device, self.dtype, coupled=coupled)
        binding = Binding(captured, named, self.device, self.dtype)
        findings = find_out(Objective(model, loss_function, normalizer), binding, batches, coupled=coupled)
        regularization = None
        if regularizer is not None:
            numbers = {name: id(parameter) for name, parameter in model.named_parameters()}
            regularization = Regularization(regularizer, numbers)
            regularization.try_out(findings.objective, binding)
        self._total = Total(findings, binding, batches, regularization, self.max_memory)
        self._known = frozenset((*self.__dict__, "_known"))

    def __repr__(self) -> str:
        name, n = type(self._total.objective.model).__name__, self.parameters.size
        return f"<ModelLoss {name} with {n} parameters, {self.samples} samples, {self.dtype}, {self.device}>"

    @property
    def samples(self) -> int:
        """How many samples the loss runs over."""
        return self._total.batches.samples

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of any result of this loss must know."""
        found = [UNCHECKED] if self._unchecked else []
        if not self._total.findings.in_float64:
            found.append("the model does not run in float64: its derivatives were checked in float32, and not closely")
        return tuple(found)

    def initial(self, rng: Rng | None = None) -> Tensor:
        """Return a start θ, shape (n,): the model's own values, or drawn anew from a seed.

        Parameters
        ----------
        rng : int or numpy Generator, optional
            Draw as the modules' own ``reset_parameters`` do.

        Raises
        ------
        InputError
            A parameter is drawn by no module's ``reset_parameters``.
        """
        return join(self._total.binding.initial() if rng is None else redraw(self._total.binding, rng)).to(self.device)

    def value(self, theta: Tensor) -> Tensor:
        """Compute L(θ), a tensor of no dimensions."""
        return self._total.value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute ∇L(θ), shape (n,)."""
        return self._total.gradient(self._checked(theta))

    def at(self, theta: Tensor) -> Point:
        """Take L at θ: value, gradient and Hessian from one pass; the Gauss-Newton matrix takes its own."""
        return point_of(self, theta)

    def hessian(self, theta: Tensor) -> HessianOperator:
        """Linearize at θ and return the Hessian ∇²L(θ) as an operator.

        Raises
        ------
        InputError
            The first time: a product with it is not the derivative of the gradient, or the gradient not that of L.
        """
        return own_point(self, theta).hessian()

    @torch.inference_mode(False)
    def gauss_newton(self, theta: Tensor) -> GaussNewtonOperator:
        """Linearize at θ and return the generalized Gauss-Newton matrix as an operator.

        Raises
        ------
        InputError
            The loss function is not convex in the model's outputs, or linear in them; it depends on several parts of
            them; or, the first time, products are no derivatives.
        """
        part = self._part(theta := self._checked(theta))
        self._check_once("gauss_newton", partial(check_gauss_newton, part=part), theta)

        def graph(at: Evaluation, leaves: Sequence[Tensor]) -> Builder:
            reading = self._total.reading(at, leaves)
            return lambda batch: gauss_newton_graph(at, leaves, batch, part, reading)

        made = GaussNewtonOperator(self._linearize(theta, "gauss_newton", graph))
        return made.made_by(ModelLoss.gauss_newton, self, theta.detach().clone())

    @torch.inference_mode(False)
    def to(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> "ModelLoss":
        """Make the same loss in another dtype or on another device, from the values and data as they were given."""
        device = self.device if device is None else resolve_device(device)
        dtype = self.dtype if dtype is None else resolve_dtype(dtype)
        return self._of(self._total.to(device, dtype), partial(ModelLoss.to, self, dtype=dtype, device=device))

    @torch.inference_mode(False)
    def subset(self, index: Sequence[int] | Tensor) -> "ModelLoss":
        """Make the same loss on some samples only, where the data are tensors.

        A weighted mean divides by the weights of these samples.

        Parameters
        ----------
        index : sequence of int or integer Tensor, shape (m,)
            Their numbers, in any order; one that is there twice counts twice.

        Raises
        ------
        InputError
            No numbers, or one that is no sample's; or the data come from a loader or a list of batches.
        """
        chosen = sample_numbers(index, self.samples).clone()
        return self._of(self._total.subset(chosen), ModelLoss.subset, self, chosen)

    def identity(self) -> dict[str, Any]:
        """All that L depends on, as a JSON-able dict; of functions, their code and what they hold."""
        return {
            "loss": "ModelLoss",
            **self._total.identity(),
            "shapes": {entry.name: entry.shape for entry in self.parameters},
            "dtype": str(self.dtype),
            **({"coupled": True} if self._coupled else {}),
            **({} if self._outputs is None else {"outputs": self._outputs}),
        }

    def _of(self, total: Total, function: Callable[..., Any], *args: Any) -> "ModelLoss":
        other = object.__new__(type(self))
        moved = {"_total": total, "dtype": total.binding.dtype, "device": total.binding.device}
        moved |= {"_recipe": (function, args)}
        other.__dict__.update(self.__dict__ | moved)
        return other

    def _checked(self, theta: Tensor) -> Tensor:
        n = self.parameters.size
        return check_state(theta, "theta", size=n, dtype=self.dtype, device=self.device)

    def _check_once(self, kind: str, check: Callable[[Probe, Tensor], None], theta: Tensor) -> None:
        if not self._unchecked and kind not in self._passed:
            probe = self._total.probe()
            at, there = theta.to(probe.binding.dtype), partial(check, probe.fewer(FEW))
            somewhere_near(partial(check, probe), at, probe.sizes, check_there=there)
            self._passed.add(kind)

    def _part(self, theta: Tensor) -> Part:
        """Find the part of the outputs that the loss is convex in, and see on all samples tried that it is."""
        with self._total.at(theta) as (at, leaves):
            samples = spread_samples(self._total.batches)
            return convex_part(at, leaves, samples, self._outputs, self._total.reading(at, leaves))

    def _differentiate(self, frozen: Tensor) -> Derivatives:
        passed = Passed()

        @cache
        def linear() -> LinearMap:
            self._check_once("hessian", check_hessian, frozen)
            return self._linearize(
                frozen, "hessian", lambda at, leaves: partial(hessian_graph, at, leaves, passed=passed), passed
            )

        def value() -> Tensor:
            linear()
            return self._total.value(frozen) if passed.value is None else passed.value

        def gradient() -> Tensor:
            linear()
            return self._total.gradient(frozen) if passed.gradient is None else passed.gradient

        return Derivatives(
            value,
            gradient,
            lambda: HessianOperator(linear()).made_by(ModelLoss.hessian, self, frozen),
            lambda: ModelLoss.gauss_newton(self, frozen),
        )

    def _linearize(self, theta: Tensor, kind: str, graph: Graph, passed: Passed | None = None) -> LinearMap:
        with torch.inference_mode(False):
            frozen = theta.detach().clone()

        def in_float64() -> LinearMap:
            own = getattr(ModelLoss, kind)  # not a subclass's, which builds on this one
            return own(self.to(dtype=torch.float64), frozen.to(torch.float64)).linear  # type: ignore[no-any-return]

        return LinearMap.symmetric_of(
            self._total.linearize(frozen, graph, passed),
            self.parameters,
            self.dtype,
            self.device,
            identity=lambda: {"at": sha256_of(frozen), **self.identity()},
            in_float64=in_float64 if self._total.findings.in_float64 else None,
            notes=self.notes,
        )
