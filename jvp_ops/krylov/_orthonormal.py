"""Orthonormal blocks by inner products and one small factorization, with decisions of rank."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._random import normal
from jvp_ops.krylov._inner import inner, placed, small

DEPENDENT = 1e-10  # a direction of relative length below this, once the basis is taken out, is rounding
INDEPENDENT = 0.1
CLEAR = 30  # times √ε of the longest: lengths that a Gram matrix tells to three digits


def orthonormal(block: Tensor, width: int, *, against: tuple[Tensor, ...], rng: np.random.Generator) -> Tensor:
    """Orthonormalize a block against orthonormal ones and itself; where it has not the rank, refill at random.

    Parameters
    ----------
    block : Tensor, shape (n, m)
    width : int
        How many columns are given back; no more than n less the columns of `against`.
    against : tuple of Tensor, each of shape (n, p)
        Orthonormal, dense or sparse.
    rng : numpy.random.Generator
        Draws the directions that are missing.

    References
    ----------
    A. Stathopoulos and K. Wu, "A block orthogonalization procedure with constant synchronization requirements", SIAM
    Journal on Scientific Computing 23 (2002).
    """
    found = independent(block, against)[:, :width]
    for _ in range(8):
        if found.shape[1] == width:
            break
        extra = normal(rng, len(block), width - found.shape[1], dtype=block.dtype, device=block.device)
        found = independent(torch.cat([found, extra], dim=1), against)
    return found


def independent(block: Tensor, against: tuple[Tensor, ...]) -> Tensor:
    """Give an orthonormal basis of what a block adds to orthonormal ones, longest directions first.

    Lengths are relative to those of the block's columns. A Gram matrix tells those above √ε of the longest; what is
    shorter is taken again by itself, at its own scale. A second pass then removes what rounding left.
    """
    least = max(DEPENDENT, 10 * torch.finfo(block.dtype).eps)
    found, rest = block[:, :0], _unit(block)
    while rest.shape[1]:
        parts, rest = _parted(_projected_out(rest, (*against, found)), least)
        if parts.shape[1] == 0:
            break
        found = torch.cat([found, parts], dim=1)
    found = _projected_out(found, against)
    lengths, turn = _principal(found)
    clear = lengths > INDEPENDENT
    straight = turn[:, clear] / lengths[clear]
    return found @ placed(straight @ turn.T if clear.all() else straight, found)  # (VᵀV)^(-1/2) keeps their order


def _principal(block: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the lengths of a block's principal directions, longest first, and the turn to them."""
    squares, turn = torch.linalg.eigh(torch.from_numpy(small(inner(block, block))))
    return squares.clamp_min(0).sqrt().flip(0).numpy(), turn.flip(1).numpy()


def _parted(block: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Turn a block to its principal directions: unit ones of those that its Gram matrix tells, and the shorter ones."""
    lengths, turn = _principal(block)
    told = CLEAR * np.sqrt(torch.finfo(block.dtype).eps) * lengths.max(initial=0.0)
    clear = lengths > max(least, told)
    return block @ placed(turn[:, clear] / lengths[clear], block), block @ placed(turn[:, ~clear], block)


def _unit(block: Tensor) -> Tensor:
    """Give each column the length 1, without over- or underflow of squares; one of zeros stays."""
    largest = block.abs().amax(dim=0)
    block = block / torch.where(largest > 0, largest, 1)
    lengths = torch.linalg.vector_norm(block, dim=0)
    return block / torch.where(lengths > 0, lengths, 1)


def _projected_out(block: Tensor, against: tuple[Tensor, ...]) -> Tensor:
    for basis in against:
        block = block - basis @ inner(basis, block)
    return block
