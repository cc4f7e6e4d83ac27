"""Two orthonormal bases, of a rectangular A's columns and of its rows, that grow together: Golub–Kahan–Lanczos."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops.krylov._basis import BlockBasis, multiplied, plain
from jvp_ops.krylov._inner import inner, placed, small
from jvp_ops.krylov._orthonormal import orthonormal
from jvp_ops.krylov._projected import Ranking, Ritz
from jvp_ops.operators import TensorOperator


class TwoSidedBasis(BlockBasis):
    """V (n, s) as in `BlockBasis`, with U (m, s) orthonormal whose span holds A V, and the image Aᵀ U.

    The projection is Vᵀ Aᵀ U, and its singular values are those of A on the span of V: nowhere is AᵀA formed, so that
    small ones keep their digits. With U P Σ = A V Q, the residual of a triplet is Aᵀ U P − V Q Σ.

    Parameters
    ----------
    m, n : int
        The shape of A, m ≥ n.
    capacity, dtype, device, rng
        As in `BlockBasis`.

    References
    ----------
    G. H. Golub, W. Kahan, "Calculating the singular values and pseudo-inverse of a matrix" (1965); J. Baglama,
    L. Reichel, "Augmented implicitly restarted Lanczos bidiagonalization methods", SIAM Journal on Scientific
    Computing 27 (2005).
    """

    cost = 2
    claim = "the operator's adjoint is not its transpose: uᵀ(Av) and (Aᵀu)ᵀv differ"
    remedy = "mend its adjoint product"

    def __init__(
        self,
        m: int,
        n: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(n, capacity, hermitian=True, dtype=dtype, device=device, rng=rng)
        self._left = torch.empty(capacity, m, dtype=dtype, device=device)
        self._apart = 0.0

    @property
    def left(self) -> Tensor:
        """U, shape (m, size)."""
        return self._left[: self.size].mT

    @property
    def asymmetry(self) -> float:
        """How far products with A and with Aᵀ were apart, in any block."""
        return self._apart

    def grow(self, operator: TensorOperator, block: Tensor) -> Tensor:
        """Multiply a block of V, orthonormalize it into U, and multiply that by the transpose; give Aᵀ U's part."""
        old, new = self.size, self.size + block.shape[1]
        forward = multiplied(operator.apply, block, operator)
        beside = orthonormal(forward, block.shape[1], against=(self.left,), rng=self.rng)
        image = multiplied(operator.apply_adjoint, beside, operator)
        self._left[old:new] = beside.mT
        self.expand(block, image)
        apart = np.abs(self.projection[old:, old:] - small(inner(forward, beside)))
        self._apart = max(self._apart, float(apart.max(initial=0.0)))
        return image

    def renew(self, operator: TensorOperator) -> None:
        """Take images under another operator: a more exact one."""
        self._apart = 0.0
        super().renew(operator)

    def solve(self, ranking: Ranking, p: int) -> Ritz:
        """Decompose the projection, for the p best singular values."""
        Q, values, Ph = torch.linalg.svd(torch.from_numpy(self.projection))
        order = ranking(values.numpy())[: min(p, self.size)]
        kept = values.numpy()[order]
        return Ritz(kept, Q.numpy()[:, order], np.diag(kept), Ph.mT.numpy()[:, order])

    def restart(self, kept: Ritz) -> None:
        """Replace both bases by singular vectors in them."""
        self._left[: kept.P.shape[1]] = placed(kept.P, self._left).mT @ self._left[: self.size]
        super().restart(kept)

    def redraw(self, operator: TensorOperator, columns: list[int]) -> Tensor:
        """Put random directions in place of some columns of U whose A v is zero, and give their images.

        What A V spans holds no left null vector: where A v = 0, the u beside it must come from elsewhere.
        """
        others = [i for i in range(self.size) if i not in columns]
        empty = self._left.new_zeros(self._left.shape[1], 0)
        drawn = orthonormal(empty, len(columns), against=(self._left[others].mT,), rng=self.rng)
        image = multiplied(operator.apply_adjoint, drawn, operator)
        self._left[columns], self._image[columns] = drawn.mT, image.mT
        self.projection[:, columns] = small(inner(self.vectors, image))
        return image

    def combine_left(self, P: NDArray[np.float64]) -> Tensor:
        """Compute U P, shape (m, p)."""
        return self.left @ placed(P, self._left)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give what a checkpoint keeps."""
        return {**super().arrays(), "left": plain(self._left[: self.size]), "apart": np.array(self._apart)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to what `arrays` gave."""
        super().restore(arrays)
        self._left[: self.size] = torch.from_numpy(arrays["left"]).to(self.device)
        self._apart = float(arrays["apart"])
