"""A derivative held against differences to both sides of the point itself, where a kink is forgiven."""

from collections.abc import Callable

import torch
from torch import Tensor

from jvp_ops._ladder import LADDERS, Blocks, Disagreement, compared_with, norm_of, rounding_of

CLOSE = 0.05  # of what a derivative is off: how far differences at a point may be from one another
SPLITS = 6  # of a direction in two, in which a derivative is seen to be linear


def at_the_point(
    function: Callable[[Tensor], Blocks],
    at: Tensor,
    direction: Tensor,
    claimed: Blocks,
    size: float,
    *,
    continuous: bool = False,
) -> tuple[Disagreement | None, bool]:
    """Find a block that is differentiated wrongly where it has a derivative, and whether there were kinks.

    A derivative is one where both one-sided differences come to the same over three steps; that of a branch just
    around the point counts as wrong, so that no small step makes up for large ones. A function that is to be
    `continuous` has the value at the point that it has beside it, where a gradient may jump and be right.
    """
    ladder, roundings = LADDERS[at.dtype], list[float]()
    steps = sorted({*ladder.steps, ladder.coarse[0]}, reverse=True)[:6]
    taken: dict[int, list[tuple[Tensor, Tensor]]] = {block: [] for block in range(len(claimed))}
    for number, step in enumerate(steps):
        plus, minus = function(at + step * direction), function(at - step * direction)
        roundings.append(rounding_of(plus, claimed, size, step))
        for block in list(taken):
            difference, own, off = compared_with(plus[block], minus[block], claimed[block], step)
            if number < 2 and off <= ladder.tolerance * own + roundings[-1]:
                del taken[block]
            else:
                taken[block].append((difference, plus[block].double() + minus[block].double()))
        if not taken:
            return None, False
    here = None if continuous else function(at)
    for block, found in taken.items():
        given, twice = claimed[block].double(), found[-1][1] if here is None else 2 * here[block].double()
        for first in range(len(steps) - 2):
            three = found[first : first + 3]
            differences = torch.stack([difference for difference, _ in three])
            bends = torch.stack([(both - twice).abs() / h for (_, both), h in zip(three, steps[first:], strict=False)])
            wrong_here = _has_a_derivative(differences, bends, given, ladder.tolerance)
            error, own = differences[1] - given, max(norm_of([given]), norm_of([differences[1]]))
            enough = 10 * ladder.tolerance * own + roundings[first + 2]
            if norm_of([error[wrong_here]]) > enough:
                wrong_here &= _is_linear(
                    function, at, direction, block, twice / 2, steps[first + 1], differences[1], error
                )
                if (off := norm_of([error[wrong_here]])) > enough:
                    return Disagreement(block, own, off, exactly=True), True
    return None, True


def _has_a_derivative(differences: Tensor, bends: Tensor, given: Tensor, tolerance: float) -> Tensor:
    """See which entries have a derivative, up to far less than what is claimed is off, by three falling steps."""
    off, size = (differences - given).abs().amin(0), differences.abs()
    least, bend = torch.minimum(off, size.amin(0)), bends.amax(0)
    steady = (torch.maximum(bend, differences.amax(0) - differences.amin(0)) <= CLOSE * least) & (least > 0)
    steady &= bends[2] <= torch.maximum(CLOSE * bends[0], tolerance * least)  # that of a kink stays
    falling = (bends[0] > 0) & (bends[1] <= 0.2 * bends[0]) & (bends[2] <= 0.2 * bends[1])
    return steady | (falling & (torch.maximum(bend, size.amax(0)) <= CLOSE * off))


def _is_linear(
    function: Callable[[Tensor], Blocks],
    at: Tensor,
    direction: Tensor,
    block: int,
    here: Tensor,
    step: float,
    whole: Tensor,
    error: Tensor,
) -> Tensor:
    """See which entries of a slope are the sums of those along parts of the direction, to both sides.

    Kinks can look smooth along one line: where two are multiplied, or where many happen to cancel.
    """
    random, linear = torch.Generator().manual_seed(3), torch.ones_like(error, dtype=torch.bool)
    for _ in range(SPLITS):
        part = direction * 2 * torch.randn(direction.shape, generator=random, dtype=torch.float64).to(direction)
        for side in (step, -step):
            moved = (function(at + side * v)[block].double() - here for v in (part, direction - part))
            linear &= (sum(moved, torch.zeros_like(error)) / side - whole).abs() <= CLOSE * error.abs()
        if not bool(linear.any()):
            break
    return linear
