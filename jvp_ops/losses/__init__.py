"""A loss L(θ): its value, its gradient, and its linearizations H and G as operators."""

from jvp_ops.losses._function import FunctionLoss as FunctionLoss
from jvp_ops.losses._point import Point as Point
from jvp_ops.losses._point import point_at as point_at
from jvp_ops.losses._protocol import Loss as Loss
from jvp_ops.losses._protocol import SampledLoss as SampledLoss
from jvp_ops.losses.model import ModelLoss as ModelLoss
from jvp_ops.losses.two_layer import TwoLayerLoss as TwoLayerLoss
