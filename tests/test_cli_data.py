import gzip
import hashlib
import json
import struct
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from jvp_ops.cli import main
from jvp_ops.data import SOURCES
from jvp_ops.data._find import cache_folder
from jvp_ops.data._registry import Source, SourceFile

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def contents(seed):
    images = np.random.default_rng(seed).integers(0, 256, (3, 28, 28), dtype=np.uint8).tobytes()
    return {
        IMAGES: struct.pack(">BBBB3I", 0, 0, 8, 3, 3, 28, 28) + images,
        LABELS: struct.pack(">BBBBI", 0, 0, 8, 1, 3) + bytes([7, 2, 1]),
    }


def place(folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(seed).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder and the address at which this machine serves it."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path, web):
    """Two small data sets in the place of the real ones, and no file of the user's in sight."""
    for variable in ("JVP_OPS_DATA", "JVP_OPS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for seed, name in enumerate(("mnist", "fashion-mnist")):
        files = tuple(
            SourceFile(file, len(content), hashlib.sha256(content).hexdigest())
            for file, content in contents(seed).items()
        )
        source = Source(name, name, (28, 28), 255, 10, {"train": files}, (f"{web[1]}{name}/",))
        monkeypatch.setitem(SOURCES, name, source)


def run(capsys, *words):
    status = main(["data", *words])
    return status, *capsys.readouterr()


def test_list_is_the_default_and_says_what_is_not_found(capsys):
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert run(capsys, "list") == (0, out, "")
    rows = out.splitlines()
    assert rows[0].split() == ["data", "set", "file", "bytes", "where"]
    assert rows[1].split()[:3] == ["digits", "digits-images-idx3-ubyte", "44,098"]
    assert rows[3].split() == ["mnist", IMAGES, "-", "not", "found"]
    assert len(rows) == 7


def test_list_as_json_names_the_path_and_size_of_each_file(capsys, monkeypatch, tmp_path):
    place(tmp_path / "mine" / "mnist", 0)
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "mine"))
    status, out, _ = run(capsys, "list", "--json")
    rows = {(row["dataset"], row["file"]): row for row in json.loads(out)}
    path = tmp_path / "mine" / "mnist" / f"{IMAGES}.gz"
    assert status == 0
    assert rows["mnist", IMAGES] == {
        "dataset": "mnist",
        "file": IMAGES,
        "path": str(path),
        "bytes": path.stat().st_size,
    }
    assert rows["fashion-mnist", IMAGES]["path"] is None
    assert rows["fashion-mnist", IMAGES]["bytes"] is None


def test_fetch_downloads_once_and_then_says_where_it_is(capsys, web):
    place(web[0] / "mnist", 0)
    cached = cache_folder(SOURCES["mnist"])
    status, out, _ = run(capsys, "fetch", "mnist")
    assert status == 0
    assert out == "".join(f"mnist: {name} fetched to {cached / name}.gz\n" for name in (IMAGES, LABELS))
    assert run(capsys, "fetch", "mnist")[1] == out.replace("fetched to", "already at")
    assert run(capsys, "verify", "mnist")[0] == 0


def test_fetch_all_takes_both_data_sets(capsys, web):
    place(web[0] / "mnist", 0)
    place(web[0] / "fashion-mnist", 1)
    status, out, _ = run(capsys, "fetch", "all")
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["mnist"] * 2 + ["fashion-mnist"] * 2


def test_fetch_replaces_a_damaged_file_in_the_cache(capsys, web):
    place(cache_folder(SOURCES["mnist"]), 5)
    place(web[0] / "mnist", 0)
    status, out, _ = run(capsys, "fetch", "mnist")
    assert (status, out.count("fetched to"), out.count("already at")) == (0, 1, 1)
    assert run(capsys, "verify", "mnist")[0] == 0


def test_fetch_leaves_a_damaged_file_of_the_users_alone(capsys, web, monkeypatch, tmp_path):
    place(web[0] / "mnist", 0)
    place(tmp_path / "mine", 5)
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "mine"))
    status, out, err = run(capsys, "fetch", "mnist")
    assert (status, out) == (2, "")
    assert f"{IMAGES}.gz is not {IMAGES} as published" in err


def test_fetch_that_fails_is_one_line_and_exit_2(capsys):
    status, out, err = run(capsys, "fetch", "mnist")
    assert (status, out) == (2, "")
    assert err.startswith("jvp-ops: error: mnist: ")
    assert err.count("\n") == 1
    assert "404" in err


@pytest.mark.parametrize("words", [["fetch"], ["fetch", "digits"], ["verify", "cifar"], ["list", "mnist"], ["remove"]])
def test_words_that_mean_nothing_are_refused(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    assert "jvp-ops: error: " in capsys.readouterr().err


def test_verify_of_all_does_not_mind_what_is_missing(capsys):
    status, out, _ = run(capsys, "verify")
    assert status == 0
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["ok"] * 2 + ["missing"] * 4


def test_verify_of_a_named_data_set_minds_what_is_missing(capsys):
    assert run(capsys, "verify", "mnist")[0] == 1
    assert run(capsys, "verify", "digits")[0] == 0


def test_verify_exits_1_and_says_what_is_damaged(capsys):
    place(cache_folder(SOURCES["mnist"]), 5)
    status, out, _ = run(capsys, "verify", "all")
    assert status == 1
    assert f"damaged: {cache_folder(SOURCES['mnist']) / IMAGES}.gz is not {IMAGES} as published" in out
    assert out.count("damaged: ") == 1


def test_verify_as_json_gives_the_status_and_the_problem(capsys):
    place(cache_folder(SOURCES["mnist"]), 5)
    status, out, _ = run(capsys, "verify", "mnist", "--json")
    images, labels = json.loads(out)
    assert status == 1
    assert (images["status"], labels["status"], labels["problem"]) == ("damaged", "ok", None)
    assert "as published" in images["problem"]


def test_a_users_folder_that_does_not_exist_is_one_line_and_exit_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "absent"))
    status, out, err = run(capsys, "list")
    assert (status, out) == (2, "")
    assert "which is not a folder" in err


def test_the_command_imports_no_torch():
    code = "import sys; from jvp_ops.cli import main; main(['data', 'list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
