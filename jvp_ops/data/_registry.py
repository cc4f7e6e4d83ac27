"""What is known beforehand about each data set: its files, their checksums, and where they are published."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SourceFile:
    """One IDX file: its name without ``.gz``, its decompressed size, and its sha256.

    `over` says which bytes the sum is taken over: ``"content"``, the decompressed bytes, so that any gzip
    wrapping and none will do; or ``"gzip"``, the published ``.gz`` file as it is, so that only that will do.
    """

    name: str
    size: int
    sha256: str
    over: Literal["content", "gzip"] = "content"


@dataclass(frozen=True)
class Source:
    """One data set: for each split its images and labels, and the mirrors, empty for one in the package."""

    name: str
    title: str
    image_shape: tuple[int, int]
    maximum: int
    classes: int
    splits: dict[str, tuple[SourceFile, SourceFile]] = field(repr=False)
    mirrors: tuple[str, ...] = ()

    @property
    def files(self) -> list[SourceFile]:
        """Every file of every split, images before labels."""
        return [file for pair in self.splits.values() for file in pair]


_DIGITS = Source(
    name="digits",
    title="the digits",
    image_shape=(8, 8),
    maximum=16,
    classes=10,
    splits={
        "all": (
            SourceFile(
                "digits-images-idx3-ubyte",
                115_024,
                "359cd13f0f514122884198b78a131df597421cbf5e93a76678fa96fc548f0d96",
            ),
            SourceFile(
                "digits-labels-idx1-ubyte",
                1_805,
                "ce71631c1f31ce56fa54f31d1d498fafacff59b001e6c30c4a5e29508aa277ad",
            ),
        )
    },
)

_MNIST = Source(
    name="mnist",
    title="MNIST",
    image_shape=(28, 28),
    maximum=255,
    classes=10,
    splits={
        "train": (
            SourceFile(
                "train-images-idx3-ubyte",
                47_040_016,
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            SourceFile(
                "train-labels-idx1-ubyte",
                60_008,
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
        ),
        "test": (
            SourceFile(
                "t10k-images-idx3-ubyte",
                7_840_016,
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            SourceFile(
                "t10k-labels-idx1-ubyte",
                10_008,
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)

# The sums of the decompressed Fashion-MNIST files are published nowhere that we know; those of the .gz are.
_FASHION_MNIST = Source(
    name="fashion-mnist",
    title="Fashion-MNIST",
    image_shape=(28, 28),
    maximum=255,
    classes=10,
    splits={
        "train": (
            SourceFile(
                "train-images-idx3-ubyte",
                47_040_016,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                over="gzip",
            ),
            SourceFile(
                "train-labels-idx1-ubyte",
                60_008,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                over="gzip",
            ),
        ),
        "test": (
            SourceFile(
                "t10k-images-idx3-ubyte",
                7_840_016,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                over="gzip",
            ),
            SourceFile(
                "t10k-labels-idx1-ubyte",
                10_008,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                over="gzip",
            ),
        ),
    },
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in (_DIGITS, _MNIST, _FASHION_MNIST)}
