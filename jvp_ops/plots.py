"""Figures of results, with matplotlib; each draws on given axes, or makes its own, and returns them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jvp_ops.errors import MissingExtraError

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # told apart by readers of any colour vision


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise MissingExtraError.naming("matplotlib", extra="plot", purpose="drawing a figure") from None
    return pyplot


def plot_values(values: NDArray[Any], bounds: NDArray[np.float64], ax: Any = None) -> Any:
    """Draw eigenvalues: real ones by rank with their bounds, complex ones in the plane with the unit circle."""
    ax = _pyplot().subplots(figsize=(5, 3.2), layout="constrained")[1] if ax is None else ax
    if np.iscomplexobj(values):
        angle = np.linspace(0, 2 * np.pi, 400)
        ax.plot(np.cos(angle), np.sin(angle), color=GREY, lw=0.8, label="unit circle")
        ax.plot(values.real, values.imag, "o", ms=4, color=BLUE, label="eigenvalues")
        ax.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
        ax.legend(frameon=False)
        return ax
    ax.errorbar(np.arange(1, len(values) + 1), values, yerr=bounds, fmt="o", ms=4, color=BLUE, capsize=2, lw=1)
    ax.set(xlabel="rank", ylabel="eigenvalue")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def plot_ends(
    largest: ArrayLike, lowest: ArrayLike, lr: float, *, bounds: Sequence[ArrayLike] | None = None, axes: Any = None
) -> Any:
    """Draw both ends of a Hessian's spectrum, the top one with gradient descent's threshold 2/α.

    Parameters
    ----------
    largest, lowest : array
        Eigenvalues h of H, best first.
    lr : float
        α; where h exceeds 2/α, |1 − αh| > 1 and the step is unstable along that eigenvector.
    bounds : pair of arrays, optional
        Their bounds, drawn as error bars.
    axes : pair of matplotlib axes, optional
        Where to draw.
    """
    if axes is None:
        axes = _pyplot().subplots(1, 2, figsize=(8, 3.4), layout="constrained")[1]
    titles = ("largest eigenvalues of H", "lowest eigenvalues of H")
    for number, (ax, values, title) in enumerate(zip(axes, (largest, lowest), titles, strict=True)):
        h = np.asarray(values)
        error = None if bounds is None else np.asarray(bounds[number])
        ax.errorbar(np.arange(1, len(h) + 1), h, yerr=error, fmt="o", ms=4, color=BLUE, capsize=2, lw=1)
        ax.set(xlabel="rank", ylabel="h", title=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        other = ax.secondary_yaxis("right", functions=(lambda y: 1 - lr * y, lambda mu: (1 - mu) / lr))
        other.set_ylabel("μ = 1 − αh")
    top = axes[0]
    top.axhline(2 / lr, color=ORANGE, lw=1, ls="--")
    top.annotate(
        f"2/α = {2 / lr:g}",
        (1, 2 / lr),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=ORANGE,
    )
    top.set_ylim(bottom=0)
    return axes


def plot_input_weights(weights: ArrayLike, image_shape: tuple[int, int], *, columns: int = 10, axes: Any = None) -> Any:
    """Draw an (inputs, hidden) array, such as the W1 part of an eigenvector, as one image for each hidden unit.

    One colour scale, symmetric about zero, serves all images. The units are drawn in order of their norm.
    """
    array = np.asarray(weights)
    order = np.argsort(-np.linalg.norm(array, axis=0))
    rows = -(-array.shape[1] // columns)
    if axes is None:
        size = (columns * 0.8, rows * 0.8 + 0.4)
        axes = _pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1]
    limit = np.abs(array).max()
    for ax in np.ravel(axes):
        ax.set_axis_off()
    for ax, unit in zip(np.ravel(axes), order, strict=False):
        picture = ax.imshow(array[:, unit].reshape(image_shape), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title(f"{unit}", fontsize=6, pad=1)
    np.ravel(axes)[0].figure.colorbar(picture, ax=axes, shrink=0.8, aspect=30)
    return axes
