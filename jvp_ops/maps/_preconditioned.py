"""The Hessian in the coordinates that an adaptive optimizer descends in."""

from dataclasses import replace

from torch import Tensor

from jvp_ops.linear import diagonal, product, shifted
from jvp_ops.operators import HessianOperator
from jvp_ops.store import sha256_of


def preconditioned(hessian: HessianOperator, P: Tensor, decay: float) -> HessianOperator:
    """Make P^½ (H + ωI) P^½, symmetric, for the diagonal P of a preconditioner and ω = `decay`."""
    H, root = hessian.linear, diagonal(P.sqrt(), hessian.rows)
    linear = product(root, shifted(H, decay) if decay else H, root)
    return HessianOperator(
        replace(linear, identity=lambda: {"preconditioner": sha256_of(P), "decay": decay, "of": H.identity()})
    )
