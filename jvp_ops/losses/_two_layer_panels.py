"""Dense assembly of the W1·W1 block of the two-layer network, which is nearly the whole matrix.

With M = C W2ᵀ diag(s) + diag(s₂ ⊙ W2 δ) of each sample (C = diag(s) W2 (diag(p) − ppᵀ), s₂ = s (1 − 2z)), its
entries are H[W1 ij, W1 i'j'] = ⟨xᵢ xᵢ' Mⱼⱼ'⟩. M is symmetric, so its upper triangle serves, h (h + 1)/2 numbers a
sample; xᵢ is mostly zero, so for input i only the samples that use it count; and of those only their own chunk's live
inputs. One matrix product for each input and chunk then gives all pairs of hidden units at once, in a fortieth of
the operations that Hessian-vector products with every unit vector would take.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops._sums import SHARES, in_threads, worker_count
from jvp_ops.losses._chunks import MOST_ROWS
from jvp_ops.losses._two_layer_products import LinearizedChunk


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
    chunks : sequence of LinearizedChunk
        Of a Hessian, or of a Gauss-Newton matrix, whose M lacks the term with δ.
    W2 : Tensor, shape (h, c)
    inputs : int
        d.
    """

    def __init__(self, chunks: Sequence[LinearizedChunk], W2: Tensor, inputs: int) -> None:
        self.inputs, self.hidden = inputs, W2.shape[0]
        upper = torch.triu_indices(self.hidden, self.hidden, device=W2.device)
        self._chunks = [_pair_chunk(chunk, W2, upper) for chunk in chunks]
        self._pair_of = torch.empty(self.hidden, self.hidden, dtype=torch.long, device=W2.device)
        numbers = torch.arange(upper.shape[1], device=W2.device)
        self._pair_of[upper[0], upper[1]] = numbers
        self._pair_of[upper[1], upper[0]] = numbers

    @staticmethod
    def bytes_needed(samples: int, inputs: int, hidden: int, item: int) -> int:
        """Count what is held for all samples, and what each thread works on."""
        pairs = hidden * (hidden + 1) // 2
        a_thread = MOST_ROWS * pairs + inputs * (2 * pairs + hidden * hidden)
        return (samples * pairs + 4 * MOST_ROWS * pairs + SHARES * a_thread) * item

    def __call__(self, first: int, last: int) -> Tensor:
        """Assemble the rows of inputs `first` to `last`: shape ((last − first)·h, (d − first)·h)."""
        h, width = self.hidden, self.inputs - first
        like = self._chunks[0].M
        panel = torch.zeros(last - first, h, width, h, dtype=like.dtype, device=like.device)

        def fill(numbers: range) -> None:
            for i in numbers:
                pairs = self._pairs_of_input(i)  # (d − i, pairs)
                block = pairs.index_select(1, self._pair_of.view(-1)).view(self.inputs - i, h, h)
                panel[i - first, :, i - first :] = block.transpose(0, 1)

        workers = worker_count(like.device)
        in_threads([lambda w=w: fill(range(first + w, last, workers)) for w in range(workers)])  # type: ignore[misc]
        for i in range(first + 1, last):  # the panel's own lower triangle
            panel[i - first, :, : i - first] = panel[: i - first, :, i - first].permute(2, 0, 1)
        return panel.view((last - first) * h, width * h)

    def _pairs_of_input(self, i: int) -> Tensor:
        """Sum xᵢ xᵢ' M over the samples, for all i' ≥ i: shape (d − i, pairs)."""
        like = self._chunks[0].M
        total = torch.zeros(self.inputs - i, like.shape[1], dtype=like.dtype, device=like.device)
        for chunk in self._chunks:
            if i not in chunk.place:
                continue
            at = chunk.place[i]
            x = chunk.inputs[:, at]
            rows = x.nonzero()[:, 0]
            weighted = chunk.M.index_select(0, rows).mul_(x.index_select(0, rows)[:, None])
            total.index_add_(0, chunk.live[at:] - i, chunk.inputs[:, at:].index_select(0, rows).mT @ weighted)
        return total


def _pair_chunk(chunk: LinearizedChunk, W2: Tensor, upper: Tensor) -> _PairChunk:
    """Form M's upper triangle: s_j s_j' (W2 (diag p − ppᵀ) W2ᵀ)_jj', and C₂ on the diagonal."""
    j, other = upper
    P = chunk.P[:, : W2.shape[1]]
    u = P @ W2.mT
    M = P @ (W2[j] * W2[other]).mT
    M.sub_(u[:, j] * u[:, other]).mul_(chunk.S[:, j]).mul_(chunk.S[:, other])
    if chunk.C2 is not None:
        M[:, j == other] += chunk.C2
    return _PairChunk(chunk.inputs, chunk.live, {int(i): at for at, i in enumerate(chunk.live)}, M)
