"""The Hessian in the coordinates that an adaptive optimizer descends in."""

from typing import Any

from torch import Tensor

from jvp_ops.operators import HessianOperator, Linearization
from jvp_ops.store import sha256_of


def preconditioned(hessian: HessianOperator, P: Tensor, decay: float) -> HessianOperator:
    """Make P^½ (H + ωI) P^½, symmetric, for the diagonal P of a preconditioner and ω = `decay`."""
    H, root = hessian.linearization, P.sqrt()[:, None]

    def apply(V: Tensor) -> Tensor:
        W = root * V
        image = H.apply(W)
        return root * (image.add(W, alpha=decay) if decay else image)

    def in_float64() -> Any:
        assert H.in_float64 is not None
        return preconditioned(H.in_float64(), P.double(), decay)

    return HessianOperator(
        Linearization.symmetric_of(
            apply,
            H.rows,
            H.dtype,
            H.device,
            identity=lambda: {"preconditioner": sha256_of(P), "decay": decay, "of": H.identity()},
            in_float64=None if H.in_float64 is None else in_float64,
        )
    )
