"""Copies and pickles of operators: by the recipe that makes them again, linearized anew on the other side."""

from collections.abc import Callable
from typing import Any, Self

from jvp_ops.errors import InputError
from jvp_ops.linear import LinearMap

Recipe = tuple[Callable[..., Any], tuple[Any, ...]]


class Copies:
    """What copying, deep-copying and pickling an operator take; `TensorOperator` is the class that users meet."""

    linear: LinearMap
    recipe: Recipe | None = None  # a function and its arguments that make this operator again, in another process

    def made_by(self, function: Callable[..., Any], *args: Any) -> Self:
        """Say how to make this operator again; give it back."""
        self.recipe = (function, args)
        return self

    def __reduce__(self) -> Any:
        if self.recipe is None:
            raise InputError(
                f"this {type(self).__name__} was made of products alone, which no pickle carries to another process: "
                "make it there, from its loss or map and its state"
            )
        return self.recipe

    def __copy__(self) -> Self:
        made = type(self)(self.linear)  # type: ignore[call-arg]  # which never changes; the count of products is its own
        made.__dict__.update({name: value for name, value in self.__dict__.items() if name in ("recipe", "args")})
        return made

    def __deepcopy__(self, memo: Any) -> Self:
        return self.__copy__()
