import builtins
import sys
import warnings

import numpy as np
import pytest

import jvp_ops as jo
from jvp_ops import plots

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'jvp-ops[plot]'")
LARGEST, LOWEST, LR = np.array([2.0, 1.5, 0.5]), np.array([-0.3, -0.25]), 0.1


@pytest.fixture(autouse=True)
def pyplot():
    from matplotlib import pyplot

    before = matplotlib.get_backend()
    pyplot.switch_backend("Agg")
    yield pyplot
    pyplot.close("all")
    pyplot.switch_backend(before)


def points(ax):
    """Give the (x, y) of the markers."""
    return next(line for line in ax.lines if line.get_marker() == "o").get_xydata()


def error_bars(ax):
    """Give the half-height of each error bar."""
    (segments,) = [c.get_segments() for c in ax.collections]
    return np.array([np.ptp(segment[:, 1]) / 2 for segment in segments])


def threshold_lines(ax):
    return [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)


def right_scale(ax):
    return next(child for child in ax.child_axes)


# --- values ------------------------------------------------------------------------------------------------------


def test_real_values_are_drawn_by_rank_with_their_bounds():
    ax = plots.plot_values([3.0, 2.0, 1.0], [0.1, 0.2, 0.3])
    assert points(ax).tolist() == [[1, 3], [2, 2], [3, 1]]
    np.testing.assert_allclose(error_bars(ax), [0.1, 0.2, 0.3])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank", "eigenvalue")


def test_values_without_bounds_have_no_error_bars():
    assert not plots.plot_values([3.0, 2.0]).collections


def test_complex_values_are_drawn_in_the_plane_with_the_unit_circle():
    values = np.array([0.5 + 0.2j, 0.5 - 0.2j, -0.9])
    ax = plots.plot_values(values, np.full(3, np.nan))
    assert points(ax).tolist() == [[0.5, 0.2], [0.5, -0.2], [-0.9, 0.0]]
    circle = ax.lines[0].get_xydata()
    np.testing.assert_allclose(np.hypot(*circle.T), 1)
    assert ax.get_aspect() == 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("real part", "imaginary part")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [r"$|\lambda| = 1$", "eigenvalues"]


def test_eigenpairs_draw_their_own_values_and_bounds(pyplot):
    ramp = np.arange(1.0, 21.0)
    loss = jo.FunctionLoss(lambda x: (x.new_tensor(ramp) * x**2).sum() / 2, size=20, dtype="float64")
    pairs = jo.eigenpairs(loss.hessian(loss.initial()), k=3, which="LA")
    own = pyplot.subplots()[1]
    assert pairs.plot(own) is own
    np.testing.assert_array_equal(points(own)[:, 1], pairs.values)
    np.testing.assert_allclose(error_bars(own), pairs.bounds, atol=1e-14)


# --- both ends ---------------------------------------------------------------------------------------------------


def test_both_ends_are_drawn_with_their_bounds_and_say_the_largest_of_them():
    axes = plots.plot_ends(LARGEST, LOWEST, LR, bounds=([1e-3, 2e-3, 3e-3], [0.01, 0.02]))
    for ax, values, error, title in zip(
        axes, (LARGEST, LOWEST), ([1e-3, 2e-3, 3e-3], [0.01, 0.02]), ("largest", "lowest"), strict=True
    ):
        np.testing.assert_array_equal(points(ax)[:, 1], values)
        np.testing.assert_allclose(error_bars(ax), error)
        assert ax.get_title() == f"{title} eigenvalues of $H$"
        assert ax.get_ylabel() == "eigenvalue $h$ of $H$"
        assert f"{max(error):.1e}" in ax.get_xlabel()


@pytest.mark.parametrize("lr", [1e-3, 0.1, 0.9, 30.0])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_the_right_scale_is_the_eigenvalue_of_the_jacobian(pyplot, lr, decay):
    axes = plots.plot_ends(LARGEST, LOWEST, lr, weight_decay=decay)
    axes[0].figure.canvas.draw()
    for ax in axes:
        right = right_scale(ax)
        h = np.linspace(*ax.get_ylim(), 5)
        heights = [
            axis.transData.transform([(0, y) for y in ys])[:, 1]
            for axis, ys in ((ax, h), (right, 1 - lr * (decay + h)))
        ]
        np.testing.assert_allclose(*heights, atol=1e-3)  # pixels
        assert right.get_ylabel() == (r"$\mu = 1 - \alpha\omega - \alpha h$" if decay else r"$\mu = 1 - \alpha h$")
        assert not right.yaxis.get_offset_text().get_text()


def test_a_threshold_in_reach_is_a_line():
    top, bottom = plots.plot_ends(LARGEST, LOWEST, 1.0, weight_decay=0.25)
    assert threshold_lines(top) == [1.75]
    assert texts(top) == r"$2/\alpha - \omega$ = 1.75"
    assert not threshold_lines(bottom)


def test_a_threshold_far_above_is_told_and_leaves_the_scale_to_the_values():
    top, _ = plots.plot_ends(LARGEST, LOWEST, LR)
    assert not threshold_lines(top)
    assert texts(top).strip() == r"$2/\alpha$ = 20, 10 × the largest"
    low, high = top.get_ylim()
    assert low == 0
    assert LARGEST[0] < high < 1.5 * LARGEST[0]


@pytest.mark.parametrize("lr", [0.1, 0.51, 1.05, 20.0])
@pytest.mark.parametrize("values", [LARGEST, LARGEST[:1], np.array([1.0, -1.0]), -LARGEST[::-1], np.zeros(2)])
def test_all_points_and_the_threshold_text_are_inside_and_apart(values, lr):
    top, _ = plots.plot_ends(values, LOWEST, lr, bounds=(0 * values, 0 * LOWEST))
    top.figure.canvas.draw()
    place = top.transData.transform(points(top))
    text = next(text for text in top.texts if text.get_text()).get_window_extent()
    assert all(top.bbox.contains(*point) for point in place)
    assert not any(text.padded(2).contains(*point) for point in place)
    assert all(top.bbox.contains(*corner) for corner in text.corners())


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(jo.InputError, match="lr must be above 0, not 0"):
        plots.plot_ends(LARGEST, LOWEST, 0)


# --- input weights -----------------------------------------------------------------------------------------------


def test_each_unit_is_an_image_in_order_of_norm_on_one_scale():
    weights = np.array([[1.0, 0, 3], [0, 0, 0], [0, -5, 0], [0, 0, 0], [0, 0, 0], [0, 0, 2]])
    axes = np.ravel(plots.plot_input_weights(weights, (2, 3), columns=2))
    assert [ax.get_title() for ax in axes] == ["unit 1", "unit 2", "unit 0", ""]
    pictures = [ax.images[0] for ax in axes[:3]]
    for picture, unit in zip(pictures, (1, 2, 0), strict=True):
        np.testing.assert_array_equal(picture.get_array(), weights[:, unit].reshape(2, 3))
        assert picture.get_clim() == (-5, 5)
    assert not axes[3].axison


def test_a_single_unit_and_all_zeros_can_be_drawn(pyplot):
    (ax,) = np.ravel(plots.plot_input_weights(np.zeros((4, 1)), (2, 2)))
    assert ax.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("shape", [(5, 3), (4,)])
def test_weights_that_are_no_images_are_refused(shape):
    with pytest.raises(jo.InputError, match=r"weights have shape \(.*\); expected \(4, hidden\)"):
        plots.plot_input_weights(np.ones(shape), (2, 2))


# --- axes and matplotlib itself ----------------------------------------------------------------------------------

DRAWINGS = [
    (lambda **axes: plots.plot_values([1.0, 2.0], **axes), "ax", ()),
    (lambda **axes: plots.plot_values([1.0j, 2.0], **axes), "ax", ()),
    (lambda **axes: plots.plot_ends(LARGEST, LOWEST, LR, **axes), "axes", (1, 2)),
    (lambda **axes: plots.plot_input_weights(np.eye(4), (2, 2), **axes), "axes", (2, 2)),
]


@pytest.mark.parametrize(("draw", "name", "shape"), DRAWINGS)
def test_given_axes_are_drawn_on_and_no_figure_is_made(pyplot, draw, name, shape):
    axes = pyplot.subplots(*shape)[1]
    assert draw(**{name: axes}) is axes
    assert len(pyplot.get_fignums()) == 1
    assert all(ax.has_data() for ax in np.ravel(axes))


@pytest.mark.parametrize(("draw", "name", "shape"), DRAWINGS)
def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, draw, name, shape):
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    importing = builtins.__import__

    def refuse(name, *rest):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(jo.MissingExtraError, match=r"pip install 'jvp-ops\[plot\]'"):
        draw()


@pytest.mark.parametrize(("draw", "name", "shape"), DRAWINGS)
def test_a_figure_is_saved_without_a_warning(pyplot, tmp_path, draw, name, shape):
    draw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyplot.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


# --- growth ------------------------------------------------------------------------------------------------------


def test_running_exponents_are_drawn_over_the_steps_with_bars_of_their_errors():
    steps, history = np.arange(1, 5), np.array([[0.5, -1], [0.4, -2], [0.45, -1.5], [0.42, -1.6]])
    ax = plots.plot_running(steps, history, [0.01, np.nan])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), np.c_[steps, history[:, 0]])
    (bar,) = ax.collections  # the second has no error
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [0.41, 0.43])
    low, high = ax.get_ylim()
    assert low < 0.41
    assert high > 0.43
    assert texts(ax) == r"$\lambda_{1}$ $\lambda_{2}$"


def test_names_of_exponents_that_lie_close_together_stand_together():
    last = [0.69, 0.69, -0.3, -0.31, -0.3, -0.31, -np.inf]
    ax = plots.plot_running([1, 2], [[0.5, 0.5, *last[2:]], last])
    assert texts(ax) == r"$\lambda_{1}$, $\lambda_{2}$ $\lambda_{3}$ … $\lambda_{6}$"


def test_names_of_a_group_with_gaps_name_only_what_is_in_it():
    assert plots._ranks([0, 1, 2, 4, 6, 7]) == (
        r"$\lambda_{1}$ … $\lambda_{3}$, $\lambda_{5}$, $\lambda_{7}$, $\lambda_{8}$"
    )


def test_growth_step_by_step_is_drawn_with_its_mean():
    growth = np.array([[1.0, -np.inf], [3.0, -2.0]])
    ax = plots.plot_local_growth([7, 8], growth)
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[7, 1], [8, 3]])
    assert threshold_lines(ax) == [2.0]
    assert np.isnan(ax.lines[3].get_ydata()[0])


def test_results_of_growth_draw_themselves():
    import torch

    henon = jo.FunctionMap(lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), size=2, dtype="float64")
    orbit = jo.Orbit(henon, torch.tensor([0.1, 0.1], dtype=torch.float64), steps=20)
    spectrum = jo.lyapunov_spectrum(henon, orbit[0], k=2, steps=20)
    assert spectrum.plot().get_ylabel() == "running exponent per step"
    assert jo.finite_time_exponents(orbit, k=2).plot().get_ylabel() == "finite-time exponent per step"
    assert jo.covariant_vectors(orbit, k=2).plot().get_ylabel() == "log growth per step"
