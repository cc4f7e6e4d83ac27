"""Lists, dictionaries and sets that modules hold: the user's own objects, with other content while a pass runs.

The objects stay, since closures and other modules may hold them too, and must see what a pass leaves in them.
"""

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = (list, dict, OrderedDict, defaultdict, Counter, set, deque)
LARGE = 1000  # entries
PLAIN = bool | int | float | complex | str | bytes | None | torch.dtype | torch.device
Content = tuple[list[Any], list[Any]]  # the keys, where there are any, and the values


class Containers:
    """All containers within some values, through one another and through tuples, and what they held at first.

    One of more than `LARGE` entries without tensors or containers among them, such as a vocabulary, is left alone: what
    a pass changes in it is neither seen nor undone. So is one of another type than `KINDS`.

    Parameters
    ----------
    values : iterable
        What is looked through.
    apart : collection of int
        Numbers (``id``) of objects that others stand in for: they are not looked into.
    """

    def __init__(self, values: Iterable[Any], apart: Collection[int]) -> None:
        self._found: list[tuple[Any, Content]] = []
        tuples, seen, waiting = list[tuple[Any, ...]](), set[int](apart), list(values)
        while waiting:
            value = waiting.pop()
            if id(value) in seen or not (isinstance(value, tuple) or type(value) in KINDS):
                continue
            seen.add(id(value))
            if isinstance(value, tuple):
                tuples.append(value)
                waiting += value
            elif len(value) <= LARGE or any(map(_holds_more, content_of(value)[1])):
                self._found.append((value, content_of(value)))
                waiting += self._found[-1][1][1]
        moved = set(apart)
        self._tuples = []  # those that hold tensors, the inner before the outer
        for value in _inner_first(tuples):
            if type(value) is tuple and any(isinstance(inside, Tensor) or id(inside) in moved for inside in value):
                self._tuples.append(value)
                moved.add(id(value))
        self._moving = [any(isinstance(v, Tensor) or id(v) in moved for v in held) for _, (_, held) in self._found]

    def rebuild(self, standing: dict[int, Any]) -> None:
        """Add what stands in for tuples, by their numbers, to what stands in for all that they hold."""
        for value in self._tuples:
            standing[id(value)] = tuple(standing.get(id(inside), inside) for inside in value)

    def contents(self) -> list[Content]:
        """Say what they hold now."""
        return [content_of(container) for container, _ in self._found]

    def restore(self, contents: Sequence[Content]) -> None:
        """Let them hold what they held when `contents` was called."""
        for (container, _), content in zip(self._found, contents, strict=True):
            _put(container, content)

    def first_contents(self, standing: Mapping[int, Any]) -> list[Content]:
        """Say what they held at first, with what stands in for it."""
        return [
            (keys, [standing.get(id(value), value) for value in held] if moving else held)
            for (_, (keys, held)), moving in zip(self._found, self._moving, strict=True)
        ]

    def are_changed(self, standing: Mapping[int, Any]) -> bool:
        """Say whether one holds other things, or other numbers, than at first."""
        contents = zip(self._found, self.first_contents(standing), strict=True)
        return any(not _alike(content_of(container), first, type(container)) for (container, _), first in contents)


def tensors_within(name: str, value: Any, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """Go through the floating tensors of a value and of the containers and tuples in it, with their places."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif depth and (isinstance(value, tuple) or type(value) in KINDS) and len(value) <= LARGE:
        keys, held = content_of(value)
        for key, inside in zip(keys or range(len(held)), held, strict=True):
            yield from tensors_within(f"{name}[{key!r}]", inside, depth - 1)


def content_of(container: Any) -> Content:
    """List what a container or a tuple holds."""
    if isinstance(container, dict):
        return list(container.keys()), list(container.values())
    return [], list(container)


def standing_in(container: Any, standing: Mapping[int, Any]) -> Any:
    """Copy a dictionary or set, with what stands in for its values."""
    kind = type(container)
    if kind in (dict, OrderedDict):  # the hooks of every module, mostly empty
        return kind([(k, standing.get(id(v), v)) for k, v in container.items()]) if container else kind()
    copied = copy.copy(container)
    if isinstance(container, dict):
        copied.update((key, standing.get(id(value), value)) for key, value in container.items())
    return copied


def is_alike(one: Any, other: Any) -> bool:
    """Say whether two values are the same object or number, or new tuples or containers of the same."""
    if _is_same(one, other):
        return True
    if type(one) is not type(other) or not (isinstance(one, tuple) or type(one) in KINDS):
        return False
    return _alike(content_of(one), content_of(other), type(one))


def _alike(one: Content, other: Content, kind: type) -> bool:
    if kind is set:
        return _numbers(one[1]) == _numbers(other[1])
    return all(len(a) == len(b) and all(map(_is_same, a, b)) for a, b in zip(one, other, strict=True))


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, PLAIN) and bool(one == other))


def _put(container: Any, content: Content) -> None:
    """Let a container hold these very objects, and touch it only where it does not."""
    (keys, values), (keys_now, values_now) = content, content_of(container)
    kept = _numbers(keys, ordered=True) == _numbers(keys_now, ordered=True)
    ordered = type(container) is not set
    if kept and _numbers(values, ordered=ordered) == _numbers(values_now, ordered=ordered):
        return
    if isinstance(container, dict):
        if not kept:
            container.clear()
        for key, value in zip(keys, values, strict=True):
            container[key] = value  # not by update, which counts in a Counter
    elif isinstance(container, list):
        container[:] = values
    else:
        container.clear()
        container.update(values) if isinstance(container, set) else container.extend(values)


def _numbers(values: Sequence[Any], *, ordered: bool = False) -> Collection[int]:
    return list(map(id, values)) if ordered else set(map(id, values))


def _holds_more(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(isinstance(inside, Tensor | tuple) or type(inside) in KINDS for inside in value)
    return isinstance(value, Tensor) or type(value) in KINDS


def _inner_first(tuples: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Put tuples behind all those that they hold."""
    ordered, seen = list[tuple[Any, ...]](), set[int]()
    waiting = [(value, False) for value in tuples]
    while waiting:
        value, is_done = waiting.pop()
        if is_done:
            ordered.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            waiting.append((value, True))
            waiting += [(inside, False) for inside in value if isinstance(inside, tuple)]
    return ordered
