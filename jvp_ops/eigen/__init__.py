"""Eigenpairs and singular triplets, each with a certificate: block Lanczos, block Krylov–Schur, LAPACK, ARPACK."""

from jvp_ops.eigen._certify import Cluster as Cluster
from jvp_ops.eigen._eigenpairs import eigenpairs as eigenpairs
from jvp_ops.eigen._inertia import Inertia as Inertia
from jvp_ops.eigen._inertia import inertia as inertia
from jvp_ops.eigen._monitor import SolveStatus as SolveStatus
from jvp_ops.eigen._result import Eigenpairs as Eigenpairs
from jvp_ops.eigen._svd import svd as svd
from jvp_ops.eigen._svd_result import SingularTriplets as SingularTriplets
