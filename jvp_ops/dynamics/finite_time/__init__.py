"""Finite-time exponents: the singular values of the product of Jacobians over a window."""

from jvp_ops.dynamics.finite_time._exponents import finite_time_exponents as finite_time_exponents
from jvp_ops.dynamics.finite_time._result import FiniteTimeExponents as FiniteTimeExponents
