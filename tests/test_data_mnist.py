import numpy as np
import pytest

from jvp_ops.data import load_mnist
from jvp_ops.data._find import find_file
from jvp_ops.data._registry import SOURCES

pytestmark = pytest.mark.mnist


@pytest.fixture(scope="module")
def train():
    return load_mnist()


def test_training_images_and_labels_number_60000(train):
    assert train.images.shape == (60_000, 28, 28)
    assert repr(train) == "Dataset('mnist-train', 60000 samples, 28x28 pixels 0..255, 10 classes)"
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_717_pixels_of_784_are_ever_lit_and_67_are_dead(train):
    lit = train.images.any(axis=0)
    assert (np.count_nonzero(lit), np.count_nonzero(~lit)) == (717, 67)


def test_a_fifth_of_all_training_pixels_is_lit(train):
    assert round(100 * np.count_nonzero(train.images) / train.images.size, 1) == 19.1


def test_loaded_arrays_are_read_only_without_a_second_copy(train):
    assert not train.images.flags.writeable
    assert not train.labels.flags.writeable


def test_test_split_has_10000_images_that_are_not_the_training_ones(train):
    test = load_mnist("test")
    assert (len(test), test.name) == (10_000, "mnist-test")
    assert test.sha256 != train.subset(10_000).sha256
    assert set(test.labels.tolist()) == set(range(10))


def test_the_mnist_folder_does_not_pass_for_fashion_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = find_file(SOURCES["mnist"], SOURCES["mnist"].files[2])
    assert found is not None
    monkeypatch.setenv("JVP_OPS_DATA", str(found.parent))
    assert find_file(SOURCES["fashion-mnist"], SOURCES["fashion-mnist"].files[2]) is None
