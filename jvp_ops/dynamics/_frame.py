"""Orthonormal frames: the QR decomposition that growth is read from, and what it can tell in a given precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import check_finite, check_tensor, positive_int
from jvp_ops._memory import require, resolve_budget
from jvp_ops._random import normal
from jvp_ops.errors import InputError
from jvp_ops.maps import MinibatchSGD

Triangle = NDArray[np.float64]
SAFE_SPREAD = {torch.float32: 7.0, torch.float64: 18.0}  # e-folds that leave half of the digits of the least column


@dataclass(frozen=True)
class Frame:
    """V = Q R with R upper triangular, its diagonal at least 0.

    Attributes
    ----------
    vectors : Tensor of float64, shape (n, k)
        Q; orthonormal, also where V has not full rank.
    triangle : ndarray of float64, shape (k, k)
        R.
    lost : ndarray of bool, shape (k,)
        Columns that are within rounding in the span of those before them: R is 0 there, and the column of Q is new.
    """

    vectors: Tensor
    triangle: Triangle
    lost: NDArray[np.bool_]

    @property
    def growth(self) -> NDArray[np.float64]:
        """The logarithms of R's diagonal, shape (k,); −inf where a column is lost."""
        with np.errstate(divide="ignore"):
            return np.log(np.diagonal(self.triangle))

    @property
    def spread(self) -> float:
        """How many e-folds the least part of a column that counts lies below the largest column before it.

        The part is known to about exp(spread) times the rounding of a product.
        """
        return spread_of(self.triangle)


def spread_of(R: Triangle) -> float:
    """Find `Frame.spread` of a triangle; infinite where a column is lost."""
    if not np.diagonal(R).all():
        return float("inf")
    return float((np.log(np.maximum.accumulate(_column_norms(R))) - np.log(np.diagonal(R))).max())


def orthonormal(V: Tensor, *, rounding: float, random: np.random.Generator) -> Frame:
    """Decompose V (n, k), k ≤ n, in float64; `rounding` is that of the products which V came from."""
    wide = V.to(torch.float64)
    Q, R = _qr(wide)
    lost = _lost(R, rounding)
    if not lost.any():
        return Frame(Q, R, lost)
    kept = list(range(V.shape[1]))
    while lost.any():  # one at a time, from the left: what comes after a lost column must not be judged against it
        del kept[int(np.argmax(lost))]
        if not kept:
            Q = wide[:, :0]
            break
        Q, R = _qr(wide[:, kept])
        lost = _lost(R, rounding)
    return _refilled(wide, Q, kept, random)


def check_frame(vectors: object, *, size: int, dtype: torch.dtype, device: torch.device, random: Any) -> Tensor:
    """Take k for k random directions, or a tensor (n, k) of given ones; return them orthonormal, in float64."""
    if isinstance(vectors, Tensor):
        given = check_tensor(vectors, "vectors", rows=size, dtype=dtype, device=device)
        check_finite(given, "vectors")
        given = given if given.ndim == 2 else given[:, None]
        check_count(given.shape[1], size)
    else:
        k = check_count(vectors, size)
        require_frame(size, k, device)
        given = normal(random, size, k, dtype=torch.float64, device=device)
    frame = orthonormal(given, rounding=torch.finfo(dtype).eps, random=random)
    if frame.lost.any():
        raise InputError(f"vectors must be linearly independent; column {int(np.argmax(frame.lost))} is not")
    return frame.vectors


def require_frame(size: int, k: int, device: torch.device) -> None:
    """Refuse frames that do not fit: V, Q and the products' images, in float64."""
    remedy = "ask for fewer directions, or use a device with more memory"
    require(5 * size * k * 8, resolve_budget(None, device), f"a frame of {k} directions of {size} numbers", remedy)


def check_map(f: object) -> None:
    """Refuse what is not a map."""
    if not callable(f) or not callable(getattr(f, "jacobian", None)) or not hasattr(f, "parameters"):
        raise InputError(f"f must be a map such as GradientDescent or FunctionMap, not {type(f).__name__}")


def optimizer_under(f: Any) -> Any:
    """Take the optimizer out of a map: itself, or, of `MinibatchSGD`, the one over all samples."""
    optimizer = f.optimizer if isinstance(f, MinibatchSGD) else f
    if not callable(getattr(optimizer, "curvature", None)):
        raise InputError(
            f"f must be an optimizer map such as GradientDescent, which has a loss, not {type(f).__name__}"
        )
    return optimizer


def check_count(k: object, size: int) -> int:
    """Check a number of directions: at least 1, at most the size of the state."""
    count = positive_int(k, "k")
    if count > size:
        raise InputError(f"k = {count} directions were asked for, but the state has {size} numbers: k is at most that")
    return count


def check_range(start: object, stop: object, steps: int) -> tuple[int, int]:
    """Check a part `start` to `stop` (None: the end) of an orbit, of at least one step."""
    stop = steps if stop is None else stop
    whole = all(isinstance(end, Integral) and not isinstance(end, bool) for end in (start, stop))
    if not whole or not 0 <= start < stop <= steps:  # type: ignore[operator]
        raise InputError(f"start and stop must be steps with 0 ≤ start < stop ≤ {steps}, not {start!r} and {stop!r}")
    return int(start), int(stop)  # type: ignore[call-overload]


def _qr(V: Tensor) -> tuple[Tensor, Triangle]:
    Q, R = torch.linalg.qr(V)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(R.dtype)
    return Q * signs, (R * signs[:, None]).cpu().numpy()


def _column_norms(R: Triangle) -> NDArray[np.float64]:
    scale = np.maximum(abs(R).max(axis=0), np.finfo(np.float64).tiny)  # whose squares neither over- nor underflow
    norms: NDArray[np.float64] = scale * np.linalg.norm(R / scale, axis=0)
    return norms


def _lost(R: Triangle, rounding: float) -> NDArray[np.bool_]:
    lost: NDArray[np.bool_] = np.diagonal(R) <= 8 * rounding * _column_norms(R)
    return lost


def _refilled(V: Tensor, Q: Tensor, kept: Sequence[int], random: np.random.Generator) -> Frame:
    """Put random directions, orthogonal to all others, where columns are lost."""
    k = V.shape[1]
    dropped = [column for column in range(k) if column not in kept]
    fresh = normal(random, len(V), len(dropped), dtype=V.dtype, device=V.device)
    for _ in range(2):
        fresh = _qr(fresh - Q @ (Q.mT @ fresh))[0]
    vectors = torch.empty_like(V)
    vectors[:, list(kept)], vectors[:, dropped] = Q, fresh
    triangle = np.zeros((k, k))
    triangle[list(kept)] = (Q.mT @ V).cpu().numpy()
    return Frame(vectors, np.triu(triangle), np.isin(np.arange(k), dropped))
