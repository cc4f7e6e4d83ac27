"""A training step as a map f: state → state, with its Jacobian as an operator."""

from jvp_ops.maps._adaptive import Adam as Adam
from jvp_ops.maps._adaptive import AdamW as AdamW
from jvp_ops.maps._adaptive import RMSProp as RMSProp
from jvp_ops.maps._function import FunctionMap as FunctionMap
from jvp_ops.maps._gradient_descent import GradientDescent as GradientDescent
from jvp_ops.maps._minibatch import MinibatchSGD as MinibatchSGD
from jvp_ops.maps._momentum import HeavyBall as HeavyBall
from jvp_ops.maps._momentum import Nesterov as Nesterov
from jvp_ops.maps._protocol import Map as Map
from jvp_ops.maps._protocol import jacobian_identity as jacobian_identity
from jvp_ops.maps._protocol import linearized as linearized
