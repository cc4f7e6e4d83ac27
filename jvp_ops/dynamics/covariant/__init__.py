"""Covariant Lyapunov vectors: directions that the Jacobians carry into each other."""

from jvp_ops.dynamics.covariant._result import CovariantVectors as CovariantVectors
from jvp_ops.dynamics.covariant._vectors import covariant_vectors as covariant_vectors
