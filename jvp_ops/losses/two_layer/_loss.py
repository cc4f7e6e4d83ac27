"""The reference network with its Hessian in closed form."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jvp_ops._autodiff import numerics
from jvp_ops._checks import (
    check_state,
    finite_number,
    positive_int,
    resolve_device,
    resolve_dtype,
)
from jvp_ops._memory import require, resolve_budget
from jvp_ops._random import Rng, generator, normal
from jvp_ops.data import Dataset
from jvp_ops.errors import InputError
from jvp_ops.linear import LinearMap, Panels
from jvp_ops.losses._point import Derivatives, Point, own_point, point_of
from jvp_ops.losses.two_layer._chunked import ChunkedForm
from jvp_ops.losses.two_layer._form import Form, Linearized, Weights
from jvp_ops.losses.two_layer._null_space import null_space
from jvp_ops.losses.two_layer._plain import PlainForm
from jvp_ops.losses.two_layer._samples import Samples, checked_samples
from jvp_ops.operators import GaussNewtonOperator, HessianOperator
from jvp_ops.parameters import Parameters
from jvp_ops.store import sha256_of


class TwoLayerLoss:
    r"""Mean softmax cross-entropy of a network with one sigmoid hidden layer, over a whole data set.

    .. math::  L(θ) = -\frac1k \sum_n \log \mathrm{softmax}(σ(x_n W_1 + b_1) W_2 + b_2)_{t_n},

    σ(a) = 1/(1 + exp(−a)), θ = (W1, b1, W2, b2), each row-major, W1 of shape (inputs, hidden). Gradient, Hessian
    and Gauss-Newton products are in closed form: one product costs about two passes over the inputs, and no
    autograd graph is kept.

    Parameters
    ----------
    inputs : Dataset, or array or Tensor of shape (samples, inputs)
        The inputs with their labels; or real numbers. Either is rounded once, to the dtype that is computed in: the
        pixels of a `Dataset` are divided by their maximum in that dtype, and the float64 twin (``to(dtype="float64")``)
        of a float32 loss starts again from the pixels, or from the numbers given.
    labels : array or Tensor of integers, shape (samples,)
        The class of each sample, 0 to classes − 1; left out with a `Dataset`, which has them.
    hidden : int
        Hidden units.
    classes : int, optional
        Output units; by default the classes of the `Dataset`, or one more than the largest label, at least 2.
    device : str or torch.device, optional
        Where to compute; by default the CPU.
    dtype : torch.dtype or str
        float32 (default) or float64: what θ is, and what everything is computed in.
    max_memory : int or str, optional
        Bytes that a linearization and one of its products may take beside the data, such as ``"2GiB"``; by
        default half of what is free.

    Raises
    ------
    InputError
        Inputs and labels of different length, empty, of the wrong type or out of range; labels given beside a
        `Dataset`, or missing without one.
    NonFiniteError
        NaN or Inf in the inputs.

    Notes
    -----
    For every θ, H has an exact null space: the directions b2 + c·1, each row of W2 + c·1, and every W1 row of
    an input that is zero in all samples. Such inputs cost nothing: the samples are kept in chunks that leave
    out what is zero in all of a chunk.

    References
    ----------
    The network and the update of Xie and Ni, "Computing the Jacobi matrix of the parameter iteration of a
    two-layer neural network: MNIST as an example" (2024). R-operator: B. A. Pearlmutter, "Fast exact
    multiplication by the Hessian", Neural Computation 6 (1994).

    Examples
    --------
    >>> import jvp_ops as jo
    >>> data = jo.load_digits()
    >>> loss = jo.TwoLayerLoss(data, hidden=5, dtype="float64")
    >>> loss.parameters
    <Parameters 385: W1 64×5, b1 5, W2 5×10, b2 10>
    >>> theta = loss.initial(rng=0)
    >>> H = loss.hessian(theta)
    >>> H.block("b2", "b2").dense().sum().abs() < 1e-12  # b2 + c·1 changes nothing
    tensor(True)
    """

    def __init__(
        self,
        inputs: Dataset | ArrayLike | Tensor,
        labels: ArrayLike | Tensor | None = None,
        *,
        hidden: int,
        classes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        max_memory: int | str | None = None,
    ) -> None:
        self.dtype, self.device = resolve_dtype(dtype), resolve_device(device)
        X, t, maximum = checked_samples(inputs, labels, self.dtype)
        if isinstance(inputs, Dataset) and classes is None:
            classes = inputs.classes
        largest = int(t.max())
        classes = max(largest + 1, 2) if classes is None else positive_int(classes, "classes")
        if int(t.min()) < 0 or largest >= classes:
            low = int(t.min())
            raise InputError(
                f"labels run from {low} to {largest}; with classes={classes} they must be 0 to {classes - 1}"
            )
        self.samples = len(X)
        self.max_memory = max_memory
        hidden = positive_int(hidden, "hidden")
        shapes = {"W1": (X.shape[1], hidden), "b1": (hidden,), "W2": (hidden, classes), "b2": (classes,)}
        self.parameters = Parameters.of(shapes)
        item = self.dtype.itemsize
        needed, remedy = self.parameters.size * item, "use fewer hidden units or classes"
        require(needed, resolve_budget(max_memory, self.device), "one vector of the parameters", remedy)
        self._samples = Samples.of(X, t, maximum=maximum, dtype=self.dtype)
        self._form: Form = form_of(self._samples, self.device, self.dtype)
        self._made: dict[tuple[torch.device, torch.dtype], TwoLayerLoss] = {}

    def __repr__(self) -> str:
        shape = "-".join(str(n) for n in (*self.parameters["W1"].shape, self.parameters["b2"].size))
        return f"<TwoLayerLoss {shape}, {self.samples} samples, {self.dtype}, {self.device}>"

    def initial(self, rng: Rng = 0, *, scale: float | None = None) -> Tensor:
        """Draw a start θ, shape (n,).

        Parameters
        ----------
        rng : int or numpy Generator
            Seed; the same seed gives the same start on every device.
        scale : float, optional
            Every entry is `scale` times a standard normal number. By default weights are normal with variance
            2/(fan-in + fan-out) and biases zero.

        References
        ----------
        X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward networks" (2010).
        """
        random = generator(rng)
        if scale is not None:
            factor = finite_number(scale, "scale")
            return normal(random, self.parameters.size, dtype=self.dtype, device=self.device) * factor
        tensors = {}
        for name, shape in ((entry.name, entry.shape) for entry in self.parameters):
            spread = 0.0 if len(shape) == 1 else float(np.sqrt(2 / sum(shape)))
            tensors[name] = normal(random, *shape, dtype=self.dtype, device=self.device) * spread
        return self.parameters.flatten(tensors)

    def value(self, theta: Tensor) -> Tensor:
        """Compute L(θ) in nats, a tensor of no dimensions."""
        with numerics(self.device, self.dtype):
            return self._form.value(self._split(self._checked(theta))) / self.samples

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute ∇L(θ), shape (n,)."""
        with numerics(self.device, self.dtype):
            return self._form.gradient(self._split(self._checked(theta))) / self.samples

    def at(self, theta: Tensor) -> Point:
        """Take L at θ: value, gradient, Hessian and Gauss-Newton matrix from one forward pass."""
        return point_of(self, theta)

    def hessian(self, theta: Tensor) -> HessianOperator:
        """Linearize at θ and return the Hessian ∇²L(θ) as an operator."""
        return own_point(self, theta).hessian()

    def gauss_newton(self, theta: Tensor) -> GaussNewtonOperator:
        """Linearize at θ and return the generalized Gauss-Newton matrix as an operator."""
        return own_point(self, theta).gauss_newton()

    def to(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> "TwoLayerLoss":
        """Make the same loss in another dtype or on another device, from the data as they were given.

        It is made once, and kept with its data for as long as this loss.
        """
        wanted = (
            self.device if device is None else resolve_device(device),
            self.dtype if dtype is None else resolve_dtype(dtype),
        )
        if wanted not in self._made:
            other = self._with(self._samples.to(wanted[1]))
            other.device, other.dtype = wanted
            other._form = form_of(other._samples, *wanted)
            self._made[wanted] = other
        return self._made[wanted]

    def subset(self, index: Sequence[int] | Tensor) -> "TwoLayerLoss":
        """Make the same loss on some samples only, the mean over them.

        Parameters
        ----------
        index : sequence of int or integer Tensor, shape (m,)
            Their numbers, in any order; one that is there twice counts twice.

        Raises
        ------
        InputError
            No numbers, or one that is no sample's.
        """
        other = self._with(self._samples.subset(index, self.dtype))
        other._form = form_of(other._samples, self.device, self.dtype)
        return other

    def null_space(self) -> Tensor:
        """Give the exact null space of H, the same for every θ, as orthonormal columns: sparse, float64, shape (n, d).

        For `eigenpairs`'s ``deflate=``: with it, eigenvalues that are 0 for every θ are left out.

        Examples
        --------
        >>> import jvp_ops as jo
        >>> data = jo.load_digits()
        >>> loss = jo.TwoLayerLoss(data, hidden=5, dtype="float64")
        >>> N = loss.null_space()  # 3 dead pixels × 5, 5 rows of W2, and b2
        >>> tuple(N.shape), bool(loss.hessian(loss.initial(rng=0)).apply(N.to_dense()).abs().max() < 1e-15)
        ((385, 21), True)
        """
        return null_space(self.parameters, self._samples.dead()).to(self.device)

    def identity(self) -> dict[str, Any]:
        """All that L depends on, as a JSON-able dict.

        ``data`` is the sha256 of the samples as they were given, whatever dtype L is computed in: a loss and its
        float64 twin differ in ``dtype`` alone.
        """
        shapes = {entry.name: entry.shape for entry in self.parameters}
        return {"loss": "TwoLayerLoss", "shapes": shapes, **self._samples.identity(), "dtype": str(self.dtype)}

    def __getstate__(self) -> dict[str, Any]:
        """Carry the samples as they are known; what was made of them is made again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_form", "_made")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _made={})
        self._form = form_of(self._samples, self.device, self.dtype)

    def _with(self, samples: Samples) -> "TwoLayerLoss":
        """Make the same loss of other samples, its form still open."""
        other = object.__new__(TwoLayerLoss)
        other.__dict__.update(self.__dict__)
        other._samples, other.samples, other._made = samples, len(samples), {}
        return other

    def _checked(self, theta: Tensor) -> Tensor:
        return check_state(theta, "theta", size=self.parameters.size, dtype=self.dtype, device=self.device)

    def _split(self, theta: Tensor) -> Weights:
        return Weights(**self.parameters.unflatten(theta))

    def _differentiate(self, frozen: Tensor) -> Derivatives:
        """Go forward once at θ, when it is first known what for."""
        hidden, classes = self.parameters["W2"].shape
        require(
            self._form.bytes_needed(hidden, classes),
            resolve_budget(self.max_memory, self.device),
            f"a linearization over {self.samples} samples with one chunk's product",
            "raise max_memory, or use fewer samples or hidden units",
        )
        made: list[Linearized] = []

        def linearized(*, gradient: bool = False) -> Linearized:
            if not made:
                with torch.no_grad(), numerics(self.device, self.dtype):
                    made.append(self._form.linearize(self._split(frozen), gradient=gradient))
            return made[0]

        return Derivatives(
            value=lambda: self._mean(linearized().value),
            gradient=lambda: self._mean(linearized(gradient=True).gradient),
            hessian=lambda: HessianOperator(self._linear(linearized(), frozen, gauss_newton=False)).made_by(
                TwoLayerLoss.hessian, self, frozen
            ),
            gauss_newton=lambda: GaussNewtonOperator(self._linear(linearized(), frozen, gauss_newton=True)).made_by(
                TwoLayerLoss.gauss_newton, self, frozen
            ),
        )

    def _mean(self, total: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad(), numerics(self.device, self.dtype):
            return total() / self.samples

    def _linear(self, linearized: Linearized, frozen: Tensor, *, gauss_newton: bool) -> LinearMap:
        """Make H or G of what one forward pass left."""

        def in_float64() -> LinearMap:
            other = own_point(self.to(dtype=torch.float64), frozen.to(torch.float64))
            return (other.gauss_newton() if gauss_newton else other.hessian()).linear

        d, h = self.parameters["W1"].shape

        def prepare() -> Callable[[int, int], Tensor]:
            with numerics(self.device, self.dtype):
                block = linearized.panels(gauss_newton=gauss_newton)

            def panel(start: int, stop: int) -> Tensor:
                with numerics(self.device, self.dtype):
                    return block(start // h, stop // h).div_(self.samples)

            return panel

        return LinearMap.symmetric_of(
            lambda V: self._mean(lambda: linearized.product(V, gauss_newton=gauss_newton)),
            self.parameters,
            self.dtype,
            self.device,
            identity=lambda: {"at": sha256_of(frozen), **self.identity()},
            in_float64=in_float64,
            panels=Panels(d * h, h, self._form.panel_bytes(h), prepare),
        )


def form_of(samples: Samples, device: torch.device, dtype: torch.dtype) -> Form:
    """Arrange samples for a device: chunks of similar support for threads, few large ones for a GPU."""
    return (PlainForm if device.type == "cuda" else ChunkedForm).of(samples, device, dtype)
