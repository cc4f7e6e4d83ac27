"""`load`: any saved result, made again."""

import importlib
from pathlib import Path
from typing import Any

from jvp_ops.errors import DataError
from jvp_ops.store import read_record

KINDS = {
    "Eigenpairs": "jvp_ops.eigen",
    "SingularTriplets": "jvp_ops.eigen",
    "CovariantVectors": "jvp_ops.dynamics",
    "FiniteTimeExponents": "jvp_ops.dynamics",
    "LyapunovSpectrum": "jvp_ops.dynamics",
    "Tracking": "jvp_ops.dynamics",
}


def load(folder: str | Path) -> Any:
    """Make a result again from the folder that its ``save`` wrote, equal to the one that was saved.

    Parameters
    ----------
    folder : str or Path
        With ``run.json`` and ``arrays.npz``; no pickle is read.

    Returns
    -------
    Eigenpairs, SingularTriplets, LyapunovSpectrum, FiniteTimeExponents, CovariantVectors or Tracking
        Its tensors on the CPU, whatever device they were on.

    Raises
    ------
    DataError
        The folder is damaged or not there, is of another format, or holds no result.

    Examples
    --------
    >>> import tempfile, jvp_ops as jo, numpy as np
    >>> pairs = jo.eigenpairs(np.diag([3.0, 1.0, 2.0]), 2, "LA")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = jo.load(pairs.save(f"{folder}/run"))
    >>> bool((again.values == pairs.values).all()), again.stopped
    (True, 'converged')
    """
    kind = read_record(folder)["result"]
    if kind not in KINDS:
        raise DataError(f"{folder} holds a {kind}, which this version of jvp_ops does not know")
    return getattr(importlib.import_module(KINDS[kind]), kind).read(folder)
