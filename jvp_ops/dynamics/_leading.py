"""`leading_frame`: tangent vectors to start from that are near the leading ones."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jvp_ops._checks import positive_int
from jvp_ops._random import Rng, generator
from jvp_ops.dynamics._frame import optimizer_under, orthonormal
from jvp_ops.eigen import eigenpairs
from jvp_ops.errors import InputError

if TYPE_CHECKING:
    from jvp_ops.maps import MinibatchSGD
    from jvp_ops.maps._optimizer import OptimizerMap


def leading_frame(
    f: "OptimizerMap | MinibatchSGD",
    state: Tensor,
    k: int,
    *,
    step: int = 0,
    tol: float = 1e-3,
    rng: Rng = 0,
    progress: bool = False,
) -> Tensor:
    r"""Find k directions of an optimizer's state that grow fast from here: a start for `lyapunov_spectrum`.

    .. math::  V = (P^{1/2} X, 0), \qquad P^{1/2} H P^{1/2} X = X\, \mathrm{diag}(h),

    made orthonormal, for the eigenvalues h of the optimizer's ``curvature`` that are above its ``threshold``, from the
    largest, and then for the lowest. P is its preconditioner, for most optimizers 1; 0 stands for momentum and
    averages.

    Parameters
    ----------
    f : optimizer map or MinibatchSGD
        Such as `GradientDescent`, `HeavyBall` or `Adam`. Of `MinibatchSGD`, the curvature is that of the loss over
        all samples.
    state : Tensor, shape (n,)
        Where the directions are to start.
    k : int
        How many, fewer than parameters.
    step : int
        The number of the step to come, for maps that depend on it.
    tol : float
        Residual of the eigenpairs relative to ‖P^½HP^½‖.
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
        A map without a loss, k out of range, a state of another shape, dtype or device.

    Notes
    -----
    Training grows changes by little: |1 − αh| is 1.005 where αh = −0.005, and random directions, which hold a part of
    about √(k/n) of the leading ones, take ln √(n/k) / 0.005 steps to turn to them, often more than the run has. Those
    given here are the leading ones of a quadratic, exactly for gradient descent, and for momentum after a transient
    of a few times 1/(1 − β) steps; for `RMSProp` and `Adam`, whose v varies with θ, they are a better guess than
    random ones and no more.

    Examples
    --------
    >>> import jvp_ops as jo
    >>> data = jo.load_digits().subset(200)
    >>> f = jo.GradientDescent(jo.TwoLayerLoss(data.inputs, data.labels, hidden=10), lr=0.1)
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
    curvature, random = optimizer.curvature(state, step), generator(rng)
    high, low = (
        eigenpairs(curvature, k, which, tol=tol, verify=False, float64=False, rng=random, progress=progress)
        for which in ("LA", "SA")
    )
    unstable = high.vectors[:, torch.from_numpy(high.values > optimizer.threshold(step))]
    X = torch.cat([unstable, low.vectors[:, : k - unstable.shape[1]]], dim=1)
    if callable(getattr(optimizer, "preconditioner", None)):
        X = X * optimizer.preconditioner(state, step).sqrt()[:, None]
    V = X.new_zeros((len(state), k))
    V[:size] = X
    frame = orthonormal(V, rounding=torch.finfo(V.dtype).eps, random=random)
    return frame.vectors.to(f.dtype).clone(memory_format=torch.contiguous_format)
