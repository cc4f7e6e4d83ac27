"""Claimed directional derivatives held against central differences of the function itself."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops._explained import explained
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.parameters import Parameters

UNCHECKED = "second derivatives were not checked against differences, as second_derivatives='unchecked' asked for"
GROUPS = 8  # of parameters, whose slopes are each held against differences of the value
REMEDY = (
    ". Operations that stop or change gradients (detach, no_grad, straight-through, reversal, numpy, an optimizer, a "
    "reentrant checkpoint), "
    "custom functions without second derivatives, and functions whose derivatives torch has wrong do this: write the "
    'function out in plain operations, or take the product as it is by second_derivatives="unchecked"'
)
Blocks = Sequence[Tensor]


@dataclass(frozen=True)
class Ladder:
    """Steps that are tried in turn, and how far from a difference a derivative may be.

    Small steps avoid kinks (ReLU, max-pooling): the error that one makes goes when the step no longer reaches it, that
    of a wrong derivative stays. Large ones are for functions whose own rounding is coarse.
    """

    steps: tuple[float, ...]
    coarse: tuple[float, ...]
    tolerance: float


LADDERS = {
    torch.float64: Ladder((1e-5, 1e-6, 1e-7, 1e-8, 1e-4, 1e-3), (1e-2, 3e-2), 1e-4),
    torch.float32: Ladder((1e-2, 1e-3, 3e-2), (1e-2, 3e-2), 2e-2),
}


@dataclass(frozen=True)
class Disagreement:
    """A block whose derivative is not that of the function: its number, the derivative's size and how far it is off."""

    block: int
    size: float
    off: float


def disagreement(
    function: Callable[[Tensor], Blocks], at: Tensor, direction: Tensor, claimed: Blocks, *, size: float = 0.0
) -> Disagreement | None:
    r"""Compare a derivative with (f(x + εv) − f(x − εv)) / 2ε, block by block against each block's own size.

    Parameters
    ----------
    function : callable
        f, of a flat tensor, in blocks.
    at, direction : Tensor, shape (n,)
        x, and v in units of x: a step of 1 is as large as x itself.
    claimed : sequence of Tensor
        Df(x) v, in the same blocks.
    size : float
        Of what the function is a sum of, where its own value may be far smaller: rounding is relative to it.

    Returns
    -------
    Disagreement or None
        The block that is furthest off at every step; None where each block agrees at some step.
    """
    if not all(bool(torch.isfinite(block).all()) for block in claimed):
        raise NonFiniteError("a derivative is NaN or Inf where it was to be checked")
    ladder = LADDERS[at.dtype]
    open_blocks, worst, noise = set(range(len(claimed))), None, None
    for attempt in range(2):  # the second time with the function's own noise measured, which costs more
        if attempt:
            noise = _noise(function, at, direction)
        for step in ladder.steps if not attempt else ladder.coarse:
            plus, minus = function(at + step * direction), function(at - step * direction)
            scale = max(_norm(plus), _norm(claimed), size)
            rounding = (100 * torch.finfo(at.dtype).eps * scale if noise is None else 3 * noise) / step
            found = []
            for block in sorted(open_blocks):
                difference = (plus[block].double() - minus[block].double()) / (2 * step)
                given = claimed[block].double()
                own, off = max(_norm([given]), _norm([difference])), _norm([difference - given])
                if off <= (10 if attempt else 1) * ladder.tolerance * own + rounding:
                    open_blocks.remove(block)
                elif off == off:
                    found.append(Disagreement(block, own, off))
            if not open_blocks:
                return None
            worst = max(found, key=lambda one: one.off / max(one.size, 1e-300), default=worst)
    return worst or Disagreement(min(open_blocks), float("nan"), float("nan"))


def direction_at(at: Tensor, sizes: Sequence[int], *, along: Tensor | None = None, seed: int = 0) -> Tensor:
    """Draw a direction whose blocks are as large as those of x; `along` mixes that vector into it, block by block."""
    drawn = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(at)
    typical = float(at.square().mean().sqrt()) or 1.0
    blocks = []
    for number, (x, v) in enumerate(zip(at.split(list(sizes)), drawn.split(list(sizes)), strict=True)):
        if along is not None and bool((part := along.split(list(sizes))[number]).any()):
            v = v + part * (len(part) ** 0.5 / part.norm())
        own = float(x.square().mean().sqrt()) if len(x) else 0.0
        blocks.append(v * max(own, 0.01 * typical))
    return torch.cat(blocks)


@dataclass(frozen=True)
class Function:
    """A function of a flat vector, whose result is flat and laid out as `layout`, or a single number; and its name."""

    call: Callable[[Tensor], Tensor]
    at: Tensor
    layout: Parameters
    name: str
    size: float = 0.0  # of what it is a sum of


def somewhere_near(check: Callable[[Tensor], None], at: Tensor, sizes: Sequence[int]) -> None:
    """Run a check a little beside a point, where no kink is met exactly (as at biases of zero), then at the point.

    Raises
    ------
    InputError
        It fails at both.
    """
    try:
        check(at + 1e-3 * direction_at(at, sizes, seed=2))
    except (InputError, NonFiniteError):
        with suppress(NonFiniteError):  # which any product says itself
            check(at)


def check_product(function: Function, product: Callable[[Tensor], Tensor], what: str) -> None:
    """Hold a product with the derivative of a function against differences of it, part by part.

    Raises
    ------
    InputError
        They disagree; the message names the part.
    """
    sizes = [entry.size for entry in function.layout]
    v = direction_at(function.at, sizes)
    claimed = product(v).detach().split(sizes)
    found = disagreement(lambda x: function.call(x).split(sizes), function.at, v, claimed)
    if found is not None:
        raise wrong(function.layout.names[found.block], found, what, f"differences of {function.name}")


def check_slopes(function: Function, slope: Tensor, what: str, custom: str = "") -> None:
    """Hold the gradient of a scalar function against differences of it, in a few groups of parts one after another."""
    sizes, names = [entry.size for entry in function.layout], function.layout.names
    parts = direction_at(function.at, sizes, along=slope).split(sizes)
    per_group = -(-len(parts) // GROUPS)
    for first in range(0, len(parts), per_group):
        chosen = range(first, min(first + per_group, len(parts)))
        v = torch.cat([part if number in chosen else torch.zeros_like(part) for number, part in enumerate(parts)])
        found = disagreement(lambda x: [function.call(x)], function.at, v, [slope @ v], size=function.size)
        if found is not None:
            raise wrong(names[first], found, what, f"differences of {function.name}", custom)


def wrong(name: str, found: Disagreement, what: str, against: str, custom: str = "") -> InputError:
    """Say which derivative is off, by how much, and what to do."""
    where = f" in {name!r}" if name else ""
    return InputError(
        f"{what} disagrees with {against}{where}: off by {found.off:.2g} of {found.size:.2g}{custom}{REMEDY}"
    )


def refuse_random(call: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Refuse a function that gives two results for one argument."""
    first, again = call(at), call(at)
    if float((first - again).abs().max()) > 1e3 * torch.finfo(at.dtype).eps * float(first.abs().max()):
        raise InputError(
            "the function gave two results for one argument: it is random, or keeps state; draw random numbers before, "
            "or from a generator that it seeds itself"
        )


def in_float64_if_it_runs(check: Callable[[Tensor], None], at: Tensor) -> None:
    """Run a check at a point in float64; where the function does not run in float64, in its own dtype."""
    exact = at.to(torch.float64)
    try:
        with explained("the function does not run in float64"):
            check(exact)
    except InputError as error:
        if exact.dtype == at.dtype or error.__cause__ is None:  # it ran, and was found wrong
            raise
        check(at)


def _noise(function: Callable[[Tensor], Blocks], at: Tensor, direction: Tensor) -> float:
    """Measure a function's own rounding: by how much it bends where its argument hardly moves.

    At most a millionth of its size: what is coarser than float32 cannot be checked.
    """
    here, bends = function(at), [0.0]
    for step in (1e-8, 1e-6, 1e-4) if at.dtype == torch.float64 else (1e-4,):
        plus, minus = function(at + step * direction), function(at - step * direction)
        three = zip(plus, here, minus, strict=True)
        bends.append(_norm([p.double() - 2 * h.double() + m.double() for p, h, m in three]))
    most = 1e-6 if at.dtype == torch.float64 else 1e-3
    return min(max(bends), most * _norm(here))


def _norm(blocks: Blocks) -> float:
    return math.sqrt(sum(float(block.detach().double().square().sum()) for block in blocks))
