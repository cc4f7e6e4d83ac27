"""Whether tangent vectors can have turned to the leading directions."""

import numpy as np
from numpy.typing import NDArray

from jvp_ops.dynamics._batch_means import batch_errors

Floats = NDArray[np.float64]


def alignment_notes(
    growth: Floats, intervals: NDArray[np.int64], transient: int, random_of: int, rounding: float
) -> list[str]:
    """Note where the vectors cannot be the leading ones yet.

    A random direction of n numbers holds a part of about √(k/n) of the leading k, and takes as many e-folds to turn
    to them; `random_of` is n, or 0 for vectors that were given. One vector that does not grow tells nothing. In any
    case a vector that outgrows the one before it clearly, and by more than scatter, shows an unsettled flag.
    """
    steps, (_, k) = int(intervals.sum()), growth.shape
    values = growth.sum(axis=0) / steps
    finite, notes = values[np.isfinite(values)], []
    if random_of and len(finite) and (k > 1 or finite[0] > 0):
        needed = 0.5 * float(np.log(random_of / k))
        seen = (steps + transient) * max(float(np.ptp(finite)), float(finite.max()), 0.0)
        if seen < needed:
            notes.append(
                f"over all {steps + transient} steps the vectors grew or parted by {seen:.2g} e-folds and less, and it "
                f"takes about {needed:.2g} for random directions of {random_of} numbers to turn to the leading ones: "
                "the leading exponents may be larger; start from leading_frame, where the map has one, or take many "
                "more steps (finite_time_exponents finds the largest growth in a window)"
            )
    with np.errstate(invalid="ignore"):
        gains = np.diff(growth, axis=1)
        gained = gains.sum(axis=0) / steps
        ahead = (gained > 3 * batch_errors(gains, intervals)) & (
            gained > max(0.1 * abs(finite).max(initial=0), 10 * rounding)
        )
    if not notes and ahead.any():
        i = int(np.argmax(ahead))
        notes.append(
            f"exponent {i + 2} is above exponent {i + 1} by more than 3 standard errors: the vectors have not turned "
            "to the leading directions yet, and the leading exponents may be larger; start from leading_frame at the "
            "state where measuring begins, or take more steps"
        )
    return notes
