"""Growth along an orbit: how small changes of the state grow over the steps of training."""

from jvp_ops.dynamics._orbit import Orbit as Orbit
from jvp_ops.dynamics._tangent import TangentSystem as TangentSystem
