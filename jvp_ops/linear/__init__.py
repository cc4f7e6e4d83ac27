"""Linear maps on a device, and what is composed of them: what an operator multiplies by.

A map knows how it was composed (`structure`), so that symmetry, the same map in float64, structured assembly and one
spectrum from another follow from its parts. No product waits for the device.
"""

from jvp_ops.linear._combine import Product as Product
from jvp_ops.linear._combine import Shifted as Shifted
from jvp_ops.linear._combine import Sum as Sum
from jvp_ops.linear._combine import Transposed as Transposed
from jvp_ops.linear._combine import power as power
from jvp_ops.linear._combine import product as product
from jvp_ops.linear._combine import shifted as shifted
from jvp_ops.linear._combine import summed as summed
from jvp_ops.linear._combine import transposed as transposed
from jvp_ops.linear._coupled import Coefficient as Coefficient
from jvp_ops.linear._coupled import Coefficients as Coefficients
from jvp_ops.linear._coupled import Coupled as Coupled
from jvp_ops.linear._coupled import coupled as coupled
from jvp_ops.linear._coupling import Coupling as Coupling
from jvp_ops.linear._elementary import diagonal as diagonal
from jvp_ops.linear._elementary import identity_map as identity_map
from jvp_ops.linear._elementary import rank_one as rank_one
from jvp_ops.linear._map import Apply as Apply
from jvp_ops.linear._map import LinearMap as LinearMap
from jvp_ops.linear._map import Panels as Panels
from jvp_ops.linear._map import no_adjoint as no_adjoint
from jvp_ops.linear._select import block_of as block_of
from jvp_ops.linear._select import numbers_of as numbers_of
from jvp_ops.linear._select import selection_of as selection_of
