"""The one shape that every data set takes: images, labels, and what is needed to read them."""

import hashlib
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jvp_ops._random import Rng, generator
from jvp_ops.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled grey images, read-only, with their inputs scaled to [0, 1] on demand.

    Parameters
    ----------
    name : str
        What the data set is called in messages and results.
    images : numpy.ndarray of uint8, shape (samples, height, width)
        The pixels as they are stored, 0 to `maximum`.
    labels : numpy.ndarray of int64, shape (samples,)
        The class of each image, 0 to ``classes - 1``.
    classes : int
        The number of classes, of which a subset need not hold all.
    maximum : int
        The largest value that a pixel can take: 255 for MNIST, 16 for the digits.

    Raises
    ------
    InputError
        If an array has the wrong type, shape or range, or the two differ in length.

    Notes
    -----
    Both arrays are made read-only; a writable array is copied first, so a later change to it is not seen.
    Two data sets are the same samples in the same order if their `sha256` agree; ``==`` is identity.

    Examples
    --------
    >>> import numpy as np
    >>> from jvp_ops.data import Dataset
    >>> pixels = np.array([[[0, 255]], [[255, 0]], [[51, 51]]], dtype=np.uint8)
    >>> data = Dataset("lines", pixels, np.array([0, 1, 1]), classes=2, maximum=255)
    >>> data
    Dataset('lines', 3 samples, 1x2 pixels 0..255, 2 classes)
    >>> data.inputs
    array([[0. , 1. ],
           [1. , 0. ],
           [0.2, 0.2]], dtype=float32)
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: int
    maximum: int

    def __post_init__(self) -> None:
        """Check every field, then freeze the arrays."""
        _check_array(self.images, "images", np.uint8, ("samples", "height", "width"))
        _check_array(self.labels, "labels", np.int64, ("samples",))
        classes = _integer(self.classes, "classes", least=1, most=None)
        maximum = _integer(self.maximum, "maximum", least=1, most=255)
        if len(self.images) != len(self.labels):
            counts = f"{len(self.images)} and {len(self.labels)}"
            raise InputError(f"images and labels must have one row per sample each, not {counts}")
        if self.images.size == 0:
            raise InputError(f"images must hold at least one pixel, not shape {self.images.shape}")
        if (brightest := int(self.images.max())) > maximum:
            raise InputError(f"images holds the value {brightest}, above maximum={maximum}: give the right maximum")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= classes:
            raise InputError(f"labels must lie in 0..{classes - 1} (classes={classes}), not in {low}..{high}")
        for field, array in (("images", self.images), ("labels", self.labels)):
            object.__setattr__(self, field, _frozen(array))

    @property
    def inputs(self) -> NDArray[np.float32]:
        """The images as rows of float32 in [0, 1], shape (samples, height * width).

        It is computed at each access and belongs to the caller: keep it if it is used twice (for all of
        MNIST's training images it takes 188 MB). Each number is a pixel over `maximum` rounded to float32;
        `inputs_in` gives them in float64.
        """
        return self.inputs_in(np.float32)

    def inputs_in(self, dtype: Any) -> NDArray[Any]:
        """Compute the images as rows in [0, 1] in float32 or float64, each pixel divided in that dtype.

        Raises
        ------
        InputError
            The dtype is neither.

        Examples
        --------
        >>> import numpy as np
        >>> from jvp_ops.data import load_digits
        >>> load_digits().inputs_in(np.float64)[0, 2:5]
        array([0.3125, 0.8125, 0.5625])
        """
        wanted = _float_dtype(dtype)
        rows = np.empty((len(self), self.images[0].size), dtype=wanted)
        np.divide(self.images.reshape(rows.shape), wanted.type(self.maximum), out=rows, dtype=wanted)
        return rows

    @property
    def image_shape(self) -> tuple[int, int]:
        """The height and width of an image in pixels."""
        _, height, width = self.images.shape
        return height, width

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the image shape, the pixels and the labels, the same on every machine."""
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")).data)
        return digest.hexdigest()

    def subset(self, n: int, rng: Rng = 0) -> "Dataset":
        """Draw `n` samples without replacement.

        Parameters
        ----------
        n : int
            How many samples, 1 to ``len(self)``.
        rng : int or numpy.random.Generator, default 0
            The seed, or the generator to draw from.

        Returns
        -------
        Dataset
            The drawn samples in the order drawn; `classes` and `maximum` stay as they are.

        Raises
        ------
        InputError
            If `n` is out of range or `rng` is neither a seed nor a generator.

        Examples
        --------
        >>> from jvp_ops.data import load_digits
        >>> load_digits().subset(100, rng=1)
        Dataset('digits[100 of 1797]', 100 samples, 8x8 pixels 0..16, 10 classes)
        """
        count = _integer(n, "n", least=1, most=len(self))
        drawn = generator(rng).choice(len(self), size=count, replace=False)
        name = f"{self.name}[{count} of {len(self)}]"
        return Dataset(name, self.images[drawn], self.labels[drawn], self.classes, self.maximum)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.image_shape
        pixels = f"{height}x{width} pixels 0..{self.maximum}"
        return f"Dataset({self.name!r}, {len(self)} samples, {pixels}, {self.classes} classes)"


def _check_array(array: Any, name: str, dtype: type[np.generic], axes: tuple[str, ...]) -> None:
    """Check the type and rank of an array; nothing is converted, so that no value changes unseen."""
    expected = f"a numpy array of {np.dtype(dtype)} with shape ({', '.join(axes)})"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be {expected}, not {type(array).__name__}")
    if array.dtype != dtype or array.ndim != len(axes):
        raise InputError(f"{name} must be {expected}, not {array.dtype} with shape {array.shape}")


def _integer(value: object, name: str, *, least: int, most: int | None) -> int:
    """Check an integer in a range; True and False are not integers here."""
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise InputError(f"{name} must be an integer, {bounds}, not {value!r}")
    return number


def _float_dtype(dtype: object) -> "np.dtype[Any]":
    """Accept float32 and float64, or their names; None is no name, though numpy takes it for one."""
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        if dtype is known.type or (isinstance(dtype, str | np.dtype) and str(dtype) == known.name):
            return known
    raise InputError(f"dtype must be float32 or float64, not {dtype!r}")


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array read-only, copied unless nobody else can write to it through a base array."""
    layer: Any = array
    while isinstance(layer, np.ndarray):
        if layer.flags.writeable:
            array = array.copy()
            break
        layer = layer.base
    array.flags.writeable = False
    return array
