"""Eigenvalues tracked along training: right ones, at less cost, with what is told beside them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from systems import Held, linear

import jvp_ops as jo

LOSS = {}


def digits_loss(hidden=6, samples=200, dtype="float64"):
    key = (hidden, samples, dtype)
    if key not in LOSS:
        data = jo.load_digits().subset(samples)
        LOSS[key] = jo.TwoLayerLoss(data.inputs, data.labels, hidden=hidden, dtype=dtype)
    return LOSS[key]


def track(make=lambda loss: jo.GradientDescent(loss, 0.5), steps=30, **options):
    loss = digits_loss(options.pop("hidden", 3), options.pop("samples", 60))
    f = make(loss)
    return jo.track_eigenpairs(f, f.initial(loss.initial(rng=0)), steps, **{"every": 10, "k": 2, **options})


MAPS = {
    "gd": lambda loss: jo.GradientDescent(loss, 0.5, weight_decay=0.01),
    "ball": lambda loss: jo.HeavyBall(loss, 0.3, 0.8),
    "rmsprop": lambda loss: jo.RMSProp(loss, 0.01, weight_decay=0.02),
    "adam": lambda loss: jo.Adam(loss, 0.01, weight_decay=0.02),
    "adamw": lambda loss: jo.AdamW(loss, 0.01, weight_decay=0.02),
}


@pytest.mark.parametrize("name", MAPS)
def test_values_are_those_of_the_dense_matrix_at_the_states_of_the_run(name):
    found = track(MAPS[name], tol=1e-8, verify_every=1)
    assert found.at.tolist() == [0, 10, 20, 30]
    loss = digits_loss(3, 60)
    f = MAPS[name](loss)
    state, before = f.initial(loss.initial(rng=0)), None
    for row, number in enumerate(found.at.tolist()):
        theta = f.theta(state)
        H, g = loss.hessian(theta).dense(), loss.gradient(theta)
        if hasattr(f, "preconditioner"):
            root = f.preconditioner(state, number).sqrt()
            H = root[:, None] * (H + (0.02 * torch.eye(len(H), dtype=H.dtype) if name != "adamw" else 0)) * root
            g = root * g
        values, X = np.linalg.eigh(H.numpy())
        X = torch.from_numpy(X[:, -2:].copy())
        np.testing.assert_allclose(found.values[row], values[::-1][:2], rtol=1e-9)
        assert found.thresholds[row] == f.threshold(number)
        assert found.losses[row] == float(loss.value(theta))
        assert found.gradient_overlap[row] == pytest.approx(float((X.T @ g).norm() / g.norm()), abs=1e-5)
        if before is not None:
            assert found.continuity[row] == pytest.approx(float((before.T @ X).square().sum()) / 2, abs=1e-5)
        before, state = X, f.run(state, steps=10, first=number) if number < 30 else state
    assert np.isnan(found.continuity[0])
    assert torch.equal(found.state, state)
    assert found.operator == ("preconditioned hessian" if hasattr(f, "preconditioner") else "hessian")


def test_the_hessian_itself_of_adam_and_the_lowest_end():
    f = MAPS["adam"](digits_loss(3, 60))
    theta = digits_loss(3, 60).initial(rng=0)
    found = track(MAPS["adam"], preconditioned=False, which="SA", steps=10, tol=1e-8)
    values = np.linalg.eigvalsh(f.loss.hessian(theta).dense().numpy())
    np.testing.assert_allclose(found.values[0], values[:2], atol=1e-9)
    assert found.operator == "hessian"
    assert not found.settled


def test_warm_starts_save_more_than_half_of_the_products():
    """Of the same solves with a random start; at the same eigenvalues."""
    options = {"hidden": 10, "samples": 300, "steps": 150, "k": 3}
    warm, cold = track(**options), track(warm=False, **options)
    unverified = warm.products[~warm.verified]
    assert len(unverified) >= 13
    assert cold.verified.all()
    assert unverified.mean() < 0.35 * cold.products.mean()
    assert warm.products.sum() < 0.5 * cold.products.sum()
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-4)
    loss = digits_loss(10, 300)
    alone = jo.eigenpairs(loss.hessian(loss.initial(rng=0)), 3, "LA", tol=1e-3, verify=False, float64=False)
    assert unverified.mean() < 0.55 * alone.products  # though it verifies nothing either


def test_an_eigenvector_that_overtakes_is_found_by_verifying():
    """Two curvatures that cross on the way, with eigenvectors that never mix."""

    def value(x):  # curvatures 3 and 5 − 0.6 t along the run of the clock x[2]
        return (3 * x[0] ** 2 + (1 + x[2]) * x[1] ** 2) / 2 - x[2] + 0.01 * (x[3:] ** 2).sum()

    loss = jo.FunctionLoss(value, size=40, dtype="float64")
    start = torch.zeros(40, dtype=torch.float64)
    found = jo.track_eigenpairs(jo.GradientDescent(loss, 0.1), start, 40, every=4, k=1, verify_every=5)
    crossed = found.at * 0.1 + 1 > 3
    seen = crossed & found.verified
    assert seen.any()
    np.testing.assert_allclose(found.values[seen, 0], found.at[seen] * 0.1 + 1, rtol=1e-6)


def test_the_edge_of_stability_is_recognized():
    """Gradient descent on a small network with squared errors, whose sharpness is driven to 2/α."""
    found = jo.track_eigenpairs(*_edge(1.0), steps=300, every=20, k=1)
    assert found.settled
    assert "settled at the edge" in found.stability()
    early = jo.track_eigenpairs(*_edge(0.1), steps=100, every=20, k=1)
    assert not early.settled
    assert "has not reached: the steps were stable" in early.stability()


def _edge(lr):
    data = jo.load_digits().subset(100, rng=0)
    targets = torch.nn.functional.one_hot(torch.tensor(data.labels).long(), 10).float()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 10), torch.nn.Tanh(), torch.nn.Linear(10, 10))
    loss = jo.ModelLoss(model, torch.nn.functional.mse_loss, (torch.tensor(data.inputs), targets))
    return jo.GradientDescent(loss, lr), loss.initial()


def test_minibatches_are_tracked_by_the_whole_loss():
    loss = digits_loss(3, 60)
    f = jo.MinibatchSGD(loss, 20, optimizer=lambda loss: jo.HeavyBall(loss, 0.1, 0.9))
    found = jo.track_eigenpairs(f, f.initial(loss.initial(rng=0)), 6, every=3, k=2, tol=1e-8)
    theta = f.theta(f.run(f.initial(loss.initial(rng=0)), steps=6))
    assert found.values[-1, 0] == pytest.approx(float(torch.linalg.eigvalsh(loss.hessian(theta).dense())[-1]))


def test_the_last_state_is_measured_and_the_number_of_the_first_step_counts():
    found = track(lambda loss: jo.GradientDescent(loss, lambda step: 0.1 / (1 + step)), steps=25, first=5)
    assert found.at.tolist() == [5, 15, 25, 30]
    np.testing.assert_allclose(found.thresholds, 2 * (1 + found.at) / 0.1)


# --- stops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 10, 20])
def test_a_run_that_was_stopped_and_resumed_is_the_uninterrupted_one(stop, tmp_path):
    whole, file = track(), tmp_path / "track.npz"
    part = track(checkpoint=file, callback=lambda step, values: step >= stop)
    assert not part.complete
    assert part.at[-1] == stop
    assert "stopped by the callback" in part.notes[0]
    again = track(checkpoint=file, resume=True)
    assert again.complete
    for name in ("at", "values", "products", "continuity", "losses", "verified"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert torch.equal(again.vectors, whole.vectors)
    with pytest.raises(jo.InputError, match="resume it, or remove it"):
        track(checkpoint=file)
    with pytest.raises(jo.DataError, match="another run"):
        track(checkpoint=file, resume=True, k=3)


def test_a_run_that_diverges_leaves_what_was_measured():
    loss = jo.FunctionLoss(lambda x: (x**4).sum(), size=30, dtype="float64")
    f = jo.GradientDescent(loss, 1.0)
    with pytest.raises(jo.NonFiniteError) as failed:
        jo.track_eigenpairs(f, torch.full((30,), 2.0, dtype=torch.float64), 40, every=2, k=1)
    partial = failed.value.partial
    assert len(partial) >= 2
    assert not partial.complete
    assert "divergence" in partial.notes[0]
    assert partial.ratio[-1] > 1


def test_divergence_is_at_the_step_by_number_and_leaves_a_checkpoint(tmp_path):
    loss = jo.FunctionLoss(lambda x: (x**4).sum(), size=4, dtype="float64")
    f, start = jo.GradientDescent(loss, lambda step: 0.01 if step < 55 else 1e300), torch.ones(4, dtype=torch.float64)
    options = {"every": 20, "k": 1, "first": 10, "checkpoint": tmp_path / "track.npz"}
    with pytest.raises(jo.NonFiniteError, match=r"at step 56:"):
        jo.track_eigenpairs(f, start, 100, **options)
    with pytest.raises(jo.NonFiniteError, match=r"at step 56:") as again:
        jo.track_eigenpairs(f, start, 100, **options, resume=True)
    assert again.value.partial.at.tolist() == [10, 30, 50]
    with pytest.raises(jo.NonFiniteError, match="at the state before step 10:"):
        jo.track_eigenpairs(f, 1e160 * start, 100, **{**options, "checkpoint": None})


@pytest.mark.parametrize("hidden", [True, False])
def test_a_checkpoint_of_a_loss_that_closes_over_other_numbers_is_refused(tmp_path, hidden):
    def run(h, **options):
        h = Held(torch.tensor(h, dtype=torch.float64)) if hidden else torch.tensor(h, dtype=torch.float64)
        curvatures = (lambda: h.value) if hidden else (lambda: h)
        loss = jo.FunctionLoss(lambda x: (curvatures() * x**2).sum() / 2, size=3, dtype="float64")
        start, file = torch.ones(3, dtype=torch.float64), tmp_path / "track.npz"
        f = jo.GradientDescent(loss, 0.1)
        return jo.track_eigenpairs(f, start, 20, every=10, k=1, checkpoint=file, **options)

    run([1.0, 2.0, 3.0], callback=lambda step, values: np.bool_(True))
    with pytest.raises(jo.DataError, match="no fingerprint sees" if hidden else "of another run"):
        run([1.0, 2.0, 3.001], resume=True)
    assert run([1.0, 2.0, 3.0], resume=True).complete


@pytest.mark.parametrize("which", ["SA", "BE", "LM"])
def test_what_is_shown_says_which_end_it_is(which):
    found = track(which=which, k=3)
    line = found.plot()[0].lines[0].get_ydata()
    np.testing.assert_array_equal(line, found.values.min(axis=1) if which == "SA" else found.values.max(axis=1))
    names = [text.get_text() for text in found.plot()[0].get_legend().get_texts()]
    assert names[0] == ("lowest" if which == "SA" else "largest")
    assert ("threshold" in names) <= (which != "SA")
    if which != "SA":
        assert found.header()[2:4] == ["largest", "lowest"]
        assert found.rows()[-1][2:4] == [f"{found.values[-1].max():.6g}", f"{found.values[-1].min():.6g}"]


def test_the_threshold_is_inside_of_the_figure_where_it_is_drawn():
    from jvp_ops.plots import plot_tracking

    upper, _ = plot_tracking([0, 1, 2], [[2.0], [2.5], [2.6]], [4.0] * 3, [1.0, 0.5, 0.2])
    assert upper.get_ylim()[1] > 4
    upper, lower = plot_tracking([7], [[2.0, 1.0]], [4.0], [1.0])
    assert {line.get_marker() for line in (*upper.lines[:2], *lower.lines)} >= {"o"}


def test_one_row_and_huge_ratios_read_well():
    found = track(callback=lambda *_: True)
    assert "the last 1 rows" not in str(found)
    wide = replace(found, thresholds=np.full(len(found), 1e-120))
    assert max(map(len, str(wide).splitlines()[1:3])) < 160


def test_ctrl_c_keeps_what_was_measured():
    def interrupt(step, values):
        if step == 20:
            raise KeyboardInterrupt

    found = track(callback=interrupt)
    assert found.at.tolist() == [0, 10, 20]
    assert "Ctrl-C" in found.notes[0]


def test_a_time_budget():
    assert track(max_seconds=1e-9).at.tolist() == [0]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"k": 0}, "k must be"),
        ({"k": 10**6}, "k must be less than"),
        ({"steps": 0}, "steps must be"),
        ({"every": 0}, "every must be"),
        ({"which": "LR"}, "which must be one of LA, SA, LM, BE"),
        ({"which": "BE", "k": 1}, "BE with k of at least 2"),
        ({"preconditioned": True}, "no preconditioner"),
        ({"first": -1}, "first must be"),
        ({"rng": -1}, "rng must be"),
        ({"tol": -1}, "tol must be"),
        ({"resume": True}, "no checkpoint"),
    ],
)
def test_bad_requests(options, says):
    with pytest.raises(jo.InputError, match=says):
        track(**options)


def test_a_map_without_a_loss_is_refused():
    with pytest.raises(jo.InputError, match="optimizer map"):
        jo.track_eigenpairs(*linear([[1.0]]), 3, k=1)


def test_the_result_shows_and_saves_itself(tmp_path):
    found = track()
    text = repr(found)
    assert "2 eigenvalues (LA) of the hessian at 4 of the states before steps 0 to 30" in text
    assert text.count("\n") == 5
    assert "<table>" in found._repr_html_()
    found.save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["values"] == found.values.tolist()
    assert record["continuity"][0] is None
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["vectors"], found.vectors.numpy())


def test_ctrl_c_inside_of_a_solve_keeps_what_was_measured(monkeypatch):
    from jvp_ops.dynamics.tracking import _track

    calls = []

    def cancelled(*args, **options):
        calls.append(1)
        found = jo.eigenpairs(*args, **options)
        return replace(found, stopped="cancelled") if len(calls) == 3 else found

    monkeypatch.setattr(_track, "eigenpairs", cancelled)
    found = track()
    assert found.at.tolist() == [0, 10]
    assert "Ctrl-C after 20 of 30 steps" in found.notes[0]
    calls.clear()
    calls.extend([1, 1])
    with pytest.raises(KeyboardInterrupt):  # there is nothing to give back
        track()


@pytest.mark.parametrize("infinite", [False, True])
def test_the_figure_shows_the_values_the_threshold_and_the_loss(infinite):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'jvp-ops[plot]'").use("Agg")
    from matplotlib import pyplot

    found = track(lambda loss: jo.GradientDescent(loss, 0.0 if infinite else 0.5))
    upper, lower = found.plot()
    drawn = [line.get_ydata() for line in upper.get_lines()]
    assert any(np.array_equal(y, found.values[:, 0]) for y in drawn)
    assert any(np.array_equal(y, found.values[:, 1]) for y in drawn)
    assert any(np.array_equal(y, found.thresholds) for y in drawn) == (not infinite)
    np.testing.assert_array_equal(lower.get_lines()[0].get_ydata(), found.losses)
    assert upper.get_ylim()[1] > found.values.max()
    names = [text.get_text() for text in upper.get_legend().get_texts()]
    assert names == (["largest", "the next"] if infinite else ["largest", "threshold", "the next"])
    pyplot.close(upper.figure)
