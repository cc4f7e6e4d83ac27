"""An orthonormal basis V that grows by blocks, its image AV, and the projection VᵀAV."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops.krylov._inner import inner, placed, small
from jvp_ops.krylov._orthonormal import orthonormal
from jvp_ops.krylov._projected import Ranking, Ritz, ritz
from jvp_ops.operators import TensorOperator


class BlockBasis:
    """The basis V of a Krylov space, on the device of the operator; the small projection is on the CPU.

    The image is kept beside the basis. So residuals of any vectors in the span are exact whatever directions were
    added (random ones, or those of a warm start), which the Lanczos recurrence alone does not allow.

    Parameters
    ----------
    n : int
        The order of A.
    capacity : int
        The most vectors it holds.
    hermitian : bool
        Whether A is symmetric, so that the projected problem has orthogonal eigenvectors.
    dtype : torch.dtype
        Of basis and image.
    device : torch.device
    rng : numpy.random.Generator
        Draws new directions where given ones are dependent.
    deflated : Tensor, shape (n, d), optional
        Orthonormal vectors, dense or sparse, that the basis is kept orthogonal to.
    """

    cost = 1  # products a direction
    claim = "the operator is declared symmetric, but uᵀAv and vᵀAu differ"
    remedy = "give it its adjoint and symmetric=False"

    def __init__(
        self,
        n: int,
        capacity: int,
        *,
        hermitian: bool,
        dtype: torch.dtype,
        device: torch.device,
        rng: np.random.Generator,
        deflated: Tensor | None = None,
    ) -> None:
        self.n, self.capacity, self.rng, self.deflated = n, capacity, rng, deflated
        self.hermitian, self.dtype, self.device = hermitian, dtype, device
        self.size = 0
        self._vectors = torch.empty(capacity, n, dtype=dtype, device=device)  # vectors in rows: a prefix is contiguous
        self._image = torch.empty(capacity, n, dtype=dtype, device=device)
        self.projection: NDArray[np.float64] = np.zeros((0, 0))

    @property
    def vectors(self) -> Tensor:
        """V, shape (n, size)."""
        return self._vectors[: self.size].mT

    @property
    def image(self) -> Tensor:
        """A V, shape (n, size)."""
        return self._image[: self.size].mT

    @property
    def room(self) -> int:
        """How many more directions there are in the whole space."""
        return self.n - self.size - (0 if self.deflated is None else self.deflated.shape[1])

    @property
    def asymmetry(self) -> float:
        """How far the projection is from symmetric, where A is said to be."""
        return float(np.abs(self.projection - self.projection.T).max()) if self.hermitian else 0.0

    def orthonormal(self, block: Tensor, width: int) -> Tensor:
        """Orthonormalize a block against the basis and itself, to `width` columns or as many as there is room for."""
        against = (self.vectors,) if self.deflated is None else (self.deflated, self.vectors)
        return orthonormal(block.to(self.dtype), min(width, self.room), against=against, rng=self.rng)

    def grow(self, operator: TensorOperator, block: Tensor) -> Tensor:
        """Multiply an orthonormal block, orthogonal to the basis, and add both; give the image."""
        image = multiplied(operator.apply, block, operator)
        self.expand(block, image)
        return image

    def expand(self, block: Tensor, image: Tensor) -> None:
        """Add an orthonormal block, orthogonal to the basis, and its image."""
        old, new = self.size, self.size + block.shape[1]
        self._vectors[old:new] = block.mT
        self._image[old:new] = image.mT
        self.size = new
        both = small(torch.cat([inner(self.vectors, self.image[:, old:]), inner(self.image[:, :old], block)]))
        grown = np.zeros((new, new))
        grown[:old, :old], grown[:, old:], grown[old:, :old] = self.projection, both[:new], both[new:].T
        self.projection = grown

    def renew(self, operator: TensorOperator) -> None:
        """Take the image under another operator: a more exact one."""
        block, self.size, self.projection = self.vectors.clone(), 0, np.zeros((0, 0))
        self.grow(operator, block)

    def solve(self, ranking: Ranking, p: int) -> Ritz:
        """Solve the projected problem for the p best values."""
        return ritz(self.projection, ranking, self.hermitian, min(p, self.size))

    def restart(self, kept: Ritz) -> None:
        """Replace the basis by Ritz (Schur) vectors of it."""
        p = kept.Q.shape[1]
        for rows, turn in ((self._vectors, kept.Q), (self._image, kept.P)):
            rows[:p] = placed(turn, rows).mT @ rows[: self.size]
        self.size, self.projection = p, kept.Q.T @ self.projection @ kept.P

    def residuals(self, found: Ritz) -> Tensor:
        """Compute A V Q − V Q S, shape (n, p)."""
        return self.image @ placed(found.P, self._image) - self.combine(found.Q @ found.S)

    def combine(self, Q: NDArray[np.float64]) -> Tensor:
        """Compute V Q, shape (n, p)."""
        return self.vectors @ placed(Q, self._vectors)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give what a checkpoint keeps."""
        return {
            "basis": plain(self._vectors[: self.size]),
            "image": plain(self._image[: self.size]),
            "projection": self.projection,
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to what `arrays` gave."""
        self.size = len(arrays["basis"])
        self._vectors[: self.size] = torch.from_numpy(arrays["basis"]).to(self.device)
        self._image[: self.size] = torch.from_numpy(arrays["image"]).to(self.device)
        self.projection = arrays["projection"]


def multiplied(product: Any, block: Tensor, operator: TensorOperator) -> Tensor:
    """Multiply a block in the operator's dtype, and give its image in the block's."""
    image: Tensor = product(block.to(operator.torch_dtype).contiguous())
    return image.to(block.dtype)


def plain(tensor: Tensor) -> NDArray[Any]:
    """Copy to numpy."""
    copied: NDArray[Any] = tensor.cpu().numpy().copy()
    return copied
