import gzip
import importlib.util
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import jvp_ops.data._find as find
from jvp_ops.data import SOURCES, load_digits
from jvp_ops.errors import DataError

FILES = Path(find.__file__).parent / "files"
NAMES = [f"{file.name}.gz" for file in SOURCES["digits"].files]
needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None,
    reason="scikit-learn, whose copy is compared, is not installed",
)


def test_digits_are_1797_images_of_8x8_pixels_from_0_to_16():
    data = load_digits()
    assert len(data) == 1797
    assert data.image_shape == (8, 8)
    assert (data.images.min(), data.images.max(), data.maximum, data.classes) == (0, 16, 16, 10)
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.inputs.max() == 1


def test_digits_need_no_environment_and_ignore_a_broken_one(monkeypatch, tmp_path):
    monkeypatch.setenv("JVP_OPS_DATA", str(tmp_path / "absent"))
    monkeypatch.setenv("JVP_OPS_OFFLINE", "1")
    assert len(load_digits()) == 1797


def test_a_digits_file_with_one_changed_pixel_is_refused(monkeypatch, tmp_path):
    for name in NAMES:
        shutil.copy(FILES / name, tmp_path / name)
    content = bytearray(gzip.decompress((tmp_path / NAMES[0]).read_bytes()))
    content[100] ^= 1
    (tmp_path / NAMES[0]).write_bytes(gzip.compress(bytes(content)))
    monkeypatch.setattr(find, "_PACKAGED", tmp_path)
    with pytest.raises(DataError, match=r"is not digits-images-idx3-ubyte as published: found sha256"):
        load_digits()


def test_a_package_without_its_digits_says_to_install_it_again(monkeypatch, tmp_path):
    monkeypatch.setattr(find, "_PACKAGED", tmp_path)
    with pytest.raises(DataError, match=r"was not found in .*install jvp-ops again"):
        load_digits()


def test_the_attribution_lies_beside_the_digits():
    words = (FILES / "DIGITS_LICENSE").read_text()
    assert "Alpaydin" in words
    assert "Creative Commons Attribution 4.0" in words
    assert "Changes:" in words


def test_loading_the_digits_imports_neither_torch_nor_pooch():
    code = "import sys, jvp_ops; jvp_ops.load_digits(); print({'torch', 'pooch', 'requests'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@needs_sklearn
def test_digits_are_those_of_scikit_learn_in_the_same_order():
    from sklearn.datasets import load_digits as reference

    expected = reference()
    np.testing.assert_array_equal(load_digits().images, expected.images)
    np.testing.assert_array_equal(load_digits().labels, expected.target)


@needs_sklearn
def test_the_script_makes_the_same_bytes_again(tmp_path):
    subprocess.run([sys.executable, str(FILES / "make_digits.py"), str(tmp_path)], check=True)
    for name in NAMES:
        made, kept = (tmp_path / name).read_bytes(), (FILES / name).read_bytes()
        assert gzip.decompress(made) == gzip.decompress(kept)
        if "zlib-ng" not in zlib.ZLIB_RUNTIME_VERSION and ".ng" not in zlib.ZLIB_RUNTIME_VERSION:
            assert made == kept  # zlib-ng compresses the same content to other bytes
