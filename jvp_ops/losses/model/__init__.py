"""The loss of any torch module over any data: θ bound into it, summed over batches, checked, linearized."""

from jvp_ops.losses.model._loss import ModelLoss as ModelLoss
