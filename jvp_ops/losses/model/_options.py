"""The options of a `ModelLoss`, checked before anything is computed."""

from typing import Any

from torch import nn

from jvp_ops._checks import check_second_derivatives
from jvp_ops.errors import InputError


def check_options(
    loss_function: Any, regularizer: Any, normalizer: Any, unpack: Any, second_derivatives: object, coupled: object
) -> None:
    """Refuse options of the wrong kind, or that do not go together."""
    if not isinstance(coupled, bool):
        raise InputError(f"coupled must be True or False, not {coupled!r}")
    named = {"loss_function": loss_function, "regularizer": regularizer, "normalizer": normalizer, "unpack": unpack}
    for name, function in named.items():
        if function is not None and not callable(function):
            raise InputError(f"{name} must be a function, not {type(function).__name__}")
        if isinstance(function, type) and issubclass(function, nn.Module):
            raise InputError(f"{name} is the class {function.__name__}: pass an instance, {function.__name__}()")
    if coupled and normalizer is not None:
        raise InputError("normalizer= has no part in coupled=True, where the loss of the one batch is taken as it is")
    check_second_derivatives(second_derivatives)
