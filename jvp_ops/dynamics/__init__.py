"""Growth along an orbit: how small changes of the state grow over the steps of training."""

from jvp_ops.dynamics._leading import leading_frame as leading_frame
from jvp_ops.dynamics._local import local_growth as local_growth
from jvp_ops.dynamics._orbit import Orbit as Orbit
from jvp_ops.dynamics._tangent import TangentSystem as TangentSystem
from jvp_ops.dynamics.covariant import CovariantVectors as CovariantVectors
from jvp_ops.dynamics.covariant import covariant_vectors as covariant_vectors
from jvp_ops.dynamics.finite_time import FiniteTimeExponents as FiniteTimeExponents
from jvp_ops.dynamics.finite_time import finite_time_exponents as finite_time_exponents
from jvp_ops.dynamics.lyapunov import LyapunovSpectrum as LyapunovSpectrum
from jvp_ops.dynamics.lyapunov import kaplan_yorke as kaplan_yorke
from jvp_ops.dynamics.lyapunov import lyapunov_spectrum as lyapunov_spectrum
from jvp_ops.dynamics.tracking import Tracking as Tracking
from jvp_ops.dynamics.tracking import track_eigenpairs as track_eigenpairs
