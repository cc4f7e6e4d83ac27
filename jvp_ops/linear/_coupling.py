"""A map on (θ, v) that is four numbers beside a Hessian: its spectrum follows from the Hessian's."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Coupling:
    r"""The 2 × 2 matrix that stands over each eigenvalue h of H.

    .. math::  M(h) = A + h\, b\, e_1^T, \qquad Df\,(x, c x) = μ\,(x, c x)
               \iff M(h)\,(1, c)^T = μ\,(1, c)^T, \quad Hx = hx .

    Parameters
    ----------
    matrix : A, as ((a₁₁, a₁₂), (a₂₁, a₂₂))
    gain : b, as (b₁, b₂)
    """

    matrix: tuple[tuple[float, float], tuple[float, float]]
    gain: tuple[float, float]

    @property
    def trace(self) -> tuple[float, float]:
        """Of M(h) = first + second · h."""
        (a, _), (_, d) = self.matrix
        return a + d, self.gain[0]

    @property
    def product(self) -> tuple[float, float]:
        """The determinant of M(h) = first + second · h."""
        (a, b), (c, d) = self.matrix
        return a * d - b * c, d * self.gain[0] - b * self.gain[1]

    def eigenvalues(self, h: ArrayLike) -> NDArray[np.complex128]:
        """Compute the two eigenvalues μ over each h, shape (..., 2), by falling modulus; a pair's upper one first."""
        h = np.asarray(h, dtype=np.float64)
        (t, s), (p, q) = self.trace, self.product
        return roots(t + s * h, p + q * h)

    def vectors(self, h: NDArray[np.float64], values: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Compute the unit eigenvector of M(h) for each of the values over h, shape (..., 2)."""
        (a, b), (c, d) = self.matrix
        first = np.stack([np.full_like(values, b), values - (a + self.gain[0] * h)], axis=-1)
        second = np.stack([values - d, (c + self.gain[1] * h).astype(complex)], axis=-1)
        sizes = [np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (first, second)]
        chosen = np.where(sizes[0] >= sizes[1], first, second)
        size = np.maximum(*sizes)
        unit = np.broadcast_to(np.array([1.0, 0.0], dtype=complex), chosen.shape)  # M(h) is a multiple of I
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(size > 0, chosen / size, unit))

    def condition(self, h: NDArray[np.float64], values: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Compute 1 / |yᴴx| of unit left and right vectors of M(h), which are those of Df; infinite where defective."""
        (a, b), (c, d) = self.matrix
        size = np.sqrt((a + self.gain[0] * h) ** 2 + b**2 + (c + self.gain[1] * h) ** 2 + d**2)
        t, s = self.trace
        gap = np.abs(2 * values - (t + s * h))
        # of a 2 × 2 matrix, ‖M‖² = |μ₁|² + |μ₂|² + e² with e its departure from normality, and κ² = 1 + e²/gap²
        other = t + s * h - values
        departure = np.maximum(size**2 - np.abs(values) ** 2 - np.abs(other) ** 2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(departure > 0, np.sqrt(1 + departure / gap**2), 1.0))

    def bounds(
        self, h: NDArray[np.float64], errors: NDArray[np.float64], values: NDArray[np.complex128]
    ) -> NDArray[np.float64]:
        r"""Bound how far each μ can be, where h is known to within an error δ; NaN where the two are not told apart.

        By Rouché's theorem just one root of every h' within δ of h lies within ρ of μ, where

        .. math::  ρ^2 - (|μ - \tildeμ| - δ|t_1|)\, ρ + δ\,|p_1 - t_1 μ| = 0

        for trace t₀ + t₁h and determinant p₀ + p₁h, μ̃ the other root.
        """
        (t, s), (_, q) = self.trace, self.product
        gap = np.abs(2 * values - (t + s * h)) - errors * abs(s)
        pushed = errors * np.abs(q - s * values)
        discriminant = gap**2 - 4 * pushed
        told = (gap > 0) & (discriminant > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = 2 * pushed / (gap + np.sqrt(np.where(told, discriminant, 0)))
        last_place = 4 * np.finfo(np.float64).eps * (abs(t) + np.abs(s * h) + np.abs(values))
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.maximum(1, np.abs(values) / np.where(gap > 0, gap, np.nan))  # rounding in the root formula
        return np.asarray(np.where(told, reach + last_place * spread, np.nan))


def roots(trace: NDArray[np.float64], product: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Solve μ² − trace μ + product = 0 without cancellation: shape (..., 2).

    The root of larger modulus stands first; of a complex pair, the one above the real axis.
    """
    half = trace / 2
    discriminant = half**2 - product
    spread = np.sqrt(np.abs(discriminant))
    first = np.where(discriminant < 0, half + 1j * spread, half + np.copysign(spread, half))
    with np.errstate(divide="ignore", invalid="ignore"):
        second = np.where(first == 0, 0, product / first)
    return np.stack([first, np.where(discriminant < 0, first.conj(), second)], axis=-1)
