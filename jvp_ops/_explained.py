"""What torch or the user's own code raises, said again with what was being done and what helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jvp_ops.errors import InputError, JvpOpsError


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what torch or the user's code raises into an InputError that says where it was raised and what to do."""
    try:
        yield
    except (JvpOpsError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        advice = next((advice for sign, advice in ADVICE.items() if sign in text), "")
        advice = "" if advice is UNPACK and "on the data" not in what else advice
        raise InputError(f"{what}: {text}{advice}") from error


UNPACK = "; unpack=, a function of the batch, says which of it are the inputs and which the targets"
ADVICE = {
    "unexpected keyword argument": UNPACK,
    "positional argument": UNPACK,
    "must be Tensor, not": UNPACK,
    "Checkpointing is not compatible with": "; call checkpoint(..., use_reentrant=False), which is",
    "use_reentrant": "; call checkpoint(..., use_reentrant=False)",
    "does not currently support double backward": "; pass the module that was compiled, not the compiled one",
    "trying to differentiate twice a function that was marked with @once_differentiable": (
        "; a custom autograd.Function has no second derivative: write its backward in differentiable operations"
    ),
    "is not implemented": "; use another operation in its place, or one written out in plain torch operations",
    "modified by an inplace operation": "; write it out of place: a derivative needs what is overwritten",
    "leaf Variable that requires grad": "; an in-place operation changes a parameter: write it out of place",
}
