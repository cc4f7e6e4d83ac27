"""Eigenpairs of an operator, each with a residual and, where one exists, a bound on its error."""

from jvp_ops.eigen._inertia import Inertia as Inertia
from jvp_ops.eigen._inertia import inertia as inertia
from jvp_ops.eigen._result import Eigenpairs as Eigenpairs
from jvp_ops.eigen._solve import eigenpairs as eigenpairs
