"""Checks of what comes in, each with a message that says what was given, expected, and what to do."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from jvp_ops.errors import InputError, NonFiniteError

FLOATS = (torch.float32, torch.float64)


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Accept ``torch.float32``, ``torch.float64`` or their names."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in FLOATS:
        raise InputError(f"dtype {dtype} is not supported: use float32 or float64")
    return found


def resolve_device(device: torch.device | str | None) -> torch.device:
    """Accept a torch device or its name, and say so when it is not there; None is the CPU."""
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not a torch device: use 'cpu' or 'cuda' ({error})") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device {str(device)!r} is not supported: use 'cpu' or 'cuda'")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(device)!r} was asked for, but torch sees no CUDA device: use device='cpu'")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {str(device)!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    return found


def numpy_dtype(dtype: torch.dtype) -> "np.dtype[np.floating]":
    """Name the numpy dtype of a torch floating dtype."""
    return np.dtype(np.float32 if dtype == torch.float32 else np.float64)


def whole_number(value: object, name: str, *, least: int = 0) -> int:
    """Check a count, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, not {value!r}")
    return int(value)


def positive_int(value: object, name: str) -> int:
    """Check a count that must be at least 1."""
    return whole_number(value, name, least=1)


def time_budget(seconds: object) -> float | None:
    """Check ``max_seconds=`` of a run whose first piece is done in any case: None, or above 0."""
    if seconds is None:
        return None
    budget = finite_number(seconds, "max_seconds")
    if budget <= 0:
        raise InputError(f"max_seconds must be above 0, not {seconds!r}")
    return budget


def says_stop(answer: object) -> bool:
    """Say whether a callback's answer is True, Python's or numpy's; a count or a tensor is no answer."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


def sample_numbers(index: object, samples: int) -> Tensor:
    """Check the numbers of some samples, which may repeat: at least one, each 0 to samples − 1; on the CPU."""
    try:
        chosen = torch.as_tensor(index).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"index must hold the numbers of samples, not {index!r}") from None
    if chosen.numel() == 0:
        raise InputError("index holds no sample: at least one is needed")
    if chosen.ndim != 1 or chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.is_complex():
        shape = tuple(chosen.shape)
        raise InputError(f"index must hold integers, the numbers of samples, not {chosen.dtype} of shape {shape}")
    low, high = int(chosen.min()), int(chosen.max())
    if low < 0 or high >= samples:
        raise InputError(f"index runs from {low} to {high}, but there are {samples} samples: 0 to {samples - 1}")
    return chosen.to(torch.int64)


def finite_number(value: object, name: str, *, least: float | None = None) -> float:
    """Check a finite real number, at least `least` where that is given."""
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise InputError(f"{name} must be a finite real number, not {value!r}")
    if least is not None and float(value) < least:
        raise InputError(f"{name} must be at least {least:g}, not {value!r}")
    return float(value)


def check_tensor(value: object, name: str, *, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Check a tensor of `rows` rows: its kind, length, dtype and device (not its values)."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise InputError(f"{name} must be a torch tensor, not {kind}: torch.as_tensor(...) makes one")
    if value.ndim not in (1, 2) or value.shape[0] != rows:
        raise InputError(f"{name} has shape {tuple(value.shape)}; expected ({rows},) or ({rows}, m)")
    if value.dtype != dtype:
        raise InputError(f"{name} has dtype {value.dtype}, expected {dtype}: {name}.to({dtype}) converts it")
    if value.device != device:
        raise InputError(f"{name} is on {value.device}, expected {device}: {name}.to({str(device)!r}) moves it")
    return value.detach()


def check_state(value: object, name: str, *, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Check a state vector such as θ: a finite tensor of shape (size,)."""
    if isinstance(value, Tensor) and value.shape != (size,):
        raise InputError(f"{name} has shape {tuple(value.shape)}; expected ({size},)")
    checked = check_tensor(value, name, rows=size, dtype=dtype, device=device)
    check_finite(checked, name)
    return checked


def check_finite(value: Tensor, name: str) -> None:
    """Refuse NaN and Inf, with how many there are and where the first is."""
    if value.numel() == 0 or all(bool(torch.isfinite(end)) for end in value.aminmax()):
        return
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        place = where[0] if len(where) == 1 else where
        raise NonFiniteError(
            f"{name} holds {int(bad.sum())} NaN or Inf of {value.numel()} entries; the first is at {place}"
        )


def speaks_for(owner: object, name: str, others: Sequence[str]) -> bool:
    """Say whether a method is of the class that the others are of: overridden ones are of another function than it."""
    for kind in type(owner).__mro__:
        if name in vars(kind):
            return not set(others) & set(getattr(owner, "__dict__", {}))
        if set(others) & set(vars(kind)):
            return False
    return False


def check_second_derivatives(value: object) -> None:
    """Check the option that says whether products are held against differences."""
    if value not in ("checked", "unchecked"):
        raise InputError(f"second_derivatives must be 'checked' or 'unchecked', not {value!r}")
