"""An orthonormal basis V that grows by blocks, its image AV, and the projection VᵀAV."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._random import normal

DEPENDENT = 1e-10  # a direction of relative length below this, once the basis is taken out, is rounding
INDEPENDENT = 0.1


class Subspace:
    """The basis of a Krylov solver, on the device of the operator; the small projection is on the CPU.

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
        self._basis = torch.empty(capacity, n, dtype=dtype, device=device)  # vectors in rows: a prefix is contiguous
        self._image = torch.empty(capacity, n, dtype=dtype, device=device)
        self.projection: NDArray[np.float64] = np.zeros((0, 0))

    @property
    def basis(self) -> Tensor:
        """V, shape (n, size)."""
        return self._basis[: self.size].mT

    @property
    def image(self) -> Tensor:
        """A V, shape (n, size)."""
        return self._image[: self.size].mT

    @property
    def room(self) -> int:
        """How many more directions there are in the whole space."""
        return self.n - self.size - (0 if self.deflated is None else self.deflated.shape[1])

    def append(self, block: Tensor, image: Tensor) -> None:
        """Add an orthonormal block, orthogonal to the basis, and its product with A."""
        old, new = self.size, self.size + block.shape[1]
        self._basis[old:new] = block.mT
        self._image[old:new] = image.mT
        self.size = new
        grown = np.zeros((new, new))
        grown[:old, :old] = self.projection
        grown[:, old:] = _numpy(self._basis[:new] @ self._image[old:new].mT)
        grown[old:, :old] = _numpy(self._basis[old:new] @ self._image[:old].mT)
        self.projection = grown

    def rotate(self, Q: NDArray[np.float64]) -> None:
        """Replace V by V Q for Q of shape (size, p) with orthonormal columns."""
        p, turn = Q.shape[1], self.on_device(Q).mT
        for rows in (self._basis, self._image):
            rows[:p] = turn @ rows[: self.size]
        self.size, self.projection = p, Q.T @ self.projection @ Q

    def residuals(self, Q: NDArray[np.float64], S: NDArray[np.float64]) -> Tensor:
        """Compute A V Q − V Q S, shape (n, p)."""
        return self.image @ self.on_device(Q) - self.basis @ self.on_device(Q @ S)

    def combine(self, Q: NDArray[np.float64]) -> Tensor:
        """Compute V Q, shape (n, p)."""
        return self.basis @ self.on_device(Q)

    def replace_image(self, image: Tensor) -> None:
        """Take another image of the same basis: that of a more exact operator."""
        self._image[: self.size] = image.mT
        self.projection = _numpy(self._basis[: self.size] @ self._image[: self.size].mT)

    def orthonormal(self, block: Tensor, width: int) -> Tensor:
        """Orthonormalize a block against the basis and itself; where it has not the rank, refill at random.

        Two passes of block Gram–Schmidt, each before a rank-revealing factorization (QR, then SVD of R).
        """
        width = min(width, self.room)
        found = self._independent(block.to(self.dtype))[:, :width]
        for _ in range(8):
            if found.shape[1] == width:
                break
            extra = normal(self.rng, self.n, width - found.shape[1], dtype=self.dtype, device=self.device)
            found = self._independent(torch.cat([found, extra], dim=1))
        return found

    def _independent(self, block: Tensor) -> Tensor:
        largest = block.abs().amax(dim=0)
        block = block[:, largest > 0] / largest[largest > 0]  # against over- and underflow of squares
        block = block / torch.linalg.vector_norm(block, dim=0)
        for least in (max(DEPENDENT, 10 * torch.finfo(self.dtype).eps), INDEPENDENT):
            if block.shape[1] == 0:
                break
            Q, R = torch.linalg.qr(self._projected_out(block))
            U, sizes, _ = torch.linalg.svd(R)
            block = Q @ U[:, sizes > least]
        return block

    def _projected_out(self, block: Tensor) -> Tensor:
        if self.deflated is not None:
            block = block - self.deflated @ (self.deflated.mT @ block)
        return block - self.basis @ (self.basis.mT @ block)

    def on_device(self, small: NDArray[np.float64]) -> Tensor:
        """Copy a small matrix to the basis."""
        return torch.from_numpy(np.ascontiguousarray(small)).to(device=self.device, dtype=self.dtype)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give what a checkpoint keeps."""
        return {
            "basis": _plain(self._basis[: self.size]),
            "image": _plain(self._image[: self.size]),
            "projection": self.projection,
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to what `arrays` gave."""
        self.size = len(arrays["basis"])
        self._basis[: self.size] = torch.from_numpy(arrays["basis"]).to(self.device)
        self._image[: self.size] = torch.from_numpy(arrays["image"]).to(self.device)
        self.projection = arrays["projection"]


def _numpy(small: Tensor) -> NDArray[np.float64]:
    return small.to(device="cpu", dtype=torch.float64).numpy()


def _plain(tensor: Tensor) -> NDArray[Any]:
    copied: NDArray[Any] = tensor.cpu().numpy().copy()
    return copied
