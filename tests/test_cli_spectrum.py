"""`jvp-ops spectrum` as a person and a script meet it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jvp_ops.cli import main

SMALL = ["spectrum", "--samples", "300", "--hidden", "6", "--steps", "20", "--k", "3"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_it_prints_both_ends_the_sharpness_and_where_it_wrote(capsys, tmp_path):
    assert main(SMALL) == 0
    printed = capsys.readouterr().out
    assert "Df is 460 × 460" in printed
    assert printed.count("yes") == 6
    assert "below the threshold 2/α = 20: no eigenvalue of Df under −1 was found" in printed
    (folder,) = (tmp_path / "runs").iterdir()
    assert str(folder.relative_to(tmp_path)) in printed


def test_json_holds_what_the_run_folder_holds(capsys, tmp_path):
    assert main([*SMALL, "--json", "--out", "run", "--seed", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert printed["sharpness"] == written["sharpness"] == max(written["smallest"]["hessian_values"])
    assert written["settings"]["seed"] == 3
    assert written["fingerprint"]
    assert written["loss"]["after"] < written["loss"]["before"]
    with np.load(tmp_path / "run" / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["smallest_vectors"].shape == (460, 3)
        np.testing.assert_array_equal(arrays["largest_values"], printed["largest"]["values"])


def test_the_values_are_those_of_the_dense_matrix(capsys):
    import torch

    import jvp_ops as jo

    main([*SMALL, "--json", "--dtype", "float64", "--weight-decay", "0.01"])
    printed = json.loads(capsys.readouterr().out)
    data = jo.load_digits().subset(300, rng=0)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=6, classes=10, dtype="float64")
    f = jo.GradientDescent(loss, lr=0.1, weight_decay=0.01)
    mu = torch.linalg.eigvalsh(f.jacobian(f.run(loss.initial(rng=0), steps=20)).dense()).numpy()
    np.testing.assert_allclose(printed["smallest"]["values"], mu[:3], atol=1e-10)
    np.testing.assert_allclose(printed["largest"]["values"], mu[::-1][:3], atol=1e-10)


def test_an_unstable_step_is_told(capsys):
    assert main([*SMALL, "--lr", "20", "--steps", "0"]) == 0
    assert "above the threshold 2/α = 0.1: Df has an eigenvalue under −1" in capsys.readouterr().out


@pytest.mark.parametrize("lr", ["0", "1e-17", "1e-320"])
def test_at_lr_zero_the_sharpness_is_still_that_of_the_hessian(capsys, lr):
    assert main([*SMALL, "--steps", "0", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main([*SMALL, "--lr", lr, "--steps", "0", "--json", "--out", "run"]) == 0
    record = json.loads(capsys.readouterr().out)
    for end in ("smallest", "largest"):
        assert record[end]["hessian_values"] == pytest.approx(expected[end]["hessian_values"], rel=1e-6)
        assert record[end]["values"] == [1, 1, 1]
    assert main([*SMALL, "--lr", "0", "--steps", "0", "--out", "other"]) == 0
    assert "at lr 0 the step is the identity" in capsys.readouterr().out


def test_an_end_that_does_not_converge_is_shown_with_wide_intervals(capsys):
    assert main(["spectrum", "--k", "4", "--steps", "5", "--max-products", "30"]) == 0
    printed = capsys.readouterr().out
    assert "the budget of max_products=30 ran out" in printed
    assert "sharpness" in printed


def test_a_proof_of_completeness_is_shown(capsys):
    assert main([*SMALL, "--prove"]) == 0
    assert capsys.readouterr().out.count("none missed (proved)") == 2


@pytest.mark.parametrize("words", [["--hidden", "x"], ["--data", "foo"], ["--bogus"]])
def test_words_that_are_no_options_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, *words])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jvp-ops: error: ")
    assert captured.err.count("\n") == 1


def test_a_terminal_without_greek_letters_does_not_end_a_run():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "jvp_ops", *SMALL], capture_output=True, text=True, check=True, env=environment
    )
    assert "yes" in done.stdout


@pytest.mark.parametrize(
    "options, says",
    [
        (["--k", "0"], "--k must be at least 1"),
        (["--k", "460"], "--k 460 is out of range"),
        (["--hidden", "0"], "hidden must be an integer of at least 1"),
        (["--lr", "nan"], "lr must be a finite real number"),
        (["--lr", "-1"], "lr must be at least 0"),
        (["--steps", "-1"], "steps must be"),
        (["--samples", "1798"], "--samples must be 1 to 1797"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--device", "cuda:99"], "device"),
        (["--max-memory", "lots"], "not a memory size"),
        (["--max-memory", "1KiB"], "more than the 1 KiB it may use"),
        (["--tol", "-1"], "tol must be at least 0"),
        (["--out", "/dev/null/x"], "cannot write the run folder"),
        (["--out", "/proc/foo/x"], "cannot write the run folder"),
        (["--out", "x" * 300], "cannot write the run folder"),
        (["--out", ""], "not an empty folder"),
        (["--device", "meta"], "not supported: use 'cpu' or 'cuda'"),
        (["--hidden", "1000000000000"], "one vector of the parameters needs"),
        (["--max-products", "1"], "max_products=1 is too few: the first block alone takes 8"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(options, says, capsys, tmp_path):
    assert main([*SMALL, *options]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("jvp-ops: error: ")
    assert captured.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_diverging_run_says_at_which_step(capsys):
    assert main([*SMALL, "--lr", "1e10", "--weight-decay", "1e10"]) == 2
    assert "NaN or Inf at step 1:" in capsys.readouterr().err


def test_a_taken_run_folder_is_refused_before_any_work(capsys, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert main(["spectrum", "--steps", "1000000", "--out", "taken"]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_missing_mnist_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("JVP_OPS_DATA", raising=False)
    monkeypatch.setenv("JVP_OPS_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["spectrum", "--data", "mnist"]) == 2
    assert "JVP_OPS_DATA" in capsys.readouterr().err


def test_the_installed_command_runs_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "jvp_ops", "spectrum", "--k", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "jvp-ops: error: --k must be at least 1, not 0\n"


def test_help_lists_the_commands_without_importing_torch():
    code = "import sys, jvp_ops.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "spectrum" in done.stdout
    assert done.stdout.endswith("False\n")
