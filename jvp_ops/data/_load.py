"""The data sets by name: found or fetched, verified, checked for shape, and made a Dataset."""

import io

import numpy as np
from numpy.typing import NDArray

from jvp_ops.data._dataset import Dataset
from jvp_ops.data._fetch import fetch_file
from jvp_ops.data._find import find_file, is_cached
from jvp_ops.data._idx import parse_idx
from jvp_ops.data._registry import SOURCES, Source, SourceFile
from jvp_ops.data._verify import verified_content
from jvp_ops.errors import DataError, InputError


def load_digits() -> Dataset:
    """Load the 1,797 handwritten digits, 8x8 pixels of 0 to 16, that come with the package.

    Returns
    -------
    Dataset
        1,797 real images in 10 classes; no network and no file outside the package is needed.

    Raises
    ------
    DataError
        If the files in the package are missing or damaged.

    Notes
    -----
    The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; the same samples in the same order as
    ``sklearn.datasets.load_digits``. The sha256 of the decompressed files is verified at each load.

    Examples
    --------
    >>> import jvp_ops as jo
    >>> jo.load_digits()
    Dataset('digits', 1797 samples, 8x8 pixels 0..16, 10 classes)
    """
    return load_source(SOURCES["digits"], "all")


def load_mnist(split: str = "train") -> Dataset:
    """Load MNIST: 60,000 training or 10,000 test images of handwritten digits, 28x28 pixels.

    Parameters
    ----------
    split : {"train", "test"}
        Which part to load.

    Returns
    -------
    Dataset
        The images in the original order, named ``mnist-train`` or ``mnist-test``.

    Raises
    ------
    InputError
        If `split` is neither ``"train"`` nor ``"test"``.
    DataError
        If a file is damaged, or is neither here nor to be had; the message lists every place looked at.
    MissingExtraError
        If a file has to be downloaded and pooch is not installed.

    Notes
    -----
    The files ``train-images-idx3-ubyte`` and so on, gzip-compressed or plain, are looked for in the folder
    that the environment variable ``JVP_OPS_DATA`` names (in its subfolder ``mnist``, then directly), then in
    the user's cache (``$XDG_CACHE_HOME/jvp_ops/mnist``), and are else downloaded into that cache, unless
    ``JVP_OPS_OFFLINE`` is set to anything but ``0``. The sha256 of the decompressed bytes is verified at each
    load, wherever the file came from.

    By Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0.

    Examples
    --------
    >>> load_mnist("validation")
    Traceback (most recent call last):
        ...
    jvp_ops.errors.InputError: split must be 'train' or 'test', not 'validation'
    """
    return load_source(SOURCES["mnist"], split)


def load_fashion_mnist(split: str = "train") -> Dataset:
    """Load Fashion-MNIST: 60,000 training or 10,000 test images of clothes, 28x28 pixels.

    Parameters
    ----------
    split : {"train", "test"}
        Which part to load.

    Returns
    -------
    Dataset
        The images in the original order, named ``fashion-mnist-train`` or ``fashion-mnist-test``.

    Raises
    ------
    InputError
        If `split` is neither ``"train"`` nor ``"test"``.
    DataError
        If a file is damaged, or is neither here nor to be had; the message lists every place looked at.
    MissingExtraError
        If a file has to be downloaded and pooch is not installed.

    Notes
    -----
    The files are looked for and fetched as in :func:`load_mnist`, under ``fashion-mnist``. The known sha256
    sums are those of the published ``.gz`` files, not of their content, so only those very files are
    accepted: not decompressed ones, nor ones compressed anew.

    By H. Xiao, K. Rasul and R. Vollgraf (Zalando), MIT licence, arXiv:1708.07747.

    Examples
    --------
    >>> load_fashion_mnist("all")
    Traceback (most recent call last):
        ...
    jvp_ops.errors.InputError: split must be 'train' or 'test', not 'all'
    """
    return load_source(SOURCES["fashion-mnist"], split)


def load_source(source: Source, split: str) -> Dataset:
    """Load one split of any source."""
    if not isinstance(split, str) or split not in source.splits:
        raise InputError(f"split must be {' or '.join(map(repr, source.splits))}, not {split!r}")
    images_file, labels_file = source.splits[split]
    images, images_at = _read(source, images_file)
    labels, labels_at = _read(source, labels_file)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != source.image_shape:
        raise DataError(
            f"{images_at} holds {images.dtype} of shape {images.shape}, expected uint8 of shape "
            f"(samples, {source.image_shape[0]}, {source.image_shape[1]}): replace it with a fresh copy"
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{labels_at} holds {labels.dtype} of shape {labels.shape}, expected uint8 of shape "
            f"({len(images)},), one label for each image of {images_at}: replace the two with fresh copies"
        )
    if labels.size and (largest := int(labels.max())) >= source.classes:
        raise DataError(f"{labels_at} holds the label {largest}, expected 0..{source.classes - 1}: replace it")
    name = source.name if split == "all" else f"{source.name}-{split}"
    wide = labels.astype(np.int64)
    for array in (images, wide):
        array.flags.writeable = False  # nobody else holds them, so Dataset need not copy
    return Dataset(name, images, wide, source.classes, source.maximum)


def _read(source: Source, file: SourceFile) -> tuple[NDArray[np.uint8], str]:
    """Return the verified array of one file and the path it came from."""
    path = find_file(source, file) or fetch_file(source, file)
    try:
        content = verified_content(path, file)
    except DataError as error:
        if not is_cached(path, source):
            raise
        raise DataError(f"{error}: 'jvp-ops data fetch {source.name}' does so") from None
    return parse_idx(io.BytesIO(content), str(path)), str(path)
