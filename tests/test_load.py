"""Results that are saved and made again: every kind, equal in every field; and folders that are refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops._load import KINDS
from jvp_ops.testing import operator_of

DATA = jo.load_digits().subset(60)
LOSS = jo.TwoLayerLoss(DATA, hidden=3)
THETA = LOSS.initial(rng=0)
F = jo.GradientDescent(LOSS, 0.1)
MOMENTUM = jo.HeavyBall(LOSS, 0.1, 0.9)


def near_defective():
    return jo.eigenpairs(operator_of([[1.0, 1.0], [0.0, 1.0]]), 2, "LR", condition=True)


RESULTS = {
    "Eigenpairs": lambda: jo.eigenpairs(F.jacobian(THETA), 3, "LM", method="lanczos"),
    "Eigenpairs, complex": lambda: jo.eigenpairs(MOMENTUM.jacobian(MOMENTUM.initial(THETA)), 4, "LI"),
    "Eigenpairs, clusters": near_defective,
    "SingularTriplets": lambda: jo.svd(F.jacobian(THETA).block("W1", "W2"), 2),
    "LyapunovSpectrum": lambda: jo.lyapunov_spectrum(F, THETA, 2, 12),
    "FiniteTimeExponents": lambda: jo.finite_time_exponents(jo.Orbit(F, THETA, 5), 2),
    "CovariantVectors": lambda: jo.covariant_vectors(jo.Orbit(F, THETA, 12), 2),
    "Tracking": lambda: jo.track_eigenpairs(F, THETA, 4, every=2, k=2),
}


def same(first, second, where=""):
    """Hold two values to be equal, kinds and NaN included."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first.nan_to_num(), second.nan_to_num()), where
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype, where
        np.testing.assert_array_equal(first, second, err_msg=where)
    elif dataclasses.is_dataclass(first) and not isinstance(first, jo.Parameters):
        for entry in dataclasses.fields(first):
            same(getattr(first, entry.name), getattr(second, entry.name), f"{where}.{entry.name}")
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key, value in first.items():
            same(value, second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert first == second or first != first, where


@pytest.mark.parametrize("name", RESULTS)
def test_a_saved_result_comes_back_equal(name, tmp_path):
    result = RESULTS[name]()
    again = jo.load(result.save(tmp_path / "run"))
    same(result, again, name)
    assert repr(again) == repr(result)
    assert again._repr_html_() == result._repr_html_()
    same(jo.load(again.save(tmp_path / "again")), result, name)


def test_every_kind_of_result_is_known():
    kinds = {name.split(",")[0] for name in RESULTS}
    assert kinds == set(KINDS)
    for kind, module in KINDS.items():
        assert getattr(__import__(module, fromlist=[kind]), kind).__name__ == kind


@pytest.fixture
def saved(tmp_path):
    return jo.eigenpairs(np.diag([1.0, 2.0, 3.0]), 2, "LA").save(tmp_path / "run")


def rewritten(folder, **changes):
    file = folder / "run.json"
    record = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "is no run folder"),
        (lambda folder: (folder / "run.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "run.json").write_text("[]"), "has no fingerprint"),
        (lambda folder: (folder / "run.json").write_bytes(b"\xff\xfe"), "damaged"),
        (lambda folder: (folder / "arrays.npz").unlink(), r"arrays.npz cannot be read"),
        (lambda folder: (folder / "arrays.npz").write_bytes(b"PK"), "not the one that was written"),
        (lambda folder: rewritten(folder, format=None), r"is in format 1 \(jvp_ops .*does not hold all fields"),
        (lambda folder: rewritten(folder, format=3), "is in format 3 .*does not know.*reads format 2"),
        (lambda folder: rewritten(folder, format=None, command="dense", result=None), "holds no result"),
        (lambda folder: rewritten(folder, result=None), "holds no result"),
        (lambda folder: rewritten(folder, fields={}), "run.json is not as it was written"),
        (lambda folder: rewritten(folder, k=99), "run.json is not as it was written"),
        (lambda folder: rewritten(folder, format=7, versions=[1]), r"format 7 \(jvp_ops unknown\)"),
        (lambda folder: rewritten(folder, fields={"values": {"pickle": "x"}}), "damaged"),
        (lambda folder: rewritten(folder, fields={"other": {"array": "tensor"}}), "damaged"),
    ],
)
def test_what_is_damaged_of_another_format_or_no_result_is_refused(spoil, message, saved):
    spoil(saved)
    with pytest.raises(jo.DataError, match=message):
        jo.load(saved)


def test_a_place_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(jo.DataError, match="is no run folder"):
        jo.load(tmp_path / "nowhere")


def test_no_pickle_is_read(saved):
    np.savez(saved / "arrays.npz", values=np.array([print], dtype=object))
    with pytest.raises(jo.DataError):
        jo.load(saved)


def test_folders_of_the_command_line_hold_their_result(tmp_path):
    from jvp_ops.cli._main import main

    common = ["--hidden", "2", "--samples", "40", "--no-figure", "--quiet"]
    assert (
        main(["lyapunov", "--k", "2", "--window", "4", "--transient", "2", "--out", str(tmp_path / "l"), *common]) == 0
    )
    assert type(jo.load(tmp_path / "l")).__name__ == "LyapunovSpectrum"
