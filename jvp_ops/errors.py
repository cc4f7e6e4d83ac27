"""Errors and warnings: one root each, so that ``except JvpOpsError`` catches all that the project raises on purpose.

Every message says what was given, what was expected, and what to do.
"""

from typing import Any

__all__ = [
    "ConvergenceError",
    "DataError",
    "InputError",
    "JvpOpsError",
    "JvpOpsWarning",
    "MemoryBudgetError",
    "MissingExtraError",
    "NonFiniteError",
]


class JvpOpsError(Exception):
    """The root of every error that jvp_ops raises on purpose."""


class JvpOpsWarning(RuntimeWarning):
    """The root of every warning of jvp_ops, so that a filter can tell them from those of torch or numpy."""


class InputError(JvpOpsError, ValueError):
    """An argument is of the wrong type, shape, dtype, device or range."""


class DataError(JvpOpsError, ValueError):
    """A data file or data loader is missing, damaged, or not what it was a moment ago."""


class MemoryBudgetError(JvpOpsError, MemoryError):
    """The work needs more memory than it was given; the message states both sizes."""


class NonFiniteError(JvpOpsError, ArithmeticError):
    """NaN or Inf was seen; the message names where.

    Attributes
    ----------
    partial
        What there was before: a solver's `Eigenpairs`, the finite part of an orbit, a partial spectrum; else None.
    """

    partial: Any = None
    found: Any = None  # a solver's own state, on its way to `partial`


class ConvergenceError(JvpOpsError, RuntimeError):
    """An iterative solver found nothing at all within its budget."""


class MissingExtraError(JvpOpsError, ImportError):
    """An optional dependency is not installed.

    Examples
    --------
    >>> print(MissingExtraError.naming("pooch", extra="data", purpose="downloading MNIST"))
    downloading MNIST needs pooch, which is not installed: pip install 'jvp-ops[data]'
    """

    @classmethod
    def naming(cls, package: str, *, extra: str, purpose: str) -> "MissingExtraError":
        """Build the error for a missing `package` that `extra` would bring."""
        return cls(f"{purpose} needs {package}, which is not installed: pip install 'jvp-ops[{extra}]'")
