"""Every long run in the one way: what stops it, what it gives back then, and how it goes on."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import jvp_ops as jo
import jvp_ops.store._checkpoint as checkpoints
from jvp_ops import _sitting
from jvp_ops._sitting import BACK_OFF, Checkpoint, Sitting, Stop
from jvp_ops.testing import operator_of

DOUBLE = torch.float64


def press():
    signal.raise_signal(signal.SIGINT)


def network(**options):
    return jo.TwoLayerLoss(jo.load_digits().subset(60), hidden=4, dtype="float64", **options)


def swirl(at=None, act=None):
    """Make a map of five numbers, which acts at its call of that number; its code does not tell."""
    f = jo.FunctionMap(lambda x: torch.sin(x.roll(1)) * 0.9 + 0.1 * x**2, size=5, dtype="float64")
    calls, step = [], f._call

    def counting(x, *rest):
        calls.append(1)
        if len(calls) == at:
            act()
        return step(x, *rest)

    f._call = counting
    return f


START = torch.linspace(0.5, 1.5, 5, dtype=DOUBLE)


def orbit(steps=24):
    return jo.Orbit(swirl(), START, steps)


def ramp():
    return operator_of(np.diag(np.linspace(-1, 2, 400)))


# Long runs that give back what they have; each takes `callback`, `max_seconds`, `checkpoint` and `resume`.
RUNS = {
    "eigenpairs": lambda **o: jo.eigenpairs(ramp(), 4, "LA", method="lanczos", **o),
    "svd": lambda **o: jo.svd(ramp(), 4, method="lanczos", **o),
    "lyapunov_spectrum": lambda **o: jo.lyapunov_spectrum(swirl(), START, 2, 40, interval=2, **o),
    "finite_time_exponents": lambda **o: jo.finite_time_exponents(orbit(), 2, tol=0, max_iterations=6, **o),
    "track_eigenpairs": lambda **o: jo.track_eigenpairs(
        jo.GradientDescent(network(), 0.5), network().initial(0), 12, every=2, k=2, **o
    ),
}
# Those that have nothing to give back on the way.
WHOLE = {
    "run": lambda act: swirl(7, act).run(START, steps=20),
    "Orbit": lambda act: jo.Orbit(swirl(7, act), START, 20),
}
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(autouse=True)
def the_handlers_are_left_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert Sitting._listening is None


def same(a, b):
    for name, array in a.arrays().items():
        assert array.tobytes() == b.arrays()[name].tobytes(), name
    assert (a.stopped, a.notes) == (b.stopped, b.notes)


def at_call(number, act):
    calls = []

    def callback(*what):
        calls.append(1)
        return act() if len(calls) == number else None

    return callback


@every_run
@pytest.mark.parametrize(
    "act, stop", [(press, Stop.INTERRUPTED), (lambda: True, Stop.CANCELLED)], ids=["Ctrl-C", "callback"]
)
def test_a_run_that_is_stopped_gives_what_it_has_and_goes_on_bit_for_bit(name, act, stop, tmp_path):
    whole, file = RUNS[name](), tmp_path / "work.npz"
    part = RUNS[name](checkpoint=file, callback=at_call(2, act))
    assert part.stopped == stop
    assert part.notes != whole.notes
    assert not any("not up to date" in note for note in part.notes)
    same(RUNS[name](checkpoint=file, resume=True), whole)
    same(RUNS[name](checkpoint=file, resume=True), whole)  # a finished one gives its result again


@every_run
def test_a_budget_of_time_ends_a_run_with_what_it_has(name):
    begun = time.monotonic()
    part = RUNS[name](max_seconds=0.05, callback=lambda *_: time.sleep(0.06))
    assert part.stopped == Stop.MAX_SECONDS
    assert time.monotonic() - begun < 30
    assert "max_seconds" in str(part)


@every_run
def test_why_a_run_ended_is_one_enumeration_that_is_saved_and_loaded(name, tmp_path):
    found = RUNS[name]()
    assert isinstance(found.stopped, jo.Stop)
    again = jo.load(found.save(tmp_path / "run"))
    assert again.stopped is found.stopped
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stopped"] == str(found.stopped)


@every_run
def test_a_checkpoint_that_cannot_be_written_leaves_the_result_in_hand(name, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    whole = RUNS[name]()
    monkeypatch.setattr(checkpoints, "_write_whole", full)
    with pytest.warns(jo.JvpOpsWarning, match="No space left on device"):
        found = RUNS[name](checkpoint=tmp_path / "work.npz")
    assert found.stopped == whole.stopped
    assert "the checkpoint is not up to date: cannot write" in found.notes[-1]
    np.testing.assert_array_equal(found.values, whole.values)
    assert not list(tmp_path.iterdir())


@every_run
def test_a_callback_must_be_callable(name):
    with pytest.raises(jo.InputError, match="callback must be a function, not 'stop'"):
        RUNS[name](callback="stop")


@every_run
def test_a_checkpoint_of_an_older_format_is_refused_by_version(name, tmp_path):
    file = tmp_path / "work.npz"
    RUNS[name](checkpoint=file)
    with zipfile.ZipFile(file) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    header = json.loads(bytes(np.load(io.BytesIO(parts["header.npy"]))))
    del header["format"]
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(json.dumps(header).encode(), dtype=np.uint8))
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in {**parts, "header.npy": buffer.getvalue()}.items():
            archive.writestr(entry, content)
    with pytest.raises(jo.DataError, match="of format 1, of another version"):
        RUNS[name](checkpoint=file, resume=True)


@pytest.mark.parametrize("name", WHOLE)
def test_a_run_without_parts_ends_by_keyboard_interrupt_after_the_step(name):
    done = []

    def pressed():
        press()
        done.append("the step went on")

    with pytest.raises(KeyboardInterrupt):
        WHOLE[name](pressed)
    assert done


def test_training_ends_at_the_step_where_its_callback_says_so():
    seen = []
    state = swirl().run(START, steps=20, callback=lambda number, x: seen.append(number) or number == 5)
    assert seen == [1, 2, 3, 4, 5]
    assert torch.equal(state, swirl().run(START, steps=5))


def test_a_dense_file_is_kept_and_resumed_after_ctrl_c(tmp_path):
    loss = network()
    H = loss.hessian(loss.initial(0))
    file, whole = tmp_path / "H.npy", H.dense()
    write = jo.store._matrix_file.MatrixFile.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jo.operators._dense, "BLOCK_BYTES", 50 * H.shape[1] * 8)
        patch.setattr(jo.store._matrix_file.MatrixFile, "write", lambda self, *args: (write(self, *args), press()))
        with pytest.raises(KeyboardInterrupt):
            H.dense(out=file)
        assert file.with_name("H.npy.partial").exists()
        patch.setattr(jo.store._matrix_file.MatrixFile, "write", write)
        np.testing.assert_array_equal(H.dense(out=file, resume=True), whole)


@pytest.mark.parametrize("number", [0, 5, 11, 12, 23])
def test_covariant_vectors_go_on_from_any_step(number, tmp_path, monkeypatch):
    file, taken = tmp_path / "work.npz", []
    along = orbit()
    whole, at = jo.covariant_vectors(along, 2), jo.Orbit.at

    def pressing(self, t):
        taken.append(t)
        if t == number:
            press()
        return at(self, t)

    with monkeypatch.context() as patch:
        patch.setattr(jo.Orbit, "at", pressing)
        if number < 23:
            with pytest.raises(KeyboardInterrupt):
                jo.covariant_vectors(along, 2, checkpoint=file)
        else:  # the pass was whole
            same(jo.covariant_vectors(along, 2, checkpoint=file), whole)
    same(jo.covariant_vectors(along, 2, checkpoint=file, resume=True), whole)
    with pytest.raises(jo.DataError, match="of another run"):
        jo.covariant_vectors(along, 3, checkpoint=file, resume=True)


def test_covariant_vectors_say_that_their_budget_was_too_short(tmp_path, monkeypatch):
    with pytest.raises(jo.ConvergenceError, match=r"max_seconds=1e-09 ran out after 1 of 24 steps"):
        jo.covariant_vectors(orbit(), 2, max_seconds=1e-9, checkpoint=tmp_path / "work.npz")
    found = jo.covariant_vectors(orbit(), 2, checkpoint=tmp_path / "work.npz", resume=True)
    same(found, jo.covariant_vectors(orbit(), 2))
    assert found.stopped == Stop.FINISHED


def test_a_search_may_go_on_with_another_tolerance(tmp_path):
    file = tmp_path / "work.npz"
    first = jo.finite_time_exponents(orbit(), 2, tol=0, max_iterations=1, checkpoint=file)
    assert (first.stopped, first.iterations) == (Stop.MAX_ITERATIONS, 1)
    more = jo.finite_time_exponents(orbit(), 2, tol=1e-9, checkpoint=file, resume=True)
    assert more.stopped == Stop.CONVERGED
    assert more.iterations >= first.iterations


def test_a_second_ctrl_c_interrupts_at_once():
    def twice():
        press()
        press()
        pytest.fail("the second one was not heard")

    with pytest.raises(KeyboardInterrupt):
        RUNS["eigenpairs"](callback=at_call(1, twice))
    part = RUNS["lyapunov_spectrum"](callback=at_call(3, twice))  # which goes back to the last whole stretch
    assert (part.stopped, part.steps) == (Stop.INTERRUPTED, 6)


def test_runs_inside_of_a_run_hear_what_it_hears():
    heard = []
    with Sitting("outer", unit="step") as outer, Sitting("inner", unit="step") as inner:
        assert Sitting._listening is outer
        press()
        heard = [outer.obstacle(), inner.obstacle()]
    assert heard == [Stop.INTERRUPTED] * 2
    found = jo.track_eigenpairs(
        jo.GradientDescent(loss := network(), 0.5), loss.initial(0), 12, every=4, k=2, callback=at_call(2, press)
    )
    assert (found.stopped, found.at.tolist()) == (Stop.INTERRUPTED, [0, 4])


def test_in_another_thread_nothing_is_heard_and_no_handler_set():
    results = []
    thread = threading.Thread(target=lambda: results.append(RUNS["lyapunov_spectrum"](callback=lambda *_: False)))
    with Sitting("main", unit="step") as sitting:
        press()
        thread.start()
        thread.join()
        assert sitting.obstacle() == Stop.INTERRUPTED
    assert results[0].stopped == Stop.FINISHED


def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert RUNS["lyapunov_spectrum"](callback=at_call(2, press)).stopped == Stop.FINISHED
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_writing_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    clock, writes = [0.0], []
    monkeypatch.setattr(_sitting.time, "monotonic", lambda: clock[0])

    def slow(*args):
        clock[0] += 7.0
        writes.append(clock[0])

    monkeypatch.setattr(_sitting, "save_checkpoint", slow)
    kept = Checkpoint.at(tmp_path / "work.npz", resume=False, identity=dict, probe=lambda: [1.0], dtype=torch.float64)
    sitting = Sitting("slow", unit="step", checkpoint=kept)

    def advance():
        clock[0] += 1.0
        return Stop.FINISHED if clock[0] > 1000 else None

    assert sitting.run(advance, snapshot=lambda: ({}, {})) == Stop.FINISHED
    between = np.diff(writes[:-1])
    assert (between >= BACK_OFF * 7).all()
    assert len(writes) >= 6


def test_an_error_on_the_way_keeps_the_last_whole_piece(tmp_path):
    file = tmp_path / "work.npz"

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        RUNS["lyapunov_spectrum"](checkpoint=file, callback=at_call(4, fail))
    same(RUNS["lyapunov_spectrum"](checkpoint=file, resume=True), RUNS["lyapunov_spectrum"]())


NET = ["--samples", "200", "--hidden", "5", "--quiet", "--out", "run"]
COMMANDS = {  # and the bar that moves when the signal comes
    "spectrum": (["spectrum", *NET, "--steps", "1000000"], "training"),
    "spectrum, solving": (["spectrum", *NET, "--steps", "1", "--k", "60", "--tol", "1e-9"], "eigenpairs SA"),
    "sharpness": (["sharpness", *NET, "--steps", "1000000", "--every", "3", "--checkpoint", "work.npz"], "tracking"),
    "lyapunov": (["lyapunov", *NET, "--steps", "2", "--window", "1000000", "--checkpoint", "work.npz"], "exponents"),
    "growth": (["growth", *NET, "--steps", "2", "--window", "900"], "finite-time growth"),
    "dense": (["dense", *NET[:-2], "--steps", "1000000"], "training"),
}
TOLD = """
import sys
from jvp_ops._sitting import Sitting
from jvp_ops.cli import main
advance, moved = Sitting.advance, []
def told(self, count=1):
    advance(self, count)
    moved.append(self.description == sys.argv[1])
    if sum(moved) == 5:
        print("working", flush=True)
Sitting.advance = told
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_command_that_is_stopped_says_so_by_its_status_and_keeps_what_it_has(command, number, status, tmp_path):
    words, bar = COMMANDS[command]
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD, bar, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(jo.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it else
    )
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "Traceback" not in err
    if bar == "training":
        assert err.strip() == f"jvp-ops: {'terminated' if number == signal.SIGTERM else 'interrupted'}"
        return
    assert "stopped by Ctrl-C" in out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    if command == "spectrum, solving":
        assert record["smallest"]["stopped"] == "interrupted"
        assert record["largest"]["notes"] == ["not solved, since the other end was interrupted"]
    elif command == "growth":
        assert not record["complete"]
    else:
        assert jo.load(tmp_path / "run").stopped == Stop.INTERRUPTED
        assert (tmp_path / "work.npz").exists()
