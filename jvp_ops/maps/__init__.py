"""A training step as a map f: state → state, with its Jacobian as an operator."""

from jvp_ops.maps._function import FunctionMap as FunctionMap
from jvp_ops.maps._gradient_descent import GradientDescent as GradientDescent
from jvp_ops.maps._protocol import Map as Map
