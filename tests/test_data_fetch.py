import builtins
import dataclasses
import gzip
import hashlib
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jvp_ops.data import SOURCES, load_fashion_mnist, load_mnist
from jvp_ops.data._find import cache_folder
from jvp_ops.data._registry import Source, SourceFile
from jvp_ops.errors import DataError, InputError, MissingExtraError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents(seed=0, images=None, labels=None):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8) if images is None else images
    labels = np.array([3, 1, 4, 1, 5], np.uint8) if labels is None else labels
    return {IMAGES: idx(images), LABELS: idx(labels)}


def make_source(files, *, mirrors=("http://127.0.0.1:9/",), over="content", name="mnist", title="MNIST"):
    def known(file):
        summed = files[file] if over == "content" else packed(files[file])
        return SourceFile(file, len(files[file]), hashlib.sha256(summed).hexdigest(), over)

    return Source(name, title, (28, 28), 255, 10, {"train": (known(IMAGES), known(LABELS))}, tuple(mirrors))


def packed(content):
    return gzip.compress(content, mtime=0)


def place(folder, files, *, pack=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.gz" if pack else folder / name).write_bytes(packed(content) if pack else content)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No test sees the user's own files, cache or proxy."""
    for variable in ("JVP_OPS_DATA", "JVP_OPS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def use(monkeypatch):
    """Put a small source in the place of the real one."""

    def put(source):
        monkeypatch.setitem(SOURCES, source.name, source)
        return source

    return put


class Mirror:
    """A web server on this machine: `files` maps paths to bytes, `promise` adds to the length stated."""

    def __init__(self):
        self.files, self.asked, self.promise = {}, [], 0
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.asked.append(self.path)
                body = mirror.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"") + mirror.promise))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def holds(self, files, folder=""):
        self.files.update({f"/{folder}{name}.gz": packed(content) for name, content in files.items()})

    def url(self, folder=""):
        return f"http://127.0.0.1:{self.server.server_port}/{folder}"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def mirror():
    server = Mirror()
    yield server
    server.close()


@pytest.fixture
def dead_url():
    """An address where nobody listens any more."""
    server = Mirror()
    server.close()
    return server.url()


def in_cache(source):
    folder = cache_folder(source)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- found on this machine -------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_files_in_the_users_folder_are_found_packed_or_plain(use, monkeypatch, tmp_path, folder, pack):
    use(make_source(contents()))
    place(tmp_path / "mine" / folder, contents(), pack=pack)
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "mine"))
    data = load_mnist()
    assert data.name == "mnist-train"
    assert data.labels.tolist() == [3, 1, 4, 1, 5]
    assert idx(data.images) == contents()[IMAGES]


def test_any_gzip_wrapping_will_do_where_the_sum_is_over_the_content(use, monkeypatch, tmp_path):
    use(make_source(contents()))
    for name, content in contents().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=1234))
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    assert len(load_mnist()) == 5


def test_the_users_folder_comes_before_the_cache(use, monkeypatch, tmp_path):
    source = use(make_source(contents()))
    place(cache_folder(source), contents(seed=1))
    place(tmp_path / "mine", contents())
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "mine"))
    assert len(load_mnist()) == 5


def test_the_cache_is_looked_at_where_the_users_folder_lacks_the_files(use, monkeypatch, tmp_path):
    source = use(make_source(contents()))
    place(cache_folder(source), contents())
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    assert len(load_mnist()) == 5


def test_a_users_folder_that_does_not_exist_is_an_error(use, monkeypatch, tmp_path):
    source = use(make_source(contents()))
    place(cache_folder(source), contents())
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"JVP_OPS_DATA is '.*absent', which is not a folder"):
        load_mnist()


def test_a_file_with_one_changed_byte_is_refused_wherever_it_lies(use, monkeypatch, tmp_path):
    use(make_source(contents()))
    place(tmp_path, contents(seed=1))
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz is not {IMAGES} as published: found sha256 .*, expected"):
        load_mnist()


def test_a_damaged_file_in_the_cache_is_refused_with_the_command_that_replaces_it(use):
    source = use(make_source(contents()))
    place(cache_folder(source), {name: content[:-1] for name, content in contents().items()})
    with pytest.raises(DataError, match=r"truncated: found 3935 .* expected 3936.*'jvp-ops data fetch mnist'"):
        load_mnist()


def test_a_folder_that_holds_mnist_does_not_pass_for_fashion_mnist(use, monkeypatch, tmp_path):
    use(make_source(contents()))
    use(make_source(contents(seed=1), name="fashion-mnist", title="Fashion-MNIST", over="gzip"))
    place(tmp_path, contents())
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    monkeypatch.setenv("JVP_OPS_OFFLINE", "1")
    assert len(load_mnist()) == 5
    with pytest.raises(DataError, match=r"Fashion-MNIST: .* was not found"):
        load_fashion_mnist()


def test_fashion_mnist_takes_the_published_gz_and_no_other(use, monkeypatch, tmp_path):
    use(make_source(contents(), name="fashion-mnist", title="Fashion-MNIST", over="gzip"))
    place(tmp_path, contents())
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    assert load_fashion_mnist().name == "fashion-mnist-train"
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(contents()[IMAGES], compresslevel=1, mtime=1234))
    with pytest.raises(DataError, match=r"expected [0-9a-f]{64} over the published \.gz file"):
        load_fashion_mnist()


def test_a_plain_fashion_mnist_file_is_passed_over_with_the_reason(use, monkeypatch, tmp_path):
    use(make_source(contents(), name="fashion-mnist", title="Fashion-MNIST", over="gzip"))
    place(tmp_path, contents(), pack=False)
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    monkeypatch.setenv("JVP_OPS_OFFLINE", "1")
    with pytest.raises(DataError, match=rf"only {IMAGES} without \.gz, which cannot be checked"):
        load_fashion_mnist()


@pytest.mark.parametrize("split", ["validation", "", None, 0, ["train"]])
def test_an_unknown_split_is_refused(split):
    for load in (load_mnist, load_fashion_mnist):
        with pytest.raises(InputError, match=r"split must be 'train' or 'test', not"):
            load(split)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"images": np.zeros((5, 28, 27), np.uint8)},
            r"shape \(5, 28, 27\), expected uint8 of shape \(samples, 28, 28\)",
        ),
        ({"images": np.zeros((5, 784), np.uint8)}, r"shape \(5, 784\), expected"),
        (
            {"labels": np.zeros(4, np.uint8)},
            r"shape \(4,\), expected uint8 of shape \(5,\), one label for each image",
        ),
        ({"labels": np.array([0, 1, 2, 10, 3], np.uint8)}, r"holds the label 10, expected 0\.\.9"),
    ],
)
def test_verified_files_of_the_wrong_shape_are_refused_all_the_same(use, monkeypatch, tmp_path, changes, words):
    use(make_source(contents(**changes)))
    place(tmp_path, contents(**changes))
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=words):
        load_mnist()


# --- the cache folder ------------------------------------------------------------------------------------


def test_the_cache_follows_xdg_cache_home(tmp_path):
    assert cache_folder(SOURCES["mnist"]) == tmp_path / "cache" / "jvp_ops" / "mnist"


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_a_cache_variable_that_is_empty_or_relative_is_ignored(monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder(SOURCES["fashion-mnist"]) == tmp_path / ".cache" / "jvp_ops" / "fashion-mnist"


@pytest.mark.parametrize(("platform", "base"), [("darwin", "Library/Caches"), ("win32", "Local")])
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, base):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder(SOURCES["mnist"]) == tmp_path / base / "jvp_ops" / "mnist"


# --- fetched ---------------------------------------------------------------------------------------------


def test_a_download_lands_in_the_cache_and_is_not_asked_for_again(use, mirror):
    source = use(make_source(contents(), mirrors=[mirror.url("a/")]))
    mirror.holds(contents(), "a/")
    first = load_mnist()
    assert mirror.asked == [f"/a/{IMAGES}.gz", f"/a/{LABELS}.gz"]
    assert in_cache(source) == [f"{IMAGES}.gz", f"{LABELS}.gz"]
    assert load_mnist().sha256 == first.sha256
    assert len(mirror.asked) == 2


def test_a_download_prints_nothing(use, mirror, capfd):
    use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.holds(contents())
    load_mnist()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("offline", ["", "0"])
def test_an_offline_variable_of_nothing_or_zero_counts_as_not_set(use, mirror, monkeypatch, offline):
    use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.holds(contents())
    monkeypatch.setenv("JVP_OPS_OFFLINE", offline)
    assert len(load_mnist()) == 5


def test_offline_asks_no_mirror_and_lists_every_place(use, mirror, monkeypatch, tmp_path):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.holds(contents())
    monkeypatch.setenv("JVP_OPS_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        load_mnist()
    assert mirror.asked == []
    for words in (
        "JVP_OPS_DATA (not set)",
        str(cache_folder(source)),
        "JVP_OPS_OFFLINE is set",
        "set JVP_OPS_DATA to",
    ):
        assert words in str(caught.value)
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_mnist()
    assert f"{tmp_path / 'mnist'}, {tmp_path}, {cache_folder(source)}" in str(caught.value)


def all_fail(source):
    with pytest.raises(DataError) as caught:
        load_mnist()
    assert in_cache(source) == []
    assert "no mirror gave it" in str(caught.value)
    assert "set JVP_OPS_DATA to it" in str(caught.value)
    return str(caught.value)


def test_a_connection_that_breaks_off_leaves_nothing(use, mirror):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.holds(contents())
    mirror.promise = 100
    assert "IncompleteRead" in all_fail(source)


def test_a_truncated_file_leaves_nothing(use, mirror):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.files[f"/{IMAGES}.gz"] = packed(contents()[IMAGES])[:-9]
    assert "what it sent is a damaged gzip file" in all_fail(source)


def test_a_wrong_file_leaves_nothing(use, mirror):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.holds(contents(seed=1))
    assert f"what it sent is not {IMAGES} as published" in all_fail(source)


def test_a_page_in_the_place_of_a_file_leaves_nothing(use, mirror):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.files[f"/{IMAGES}.gz"] = b"<html>please log in</html>"
    assert "what it sent is truncated: found 26 decompressed bytes, expected 3936" in all_fail(source)


def test_no_network_names_each_mirror_with_its_reason(use, mirror, dead_url):
    source = use(make_source(contents(), mirrors=[dead_url, mirror.url("gone/")]))
    words = all_fail(source)
    assert f"{dead_url}{IMAGES}.gz: " in words
    assert "refused" in words
    assert f"{mirror.url('gone/')}{IMAGES}.gz: 404" in words


def test_the_second_mirror_serves_after_the_first_failed(use, mirror, dead_url):
    bad = contents(seed=1)
    source = use(make_source(contents(), mirrors=[dead_url, mirror.url("bad/"), mirror.url("good/")]))
    mirror.holds(bad, "bad/")
    mirror.holds(contents(), "good/")
    assert len(load_mnist()) == 5
    assert in_cache(source) == [f"{IMAGES}.gz", f"{LABELS}.gz"]
    assert mirror.asked[:2] == [f"/bad/{IMAGES}.gz", f"/good/{IMAGES}.gz"]


def test_an_interrupted_download_leaves_nothing(use, mirror, monkeypatch):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    mirror.holds(contents())

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("jvp_ops.data._fetch.verified_content", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_mnist()
    assert in_cache(source) == []


def test_a_cache_that_cannot_be_written_names_the_variable_that_moves_it(use, mirror, monkeypatch, tmp_path):
    source = use(make_source(contents(), mirrors=[mirror.url()]))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"^the cache folder .* cannot be written \(Not a directory\): set XDG_CACHE"):
        load_mnist()
    assert not Path(cache_folder(source)).exists()


def test_a_missing_pooch_is_named_with_the_extra_that_brings_it(use, mirror, monkeypatch):
    use(make_source(contents(), mirrors=[mirror.url()]))
    real = builtins.__import__

    def without_pooch(name, *arguments, **options):
        if name == "pooch":
            raise ImportError("no pooch here")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pooch)
    with pytest.raises(MissingExtraError, match=r"pip install 'jvp-ops\[data\]', or place .* set JVP_OPS_DATA"):
        load_mnist()
    assert mirror.asked == []


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_every_real_source_has_two_mirrors_and_whole_sums(name):
    source = SOURCES[name]
    assert len(source.mirrors) == 2
    assert all(mirror.endswith("/") for mirror in source.mirrors)
    assert [len(file.sha256) for file in source.files] == [64] * 4
    assert [file.size for file in source.files] == [47_040_016, 60_008, 7_840_016, 10_008]
    assert len({dataclasses.astuple(file) for file in source.files}) == 4
