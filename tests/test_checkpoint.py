"""The checkpoint file: whole or not there, of this run or refused."""

import os

import numpy as np
import pytest

import jvp_ops as jo
from jvp_ops.store import load_checkpoint, prepare_checkpoint, save_checkpoint

IDENTITY = {"map": "GradientDescent", "lr": 0.1}
ARRAYS = {
    "file": np.array([0.1, np.nan, -np.inf]),
    "self": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "none": np.zeros((0, 2)),
    "count": np.array(7),
}
RECORD = {"step": 12, "state": np.random.default_rng(3).bit_generator.state, "third": 1 / 3}


@pytest.fixture
def path(tmp_path):
    return save_checkpoint(tmp_path / "run.npz", ARRAYS, RECORD, IDENTITY)


def test_arrays_and_record_come_back_bit_for_bit(path):
    arrays, record = load_checkpoint(path, IDENTITY)
    assert record == RECORD
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_else(path):
    save_checkpoint(path, {"x": np.ones(2)}, {"step": 13}, IDENTITY)
    assert load_checkpoint(path, IDENTITY)[1] == {"step": 13}
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


def test_an_interrupted_write_keeps_the_old_one(path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"x": np.ones(2)}, {"step": 13}, IDENTITY)
    assert load_checkpoint(path, IDENTITY)[1] == RECORD
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


def test_a_checkpoint_of_another_run_is_refused(path):
    with pytest.raises(jo.DataError, match="of another run"):
        load_checkpoint(path, {**IDENTITY, "lr": 0.2})


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_file_is_refused(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(jo.DataError, match="damaged"):
        load_checkpoint(path, IDENTITY)


def test_a_changed_byte_is_seen(path):
    content = path.read_bytes()
    number = np.float64(1 / 3)
    for place in (content.index(np.float64(0.1).tobytes()) + 3, content.index(str(number).encode()) + 4):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(jo.DataError, match="damaged"):
            load_checkpoint(path, IDENTITY)


def test_an_archive_that_hides_a_wrong_array_is_seen(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["array.count"] = np.array(8)
    with path.open("wb") as handle:
        np.savez(handle, **arrays)
    with pytest.raises(jo.DataError, match="the checksum differs"):
        load_checkpoint(path, IDENTITY)


def test_no_file_and_a_foreign_file_are_data_errors(tmp_path):
    with pytest.raises(jo.DataError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.npz", IDENTITY)
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(jo.DataError, match="damaged"):
        load_checkpoint(tmp_path / "x.npy", IDENTITY)
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], dtype=object))
    with pytest.raises(jo.DataError, match="damaged"):
        load_checkpoint(tmp_path / "pickled.npz", IDENTITY)


def test_a_place_that_cannot_be_written_is_an_input_error(path, tmp_path):
    for place in (tmp_path / "no" / "run.npz", tmp_path):
        with pytest.raises(jo.InputError, match=r"cannot write|folder"):
            save_checkpoint(place, ARRAYS, RECORD, IDENTITY)
        with pytest.raises(jo.InputError, match="folder"):
            prepare_checkpoint(place, resume=True)
    with pytest.raises(jo.InputError, match="resume it, or remove it"):
        prepare_checkpoint(path, resume=False)
    with pytest.raises(jo.InputError, match="no checkpoint was named"):
        prepare_checkpoint(None, resume=True)
    assert prepare_checkpoint(path, resume=True)
    assert not prepare_checkpoint(tmp_path / "new.npz", resume=True)


def test_python_objects_are_not_kept(tmp_path):
    with pytest.raises(jo.InputError, match="Python objects"):
        save_checkpoint(tmp_path / "run.npz", {"x": np.array([{}])}, {}, IDENTITY)
    assert not list(tmp_path.iterdir())
