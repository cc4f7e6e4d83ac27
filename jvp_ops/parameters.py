"""How the flat vector θ is laid out: names, shapes and slices of its parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from numbers import Integral

import torch
from torch import Tensor

from jvp_ops._checks import positive_int
from jvp_ops.errors import InputError

__all__ = ["Parameter", "Parameters", "layout"]

NAMELESS = ("x", "rows", "columns")  # what entries are called that nobody named: whole, or chosen by numbers


@dataclass(frozen=True)
class Parameter:
    """One named parameter: the entries ``start`` to ``stop`` of θ, row-major, of shape ``shape``."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """How many entries of θ it holds."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """The index just after its last entry."""
        return self.start + self.size

    @property
    def slice(self) -> slice:
        """Its place in θ."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Parameters:
    """The layout of a flat vector, in order and without gaps.

    Parameters
    ----------
    entries : tuple of Parameter
        Make them with `Parameters.of`, which computes the places.

    Examples
    --------
    >>> layout = Parameters.of({"W": (3, 2), "b": (2,)})
    >>> layout.size, layout.names, layout["b"].slice
    (8, ('W', 'b'), slice(6, 8, None))
    >>> {name: tuple(t.shape) for name, t in layout.unflatten(torch.arange(8.0)).items()}
    {'W': (3, 2), 'b': (2,)}
    """

    entries: tuple[Parameter, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> "Parameters":
        """Lay parameters of the given names and shapes one behind another."""
        entries: list[Parameter] = []
        for name, shape in shapes.items():
            entries.append(Parameter(name, tuple(shape), entries[-1].stop if entries else 0))
        return cls(tuple(entries))

    @classmethod
    def without_names(cls, size: int) -> "Parameters":
        """Lay out a vector whose entries nobody named: it meets any other layout of its size."""
        return cls.of({NAMELESS[0]: (size,)})

    @property
    def unnamed(self) -> bool:
        """Whether nobody named the entries."""
        return len(self) == 1 and self.names[0] in NAMELESS

    @property
    def size(self) -> int:
        """The length of the flat vector."""
        return self.entries[-1].stop if self.entries else 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names in order."""
        return tuple(entry.name for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> Parameter:
        return self.find(name)[0]

    def __repr__(self) -> str:
        inside = ", ".join(f"{entry.name} {'×'.join(map(str, entry.shape))}" for entry in self.entries)
        return f"<Parameters {self.size}: {inside}>"

    def find(self, names: str | Sequence[str]) -> tuple[Parameter, ...]:
        """Find parameters by names, groups or globs, in the order of θ.

        A group is what stands before a dot: ``"head"`` finds ``head.weight`` and ``head.bias``. A name that is there
        exactly is taken first, then a group, then a glob.

        Raises
        ------
        InputError
            A name, group or glob matches nothing; the message lists the names.

        Examples
        --------
        >>> layout = Parameters.of({"body.weight": (2, 2), "head.weight": (3, 2), "head.bias": (3,)})
        >>> [entry.name for entry in layout.find("head")], [entry.name for entry in layout.find("*.weight")]
        (['head.weight', 'head.bias'], ['body.weight', 'head.weight'])
        """
        patterns = [names] if isinstance(names, str) else list(names) if isinstance(names, Sequence) else [names]
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"parameters are named by text or a list of it, not {names!r}; {', '.join(self.names)}")
        wanted = set()
        for pattern in patterns:
            matching = {name for name in self.names if name == pattern}
            matching = matching or {name for name in self.names if name.startswith(f"{pattern}.")}
            matching = matching or {name for name in self.names if fnmatchcase(name, pattern)}
            if not matching:
                raise InputError(f"no parameter is named {pattern!r}; the names are {', '.join(self.names)}")
            wanted |= matching
        if not wanted:
            raise InputError(f"no parameter was named; the names are {', '.join(self.names)}")
        return tuple(entry for entry in self.entries if entry.name in wanted)

    def index(self, names: str | Sequence[str], device: torch.device) -> Tensor:
        """Entries of θ that the named parameters hold, as an index tensor."""
        return torch.cat([torch.arange(entry.start, entry.stop, device=device) for entry in self.find(names)])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Split a flat (n,) or (n, m) tensor into views of the parameters' shapes (then ×m)."""
        return {e.name: flat.narrow(0, e.start, e.size).reshape((*e.shape, *flat.shape[1:])) for e in self.entries}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join tensors of the parameters' shapes into one flat vector; the inverse of `unflatten`."""
        return torch.cat([tensors[entry.name].reshape(entry.size) for entry in self.entries])


def layout(size: int | None, shapes: Mapping[str, Sequence[int]] | None) -> Parameters:
    """Lay out a flat vector given by its length, or by names and shapes."""
    if (size is None) == (shapes is None):
        raise InputError("give either size= (the length of the vector) or shapes= (names and shapes), not both")
    if shapes is not None:
        return Parameters.of({name: _checked_shape(name, shape) for name, shape in _checked_names(shapes).items()})
    return Parameters.of({"theta": (positive_int(size, "size"),)})


def _checked_names(shapes: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    if not isinstance(shapes, Mapping) or not shapes or not all(isinstance(name, str) for name in shapes):
        raise InputError(f"shapes must be a mapping of at least one name to its shape, not {shapes!r}")
    return shapes


def _checked_shape(name: str, shape: object) -> tuple[int, ...]:
    lengths = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else (None,)
    if not all(
        isinstance(length, Integral) and not isinstance(length, bool) and int(length) >= 0 for length in lengths
    ):
        raise InputError(f"the shape of {name!r} must be a tuple of integers of at least 0, not {shape!r}")
    return tuple(int(length) for length in lengths if length is not None)
