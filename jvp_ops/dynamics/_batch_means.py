"""Standard errors of mean growth, by batch means."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEWEST = 8  # stretches that tell a standard error


def batch_errors(growth: Floats, intervals: NDArray[np.int64]) -> Floats:
    """Estimate the standard errors of the mean growth per step by batch means, shape (k,).

    About √N batches of neighbouring stretches, 4 to 32 of them, whose scatter counts correlation within a batch.

    References
    ----------
    C. J. Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7 (1992), section 3.2.
    """
    stretches, k = growth.shape
    if stretches < FEWEST:
        return np.full(k, np.nan)
    batches = int(np.clip(np.sqrt(stretches), 4, 32))
    edges = np.linspace(0, stretches, batches + 1).astype(int)[:-1]
    steps = np.add.reduceat(intervals, edges)
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(growth, edges, axis=0) / steps[:, None]
        weights = (steps / steps.sum())[:, None]
        center = (weights * means).sum(axis=0)
        errors: Floats = np.sqrt((weights**2 * (means - center) ** 2).sum(axis=0) * batches / (batches - 1))
    return errors
