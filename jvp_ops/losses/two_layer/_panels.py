"""Dense assembly of the W1·W1 block of the two-layer network, which is nearly the whole matrix.

With M = C W2ᵀ diag(s) + diag(s₂ ⊙ W2 δ) of each sample (C = diag(s) W2 (diag(p) − ppᵀ), s₂ = s (1 − 2z)), its
entries are H[W1 ij, W1 i'j'] = ⟨xᵢ xᵢ' Mⱼⱼ'⟩. M is symmetric, so its upper triangle serves, h (h + 1)/2 numbers a
sample; xᵢ is mostly zero, so for input i only the samples that use it count; and of those only their own chunk's live
inputs. One matrix product for each input and chunk then gives all pairs of hidden units at once, in a fortieth of
the operations that Hessian-vector products with every unit vector would take.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops._sums import each_in_threads
from jvp_ops.losses.two_layer._products import LinearizedChunk

Pairs = Callable[[int], Tensor]


@dataclass(frozen=True)
class _PairChunk:
    """A chunk with the upper triangles of its samples' M."""

    inputs: Tensor  # X  (rows, live)
    live: Tensor  # (live,), ascending
    place: dict[int, int]  # where an input stands among the live ones
    M: Tensor  # (rows, h (h + 1)/2)


class InputPanels:
    """Row panels of k·H[W1, W1], from the diagonal on.

    Parameters
    ----------
    pairs_of_input : callable
        ``pairs_of_input(i)``: the sum of xᵢ xᵢ' M over the samples for all i' ≥ i, M as its upper triangle, shape
        (d − i, h (h + 1)/2).
    inputs, hidden : int
        d and h.
    """

    def __init__(self, pairs_of_input: Callable[[int], Tensor], inputs: int, hidden: int, device: torch.device) -> None:
        self._pairs_of_input, self.inputs, self.hidden = pairs_of_input, inputs, hidden
        j, other = torch.triu_indices(hidden, hidden, device=device)
        self._pair_of = torch.empty(hidden, hidden, dtype=torch.long, device=device)
        self._pair_of[j, other] = self._pair_of[other, j] = torch.arange(len(j), device=device)

    def __call__(self, first: int, last: int) -> Tensor:
        """Assemble the rows of inputs `first` to `last`: shape ((last − first)·h, (d − first)·h)."""
        h, width = self.hidden, self.inputs - first
        like = self._pairs_of_input(last - 1)
        panel = like.new_zeros(last - first, h, width, h)

        def fill(place: int) -> None:
            pairs = self._pairs_of_input(first + place)  # (d − i, pairs)
            block = pairs.index_select(1, self._pair_of.view(-1)).view(width - place, h, h)
            panel[place, :, place:] = block.transpose(0, 1)

        each_in_threads(fill, last - first, like.device)
        for i in range(first + 1, last):  # the panel's own lower triangle
            panel[i - first, :, : i - first] = panel[: i - first, :, i - first].permute(2, 0, 1)
        return panel.view((last - first) * h, width * h)


def panel_bytes(samples: int, inputs: int, hidden: int, *, rows: int, item: int, threads: int) -> int:
    """Count what is held for all samples, and what each thread works on, for chunks of so many rows."""
    pairs = hidden * (hidden + 1) // 2
    a_thread = rows * pairs + inputs * (2 * pairs + hidden * hidden)
    return (samples * pairs + 4 * rows * pairs + threads * a_thread) * item


def pairs_of_chunks(linearized: Sequence[LinearizedChunk], W2: Tensor, inputs: int, *, gauss_newton: bool) -> Pairs:
    """Prepare sums over chunks, of the samples that use an input alone."""
    chunks = [_pair_chunk(at, W2, gauss_newton=gauss_newton) for at in linearized]

    def pairs_of_input(i: int) -> Tensor:
        like = chunks[0].M
        total = like.new_zeros(inputs - i, like.shape[1])
        for chunk in chunks:
            if i not in chunk.place:
                continue
            at = chunk.place[i]
            x = chunk.inputs[:, at]
            rows = x.nonzero()[:, 0]
            weighted = chunk.M.index_select(0, rows).mul_(x.index_select(0, rows)[:, None])
            total.index_add_(0, chunk.live[at:] - i, chunk.inputs[:, at:].index_select(0, rows).mT @ weighted)
        return total

    return pairs_of_input


def _pair_chunk(at: LinearizedChunk, W2: Tensor, *, gauss_newton: bool) -> _PairChunk:
    M = pair_matrices(at.P[:, : W2.shape[1]], at.S, None if gauss_newton else at.C2, W2)
    return _PairChunk(at.chunk.inputs, at.chunk.live, {int(i): place for place, i in enumerate(at.chunk.live)}, M)


def pair_matrices(P: Tensor, S: Tensor, C2: Tensor | None, W2: Tensor) -> Tensor:
    """Form M's upper triangle: s_j s_j' (W2 (diag p − ppᵀ) W2ᵀ)_jj', and C₂ on the diagonal."""
    j, other = torch.triu_indices(len(W2), len(W2), device=W2.device)
    u = P @ W2.mT
    M = P @ (W2[j] * W2[other]).mT
    M.sub_(u[:, j] * u[:, other]).mul_(S[:, j]).mul_(S[:, other])
    if C2 is not None:
        M[:, j == other] += C2
    return M
