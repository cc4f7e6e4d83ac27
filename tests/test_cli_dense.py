"""`jvp-ops dense` as a person and a script meet it."""

import json

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops.cli import main
from jvp_ops.operators import _dense

SMALL = ["dense", "--samples", "200", "--hidden", "3", "--steps", "5"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def expected(names=None):
    data = jo.load_digits().subset(200, rng=0)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=3, classes=10)
    f = jo.GradientDescent(loss, lr=0.1)
    Df = f.jacobian(f.run(loss.initial(rng=0), steps=5))
    return (Df if names is None else Df.block(*names)).dense().numpy()


def test_the_whole_matrix_is_written_and_checked(capsys):
    assert main(SMALL) == 0
    printed = capsys.readouterr().out
    assert "Df-digits.npy: 235 × 235, float32" in printed
    assert "against 4 random products: relative error" in printed
    np.testing.assert_array_equal(np.load("Df-digits.npy"), expected())


def test_a_block_is_written_and_json_tells_the_figure_of_the_check(capsys):
    assert main([*SMALL, "--block", "W1,b2", "--json", "--store", "float64"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["file"] == "Df-digits-W1-b2.npy"
    assert record["shape"] == [192, 10]
    assert record["dtype"] == "float64"
    assert 0 < record["product_error"] < 1e-5
    np.testing.assert_array_equal(np.load(record["file"]), expected(("W1", "b2")).astype(np.float64))


def test_a_wrong_file_is_told_by_the_exit_status(capsys, monkeypatch):
    original = _dense.MatrixFile.write

    def write(self, start, rows):
        rows = rows.copy()
        rows[-1] = np.roll(rows[-1], 1)
        original(self, start, rows)

    monkeypatch.setattr(_dense.MatrixFile, "write", write)
    assert main(SMALL) == 1
    assert "is wrong: a relative error of" in capsys.readouterr().err


def test_control_c_keeps_the_partial_file_and_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", 20_000)
    original, count = _dense.MatrixFile.write, 0

    def write(self, start, rows):
        nonlocal count
        if count == 3:
            raise KeyboardInterrupt
        count += 1
        original(self, start, rows)

    with monkeypatch.context() as patch:
        patch.setattr(_dense.MatrixFile, "write", write)
        assert main(SMALL) == 130
    assert "Df-digits.npy.partial is kept: the same command with --resume goes on" in capsys.readouterr().err
    assert main(SMALL) == 2
    assert "resume" in capsys.readouterr().err
    assert main([*SMALL, "--resume"]) == 0
    np.testing.assert_array_equal(np.load("Df-digits.npy"), expected())


@pytest.mark.parametrize(
    "options, says",
    [
        (["--block", "W1"], "--block must name a row and a column parameter"),
        (["--block", "W1,W9"], "the names are W1, b1, W2, b2"),
        (["--out", "missing/Df.npy"], "there is no folder missing"),
        (["--out", "."], "is a folder"),
        (["--max-memory", "1KiB"], "it may use"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(options, says, capsys, tmp_path):
    assert main([*SMALL, *options]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_check_of_the_command_would_see_a_wrong_matrix():
    data = jo.load_digits().subset(200, rng=0)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=3, classes=10)
    Df = jo.GradientDescent(loss, lr=0.1).jacobian(loss.initial(rng=0))
    wrong = Df.dense()
    wrong[7] = torch.roll(wrong[7], 1)
    assert jo.product_error(Df, wrong) > 1e-2
