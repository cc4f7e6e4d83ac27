"""Make the digits files of this folder from scikit-learn's copy: ``python make_digits.py [folder]``.

Running it again gives the same bytes: the gzip header holds no time and no name.
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np


def idx_bytes(array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """Write an array of bytes in the IDX format."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape) + array.tobytes()


def write_gzip(path: Path, content: bytes) -> None:
    """Compress `content` without a time or a name in the header."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as stream:
        stream.write(content)


def main(folder: Path) -> None:
    """Write the images and the labels into `folder`."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,import-not-found,unused-ignore]

    digits = load_digits()
    write_gzip(folder / "digits-images-idx3-ubyte.gz", idx_bytes(digits.images.astype(np.uint8)))
    write_gzip(folder / "digits-labels-idx1-ubyte.gz", idx_bytes(digits.target.astype(np.uint8)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
