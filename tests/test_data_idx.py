import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from jvp_ops.data import read_idx
from jvp_ops.errors import DataError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(array, code=0x08):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx(PIXELS)


def refused(tmp_path, content):
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("code", TYPES)
def test_every_idx_type_comes_back_with_its_values_in_native_order(tmp_path, code):
    array = np.array([[1, 2, 100], [3, 4, 5]], dtype=TYPES[code])
    path = tmp_path / "values"
    path.write_bytes(idx(array, code))
    found = read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.dtype(TYPES[code]).newbyteorder("=")
    assert found.dtype.isnative


def test_gzip_is_seen_from_the_bytes_and_not_from_the_name(tmp_path):
    named, unnamed = tmp_path / "a.gz", tmp_path / "b"
    named.write_bytes(GOOD)
    unnamed.write_bytes(gzip.compress(GOOD))
    np.testing.assert_array_equal(read_idx(named), PIXELS)
    np.testing.assert_array_equal(read_idx(str(unnamed)), PIXELS)


def test_no_samples_are_an_array_without_rows(tmp_path):
    path = tmp_path / "none"
    path.write_bytes(idx(np.zeros((0, 3), np.uint8)))
    assert read_idx(path).shape == (0, 3)


def test_truncated_idx_names_the_file_and_both_lengths(tmp_path):
    words = refused(tmp_path, GOOD[:-1])
    assert "truncated: found 23 bytes after the header, expected 24" in words
    assert "fresh copy" in words


def test_too_long_idx_names_the_file_and_both_lengths(tmp_path):
    assert "too long: found 27 bytes after the header, expected 24" in refused(tmp_path, GOOD + b"abc")


def test_idx_that_ends_within_its_header_is_truncated(tmp_path):
    assert "found 14 bytes, expected a header of 16 bytes for 3 dimensions" in refused(tmp_path, GOOD[:14])


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")])
def test_an_empty_file_is_said_to_be_empty(tmp_path, content):
    assert "is empty (0 bytes)" in refused(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>404</html>",
        b"\0\0\x08",
        b"\0\1\x08\1" + GOOD[4:],
        b"\0\0\x0a\3" + GOOD[4:],
        b"\0\0\x08\0",
        b"\0\0\x08\x21",
    ],
)
def test_a_wrong_magic_shows_the_bytes_found_and_expected(tmp_path, content):
    words = refused(tmp_path, content)
    assert f"it starts with the bytes {content[:4].hex(' ')}, expected 00 00" in words


def test_gzip_cut_short_is_said_to_be_damaged(tmp_path):
    assert "is a damaged gzip file" in refused(tmp_path, gzip.compress(GOOD)[:-6])


def test_gzip_with_a_flipped_bit_in_its_sum_is_said_to_be_damaged(tmp_path):
    content = bytearray(gzip.compress(GOOD))
    content[-8] ^= 1
    assert "is a damaged gzip file (CRC check failed" in refused(tmp_path, bytes(content))


def test_gzip_with_broken_compressed_data_is_said_to_be_damaged(tmp_path):
    content = bytearray(gzip.compress(GOOD))
    content[10] = 0xFF  # the first compressed block, of a type that there is not
    assert "is a damaged gzip file" in refused(tmp_path, bytes(content))


def test_garbage_after_the_gzip_data_is_refused(tmp_path):
    assert "is a damaged gzip file" in refused(tmp_path, gzip.compress(GOOD) + b"garbage")


def test_a_header_that_promises_absurd_sizes_allocates_nothing(tmp_path):
    content = struct.pack(">BBBB3I", 0, 0, 0x0E, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"12345678"
    tracemalloc.start()
    try:
        words = refused(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"found 8 bytes after the header, expected {8 * (2**32 - 1) ** 3}" in words
    assert peak < 4 << 20


def test_gzip_that_swells_beyond_its_header_is_not_kept_in_memory(tmp_path):
    content = gzip.compress(idx(np.zeros(3, np.uint8)) + bytes(64 << 20))
    tracemalloc.start()
    try:
        words = refused(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"too long: found {3 + (64 << 20)} bytes after the header, expected 3" in words
    assert peak < 16 << 20


def test_a_shape_that_numpy_cannot_hold_is_refused_even_without_bytes(tmp_path):
    content = struct.pack(">BBBB4I", 0, 0, 0x08, 4, 0, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    assert "which numpy cannot hold" in refused(tmp_path, content)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match=r"cannot be read"):
        read_idx(tmp_path)
