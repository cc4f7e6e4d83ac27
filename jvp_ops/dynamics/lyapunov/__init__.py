"""Lyapunov exponents: mean growth along an orbit."""

from jvp_ops.dynamics.lyapunov._result import LyapunovSpectrum as LyapunovSpectrum
from jvp_ops.dynamics.lyapunov._result import kaplan_yorke as kaplan_yorke
from jvp_ops.dynamics.lyapunov._spectrum import lyapunov_spectrum as lyapunov_spectrum
