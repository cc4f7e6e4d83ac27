import numpy as np
import pytest

from jvp_ops.data import Dataset, load_digits
from jvp_ops.errors import InputError


def small(**changes):
    fields = {
        "name": "small",
        "images": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
        "labels": np.array([0, 2, 1, 0], dtype=np.int64),
        "classes": 3,
        "maximum": 30,
    }
    return Dataset(**{**fields, **changes})


def test_inputs_are_the_pixels_over_the_maximum_as_float32_rows():
    data = small()
    assert data.inputs.dtype == np.float32
    assert data.inputs.shape == (4, 6)
    np.testing.assert_array_equal(data.inputs, (np.arange(24, dtype=np.float32) / np.float32(30)).reshape(4, 6))


def test_inputs_are_the_callers_own_to_change():
    data = small()
    data.inputs[:] = 7
    assert data.inputs.max() == np.float32(23) / np.float32(30)


def test_arrays_are_read_only_and_do_not_follow_the_callers_array():
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    data = small(images=images)
    images[:] = 0
    assert data.images[3, 1, 2] == 23
    with pytest.raises(ValueError, match="read-only"):
        data.images[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 1


def test_a_read_only_view_of_a_writable_array_is_copied():
    images = np.arange(24, dtype=np.uint8)
    view = images.reshape(4, 2, 3)
    view.flags.writeable = False
    data = small(images=view)
    images[:] = 0
    assert data.images[3, 1, 2] == 23


def test_a_frozen_array_is_kept_without_a_copy():
    images = np.zeros((4, 2, 3), dtype=np.uint8)
    images.flags.writeable = False
    assert small(images=images).images is images


def test_fields_cannot_be_assigned():
    with pytest.raises(AttributeError):
        small().classes = 5


def test_repr_is_short_and_names_the_facts():
    assert repr(small()) == "Dataset('small', 4 samples, 2x3 pixels 0..30, 3 classes)"
    assert small().image_shape == (2, 3)
    assert len(small()) == 4


def test_subset_draws_without_replacement_and_keeps_images_with_their_labels():
    data = load_digits()
    part = data.subset(len(data), rng=3)
    rows = {(image.tobytes(), label) for image, label in zip(data.images, data.labels, strict=True)}
    drawn = {(image.tobytes(), label) for image, label in zip(part.images, part.labels, strict=True)}
    assert drawn == rows
    assert sorted(part.labels) == sorted(data.labels)
    assert not np.array_equal(part.labels, data.labels)
    assert (part.classes, part.maximum, part.name) == (10, 16, "digits[1797 of 1797]")


def test_subset_is_the_same_for_the_same_seed_and_differs_for_another():
    data = load_digits()
    assert data.subset(50, rng=1).sha256 == data.subset(50, rng=1).sha256
    assert data.subset(50, rng=1).sha256 == data.subset(50, rng=np.random.default_rng(1)).sha256
    assert data.subset(50, rng=1).sha256 != data.subset(50, rng=2).sha256


def test_a_generator_moves_on_from_one_subset_to_the_next():
    data, rng = load_digits(), np.random.default_rng(0)
    assert data.subset(50, rng=rng).sha256 != data.subset(50, rng=rng).sha256


@pytest.mark.parametrize("n", [0, -1, 5, 2.0, True, "2", None])
def test_subset_refuses_a_count_out_of_range(n):
    with pytest.raises(InputError, match=r"n must be an integer, 1 to 4, not"):
        small().subset(n)


@pytest.mark.parametrize("rng", [-1, 0.5, None, True, np.random.RandomState(0)])
def test_subset_refuses_what_is_neither_seed_nor_generator(rng):
    with pytest.raises(InputError, match="rng must be a seed"):
        small().subset(2, rng=rng)


def test_sha256_sees_pixels_labels_and_shape():
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    brighter = images.copy()
    brighter[0, 0, 0] = 9
    sums = {
        small().sha256,
        small(images=brighter).sha256,
        small(images=images.reshape(4, 3, 2)).sha256,
        small(labels=np.array([0, 2, 1, 1])).sha256,
    }
    assert len(sums) == 4
    assert small().sha256 == small(name="other").sha256
    assert small(images=np.asfortranarray(images)).sha256 == small().sha256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": [[1]]}, r"images must be a numpy array of uint8 .* not list"),
        ({"images": np.zeros((4, 2, 3))}, r"images must be .* not float64 with shape \(4, 2, 3\)"),
        ({"images": np.zeros((4, 6), np.uint8)}, r"images must be .* not uint8 with shape \(4, 6\)"),
        ({"images": np.zeros((4, 0, 3), np.uint8)}, r"at least one pixel, not shape \(4, 0, 3\)"),
        ({"labels": np.zeros(4, np.int32)}, r"labels must be a numpy array of int64 .* not int32"),
        ({"labels": np.zeros(3, np.int64)}, r"one row per sample each, not 4 and 3"),
        ({"labels": np.array([0, 3, 1, 0])}, r"labels must lie in 0\.\.2 \(classes=3\), not in 0\.\.3"),
        ({"labels": np.array([0, -1, 1, 0])}, r"labels must lie in 0\.\.2 .* not in -1\.\.1"),
        ({"maximum": 22}, r"images holds the value 23, above maximum=22"),
        ({"maximum": 256}, r"maximum must be an integer, 1 to 255, not 256"),
        ({"classes": 0}, r"classes must be an integer, at least 1, not 0"),
        ({"classes": 2.5}, r"classes must be an integer, at least 1, not 2\.5"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(changes, words):
    with pytest.raises(InputError, match=words):
        small(**changes)
