"""What of a batch is given to the model, and what are the targets."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from jvp_ops._explained import explained
from jvp_ops.errors import InputError

LABELS = "labels"
REMEDY = "unpack=, a function of the batch, says which are the inputs and which the targets: (inputs, targets)"


@dataclass(frozen=True)
class Unpacking:
    """How a batch, as the data hold it, is divided into inputs and targets.

    Parameters
    ----------
    model : torch.nn.Module
        Whose forward says how many tensors it needs, where a batch holds more than two.
    own_loss : bool
        The model computes its loss itself: it is given all of a batch.
    unpack : callable, optional
        ``unpack(batch)``, the user's own (inputs, targets).
    """

    model: nn.Module
    own_loss: bool
    unpack: Callable[[Any], Any] | None = None

    def __call__(self, item: Any) -> tuple[Any, Any]:
        """Divide a batch into (inputs, targets)."""
        if self.unpack is not None:
            with explained("unpack does not run on a batch"):
                pair = self.unpack(item)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InputError(f"unpack(batch) must return (inputs, targets), not {type(pair).__name__}")
            return pair[0], pair[1]
        if isinstance(item, Mapping):
            return self._of_mapping(item)
        if not isinstance(item, tuple | list):
            raise InputError(f"each batch must be (inputs, targets), not {type(item).__name__}, or a mapping; {REMEDY}")
        if self.own_loss:
            return tuple(item), None
        if len(item) == 2:
            return item[0], item[1]
        return self._of_many(tuple(item))

    def _of_mapping(self, item: Mapping[str, Any]) -> tuple[Any, Any]:
        if self.own_loss:
            return item, None
        if LABELS in item:
            return {key: value for key, value in item.items() if key != LABELS}, item[LABELS]
        return item, item

    def _of_many(self, item: tuple[Any, ...]) -> tuple[Any, Any]:
        """Give the model as many tensors as its forward requires, where it could take no more."""
        required, most = _positional(self.model)
        if required != most or not 1 <= required < len(item):
            most_text = "any number" if most is None else str(most)
            raise InputError(
                f"a batch holds {len(item)} parts, and the model's forward takes {required} to {most_text}: {REMEDY}"
            )
        rest = item[required:]
        return item[0] if required == 1 else item[:required], rest[0] if len(rest) == 1 else rest


def is_one_batch(data: Any) -> bool:
    """Say whether data are one batch in memory: a mapping, or a tuple of tensors and groups of tensors."""
    return isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) > 1 and not _are_batches(data))


def _are_batches(data: tuple[Any, ...]) -> bool:
    return len(data) > 2 and not any(isinstance(part, Tensor) for part in data)


def _positional(model: nn.Module) -> tuple[int, int | None]:
    """Count the positional arguments that forward requires, and how many it takes at most."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 0, None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [p for p in parameters if p.kind in kinds]
    required = sum(p.default is inspect.Parameter.empty for p in places)
    variable = any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return required, None if variable else len(places)
