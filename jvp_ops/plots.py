"""Figures of results, with matplotlib; each draws on given axes, or makes its own, and returns them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jvp_ops.errors import InputError, MissingExtraError

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # told apart by readers of any colour vision


def _subplots(*shape: int, **options: Any) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise MissingExtraError.naming("matplotlib", extra="plot", purpose="drawing a figure") from None
    return pyplot.subplots(*shape, layout="constrained", **options)[1]


def plot_values(values: ArrayLike, bounds: ArrayLike | None = None, *, ax: Any = None) -> Any:
    """Draw eigenvalues: real ones by rank with their bounds, complex ones in the plane with the unit circle.

    Parameters
    ----------
    values, bounds : array
        The eigenvalues in the order to draw them, and the error bar of each real one; NaN draws none.
    ax : matplotlib axes, optional
        Where to draw.
    """
    values = np.asarray(values)
    if not np.iscomplexobj(values):
        return _by_rank(_subplots(figsize=(4.2, 3)) if ax is None else ax, values, bounds, "eigenvalue")
    ax = _subplots(figsize=(3.8, 3.4)) if ax is None else ax
    angle = np.linspace(0, 2 * np.pi, 400)
    ax.plot(np.cos(angle), np.sin(angle), color=GREY, lw=0.8, label=r"$|\lambda| = 1$")
    ax.plot(values.real, values.imag, "o", ms=4, color=BLUE, label="eigenvalues")
    ax.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_ends(
    largest: ArrayLike, lowest: ArrayLike, lr: float, *, weight_decay: float = 0.0, bounds: Any = None, axes: Any = None
) -> Any:
    """Draw both ends of a Hessian's spectrum, with gradient descent's threshold 2/α − ω at the top.

    The scale on the right is that of the eigenvalue 1 − αω − αh of Df. A threshold far above all h is told beside
    an arrow, so that it does not squeeze them.

    Parameters
    ----------
    largest, lowest : array
        Eigenvalues h of H, best first.
    lr, weight_decay : float
        α and ω; where h exceeds 2/α − ω, the step is unstable along that eigenvector.
    bounds : pair of arrays, optional
        Their bounds, drawn as error bars; the largest is told, since most are smaller than a point.
    axes : pair of matplotlib axes, optional
        Where to draw.
    """
    if not lr > 0:
        raise InputError(f"lr must be above 0, not {lr!r}: at 0 the step is the identity, whatever h is")
    if axes is None:
        axes = _subplots(1, 2, figsize=(7.5, 3.2))
        axes[0].figure.get_layout_engine().set(w_pad=0.12)
    ends, errors = (np.asarray(largest), np.asarray(lowest)), (None, None) if bounds is None else bounds
    decay = r" - \alpha\omega" if weight_decay else ""
    scales = (lambda h: 1 - lr * (weight_decay + h), lambda mu: (1 - mu) / lr - weight_decay)
    for ax, h, error, name in zip(axes, ends, errors, ("largest", "lowest"), strict=True):
        _by_rank(ax, h, error, "eigenvalue $h$ of $H$").set_title(f"{name} eigenvalues of $H$", fontsize="medium")
        if error is not None:
            ax.set_xlabel(f"rank (error bounds at most {np.max(error):.1e})")
        right = ax.secondary_yaxis("right", functions=scales)
        right.set_ylabel(rf"$\mu = 1{decay} - \alpha h$")
        right.ticklabel_format(axis="y", useOffset=False)
    _mark_threshold(axes[0], ends[0], 2 / lr - weight_decay, r"$2/\alpha - \omega$" if decay else r"$2/\alpha$")
    return axes


def plot_running(steps: ArrayLike, history: ArrayLike, errors: ArrayLike | None = None, *, ax: Any = None) -> Any:
    """Draw running exponents over the steps, coloured by rank, each with a bar of one standard error at its end.

    Parameters
    ----------
    steps : array, shape (rows,)
        Steps measured.
    history : array, shape (rows, k)
        The running exponents; −inf is left out.
    errors : array, shape (k,), optional
        Standard errors of the last row; NaN draws no bar. The bars of k exponents stand side by side.
    ax : matplotlib axes, optional
        Where to draw.
    """
    steps, history = np.asarray(steps), np.asarray(history)
    last = history[-1]
    reach = np.zeros(len(last)) if errors is None else np.nan_to_num(np.asarray(errors, dtype=np.float64))
    ax = _subplots(figsize=(4.6, 3.2)) if ax is None else ax
    ax.axhline(0, color=GREY, lw=0.8, ls=":")
    for i, (values, color) in enumerate(zip(history.T, _colors(len(last)), strict=True)):
        ax.plot(steps, np.where(np.isfinite(values), values, np.nan), color=color, lw=1)
        if np.isfinite(last[i]) and reach[i] > 0:
            place = steps[-1] * (1 - 0.012 * (len(last) - i))
            ax.errorbar(place, last[i], yerr=reach[i], color=color, lw=1, capsize=2)
    seen = np.isfinite(last)
    if seen.any() and np.isfinite(history).all():  # the first rows scatter widely: they may leave the frame
        middle = history[len(history) // 10 :]
        low, high = min(middle.min(), (last - reach).min()), max(middle.max(), (last + reach).max())
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
        ax.set_ylim(low - pad, high + pad)
    for group in _groups(last, 0.05 * np.ptp(ax.get_ylim())):
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        ax.annotate(_ranks(group), (1, np.mean(last[group])), (6, 0), **place, fontsize="small")
    ax.set(xlabel="steps", ylabel="running exponent per step", xlim=(0, steps[-1]))
    return ax


def plot_local_growth(steps: ArrayLike, growth: ArrayLike, *, ax: Any = None) -> Any:
    """Draw growth step by step, coloured by rank, with its mean dashed; −inf is left out.

    Parameters
    ----------
    steps : array, shape (steps,)
        Their numbers.
    growth : array, shape (steps, k)
        As `local_growth` gives it.
    ax : matplotlib axes, optional
        Where to draw.
    """
    steps, growth = np.asarray(steps), np.asarray(growth)
    ax = _subplots(figsize=(4.6, 3.2)) if ax is None else ax
    ax.axhline(0, color=GREY, lw=0.8, ls=":")
    for values, color in zip(growth.T, _colors(growth.shape[1]), strict=True):
        finite = np.isfinite(values)
        ax.plot(steps, np.where(finite, values, np.nan), color=color, lw=0.8, marker="o" if len(steps) == 1 else None)
        if finite.all():
            ax.axhline(values.mean(), color=color, lw=1, ls="--")
    ax.set(xlabel="step", ylabel="log growth per step", xlim=(steps[0], max(steps[-1], steps[0] + 1)))
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def plot_growth(steps: ArrayLike, growth: ArrayLike, exponents: ArrayLike | None = None, *, axes: Any = None) -> Any:
    """Draw growth step by step beside the finite-time exponents of the whole window, by rank.

    Parameters
    ----------
    steps : array, shape (steps,)
        Their numbers.
    growth : array, shape (steps, k)
        As `local_growth` gives it.
    exponents : array, shape (k,), optional
        As `finite_time_exponents` gives them; the mean growth of the frame is drawn beside them.
    axes : pair of matplotlib axes, optional
        Where to draw.
    """
    growth = np.asarray(growth)
    axes = _subplots(1, 2, figsize=(7.0, 3.0), width_ratios=(2, 1)) if axes is None else axes
    plot_local_growth(steps, growth, ax=axes[0])
    rank = np.arange(1, growth.shape[1] + 1)
    if exponents is not None:
        axes[1].plot(rank, exponents, "o", ms=5, color=BLUE, label="finite-time exponents")
    means = growth.mean(axis=0)
    axes[1].plot(rank, np.where(np.isfinite(means), means, np.nan), "x", ms=5, color=ORANGE, label="mean of the frame")
    axes[1].axhline(0, color=GREY, lw=0.8, ls=":")
    axes[1].set(xlabel="rank", ylabel="exponent per step")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    axes[1].margins(y=0.25)
    axes[1].legend(frameon=False, fontsize="small")
    return axes


def plot_tracking(
    steps: ArrayLike,
    values: ArrayLike,
    thresholds: ArrayLike,
    losses: ArrayLike,
    *,
    leading: str = "largest",
    label: str = "eigenvalues of $H$",
    axes: Any = None,
) -> Any:
    """Draw eigenvalues along training with the threshold of stability, above the loss on a logarithmic scale.

    Parameters
    ----------
    steps : array, shape (rows,)
        Numbers of the steps.
    values : array, shape (rows, k)
        Eigenvalues, the leading one first; it is drawn strongest.
    thresholds, losses : array, shape (rows,)
        The threshold at each step (not drawn where infinite), and the loss.
    leading : str
        Names the leading one.
    label : str
        Of the eigenvalues' axis.
    axes : pair of matplotlib axes, optional
        Where to draw.
    """
    steps, values, thresholds, losses = (np.asarray(array) for array in (steps, values, thresholds, losses))
    if axes is None:
        axes = _subplots(2, 1, figsize=(4.6, 4.0), sharex=True, height_ratios=(2, 1))
    upper, lower = axes
    others = [] if values.shape[1] == 1 else ["the next"] if values.shape[1] == 2 else [f"next {values.shape[1] - 1}"]
    marker = "o" if len(steps) == 1 else None
    first = upper.plot(steps, values[:, 0], color=BLUE, lw=1.4, zorder=3, marker=marker)
    lines = [first[0], *upper.plot(steps, values[:, 1:], color=GREY, lw=0.7, alpha=0.7, marker=marker)[: len(others)]]
    names, high, finite = [leading, *others], values.max(), np.isfinite(thresholds)
    late = values[len(values) // 20 :].max()  # a start far above all else may leave the frame
    if finite.any() and thresholds[finite].min() < 20 * late:
        drawn = np.where(finite, thresholds, np.nan)
        lines[1:1] = upper.plot(steps, drawn, color=ORANGE, lw=1.2, ls="--", zorder=4)
        names.insert(1, "threshold")
        late = max(late, np.nanmax(drawn)) if np.nanmax(drawn) < 20 * late else late
    bottom, top = min(0.0, 1.05 * values.min()), max(high, late) if high < 1.5 * late else late
    upper.set_ylim(bottom, top + 0.25 * max(top - bottom, abs(top)))  # room for the legend
    upper.legend(lines, names, frameon=False, fontsize="small", ncols=len(names), loc="upper right")
    upper.set_ylabel(label)
    lower.plot(steps, losses, color="black", lw=1, marker=marker)
    if (losses > 0).all():
        from matplotlib.ticker import LogLocator, NullFormatter

        lower.set_yscale("log")
        lower.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if losses.max() < 30 * losses.min() else (1,)))
        lower.yaxis.set_major_formatter("{x:g}")
        lower.yaxis.set_minor_formatter(NullFormatter())
    lower.set(xlabel="step", ylabel="loss", xlim=(steps[0], max(steps[-1], steps[0] + 1)))
    return axes


def _colors(count: int) -> list[Any]:
    """Give colours by rank, from dark to light."""
    from matplotlib import colormaps

    return [BLUE, ORANGE][:count] if count <= 2 else list(colormaps["viridis"](np.linspace(0, 0.85, count)))


def _ranks(group: list[int]) -> str:
    """Name the exponents of a group, runs of neighbours from end to end."""
    ranks = np.sort(group)
    runs = np.split(ranks, np.flatnonzero(np.diff(ranks) > 1) + 1)
    ends = [run if len(run) <= 2 else run[[0, -1]] for run in runs]
    names = [[rf"$\lambda_{{{i + 1}}}$" for i in end] for end in ends]
    return ", ".join((" … " if len(run) > 2 else ", ").join(name) for run, name in zip(runs, names, strict=True))


def _groups(values: Any, distance: float) -> list[list[int]]:
    """Group the finite values, so that the means of the groups are at least `distance` apart."""
    groups: list[list[int]] = []
    for i in np.argsort(-values, kind="stable"):
        if np.isfinite(values[i]):
            groups.append([int(i)])
        while len(groups) > 1 and np.mean(values[groups[-2]]) - np.mean(values[groups[-1]]) < distance:
            groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _by_rank(ax: Any, values: Any, bounds: Any, label: str) -> Any:
    ax.errorbar(np.arange(1, len(values) + 1), values, yerr=bounds, fmt="o", ms=4, color=BLUE, capsize=2, lw=1)
    ax.set(xlabel="rank", ylabel=label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def _mark_threshold(ax: Any, h: Any, threshold: float, name: str) -> None:
    """Draw a line where the threshold is in reach of the values, and an arrow upwards where it is not."""
    text, style = f"{name} = {threshold:.4g}", {"color": ORANGE, "fontsize": "small"}
    if h.min() >= 0:
        ax.set_ylim(bottom=0)
    low, high = ax.get_ylim()
    if threshold > 2 * h.max():
        ax.set_ylim(low, high + 0.2 * (high - low))
        ax.annotate("", (0.96, 1), (0.96, 0.84), "axes fraction", arrowprops={"arrowstyle": "->", "color": ORANGE})
        text += f", {threshold / h.max():.3g} × the largest" if threshold < 1000 * h.max() else ""
        ax.text(0.93, 0.92, text, transform=ax.transAxes, ha="right", va="center", **style)
        return
    ax.axhline(threshold, color=ORANGE, lw=1, ls="--")
    low = min(low, threshold)
    ax.set_ylim(low, max(high, low + 1.12 * (threshold - low)))
    side, ha = (0, "left") if h[-1] > threshold else (1, "right")  # where the values, which fall, leave room above it
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": ha, "va": "bottom"}
    ax.annotate(text, (side, threshold), (4 - 8 * side, 3), **place, **style)


def plot_input_weights(weights: ArrayLike, image_shape: tuple[int, int], *, columns: int = 10, axes: Any = None) -> Any:
    """Draw the columns of an (inputs, hidden) array, such as an eigenvector's W1 part, as images by falling norm.

    One colour scale, symmetric about zero, serves them all; each is titled with its hidden unit, counted from 0.
    `columns` is how many stand in a row, and `axes` an array of matplotlib axes, of which those left over are emptied.
    """
    array = np.asarray(weights)
    if array.ndim != 2 or len(array) != np.prod(image_shape):
        raise InputError(f"weights have shape {array.shape}; expected ({np.prod(image_shape)}, hidden)")
    rows, columns = -(-array.shape[1] // columns), min(columns, array.shape[1])
    if axes is None:
        axes = _subplots(rows, columns, figsize=(0.7 * columns + 0.6, 0.82 * rows + 0.1), squeeze=False)
    limit = np.abs(array).max() or 1.0
    for ax in np.ravel(axes)[array.shape[1] :]:
        ax.set_axis_off()
    for ax, unit in zip(np.ravel(axes), np.argsort(-np.linalg.norm(array, axis=0), kind="stable"), strict=False):
        picture = ax.imshow(array[:, unit].reshape(image_shape), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title(f"unit {unit}", fontsize=7, pad=2)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color="0.8", linewidth=0.6)
    np.ravel(axes)[0].figure.colorbar(picture, ax=axes, fraction=0.02, aspect=30).ax.tick_params(labelsize=7)
    return axes
