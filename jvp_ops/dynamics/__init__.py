"""Growth along an orbit: how small changes of the state grow over the steps of training."""

from jvp_ops.dynamics._covariant import covariant_vectors as covariant_vectors
from jvp_ops.dynamics._covariant_result import CovariantVectors as CovariantVectors
from jvp_ops.dynamics._finite_time import finite_time_exponents as finite_time_exponents
from jvp_ops.dynamics._finite_time_result import FiniteTimeExponents as FiniteTimeExponents
from jvp_ops.dynamics._leading import leading_frame as leading_frame
from jvp_ops.dynamics._local import local_growth as local_growth
from jvp_ops.dynamics._orbit import Orbit as Orbit
from jvp_ops.dynamics._spectrum import lyapunov_spectrum as lyapunov_spectrum
from jvp_ops.dynamics._spectrum_result import LyapunovSpectrum as LyapunovSpectrum
from jvp_ops.dynamics._spectrum_result import kaplan_yorke as kaplan_yorke
from jvp_ops.dynamics._tangent import TangentSystem as TangentSystem
from jvp_ops.dynamics._track import track_eigenpairs as track_eigenpairs
from jvp_ops.dynamics._track_result import Tracking as Tracking
