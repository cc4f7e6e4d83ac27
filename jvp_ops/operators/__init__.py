"""A linear map as a scipy LinearOperator that multiplies torch tensors on their device.

This package knows nothing of losses and maps: they hand it a `LinearMap` (how to multiply), and it gives
what users hold (the scipy contract, algebra, blocks by name, dense assembly, checks of what goes in and comes out).
"""

from jvp_ops.operators._compare import product_error as product_error
from jvp_ops.operators._compare import symmetry_error as symmetry_error
from jvp_ops.operators._kinds import GaussNewtonOperator as GaussNewtonOperator
from jvp_ops.operators._kinds import HessianOperator as HessianOperator
from jvp_ops.operators._kinds import JacobianOperator as JacobianOperator
from jvp_ops.operators._make import as_operator as as_operator
from jvp_ops.operators._make import dense as dense
from jvp_ops.operators._make import diagonal_operator as diagonal_operator
from jvp_ops.operators._make import identity as identity
from jvp_ops.operators._tensor_operator import Affine as Affine
from jvp_ops.operators._tensor_operator import PhaseSpace as PhaseSpace
from jvp_ops.operators._tensor_operator import TensorOperator as TensorOperator
