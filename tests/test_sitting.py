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
from scipy.sparse.linalg import LinearOperator

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
def the_handlers_are_left_as_they_were(monkeypatch):
    monkeypatch.setattr(Sitting, "_last_press", -np.inf)  # else one test's Ctrl-C is the next one's second
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert Sitting._outermost is None


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
    def full(*_, **options):
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
    def twice(*_):
        press()
        press()
        pytest.fail("the second one was not heard")

    diagonal, calls = np.linspace(-1, 2, 400), []

    def matvec(x):
        calls.append(1)
        return twice() if len(calls) > 30 else diagonal * x.ravel()

    inside = LinearOperator((400, 400), matvec=matvec, dtype=float)
    with pytest.raises(KeyboardInterrupt):
        jo.eigenpairs(inside, 4, "LA", symmetric=True, method="lanczos")
    assert calls
    for name in RUNS:  # in a callback, where all is whole
        Sitting._last_press = -np.inf
        part = RUNS[name](callback=at_call(2, twice))
        assert part.stopped == Stop.INTERRUPTED


def test_two_presses_in_short_order_end_a_loop_of_short_runs():
    ended = []

    def loop():
        for _ in range(3):
            pairs = jo.eigenpairs(ramp(), 2, "LA", method="lanczos", callback=at_call(1, press))
            ended.append(pairs.stopped)

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert ended == [Stop.INTERRUPTED]


def test_a_bar_that_cannot_be_closed_does_not_stop_later_runs():
    class Gone:
        def close(self):
            raise OSError("the terminal has gone")

    sitting = Sitting("broken", unit="step")
    sitting._make_bar = Gone
    with pytest.raises(OSError, match="the terminal"), sitting:
        press()
    assert Sitting._outermost is None
    assert RUNS["lyapunov_spectrum"]().stopped == Stop.FINISHED


def heavy_ball():
    f = jo.HeavyBall(network(), 0.5, 0.9)
    return f, f.initial(f.loss.initial(0))


def test_every_stop_of_a_solve_by_way_of_h_is_told(monkeypatch):
    f, state = heavy_ball()
    J = f.jacobian(state)
    options = {"which": "LM", "block": 4}
    seen = []
    whole = jo.eigenpairs(J, 4, callback=lambda status: seen.append(1) and None, **options)
    assert whole.stopped == Stop.CONVERGED
    assert len(seen) > 4
    for number in range(1, len(seen)):
        for act, stop in ((press, Stop.INTERRUPTED), (lambda: True, Stop.CANCELLED)):
            monkeypatch.setattr(Sitting, "_last_press", -np.inf)
            calls = []
            part = jo.eigenpairs(J, 4, callback=counted(calls, number, act), **options)
            assert len(calls) == number
            assert part.stopped == stop


def counted(calls, number, act):
    def callback(*_):
        calls.append(1)
        return act() if len(calls) == number else None

    return callback


@pytest.mark.parametrize("optimizer", ["GradientDescent", "HeavyBall"])
def test_ctrl_c_in_leading_frame_is_no_failure_to_converge(optimizer, monkeypatch):
    f = getattr(jo, optimizer)(network(), 0.1, **({"momentum": 0.9} if optimizer == "HeavyBall" else {}))
    advance, moves = Sitting.advance, []

    def pressing(self, count=1):
        advance(self, count)
        moves.append(1)
        if len(moves) == 2:
            press()

    monkeypatch.setattr(Sitting, "advance", pressing)
    with pytest.raises(KeyboardInterrupt):
        jo.leading_frame(f, f.initial(f.loss.initial(0)), 3, tol=1e-12)


def test_ctrl_c_before_there_is_anything_is_a_keyboard_interrupt():
    with Sitting("outer", unit="step"):
        press()
        for name in ("eigenpairs", "svd", "finite_time_exponents", "track_eigenpairs"):
            with pytest.raises(KeyboardInterrupt):
                RUNS[name]()
        with pytest.raises(KeyboardInterrupt):
            jo.eigenpairs(np.diag(np.arange(30.0)), 2, "LA", method="dense")


def test_a_proof_or_a_left_solve_that_is_stopped_is_told(monkeypatch):
    from jvp_ops.eigen import _solve

    prove = _solve.prove
    monkeypatch.setattr(_solve, "prove", lambda *args, **options: (press(), prove(*args, **options))[1])
    pairs = jo.eigenpairs(ramp(), 3, "LA", method="lanczos", prove_complete=True)
    assert pairs.stopped == Stop.INTERRUPTED
    assert pairs.converged.all()
    assert "interrupted" in pairs.notes[-1]
    matrix = np.diag(np.linspace(0, 1, 300)) + np.diag(np.full(299, 0.1), 1)
    seen = []
    jo.eigenpairs(matrix, 3, "LM", condition=True, method="krylov-schur", callback=lambda _: seen.append(1) and None)
    for number in (1, len(seen) - 1):
        part = jo.eigenpairs(
            matrix, 3, "LM", condition=True, method="krylov-schur", callback=at_call(number, lambda: True)
        )
        assert part.stopped == Stop.CANCELLED


def test_a_run_inside_of_a_callback_takes_nothing_along(tmp_path):
    def trains():
        press()
        swirl().run(START, steps=50)
        pytest.fail("it was not interrupted")

    for name in RUNS:
        file = tmp_path / f"{name}.npz"
        part = RUNS[name](callback=at_call(2, trains), checkpoint=file)
        assert part.stopped == Stop.INTERRUPTED
        same(RUNS[name](checkpoint=file, resume=True), RUNS[name]())
        Sitting._last_press = -np.inf


@pytest.mark.filterwarnings("ignore:cannot write the checkpoint:jvp_ops.JvpOpsWarning")
def test_of_two_runs_with_one_new_checkpoint_the_first_one_to_write_keeps_it(tmp_path, monkeypatch):
    file = tmp_path / "work.npz"
    monkeypatch.setattr(_sitting, "SAVE_SECONDS", 0.0)
    inner = {}

    def other():
        inner["found"] = jo.lyapunov_spectrum(swirl(), START, 3, 40, interval=2, checkpoint=file)

    outer = RUNS["lyapunov_spectrum"](callback=at_call(1, other), checkpoint=file)
    assert outer.stopped == Stop.FINISHED
    assert "another run, begun meanwhile, made it" in outer.notes[-1]
    assert not any("up to date" in note for note in inner["found"].notes)
    same(jo.lyapunov_spectrum(swirl(), START, 3, 40, interval=2, checkpoint=file, resume=True), inner["found"])


@every_run
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": 123}, "checkpoint must be the path of a file, not 123"),
        ({"checkpoint": "x.npz", "resume": 1}, "resume must be True or False, not 1"),
        ({"max_seconds": -1}, "max_seconds must be"),
        ({"max_seconds": "long"}, "max_seconds must be a finite real number"),
    ],
)
def test_what_is_refused_leaves_no_bar(name, options, message, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, *args, **options):
            self.open = True
            bars.append(self)

        def close(self):
            self.open = False

        def update(self, count):
            pass

    monkeypatch.setattr(_sitting, "progress_bar", Bar)
    with pytest.raises(jo.InputError, match=message):
        RUNS[name](**options)
    assert not any(bar.open for bar in bars)


def test_runs_inside_of_a_run_hear_what_it_hears():
    heard = []
    with Sitting("outer", unit="step") as outer, Sitting("inner", unit="step") as inner:
        assert Sitting._outermost is outer
        press()
        heard = [outer.obstacle(), inner.obstacle()]
    assert heard == [Stop.INTERRUPTED] * 2
    Sitting._last_press = -np.inf
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

    def slow(*args, **options):
        clock[0] += 7.0
        writes.append(clock[0])

    monkeypatch.setattr(_sitting, "save_checkpoint", slow)
    kept = Checkpoint.at(tmp_path / "work.npz", resume=False, identity=dict, probe=lambda: [1.0], close=1e-8)
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
    stopped(command, number, status, tmp_path, signal.SIG_DFL)  # a background job ignores it else


def test_a_job_in_the_background_keeps_what_it_has_when_it_is_terminated(tmp_path):
    stopped("spectrum, solving", signal.SIGTERM, 143, tmp_path, signal.SIG_IGN)


def stopped(command, number, status, tmp_path, handler):
    words, bar = COMMANDS[command]
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD, bar, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(jo.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_killed_worker_leaves_no_lock_that_later_runs_wait_for():
    code = """
import os, signal
import torch
from tqdm import tqdm
import jvp_ops as jo
f = jo.FunctionMap(lambda s: s * 0.5, size=2)
f.run(torch.ones(2), steps=1)
tqdm(disable=True)
if os.fork() == 0:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
signal.alarm(60)
print(f.run(torch.ones(2), steps=1).tolist())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(jo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[0.5, 0.5]\n"
