"""Claimed directional derivatives held against central differences of the function itself."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from jvp_ops._explained import explained
from jvp_ops._ladder import LADDERS, Blocks, Disagreement, compared_with, norm_of, rounding_of
from jvp_ops._one_sided import at_the_point
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.parameters import Parameters

UNCHECKED = "second derivatives were not checked against differences, as second_derivatives='unchecked' asked for"
PIECES = 16  # that unnamed numbers are judged in
GROUPS = 8  # of parameters, whose slopes are each held against differences of the value
REMEDY = (
    ". Operations that stop or change gradients (detach, no_grad, straight-through, reversal, numpy, an optimizer, a "
    "reentrant checkpoint, padding_idx of an embedding that shares its weight), "
    "custom functions without second derivatives, and functions whose derivatives torch has wrong do this: write the "
    'function out in plain operations, or take the product as it is by second_derivatives="unchecked"'
)
REMEDY_THERE = (
    ". The function is differentiated wrongly exactly at theta, and rightly beside it. A branch or a convention at "
    "that point (an `if` on a value, masked entries, a norm or distance of zero) does this: move theta a little, write "
    'the function without the branch, or take the product as it is by second_derivatives="unchecked"'
)
_EXACTLY: ContextVar[bool] = ContextVar("exactly", default=False)  # held at a point where it was right beside it


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
    if _EXACTLY.get():
        return at_the_point(function, at, direction, claimed, size)[0]
    ladder, noise = LADDERS[at.dtype], None
    open_blocks, last = set(range(len(claimed))), dict[int, Disagreement]()
    clear: dict[int, list[tuple[Tensor, float]]] = {block: [] for block in open_blocks}
    for attempt in range(2):  # the second time with the function's own noise measured, which costs more
        drowned = set()
        if attempt:
            noise = _noise(function, at, direction)
        for step in ladder.steps if not attempt else ladder.coarse:
            plus, minus = function(at + step * direction), function(at - step * direction)
            rounding = rounding_of(plus, claimed, size, step) if noise is None else 3 * noise / step
            for block in sorted(open_blocks):
                difference, own, off = compared_with(plus[block], minus[block], claimed[block], step)
                if off <= (10 if attempt else 1) * ladder.tolerance * own + rounding:
                    if rounding > own and clear[block]:  # a step that tells nothing, where others did
                        drowned.add(block)
                    else:
                        open_blocks.remove(block)
                elif off == off:
                    last[block] = Disagreement(block, own, off)
                    if off > 10 * rounding and not attempt:
                        clear[block].append((difference, off))
            if not open_blocks:
                return None
        open_blocks -= {block for block in drowned if not _persists(clear[block])}
        if not open_blocks:
            return None
    left = [last.get(block, Disagreement(block, float("nan"), float("nan"))) for block in sorted(open_blocks)]
    return max(left, key=lambda one: one.off / max(one.size, 1e-300) if one.off == one.off else -1.0)


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


def somewhere_near(
    check: Callable[[Tensor], None],
    at: Tensor,
    sizes: Sequence[int],
    *,
    check_there: Callable[[Tensor], None] | None = None,
) -> None:
    """Run a check a little beside a point, where no kink is met exactly (as at biases of zero), then at the point.

    At the point, a kink is forgiven, and what is wrong at that point alone is not. `check_there` is a cheaper check for
    that: kinks make it take many more evaluations.

    Raises
    ------
    InputError
        It fails at both, or is wrong at the point alone.
    """
    try:
        check(at + 1e-3 * direction_at(at, sizes, seed=2))
    except (InputError, NonFiniteError):
        with suppress(NonFiniteError):  # which any product says itself
            check(at)
    token = _EXACTLY.set(True)
    try:
        with suppress(NonFiniteError):
            (check_there or check)(at)
    finally:
        _EXACTLY.reset(token)


def pieces(layout: Parameters) -> Parameters:
    """Lay a few parts out in pieces, each judged against its own size; many parts stay as they are."""
    most, shapes = max(PIECES // max(len(layout), 1), 1), dict[str, tuple[int, ...]]()
    for entry in layout:
        number = min(most, entry.size)
        if number < 2:
            shapes[entry.name] = entry.shape
            continue
        ends = [entry.size * end // number for end in range(number + 1)]
        shapes |= {f"{entry.name}[{a}:{b}]": (b - a,) for a, b in pairwise(ends)}
    return Parameters.of(shapes)


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
    waiting = [range(first, min(first + per_group, len(parts))) for first in range(0, len(parts), per_group)]

    def compared(v: Tensor) -> tuple[Disagreement | None, bool]:
        def value(x: Tensor) -> Blocks:
            return [function.call(x)]

        if _EXACTLY.get():
            return at_the_point(value, function.at, v, [slope @ v], function.size, continuous=True)
        return disagreement(value, function.at, v, [slope @ v], size=function.size), False

    while waiting:
        chosen = waiting.pop(0)
        v = torch.cat([part if number in chosen else torch.zeros_like(part) for number, part in enumerate(parts)])
        found, kinked = compared(v)
        zeros = v * (function.at == 0)  # which a branch is most often about
        if found is None and _EXACTLY.get() and bool(zeros.any()) and not torch.equal(zeros, v):
            found, _ = compared(zeros)
        if found is not None:
            raise wrong(names[chosen[0]], found, what, f"differences of {function.name}", custom)
        if kinked and len(chosen) > 1:  # a kink in one part must not hide another
            waiting += [range(number, number + 1) for number in chosen]


def wrong(name: str, found: Disagreement, what: str, against: str, custom: str = "") -> InputError:
    """Say which derivative is off, by how much, and what to do."""
    where, remedy = f" in {name!r}" if name else "", REMEDY_THERE if found.exactly else REMEDY
    return InputError(
        f"{what} disagrees with {against}{where}: off by {found.off:.2g} of {found.size:.2g}{custom}{remedy}"
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


def _persists(clear: Sequence[tuple[Tensor, float]]) -> bool:
    """See whether two differences off by far more than rounding are the same; those of a kink are not."""
    return any(
        bool(one.any()) and norm_of([one - other]) <= 0.1 * min(off, away, norm_of([one]))
        for (one, off), (other, away) in combinations(clear, 2)
    )


def _noise(function: Callable[[Tensor], Blocks], at: Tensor, direction: Tensor) -> float:
    """Measure a function's own rounding: by how much it bends where its argument hardly moves.

    At most a millionth of its size: what is coarser than float32 cannot be checked.
    """
    here, bends = function(at), [0.0]
    for step in (1e-8, 1e-6, 1e-4) if at.dtype == torch.float64 else (1e-4,):
        plus, minus = function(at + step * direction), function(at - step * direction)
        three = zip(plus, here, minus, strict=True)
        bends.append(norm_of([p.double() - 2 * h.double() + m.double() for p, h, m in three]))
    most = 1e-6 if at.dtype == torch.float64 else 1e-3
    return min(max(bends), most * norm_of(here))
