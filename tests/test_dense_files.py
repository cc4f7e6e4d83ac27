"""Dense matrices in files: whole or resumable, the same bytes however often interrupted, refused when not the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from systems import Held

import jvp_ops as jo
from jvp_ops.operators import _dense

BLOCK = 30_000  # bytes: many row blocks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", BLOCK)


def operator(lr=0.1, shift=0.0):
    data = jo.load_digits().subset(200)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=4, classes=10)
    return jo.GradientDescent(loss, lr=lr).jacobian(loss.initial(rng=0) + shift)


class StoppedError(Exception):
    pass


def interrupt(monkeypatch, path, after):
    """Stop an assembly once `after` blocks are finished."""
    count = 0
    original = _dense.MatrixFile.write

    def write(self, start, rows):
        nonlocal count
        if count == after:
            raise StoppedError
        count += 1
        original(self, start, rows)

    with monkeypatch.context() as patch:
        patch.setattr(_dense.MatrixFile, "write", write)
        with pytest.raises(StoppedError):
            operator().dense(out=path)


def test_a_file_holds_the_matrix_and_nothing_unfinished_is_left(tmp_path):
    A = operator()
    matrix = A.dense(out=tmp_path / "Df.npy")
    assert isinstance(matrix, np.memmap)
    assert not matrix.flags.writeable
    np.testing.assert_array_equal(matrix, A.dense().numpy())
    np.testing.assert_array_equal(np.load(tmp_path / "Df.npy"), matrix)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Df.npy", "Df.npy.manifest.json"]
    manifest = json.loads((tmp_path / "Df.npy.manifest.json").read_text())
    assert all(manifest["checksums"])
    assert len(manifest["checksums"]) > 5


def test_blocks_and_non_symmetric_matrices_go_to_files_too(tmp_path):
    A = operator()
    for number, part in enumerate((A.block("W2", "b1"), A.block("b2", "W1"), A.part(slice(0, 50, 3), [1, 7]))):
        np.testing.assert_array_equal(part.dense(out=tmp_path / f"{number}.npy"), part.dense().numpy())
    M = torch.arange(9.0).reshape(3, 3)
    J = jo.FunctionMap(lambda x: M @ x, size=3).jacobian(torch.zeros(3))
    np.testing.assert_array_equal(J.dense(out=tmp_path / "J.npy"), M.numpy())


def test_a_file_in_another_dtype_is_the_rounded_matrix(tmp_path):
    A = operator()
    single = A.dense().numpy()
    np.testing.assert_array_equal(A.dense(out=tmp_path / "d.npy", dtype="float64"), single.astype(np.float64))


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_file_is_resumed_to_the_same_bytes(tmp_path, monkeypatch, after):
    operator().dense(out=tmp_path / "whole.npy")
    path = tmp_path / "Df.npy"
    interrupt(monkeypatch, path, after)
    assert not path.exists()
    assert (tmp_path / "Df.npy.partial").exists()
    written = []
    original = _dense.MatrixFile.write
    monkeypatch.setattr(_dense.MatrixFile, "write", lambda *a: (written.append(a[1]), original(*a)))
    operator().dense(out=path, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert len(written) == len(_dense.row_blocks(operator().linear)) - after


def test_a_partial_file_is_not_touched_unless_resuming_is_asked_for(tmp_path, monkeypatch):
    interrupt(monkeypatch, tmp_path / "Df.npy", 2)
    before = (tmp_path / "Df.npy.partial").read_bytes()
    with pytest.raises(jo.InputError, match=r"resume it \(resume=True\), or remove it"):
        operator().dense(out=tmp_path / "Df.npy")
    assert (tmp_path / "Df.npy.partial").read_bytes() == before


@pytest.mark.parametrize("other", [{"lr": 0.2}, {"shift": 1e-3}])
def test_another_matrix_is_not_resumed(tmp_path, monkeypatch, other):
    interrupt(monkeypatch, tmp_path / "Df.npy", 2)
    with pytest.raises(jo.DataError, match="begun with another fingerprint"):
        operator(**other).dense(out=tmp_path / "Df.npy", resume=True)


def test_another_dtype_is_not_resumed(tmp_path, monkeypatch):
    interrupt(monkeypatch, tmp_path / "Df.npy", 2)
    with pytest.raises(jo.DataError, match="begun with another dtype"):
        operator().dense(out=tmp_path / "Df.npy", dtype="float64", resume=True)


def test_a_flipped_byte_in_a_finished_block_is_found_and_its_block_done_over(tmp_path, monkeypatch):
    operator().dense(out=tmp_path / "whole.npy")
    interrupt(monkeypatch, tmp_path / "Df.npy", 4)
    partial = tmp_path / "Df.npy.partial"
    content = bytearray(partial.read_bytes())
    content[128 + BLOCK + 77] ^= 1
    partial.write_bytes(content)
    with pytest.warns(jo.JvpOpsWarning, match="are damaged and are computed again"):
        operator().dense(out=tmp_path / "Df.npy", resume=True)
    assert (tmp_path / "Df.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "gone", "other json"])
def test_a_damaged_manifest_is_refused(tmp_path, monkeypatch, damage):
    interrupt(monkeypatch, tmp_path / "Df.npy", 2)
    manifest = tmp_path / "Df.npy.manifest.json"
    text = manifest.read_text()
    if damage == "gone":
        manifest.unlink()
    else:
        manifest.write_text(text[: len(text) // 2] if damage == "cut" else '{"head": {}, "checksums": []}')
    with pytest.raises(jo.DataError, match="missing or damaged"):
        operator().dense(out=tmp_path / "Df.npy", resume=True)


def test_a_truncated_partial_file_is_refused_or_done_over(tmp_path, monkeypatch):
    operator().dense(out=tmp_path / "whole.npy")
    interrupt(monkeypatch, tmp_path / "Df.npy", 4)
    partial = tmp_path / "Df.npy.partial"
    partial.write_bytes(partial.read_bytes()[:5000])
    with pytest.raises(jo.DataError, match="is not of the size"):
        operator().dense(out=tmp_path / "Df.npy", resume=True)


def test_resuming_where_nothing_was_begun_begins(tmp_path):
    operator().dense(out=tmp_path / "Df.npy", resume=True)
    assert (tmp_path / "Df.npy").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "no parent"])
def test_a_place_that_is_taken_or_missing_is_refused_before_any_work(tmp_path, kind):
    path = tmp_path / "Df.npy"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "missing" / "Df.npy"
    A = operator()
    with pytest.raises(jo.InputError, match=r"exists already|is a folder|there is no folder"):
        A.dense(out=path)
    assert A.products == 0
    assert not path.is_file() or path.read_text() == "mine"


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 1000))
    with pytest.raises(jo.MemoryBudgetError, match=r"takes 375 KiB on disk, but .* has 1000 B free"):
        operator().dense(out=tmp_path / "Df.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["longer", "shorter", "header"])
def test_a_partial_file_of_another_size_or_header_is_refused(tmp_path, monkeypatch, damage):
    interrupt(monkeypatch, tmp_path / "Df.npy", 2)
    partial = tmp_path / "Df.npy.partial"
    content = partial.read_bytes()
    content = {"longer": content + bytes(8), "shorter": content[:-8], "header": content.replace(b"False", b"True ", 1)}
    partial.write_bytes(content[damage])
    with pytest.raises(jo.DataError, match=r"is not of the size .* with its header"):
        operator().dense(out=tmp_path / "Df.npy", resume=True)
    assert not (tmp_path / "Df.npy").exists()


def test_another_number_of_threads_is_not_resumed(tmp_path, monkeypatch):
    interrupt(monkeypatch, tmp_path / "Df.npy", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(jo.DataError, match="begun with another circumstances"):
        operator().dense(out=tmp_path / "Df.npy", resume=True)


@pytest.mark.parametrize("hidden", [True, False])
def test_a_function_that_closes_over_another_number_is_not_resumed(tmp_path, monkeypatch, hidden):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", 32)

    def scaled(c):
        held = Held(c)
        return jo.FunctionMap((lambda x: x * held.value) if hidden else (lambda x: x * c), size=8).jacobian(
            torch.zeros(8)
        )

    with monkeypatch.context() as patch:
        patch.setattr(_dense.MatrixFile, "write", lambda *a: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            scaled(1.0).dense(out=tmp_path / "J.npy")
    with pytest.raises(jo.DataError, match="a product with it has changed" if hidden else "another fingerprint"):
        scaled(2.0).dense(out=tmp_path / "J.npy", resume=True)


def test_two_writers_of_one_file_are_kept_apart(tmp_path, monkeypatch):
    path = tmp_path / "Df.npy"
    original = _dense.MatrixFile.write

    def write(self, start, rows):
        with pytest.raises(jo.InputError, match="another process is writing"):
            original_dense(out=path, resume=True)
        original(self, start, rows)

    other = operator()
    original_dense = other.dense
    monkeypatch.setattr(_dense.MatrixFile, "write", write)
    np.testing.assert_array_equal(operator().dense(out=path), operator().dense().numpy())


def test_a_file_that_is_replaced_while_it_is_written_does_not_get_the_name(tmp_path, monkeypatch):
    path, partial = tmp_path / "Df.npy", tmp_path / "Df.npy.partial"
    original = _dense.MatrixFile.write

    def write(self, start, rows):
        original(self, start, rows)
        partial.rename(tmp_path / "moved")
        partial.write_bytes((tmp_path / "moved").read_bytes())

    monkeypatch.setattr(_dense.MatrixFile, "write", write)
    with pytest.raises(jo.DataError, match="removed or replaced"):
        operator().dense(out=path)
    assert not path.exists()


def test_a_disk_that_fails_on_the_way_is_told_and_the_file_is_kept(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            _dense.MatrixFile,
            "_create",
            lambda self, make=_dense.MatrixFile._create: (
                make(self),
                patch.setattr(_dense.MatrixFile, "_write_manifest", fail),
            ),
        )
        with pytest.raises(jo.DataError, match="No space left on device; it is kept: make room and resume"):
            operator().dense(out=tmp_path / "Df.npy")
    np.testing.assert_array_equal(operator().dense(out=tmp_path / "Df.npy", resume=True), operator().dense().numpy())


def test_numbers_too_large_for_the_file_are_refused(tmp_path):
    loss = jo.FunctionLoss(lambda x: 1e39 * (x**2).sum(), size=3, dtype="float64")
    H = loss.hessian(loss.initial())
    with pytest.raises(jo.NonFiniteError, match="the block of rows"):
        H.dense(out=tmp_path / "H.npy", dtype="float32")
    assert not (tmp_path / "H.npy").exists()


def test_resume_without_a_file_is_refused():
    with pytest.raises(jo.InputError, match="no out= names one"):
        operator().dense(resume=True)


KILLED = """
import sys, time
import jvp_ops as jo
from jvp_ops.operators import _dense
from test_dense_files import operator
_dense.BLOCK_BYTES = {block}
original = _dense.MatrixFile.write
def slow(self, start, rows):
    original(self, start, rows)
    print(start, flush=True)
    time.sleep(0.2)
_dense.MatrixFile.write = slow
operator().dense(out={path!r}, resume=True)
"""


def test_a_killed_process_leaves_a_file_that_is_resumed_to_the_same_bytes(tmp_path):
    operator().dense(out=tmp_path / "whole.npy")
    path = tmp_path / "Df.npy"
    code = KILLED.format(block=BLOCK, path=str(path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    for more in (1, 2):  # killed at several points, resuming in between
        with subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(more):
                assert process.stdout.readline().strip().isdigit()
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not path.exists()
    operator().dense(out=path, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
