"""`leading_frame`: tangent vectors to start from that are near the leading ones."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jvp_ops._checks import positive_int
from jvp_ops._random import Rng, generator
from jvp_ops._sitting import BY_HAND
from jvp_ops.dynamics._frame import optimizer_under, orthonormal
from jvp_ops.eigen import eigenpairs
from jvp_ops.errors import ConvergenceError, InputError

if TYPE_CHECKING:
    from jvp_ops.maps import MinibatchSGD
    from jvp_ops.maps._optimizer import OptimizerMap


def leading_frame(
    f: "OptimizerMap | MinibatchSGD",
    state: Tensor,
    k: int,
    *,
    step: int = 0,
    tol: float = 1e-4,
    rng: Rng = 0,
    progress: bool = False,
) -> Tensor:
    r"""Find the k directions that an optimizer's step grows most: a start for `lyapunov_spectrum`.

    .. math::  Df(θ) X = X M, \qquad |μ_1| \ge |μ_2| \ge …,

    the leading invariant subspace of one step's Jacobian (less one direction where k parts a complex pair), made
    orthonormal: of `GradientDescent`, `HeavyBall` and
    `Nesterov`, whose spectra follow from the Hessian's.

    Parameters
    ----------
    f : optimizer map or MinibatchSGD
        Of `MinibatchSGD`, the step is that over all samples.
    state : Tensor, shape (n,)
        Where the directions are to start.
    k : int
        How many, fewer than parameters.
    step : int
        The number of the step to come, for maps that depend on it.
    tol : float
        Residual of the eigenpairs, as of `eigenpairs`.
    rng : int or numpy Generator
        Draws start vectors; the same seed gives the same result on one device.
    progress : bool
        Show the solver's progress.

    Returns
    -------
    Tensor, shape (n, k)
        Orthonormal columns.

    Raises
    ------
    InputError
        A map whose Jacobian is neither symmetric nor of that closed form (`RMSProp`, `Adam`, an active clip); k out
        of range; a state of another shape, dtype or device.
    ConvergenceError
        The eigensolver did not reach `tol`.

    Notes
    -----
    Training grows changes by little: |1 − αh| is 1.005 where αh = −0.005, and random directions, which hold a part of
    about √(k/n) of the leading ones, take ln √(n/k) / 0.005 steps to turn to them, often more than the run has. Those
    given here lead from the first step on, and for as long as the Hessian keeps its eigenvectors.

    Of an adaptive optimizer the Jacobian of one step says little of the next ones: it grows v-directions far more
    than training ever does. There, start at random, or from the ``left`` vectors that `finite_time_exponents` gives
    at the end of the steps before.

    Examples
    --------
    >>> import jvp_ops as jo
    >>> data = jo.load_digits().subset(200)
    >>> f = jo.GradientDescent(jo.TwoLayerLoss(data, hidden=10), lr=0.1)
    >>> start = f.loss.initial(rng=0)
    >>> random = jo.lyapunov_spectrum(f, start, 2, steps=50)
    >>> leading = jo.lyapunov_spectrum(f, start, jo.leading_frame(f, start, 2), steps=50)
    >>> bool(leading.values[1] > 3 * random.values[0])
    True
    """
    optimizer = optimizer_under(f)
    size = optimizer.loss.parameters.size
    if positive_int(k, "k") >= size:
        raise InputError(f"k must be less than the {size} parameters, not {k}; random directions may be as many")
    J, random = optimizer.jacobian(state, step), generator(rng)
    if not (J.symmetric or J.phase_space is not None):
        clipped = ", or one without clip=" if optimizer.clip is not None else ""
        raise InputError(
            f"the leading directions follow from the Hessian for GradientDescent, HeavyBall and Nesterov{clipped}, not "
            f"for this step of {type(optimizer).__name__}: start at random, with more steps before"
        )
    pairs = eigenpairs(J, k, "LM", tol=tol, verify=False, float64=False, rng=random, progress=progress)
    if pairs.stopped in BY_HAND:
        raise KeyboardInterrupt
    if not pairs.converged.all():
        raise ConvergenceError(
            f"{int(pairs.converged.sum())} of the {k} leading eigenvectors reached tol={tol:g}: raise it, or start at "
            "random"
        )
    X = _real(pairs.vectors, pairs.values)[:, :k]
    frame = orthonormal(X, rounding=torch.finfo(f.dtype).eps, random=random)
    return frame.vectors.to(f.dtype).clone(memory_format=torch.contiguous_format)


def _real(vectors: Tensor, values: Any) -> Tensor:
    """Span the same by real vectors: of each pair of conjugates, the real and the imaginary part."""
    if not vectors.is_complex():
        return vectors
    columns = []
    for x, value in zip(vectors.unbind(1), values, strict=True):
        if value.imag >= 0 or value.conjugate() not in values:  # once for a pair
            columns += [x.real] if value.imag == 0 else [x.real, x.imag]
    return torch.stack(columns, dim=1)
