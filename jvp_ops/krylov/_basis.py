"""An orthonormal basis V that grows by blocks, its image AV, and the projection VᵀAV."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops.krylov._inner import inner, placed, small
from jvp_ops.krylov._orthonormal import orthonormal


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
    dtype : torch.dtype
        Of basis and image.
    device : torch.device
    rng : numpy.random.Generator
        Draws new directions where given ones are dependent.
    deflated : Tensor, shape (n, d), optional
        Orthonormal vectors, dense or sparse, that the basis is kept orthogonal to.
    """

    def __init__(
        self,
        n: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rng: np.random.Generator,
        deflated: Tensor | None = None,
    ) -> None:
        self.n, self.capacity, self.rng, self.deflated = n, capacity, rng, deflated
        self.dtype, self.device = dtype, device
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

    def expand(self, block: Tensor, image: Tensor) -> None:
        """Add an orthonormal block, orthogonal to the basis, and its product with A."""
        old, new = self.size, self.size + block.shape[1]
        self._vectors[old:new] = block.mT
        self._image[old:new] = image.mT
        self.size = new
        both = small(torch.cat([inner(self.vectors, image), inner(self.image[:, :old], block)]))
        grown = np.zeros((new, new))
        grown[:old, :old], grown[:, old:], grown[old:, :old] = self.projection, both[:new], both[new:].T
        self.projection = grown

    def restart(self, Q: NDArray[np.float64]) -> None:
        """Replace V by V Q for Q of shape (size, p) with orthonormal columns."""
        p, turn = Q.shape[1], placed(Q, self._vectors).mT
        for rows in (self._vectors, self._image):
            rows[:p] = turn @ rows[: self.size]
        self.size, self.projection = p, Q.T @ self.projection @ Q

    def residuals(self, Q: NDArray[np.float64], S: NDArray[np.float64]) -> Tensor:
        """Compute A V Q − V Q S, shape (n, p)."""
        return self.image @ placed(Q, self._vectors) - self.vectors @ placed(Q @ S, self._vectors)

    def combine(self, Q: NDArray[np.float64]) -> Tensor:
        """Compute V Q, shape (n, p)."""
        return self.vectors @ placed(Q, self._vectors)

    def replace_image(self, image: Tensor) -> None:
        """Take another image of the same basis: that of a more exact operator."""
        self._image[: self.size] = image.mT
        self.projection = small(inner(self.vectors, self.image))

    def orthonormal(self, block: Tensor, width: int) -> Tensor:
        """Orthonormalize a block against the basis and itself, to `width` columns or as many as there is room for."""
        against = (self.vectors,) if self.deflated is None else (self.deflated, self.vectors)
        return orthonormal(block.to(self.dtype), min(width, self.room), against=against, rng=self.rng)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give what a checkpoint keeps."""
        return {
            "basis": _plain(self._vectors[: self.size]),
            "image": _plain(self._image[: self.size]),
            "projection": self.projection,
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to what `arrays` gave."""
        self.size = len(arrays["basis"])
        self._vectors[: self.size] = torch.from_numpy(arrays["basis"]).to(self.device)
        self._image[: self.size] = torch.from_numpy(arrays["image"]).to(self.device)
        self.projection = arrays["projection"]


def _plain(tensor: Tensor) -> NDArray[Any]:
    copied: NDArray[Any] = tensor.cpu().numpy().copy()
    return copied
