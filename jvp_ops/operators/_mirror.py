"""A look at the entries of a matrix that is declared symmetric, and at their mirrors, before the two are made one."""

import torch
from torch import Tensor

from jvp_ops.errors import InputError

ROWS = 64  # compared at once, so that little memory is taken


class AsymmetryError(InputError):
    """An operator was declared symmetric, and its entries say that it is not."""


class Mirror:
    """Compares entries with their mirrors, against the largest entry seen.

    The bound is half of the digits, √eps of the coarser of the dtypes at work: 3.5e-4 of the largest entry in float32,
    1.5e-8 in float64. Rounding alone stays far below: an entry is a sum, and a sum of m terms is wrong by about √m eps
    of the largest of them, by m eps at the very worst. A wrong derivative is wrong in its leading digits.

    Parameters
    ----------
    dtype : torch.dtype
        What the entries were computed in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._largest = dtype, 0.0

    def see(self, entries: Tensor) -> None:
        """Take note of the largest of finite entries."""
        if entries.numel():
            self._largest = max(self._largest, *(abs(float(end)) for end in entries.aminmax()))

    def compare(self, entries: Tensor, mirrored: Tensor, row: int, column: int = 0) -> None:
        """Compare entries, the first of them at `row`, `column` of the matrix, with what their mirrors say.

        Raises
        ------
        AsymmetryError
            They differ by more than rounding.
        """
        eps = max(torch.finfo(dtype).eps for dtype in (self._dtype, entries.dtype))
        for first in range(0, len(entries), ROWS) if entries.numel() else ():
            mine, other = entries[first : first + ROWS], mirrored[first : first + ROWS]
            gaps = (mine - other).abs_()
            if float(gaps.max()) > eps**0.5 * self._largest:
                i, j = divmod(int(gaps.argmax()), gaps.shape[1])
                raise self._error((row + first + i, column + j), float(mine[i, j]), float(other[i, j]))

    def _error(self, place: tuple[int, int], entry: float, mirrored: float) -> AsymmetryError:
        gap = abs(entry - mirrored)
        digits = "compute in float64, " if self._dtype == torch.float32 else ""
        return AsymmetryError(
            f"the operator is declared symmetric, but its entry {place} is {entry:.6g} and the mirror of that "
            f"{mirrored:.6g}: they differ by {gap:.1e}, {gap / self._largest:.1e} of the largest entry met. A function "
            "in it has wrong second derivatives (one of its own autograd rules, a detach), or rounding hides its "
            f"entries: mend the function, {digits}or give the operator its adjoint and symmetric=False; "
            "jvp_ops.symmetry_error(A.apply(I)) measures all of it"
        )
