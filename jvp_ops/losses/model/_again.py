"""A loss made again in another process, of the model and data that it was made of; refused where they have changed."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

from jvp_ops.errors import DataError
from jvp_ops.store import fingerprint, sha256_of


class MadeAgain:
    """What copies and pickles of a `ModelLoss` take: the arguments that it was made of."""

    _recipe: tuple[Callable[..., Any], tuple[Any, ...]]  # what makes this loss again
    _known: frozenset[str] = frozenset()  # the attributes that the recipe makes

    def __new__(cls, *given: Any, **options: Any) -> Self:
        """Keep what it is made of."""
        made = object.__new__(cls)
        made._recipe = (partial(cls, **options), given)
        return made

    def __reduce__(self) -> Any:
        held: Any = self
        held._total.batches.check_unchanged()
        (function, args), found = self._recipe, {"dtype": held.dtype, "device": held.device}
        if getattr(function, "func", None) is type(self) and type(self).__init__ is self._init_of_the_library():
            function = partial(function, **found)  # what was found out is said, so that it is the same again
        more = {name: value for name, value in self.__dict__.items() if name not in self._known}
        return made_again, (function, args, seal_of(self)), more

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)  # what a loss holds never changes
        return other

    def __deepcopy__(self, memo: Any) -> Self:
        return self.__copy__()

    @classmethod
    def _init_of_the_library(cls) -> Any:
        """Give the constructor that takes ``dtype=`` and ``device=``: a subclass may have one that does not."""
        return next(vars(kind)["__init__"] for kind in reversed(cls.__mro__[:-1]) if "__init__" in vars(kind))


def seal_of(loss: Any) -> str:
    """Hash all that the loss depends on, and the start that its model gave."""
    return fingerprint({**loss.identity(), "initial": sha256_of(loss.initial())})


def made_again(function: Callable[..., Any], args: tuple[Any, ...], seal: str) -> Any:
    """Make a loss by its recipe.

    Raises
    ------
    DataError
        The model, the functions or the data are not what they were when the loss was made.
    """
    loss = function(*args)
    if seal_of(loss) != seal:
        raise DataError(
            "this loss cannot be made again: its model, functions or data have changed since it was made (a pickle "
            "carries them as they are when it is written). Make the loss anew of what they are now, or pickle it before"
        )
    return loss
