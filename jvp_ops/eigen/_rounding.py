"""How far an operator's products are from exact, measured: no result is better than that."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jvp_ops._random import normal
from jvp_ops.errors import InputError, MemoryBudgetError
from jvp_ops.krylov import BlockBasis
from jvp_ops.operators import TensorOperator

POWER_STEPS = 12
SCALE = 1e100  # up to which, and down to whose inverse, squares are well within float64
SAFETY = 4  # a difference of two roundings estimates one; its spread over vectors is within this factor


@dataclass(frozen=True)
class Rounding:
    """The size and the rounding of an operator A, as far as they are measured.

    Parameters
    ----------
    operator : TensorOperator
        A, as it is computed.
    exact : TensorOperator or None
        The same map computed in float64, where A is in float32 and has one.
    norm : float
        ‖A‖₂ from below, by power iteration.
    level : float
        ‖fl(Ax) − Ax‖ / ‖A‖ for unit x near A's leading singular vector, where it is largest.
    """

    operator: TensorOperator
    exact: TensorOperator | None
    norm: float
    level: float

    @classmethod
    def unmeasured(cls, operator: TensorOperator, *, float64: bool) -> "Rounding":
        """Begin with what is known before any product: whether there is the operator in float64."""
        return cls(operator, _in_float64(operator) if float64 else None, 0.0, 0.0)

    def measured(self, rng: np.random.Generator) -> "Rounding":
        """Measure norm and level by power iteration, with about a dozen products."""
        operator = self.operator
        x = normal(rng, operator.shape[1], dtype=torch.float64, device=operator.device)
        norm = 0.0
        for _ in range(POWER_STEPS):
            unit = _unit(x)
            image = operator.apply(unit.to(operator.torch_dtype))
            norm = max(norm, _length(image))
            following = image if operator.symmetric else operator.apply_adjoint(image)
            if not bool(following.any()):
                break
            x = following.double()
        level = self.at(operator, _unit(x)[:, None], norm)
        probe_symmetry(operator, norm, level, rng)
        return replace(self, norm=norm, level=level)

    def with_norm(self, norm: float) -> "Rounding":
        """Take note of a norm."""
        return replace(self, norm=norm)

    def at(self, operator: TensorOperator, x: Tensor, norm: float) -> float:
        """Measure the rounding level of a product of this operator, or of its counterpart in float64, at a vector x."""
        measured = Rounding(operator, self.exact if operator is self.operator else None, norm, 0.0)
        if norm == 0:
            return 0.0
        return float(measured.errors(x.to(operator.torch_dtype)).max()) / norm

    def errors(self, X: Tensor) -> Tensor:
        """Measure ‖fl(Ax) − Ax‖ / ‖x‖ for each column x of X, in float64.

        Against float64 where there is that; else by the change of the product under a scaling of x that changes
        every rounding, enlarged by a factor, and never less than a few units of the last place of ‖A‖.
        """
        lengths = torch.linalg.vector_norm(X.double(), dim=0)
        image = self.operator.apply(X).double()
        if self.exact is not None:
            measured: Tensor = torch.linalg.vector_norm(image - self.exact.apply(X.double()), dim=0) / lengths
            return measured
        other = self.operator.apply(X / 3).double() * 3
        floor = SAFETY * torch.finfo(self.operator.torch_dtype).eps * self.norm
        estimate: Tensor = SAFETY * torch.linalg.vector_norm(image - other, dim=0) / lengths
        return estimate.clamp_min(floor)


class OutOfScaleError(Exception):
    """An operator whose squares over- or underflow; `unit` is a power of two that brings it to where they do not."""

    def __init__(self, unit: float) -> None:
        super().__init__(unit)
        self.unit = unit


def check_scale(size: float) -> None:
    """Leave by `OutOfScaleError` where a number as large as `size` is too far from 1 for its square."""
    if size > 0 and not 1 / SCALE < size < SCALE:
        raise OutOfScaleError(float(2.0 ** -np.clip(np.round(np.log2(size)), -1000, 1000)))


def probe_symmetry(operator: TensorOperator, norm: float, level: float, rng: np.random.Generator) -> None:
    """Compare uᵀAv with vᵀAu for random u and v, of an operator that is declared symmetric."""
    if not operator.symmetric or norm == 0:
        return
    n = operator.shape[0]
    u, v = (normal(rng, n, dtype=torch.float64, device=operator.device) for _ in range(2))
    u, v = _unit(u).to(operator.torch_dtype), _unit(v).to(operator.torch_dtype)
    asymmetry = abs(float(u.double() @ operator.apply(v).double() - v.double() @ operator.apply(u).double()))
    check_symmetric(asymmetry, norm, max(level, torch.finfo(operator.torch_dtype).eps), BlockBasis)


def check_symmetric(asymmetry: float, norm: float, level: float, basis: BlockBasis | type[BlockBasis]) -> None:
    """Refuse an operator that is declared symmetric and is not, or whose adjoint is not its transpose.

    Raises
    ------
    InputError
        |uᵀAv − vᵀAu| of some unit u and v is far above what rounding does.
    """
    if asymmetry > 100 * level * norm:
        raise InputError(f"{basis.claim} by {asymmetry:.1e} for unit u, v (‖A‖ is {norm:.1e} or more): {basis.remedy}")


def _in_float64(operator: TensorOperator) -> TensorOperator | None:
    """Build the same operator in float64 where it can be: memory may lack, or code may hold float32 constants."""
    if operator.torch_dtype != torch.float32:
        return None
    try:
        return operator.in_float64()
    except (MemoryBudgetError, InputError, RuntimeError):
        return None


def _length(x: Tensor) -> float:
    """Return ‖x‖₂ without over- or underflow."""
    size = float(x.abs().max())
    return size * float(torch.linalg.vector_norm(x.double() / size)) if size > 0 else 0.0


def _unit(x: Tensor) -> Tensor:
    scaled: Tensor = x / x.abs().max()
    return scaled.div(torch.linalg.vector_norm(scaled))
