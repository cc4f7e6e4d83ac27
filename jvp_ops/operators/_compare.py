"""Checks of a dense matrix, in memory or in a file, by row blocks: against its transpose and against its operator."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._checks import positive_int
from jvp_ops._random import Rng, generator, normal
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.operators._tensor_operator import TensorOperator

Matrix = Tensor | NDArray[np.floating]
BLOCK_ROWS = 1024


def symmetry_error(matrix: Matrix) -> float:
    """Compute ‖A − Aᵀ‖_F / ‖A‖_F of a square matrix, in float64; zero for the zero matrix.

    Parameters
    ----------
    matrix : Tensor or ndarray, shape (n, n)
        A memory map is read a block at a time.

    Raises
    ------
    InputError
        It is not square.

    Examples
    --------
    >>> symmetry_error(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), symmetry_error(np.array([[0.0, 1.0], [-1.0, 0.0]]))
    (0.0, 2.0)
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"symmetry is a property of square matrices, not of shape {tuple(matrix.shape)}")
    difference = square = 0.0
    for start in range(0, len(matrix), BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        for first in range(start, len(matrix), BLOCK_ROWS):  # tiles on and above the diagonal, each with its mirror
            last = first + BLOCK_ROWS
            tile, mirror = _tensor(matrix[start:stop, first:last]), _tensor(matrix[first:last, start:stop]).mT
            times = 1 if first == start else 2
            difference += times * float((tile - mirror).square().sum())
            square += float(tile.square().sum()) + (float(mirror.square().sum()) if times == 2 else 0.0)
    if not np.isfinite(difference) or not np.isfinite(square):
        raise NonFiniteError("the matrix holds NaN or Inf, or numbers whose squares overflow")
    return float(np.sqrt(difference / square)) if square > 0 else 0.0


def product_error(operator: TensorOperator, matrix: Matrix, *, probes: int = 4, rng: Rng = 0) -> float:
    """Compare a dense matrix M with its operator A: the largest √n ‖A v − M v‖ / ‖M − s·I‖_F ‖v‖ over random v.

    For standard normal v, ‖M v‖ is about ‖M‖_F, so this is the relative error of a product with a random direction. Of
    A = s·I + scale·H, s·I is left out of the norm, since it would hide an error in H; else s = 0. Rounding alone
    gives a few hundred units of the last place, most of them from the diagonal.

    Parameters
    ----------
    operator : TensorOperator
    matrix : Tensor or ndarray, shape of the operator
        A memory map is read a block at a time.
    probes : int
        Random directions.
    rng : int or numpy Generator
        Draws them.

    Raises
    ------
    InputError
        The shapes differ.
    """
    if tuple(matrix.shape) != tuple(operator.shape):
        raise InputError(f"the matrix has shape {tuple(matrix.shape)}, the operator {tuple(operator.shape)}")
    V = normal(
        generator(rng),
        operator.shape[1],
        positive_int(probes, "probes"),
        dtype=operator.torch_dtype,
        device=operator.device,
    )
    image = operator.apply(V).double().cpu()
    difference, square, wide = torch.zeros(probes, dtype=torch.float64), 0.0, V.double().cpu()
    for start in range(0, len(matrix), BLOCK_ROWS):
        block = _tensor(matrix[start : start + BLOCK_ROWS])
        difference += (image[start : start + BLOCK_ROWS] - block @ wide).square().sum(0)
        if operator.affine is not None:
            block.diagonal(start).sub_(operator.affine.shift)
        square += float(block.square().sum())
    lengths = torch.linalg.vector_norm(wide, dim=0) / np.sqrt(operator.shape[1])
    largest = float((difference.sqrt() / lengths).max())
    return largest / float(np.sqrt(square)) if square > 0 else largest


def _tensor(block: Matrix) -> Tensor:
    return (block.cpu() if isinstance(block, Tensor) else torch.from_numpy(np.array(block))).to(
        torch.float64, copy=True
    )
