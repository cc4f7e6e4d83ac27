"""Eigenvalues of the Hessian along training, against the threshold of stability."""

from jvp_ops.dynamics.tracking._result import Tracking as Tracking
from jvp_ops.dynamics.tracking._track import track_eigenpairs as track_eigenpairs
