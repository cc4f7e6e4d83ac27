"""The reference network: the loss, the seam (`Form`) behind it, and one file for each implementation."""

from jvp_ops.losses.two_layer._loss import TwoLayerLoss as TwoLayerLoss
