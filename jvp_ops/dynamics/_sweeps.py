"""Frames of vectors moved along an orbit, forward by the Jacobians or backward by their transposes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jvp_ops._random import normal
from jvp_ops._sitting import Sitting
from jvp_ops.dynamics._frame import Frame, orthonormal
from jvp_ops.dynamics._orbit import Orbit
from jvp_ops.errors import NonFiniteError


def frames(
    orbit: Orbit,
    times: range,
    V: Tensor,
    random: np.random.Generator,
    sitting: Sitting,
    *,
    adjoint: bool = False,
    noise: float = 0.0,
) -> Iterator[Frame]:
    """Multiply V by the Jacobians of the steps `times`, or their transposes, in that order; yield Q and R after each.

    The product with the whole V is then Q_last R_last ⋯ R_first. `noise` is a random relative error of each entry of a
    product, which shows what its rounding does.
    """
    rounding = torch.finfo(orbit.dtype).eps
    for t in times:
        sitting.check()
        factor = orbit.at(t)
        try:
            image = factor.apply_adjoint(V.to(orbit.dtype)) if adjoint else factor.apply(V.to(orbit.dtype))
        except NonFiniteError as error:
            raise NonFiniteError(f"the vectors became NaN or Inf at step {orbit.first + t} ({error})") from None
        if noise:
            image = image.double()
            image += noise * image * normal(random, *image.shape, dtype=image.dtype, device=image.device)
        frame = orthonormal(image, rounding=rounding, random=random)
        V = frame.vectors
        sitting.advance()
        yield frame
