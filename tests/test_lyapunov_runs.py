"""Lyapunov runs that are stopped, resumed or diverge, and what a result shows."""

import json

import numpy as np
import pytest
import torch
from systems import DOUBLE, henon, linear, network

import jvp_ops as jo
from jvp_ops.dynamics._batch_means import batch_errors
from jvp_ops.store import fingerprint

REQUEST = {"k": 2, "steps": 300, "transient": 20, "rng": 5}


def run(**options):
    return jo.lyapunov_spectrum(*henon(), **{**REQUEST, **options})


@pytest.fixture(scope="module")
def whole():
    return run()


def same(a, b):
    for name in ("values", "errors", "growth", "intervals"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    assert torch.equal(a.state, b.state)
    assert torch.equal(a.vectors, b.vectors)
    assert (a.steps, a.notes, a.products, a.complete) == (b.steps, b.notes, b.products, b.complete)


def interrupted_at(number, exception=KeyboardInterrupt):
    """Hénon, which raises at the call of that number; its code is what a fingerprint sees, not its count."""
    f, state = henon()
    calls, step = [], f.function

    def counting(s):
        calls.append(1)
        if len(calls) == number:
            raise exception
        return step(s)

    f._call = counting
    return f, state


def test_the_same_seed_gives_the_same_result_bit_for_bit(whole):
    same(run(), whole)
    first, other = (run(transient=0, steps=1, rng=seed) for seed in (5, 6))  # later, both may come to the same bits
    assert not np.array_equal(first.growth, other.growth)


@pytest.mark.parametrize("stop", [1, 40, 151, 298])
def test_a_run_that_was_stopped_and_resumed_is_the_uninterrupted_one_bit_for_bit(stop, whole, tmp_path):
    file = tmp_path / "run.npz"
    part = run(checkpoint=file, callback=lambda steps, values: steps >= stop)
    assert stop <= part.steps < 300
    assert not part.complete
    assert any("stopped by the callback" in note for note in part.notes)
    assert part.growth.tobytes() == whole.growth[: len(part.growth)].tobytes()
    same(run(checkpoint=file, resume=True), whole)
    same(run(checkpoint=file, resume=True), whole)  # a finished one gives its result again
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("number", [30, 33, 100, 101, 102, 103, 104, 300])
def test_a_run_that_was_interrupted_anywhere_resumes_bit_for_bit(number, whole, tmp_path):
    file = tmp_path / "run.npz"
    f, state = interrupted_at(number)
    try:
        part = jo.lyapunov_spectrum(f, state, **REQUEST, checkpoint=file)
        assert any("stopped by Ctrl-C" in note for note in part.notes)
        assert part.growth.tobytes() == whole.growth[: len(part.growth)].tobytes()
    except KeyboardInterrupt:
        assert number < 60  # in the transient
    same(run(checkpoint=file, resume=True), whole)


def test_an_interruption_between_counting_and_noting_it_counts_nothing_twice(whole, tmp_path, monkeypatch):
    file, calls, position = tmp_path / "run.npz", [], jo.TangentSystem.position

    def interrupted(self):
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return position(self)

    with monkeypatch.context() as patch:
        patch.setattr(jo.TangentSystem, "position", interrupted)
        part = run(checkpoint=file)
    assert part.growth.tobytes() == whole.growth[: len(part.growth)].tobytes()
    assert part.steps == part.intervals.sum() == part.history_steps[-1]
    assert len(part.growth) < 50
    same(run(checkpoint=file, resume=True), whole)


def test_vectors_always_have_the_same_memory_layout():
    system = jo.TangentSystem(*henon(), 2)
    for _ in range(2):
        assert system.vectors.is_contiguous()
        system.step()
        system.orthonormalize()


def test_a_run_in_float32_on_a_network_resumes_bit_for_bit(tmp_path):
    data = jo.load_digits().subset(50)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=4)
    f = jo.GradientDescent(loss, lr=0.5)
    request = {"f": f, "state": loss.initial(rng=0), "k": 3, "steps": 25, "transient": 3}
    file = tmp_path / "run.npz"
    jo.lyapunov_spectrum(**request, checkpoint=file, callback=lambda steps, values: steps > 10)
    same(jo.lyapunov_spectrum(**request, checkpoint=file, resume=True), jo.lyapunov_spectrum(**request))
    other = jo.GradientDescent(jo.TwoLayerLoss(data.inputs * 0.99, data.labels, hidden=4), lr=0.5)
    with pytest.raises(jo.DataError, match="of another run"):
        jo.lyapunov_spectrum(**{**request, "f": other}, checkpoint=file, resume=True)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.npz"
    run(checkpoint=file)
    before = file.read_bytes()
    for other in ({"k": 1}, {"steps": 301}, {"transient": 21}, {"rng": 6}, {"interval": 3}, {"first": 1}):
        with pytest.raises(jo.DataError, match="of another run"):
            run(**other, checkpoint=file, resume=True)
    f, state = henon()
    with pytest.raises(jo.DataError, match="of another run"):
        jo.lyapunov_spectrum(f, state + 1e-9, **REQUEST, checkpoint=file, resume=True)
    with pytest.raises(jo.DataError, match="first step gives other numbers"):
        jo.lyapunov_spectrum(henon(a=1.3)[0], state, **REQUEST, checkpoint=file, resume=True)
    with pytest.raises(jo.InputError, match="resume it, or remove it"):
        run(checkpoint=file)
    assert file.read_bytes() == before
    file.write_bytes(before[:-20])
    with pytest.raises(jo.DataError, match="damaged"):
        run(checkpoint=file, resume=True)


def test_a_budget_of_time_gives_a_partial_result_or_says_that_it_was_too_short():
    part = jo.lyapunov_spectrum(*henon(), k=2, steps=10**6, max_seconds=0.2)
    assert 10 < part.steps < 10**5
    assert part.asked == 10**6
    assert any("max_seconds=0.2" in note for note in part.notes)
    with pytest.raises(jo.ConvergenceError, match="of the transient"):
        jo.lyapunov_spectrum(*henon(), k=2, steps=10, transient=10**6, max_seconds=0.05)


def test_a_run_that_diverges_says_where_and_keeps_what_was_measured():
    f, state = linear([[1e10]])
    with pytest.raises(jo.NonFiniteError, match="step 30: the run diverges") as caught:
        jo.lyapunov_spectrum(f, state, k=1, steps=100)
    part = caught.value.partial
    assert part.steps == 30
    np.testing.assert_allclose(part.values, [np.log(1e10)], rtol=1e-13)
    with pytest.raises(jo.NonFiniteError) as caught:
        jo.lyapunov_spectrum(f, state, k=1, steps=100, transient=50)
    assert caught.value.partial is None


def test_divergence_is_not_put_down_to_a_long_interval():
    f, state = linear([[1e4]])
    with pytest.raises(jo.NonFiniteError, match="step 77: the run diverges") as caught:
        jo.lyapunov_spectrum(f, state, k=1, steps=100, interval=3)
    part = caught.value.partial
    assert part.notes == ("stopped by divergence after 77 of 100 steps",)
    assert part.intervals.tolist() == [3] * 25 + [2]
    assert not torch.isfinite(f(part.state)).all()


def test_vectors_that_do_not_fit_are_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr("jvp_ops._memory.free_bytes", lambda device: 100)
    with pytest.raises(jo.MemoryBudgetError, match="160 B, more than the 50 B"):
        jo.lyapunov_spectrum(*henon(), k=2, steps=10)


def test_given_vectors_are_what_is_propagated():
    f, state = linear([[2.0, 0.0], [0.0, 0.5]])
    spectrum = jo.lyapunov_spectrum(f, state * 0, torch.tensor([[0.0], [1.0]], dtype=DOUBLE), steps=20)
    np.testing.assert_allclose(spectrum.values, [np.log(0.5)], rtol=1e-14)


def test_the_callback_sees_the_running_exponents():
    seen = []
    spectrum = run(callback=lambda steps, values: seen.append((steps, values)))
    assert [steps for steps, _ in seen] == spectrum.history_steps.tolist()
    np.testing.assert_allclose([values for _, values in seen], spectrum.history, rtol=1e-12)
    np.testing.assert_allclose(spectrum.history[-1], spectrum.values, rtol=1e-12)


def test_standard_errors_of_equal_stretches_are_the_scatter_of_batch_means():
    growth = np.random.default_rng(0).normal(1.0, 2.0, (100, 2))
    means = growth.reshape(10, 10, 2).mean(axis=1) / 3
    errors = batch_errors(growth, np.full(100, 3))
    np.testing.assert_allclose(errors, means.std(axis=0, ddof=1) / np.sqrt(10), rtol=1e-12)
    assert np.isnan(batch_errors(growth[:7], np.full(7, 3))).all()


def test_standard_errors_are_those_of_repeated_runs():
    """Batch means on one run each, against the scatter of the runs."""
    runs = [jo.lyapunov_spectrum(*start_of_henon(seed), k=1, steps=150, transient=30) for seed in range(16)]
    scatter = np.std([spectrum.values[0] for spectrum in runs], ddof=1)
    typical = np.sqrt(np.mean([spectrum.errors[0] ** 2 for spectrum in runs]))
    assert scatter / 2.5 < typical < 2.5 * scatter


def start_of_henon(seed):
    f, state = henon()
    return f, state + 0.01 * torch.randn(2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# --- what a result shows -----------------------------------------------------------------------------------------


def test_a_result_prints_renders_and_is_saved(whole, tmp_path):
    lines = repr(whole).splitlines()
    assert lines[0].startswith("2 Lyapunov exponents over 300 steps after 20, Kaplan–Yorke dimension 1.2")
    assert lines[1].split("  ")[-1] == "factor per step"
    assert whole._repr_html_().count("<tr>") == 3
    folder = whole.save(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    assert record["values"] == whole.values.tolist()
    assert record["fingerprint"] == fingerprint(whole.provenance)
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["growth"], whole.growth)


def test_an_infinite_exponent_is_kept_in_the_record(tmp_path):
    spectrum = jo.lyapunov_spectrum(linear([[2.0, 0], [0, 0]])[0], torch.zeros(2, dtype=DOUBLE), k=2, steps=20)
    record = json.loads((spectrum.save(tmp_path / "run") / "run.json").read_text())
    assert record["values"][1] == "-inf"
    assert record["errors"][1] is None


def test_a_vector_comes_apart_by_parameter_names():
    f, theta = network()
    spectrum = jo.lyapunov_spectrum(f, theta, k=2, steps=4)
    assert list(spectrum.tensors(1)) == ["W1", "b1", "W2", "b2"]
    assert len(spectrum) == 2


def test_checkpoints_see_small_changes_of_what_a_map_closes_over_and_the_seed(tmp_path):
    file = tmp_path / "run.npz"
    run(checkpoint=file, callback=lambda *_: np.True_)
    with pytest.raises(jo.DataError, match="no fingerprint sees"):
        jo.lyapunov_spectrum(*henon(a=1.4001), **REQUEST, checkpoint=file, resume=True)
    with pytest.raises(jo.DataError, match=r"\(fingerprint .*: steps differs"):
        run(checkpoint=file, resume=True, steps=301)
    V = torch.eye(2, dtype=DOUBLE)
    run(k=V, checkpoint=tmp_path / "given.npz", callback=lambda *_: True)
    with pytest.raises(jo.DataError, match="seed differs"):
        run(k=V, rng=6, checkpoint=tmp_path / "given.npz", resume=True)


def test_a_callback_may_answer_in_numpy_and_its_errors_leave_a_checkpoint(tmp_path):
    assert run(callback=lambda steps, values: values[0] > -9).steps < 300

    def broken(steps, values):
        if steps >= 40:
            raise RuntimeError("mine")

    file = tmp_path / "run.npz"
    with pytest.raises(RuntimeError, match="mine"):
        run(callback=broken, checkpoint=file)
    same(run(checkpoint=file, resume=True), run())


def test_products_count_what_was_done_over_and_seconds_those_of_all_sittings(tmp_path):
    f, state = linear([[1.0, 0.0], [0.0, 1e-7]])
    found = jo.lyapunov_spectrum(f, state, 2, 8, interval=4)
    assert "done over" in found.notes[0]
    assert found.products > 2 * 8
    file = tmp_path / "run.npz"
    first = run(checkpoint=file, callback=lambda steps, values: steps >= 100)
    assert run(checkpoint=file, resume=True).seconds > first.seconds


def test_a_schedule_that_differs_anywhere_in_the_run_is_another_run(tmp_path):
    loss = jo.FunctionLoss(lambda x: (x**2).sum() * 0.35, size=2, dtype="float64")

    def f(late):
        steps = [late]
        return jo.GradientDescent(loss, lambda step: 0.1 if step < steps[0] else 0.01)

    start, request = (
        torch.ones(2, dtype=DOUBLE),
        {"k": 1, "steps": 300, "first": 1100, "checkpoint": tmp_path / "run.npz"},
    )
    jo.lyapunov_spectrum(f(1201), start, **request, callback=lambda *_: True)
    with pytest.raises(jo.DataError, match="rates differs"):
        jo.lyapunov_spectrum(f(1203), start, **request, resume=True)
    jo.Orbit(f(1201), start, 300, first=1100, folder=tmp_path / "orbit")
    with pytest.raises(jo.DataError, match="another orbit"):
        jo.Orbit(f(1203), start, 300, first=1100, folder=tmp_path / "orbit")
    options = {"every": 100, "k": 1, "first": 1100, "checkpoint": tmp_path / "track.npz"}
    jo.track_eigenpairs(f(1201), start, 300, **options, callback=lambda *_: True)
    with pytest.raises(jo.DataError, match="rates differs"):
        jo.track_eigenpairs(f(1203), start, 300, **options, resume=True)
