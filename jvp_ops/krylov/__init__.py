"""A Krylov space on a device: orthonormal blocks, the basis that they make, and the projected problem."""

from jvp_ops.krylov._basis import BlockBasis
from jvp_ops.krylov._inner import defect, inner, placed, small
from jvp_ops.krylov._orthonormal import independent, orthonormal
from jvp_ops.krylov._projected import Ritz, groups_within, left_basis, residual_lengths, ritz, scaled_gram, schur
from jvp_ops.krylov._two_sided import TwoSidedBasis

__all__ = [
    "BlockBasis",
    "Ritz",
    "TwoSidedBasis",
    "defect",
    "groups_within",
    "independent",
    "inner",
    "left_basis",
    "orthonormal",
    "placed",
    "residual_lengths",
    "ritz",
    "scaled_gram",
    "schur",
    "small",
]
