"""`jvp-ops sharpness`, `lyapunov` and `growth` as a person and a script meet them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jvp_ops as jo
from jvp_ops.cli import main
from jvp_ops.dynamics.lyapunov import _measurement
from jvp_ops.dynamics.tracking import _track

NET = ["--samples", "100", "--hidden", "4", "--quiet"]
SMALL = {
    "sharpness": ["sharpness", *NET, "--steps", "12", "--every", "4", "--k", "2"],
    "lyapunov": ["lyapunov", *NET, "--steps", "5", "--window", "12", "--transient", "3", "--k", "2"],
    "growth": ["growth", *NET, "--steps", "5", "--window", "4", "--k", "2", "--dtype", "float64", "--tol", "1e-6"],
}
every_command = pytest.mark.parametrize("command", SMALL)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def two_layer(dtype="float32"):
    data = jo.load_digits().subset(100, rng=0)
    return jo.TwoLayerLoss(data.inputs, data.labels, hidden=4, classes=10, dtype=dtype)


@every_command
def test_it_writes_a_run_folder_with_a_figure_and_says_where(command, capsys, tmp_path):
    assert main(SMALL[command]) == 0
    printed = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith(f"{command}-digits-")
    assert f"written to {folder.relative_to(tmp_path)}; figure in figure.png" in printed
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "run.json").read_text())
    assert record["command"] == command
    assert record["settings"]["optimizer"] == "gd"
    assert record["fingerprint"]


def test_sharpness_is_that_of_the_library(capsys, tmp_path):
    assert main([*SMALL["sharpness"], "--network", "two-layer", "--lr", "0.3", "--json", "--out", "run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    loss = two_layer()
    f = jo.GradientDescent(loss, 0.3)
    found = jo.track_eigenpairs(f, loss.initial(0), 12, every=4, k=2)
    assert printed["values"] == found.values.tolist()
    assert printed["at"] == [0, 4, 8, 12]
    assert printed["thresholds"] == [2 / 0.3] * 4
    with np.load(tmp_path / "run" / "arrays.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["values"], found.values)


@pytest.mark.parametrize("start", ["leading", "random"])
def test_lyapunov_is_that_of_the_library(start, capsys):
    options = ["--optimizer", "heavy-ball", "--momentum", "0.5", "--lr", "0.2", "--json"]
    options += ["--start", start] if start == "random" else []
    assert main([*SMALL["lyapunov"], *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    loss = two_layer()
    f = jo.HeavyBall(loss, 0.2, 0.5)
    state = f.run(f.initial(loss.initial(0)), steps=5)
    if start == "random":
        found = jo.lyapunov_spectrum(f, state, 2, 12, transient=3, first=5)
    else:  # which settles first
        state = f.run(state, steps=3, first=5)
        found = jo.lyapunov_spectrum(f, state, jo.leading_frame(f, state, 2, step=8), 12, first=8)
    assert printed["values"] == found.values.tolist()
    assert printed["loss"]["after"] < printed["loss"]["before"]


def test_growth_is_the_singular_values_of_the_dense_product(capsys, tmp_path):
    assert main([*SMALL["growth"], "--json", "--out", "run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    loss = two_layer("float64")
    f = jo.GradientDescent(loss, 0.1)
    state, product = f.run(loss.initial(0), steps=5), np.eye(loss.parameters.size)
    for _ in range(4):
        product = f.jacobian(state).dense().numpy() @ product
        state = f(state)
    np.testing.assert_allclose(printed["log_singular_values"], np.log(np.linalg.svd(product)[1][:2]), atol=1e-8)
    with np.load(tmp_path / "run" / "arrays.npz", allow_pickle=False) as arrays:
        orbit = jo.Orbit(f, f.run(loss.initial(0), steps=5), 4, first=5)
        start = jo.leading_frame(f, orbit[0], 2, step=5)
        np.testing.assert_array_equal(arrays["local_growth"], jo.local_growth(orbit, start))


def test_growth_from_random_directions_says_so(capsys):
    assert main([*SMALL["growth"], "--start", "random"]) == 0
    assert "a frame of random directions grows by" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "nesterov", "--momentum", "0.8"],
        ["--optimizer", "rmsprop", "--beta2", "0.9"],
        ["--optimizer", "adam", "--betas", "0.8", "0.9", "--eps", "1e-6"],
        ["--optimizer", "adamw", "--weight-decay", "0.1"],
        ["--batch-size", "30", "--clip", "1"],
    ],
)
def test_every_optimizer_runs_and_its_options_reach_it(options, capsys):
    for command in SMALL:
        assert main([*SMALL[command], *options, "--json", "--no-figure", "--out", command]) == 0
        record = json.loads(capsys.readouterr().out)
        written = json.dumps(json.loads((Path(command) / "run.json").read_text())["identity"])
        if "--optimizer" in options:
            assert record["settings"]["optimizer"] == options[1]
            assert all(value in written for value in options[3:] if value[0].isdigit() and "e" not in value)
        else:
            assert "MinibatchSGD" in written
    assert not (Path("growth") / "figure.png").exists()


@every_command
@pytest.mark.parametrize(
    "options, says",
    [
        (["--k", "0"], "--k must be at least 1"),
        (["--k", "100000"], "100000"),
        (["--lr", "-1"], "lr must be at least 0"),
        (["--momentum", "0.9"], "--momentum is of --optimizer heavy-ball and nesterov, not of gd"),
        (["--betas", "0.9", "2", "--optimizer", "adam"], "betas[1] must be less than 1"),
        (["--batch-size", "101"], "batch_size must be at most the 100 samples"),
        (["--hidden", "0"], "must be an integer of at least 1"),
        (["--network", "tanh", "--scale", "2"], "--scale is of --network two-layer"),
        (["--out", "/dev/null/x"], "cannot write the run folder"),
        (["--seed", "-1"], "--seed must be at least 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(command, options, says, capsys, tmp_path):
    assert main([*SMALL[command], *options]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("jvp-ops: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_tolerance_below_zero_is_refused(capsys):
    assert main([*SMALL["sharpness"], "--tol", "-1"]) == 2
    assert "tol must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("command, owner", [("sharpness", _track._Tracker), ("lyapunov", _measurement.Measurement)])
def test_ctrl_c_keeps_what_was_measured(command, owner, capsys, monkeypatch, tmp_path):
    name = "_measure" if command == "sharpness" else "_stretch"
    original, calls = getattr(owner, name), []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(owner, name, interrupted)
    settled = ["--transient", "0"] if command == "lyapunov" else []
    assert main([*SMALL[command], *settled, "--out", "run"]) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not record["complete"]


def test_ctrl_c_in_growth_keeps_the_growth_step_by_step(capsys, monkeypatch, tmp_path):
    from jvp_ops import dynamics

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(dynamics, "finite_time_exponents", interrupted)
    assert main([*SMALL["growth"], "--out", "run"]) == 130
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        assert list(arrays) == ["local_growth"]
    assert (tmp_path / "run" / "figure.png").exists()


def test_a_run_that_diverges_keeps_what_was_measured(capsys, tmp_path):
    options = ["--lr", "1e6", "--weight-decay", "1e3", "--steps", "40", "--every", "2", "--k", "1", "--out", "run"]
    assert main([*SMALL["sharpness"], *options]) == 2
    captured = capsys.readouterr()
    assert "NaN or Inf" in captured.err
    assert captured.err.count("\n") == 1
    assert "divergence" in captured.out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["values"]


def test_a_checkpoint_goes_on(capsys, tmp_path):
    options = ["--checkpoint", "work.npz", "--json"]
    assert main([*SMALL["sharpness"], *options, "--max-seconds", "1e-9"]) == 0
    assert json.loads(capsys.readouterr().out)["at"] == [0]
    assert main([*SMALL["sharpness"], *options, "--out", "b"]) == 2
    assert "resume" in capsys.readouterr().err
    assert main([*SMALL["sharpness"], *options, "--resume", "--out", "b"]) == 0
    assert json.loads(capsys.readouterr().out)["at"] == [0, 4, 8, 12]


def test_without_matplotlib_it_says_which_extra_brings_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*SMALL["sharpness"], "--out", "run"]) == 0
    assert "pip install 'jvp-ops[plot]'" in capsys.readouterr().out
    assert not (tmp_path / "run" / "figure.png").exists()


def test_help_lists_them_without_importing_torch():
    code = "import sys, jvp_ops.cli as c\ntry: c.main(['sharpness', '--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--every" in done.stdout
    assert done.stdout.endswith("False\n")


def test_growth_over_a_window_that_diverges_keeps_the_steps_that_were_well(capsys):
    options = ["growth", *NET, "--network", "tanh", "--steps", "0", "--window", "9", "--k", "2", "--lr", "1e12"]
    assert main([*options, "--optimizer", "heavy-ball", "--start", "random", "--out", "run"]) == 2
    printed = capsys.readouterr()
    assert "became NaN or Inf at step" in printed.err
    record = json.loads(Path("run/run.json").read_text())
    assert not record["complete"]
    assert len(record["local_mean"]) == 2
    assert Path("run/figure.png").exists()


def test_a_checkpoint_is_looked_at_before_the_training(capsys, monkeypatch):
    monkeypatch.setattr("jvp_ops.cli._training.load", lambda _: pytest.fail("the data were loaded"))
    assert main([*SMALL["lyapunov"], "--checkpoint", "/nowhere/run.npz"]) == 2
    assert "is not a writable folder" in capsys.readouterr().err
    assert main([*SMALL["lyapunov"], "--interval", "0"]) == 2
    assert main([*SMALL["lyapunov"], "--transient", "-1"]) == 2


def test_a_lyapunov_run_of_the_command_line_goes_on_from_its_checkpoint(capsys):
    command = [*SMALL["lyapunov"], "--checkpoint", "run.npz", "--json", "--interval", "2"]
    assert main([*SMALL["lyapunov"], "--json", "--interval", "2"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main([*command, "--max-seconds", "1e-9"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert 0 < part["steps"] < 12
    assert main(command) == 2
    assert "resume it, or remove it" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == whole["values"]


def test_adam_starts_at_random_unless_told_and_cannot_be_told(capsys):
    assert main([*SMALL["lyapunov"], "--optimizer", "adam"]) == 0
    assert "random directions" in capsys.readouterr().out
    assert main([*SMALL["lyapunov"], "--optimizer", "adam", "--start", "leading"]) == 2
    assert "not for this step of Adam: start at random" in capsys.readouterr().err


def test_growth_stops_short_of_a_last_step_without_a_derivative():
    command = [
        "growth",
        "--samples",
        "150",
        "--hidden",
        "8",
        "--steps",
        "0",
        "--k",
        "3",
        "--network",
        "tanh",
        "--quiet",
    ]
    assert main([*command, "--lr", "5", "--window", "60", "--out", "run"]) == 2
    record = json.loads(Path("run/run.json").read_text())
    assert len(record["values"]) == 3
    assert record["stop"] < 60
