"""What a result shows, and the run folders it is kept in."""

import json

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops.store import fingerprint, save_run


@pytest.fixture(scope="module")
def pairs():
    data = jo.load_digits().subset(200)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=4)
    return jo.eigenpairs(jo.GradientDescent(loss, lr=0.1).jacobian(loss.initial(rng=0)), 3, "SA")


def test_a_result_prints_as_a_table(pairs):
    lines = repr(pairs).splitlines()
    assert lines[0].startswith("3 of 3 eigenpairs (SA), ")
    assert lines[1].split("  ")[-1] == "converged"
    assert len(lines) == 5
    assert len({len(line) for line in lines[1:]}) == 1
    assert f"{pairs.values[0]:.10g}" in lines[2]


def test_a_vector_comes_apart_by_parameter_names(pairs):
    parts = pairs.tensors(1)
    assert list(parts) == ["W1", "b1", "W2", "b2"]
    assert parts["W1"].shape == (64, 4)
    assert parts["W1"][2, 3] == pairs.vectors[2 * 4 + 3, 1]


def test_a_result_renders_as_html(pairs):
    html = pairs._repr_html_()
    assert html.count("<tr>") == 4
    assert "hessian eigenvalue" in html


def test_a_saved_result_says_what_it_came_from(pairs, tmp_path):
    folder = pairs.save(tmp_path / "a" / "run")
    record = json.loads((folder / "run.json").read_text())
    assert record["values"] == pairs.values.tolist()
    assert record["identity"]["map"] == "GradientDescent"
    assert record["fingerprint"] == fingerprint(record["identity"])
    assert {"jvp_ops", "torch", "numpy", "scipy", "python"} <= set(record["versions"])
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["vectors"], pairs.vectors.numpy())
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["run"]


def test_nothing_is_written_over(pairs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(jo.InputError, match="not an empty folder"):
        pairs.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(jo.InputError, match="not an empty folder"):
        pairs.save(tmp_path / "notes.txt")


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(jo.InputError, match="cannot write the run folder"):
        pairs.save(tmp_path / "file" / "run")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_run(tmp_path / "run", record={"bad": object()}, arrays={"a": np.zeros(2)}, identity={})
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_tell_apart_what_differs():
    data = jo.load_digits().subset(50)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=3)
    theta = loss.initial(rng=0)

    def of(loss, theta, lr=0.1, decay=0.0):
        return fingerprint(jo.GradientDescent(loss, lr=lr, weight_decay=decay).jacobian(theta).identity())

    other_data = jo.TwoLayerLoss(data.inputs[::-1].copy(), data.labels, hidden=3, classes=10)
    reference = of(loss, theta)
    assert reference == of(jo.TwoLayerLoss(data.inputs, data.labels, hidden=3), theta.clone())
    wide = of(loss.to(dtype="float64"), theta.double())
    others = [of(loss, theta + 1e-3), of(loss, theta, lr=0.2), of(loss, theta, decay=0.1), of(other_data, theta), wide]
    assert len({reference, *others}) == 6


def test_a_complex_result_is_saved_as_pairs_of_numbers(tmp_path):
    f = jo.FunctionMap(lambda x: x.roll(1), size=8, dtype="float64")
    pairs = jo.eigenpairs(f.jacobian(torch.zeros(8, dtype=torch.float64)), 2, "LI")
    record = json.loads((pairs.save(tmp_path / "run") / "run.json").read_text())
    assert record["values"] == [[z.real, z.imag] for z in pairs.values]
    assert record["bounds"] == [None] * len(pairs)
