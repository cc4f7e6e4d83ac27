"""The CPU's form: chunks of similar support, one a thread, none wider than what its samples use."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jvp_ops._sums import SHARES, worker_count
from jvp_ops.losses.two_layer import _products as products
from jvp_ops.losses.two_layer._chunks import MOST_ROWS, Chunk
from jvp_ops.losses.two_layer._form import Panel, Weights
from jvp_ops.losses.two_layer._panels import InputPanels, pairs_of_chunks, panel_bytes
from jvp_ops.losses.two_layer._samples import Samples


@dataclass(frozen=True)
class ChunkedLinearized:
    """Chunks with what no direction changes."""

    linearized: Sequence[products.LinearizedChunk]
    weights: Weights
    slope: Tensor | None  # the gradient's sum, where it was made on the way

    def value(self) -> Tensor:
        """Sum the cross-entropy."""
        return products.value_at(self.linearized, self.weights)

    def gradient(self) -> Tensor:
        """Sum the gradient, shape (n,)."""
        return products.gradient_at(self.linearized, self.weights) if self.slope is None else self.slope

    def product(self, V: Tensor, *, gauss_newton: bool) -> Tensor:
        """Sum the products with V, shape (n, m)."""
        d = len(self.weights.W1)
        return products.product_sum(self.linearized, self.weights.W2, V, d, gauss_newton=gauss_newton)

    def panels(self, *, gauss_newton: bool) -> Panel:
        """Prepare row panels of the W1·W1 block."""
        (d, h), W2 = self.weights.W1.shape, self.weights.W2
        return InputPanels(pairs_of_chunks(self.linearized, W2, d, gauss_newton=gauss_newton), d, h, W2.device)


@dataclass(frozen=True)
class ChunkedForm:
    """Samples in chunks, in the dtype that is computed in."""

    chunks: Sequence[Chunk]
    inputs: int

    @classmethod
    def of(cls, samples: Samples, device: torch.device, dtype: torch.dtype) -> "ChunkedForm":
        """Convert the samples' chunks, from what is known exactly."""
        return cls([chunk.to(device, dtype, samples.maximum) for chunk in samples.chunks], samples.width)

    def value(self, weights: Weights) -> Tensor:
        """Sum the cross-entropy."""
        return products.value_sum(self.chunks, weights)

    def gradient(self, weights: Weights) -> Tensor:
        """Sum the gradient, shape (n,)."""
        return products.gradient_sum(self.chunks, weights)

    def linearize(self, weights: Weights, *, gradient: bool) -> ChunkedLinearized:
        """Go forward once, and keep all that no direction changes; with the gradient on the way, or not."""
        if gradient:
            linearized, slope = products.linearize_with_gradient(self.chunks, weights)
            return ChunkedLinearized(linearized, weights, slope)
        return ChunkedLinearized(products.linearize(self.chunks, weights), weights, None)

    def bytes_needed(self, hidden: int, classes: int) -> int:
        """Count what a linearization keeps, and what one of its products works on."""
        size = self.inputs * hidden + hidden + hidden * classes + classes
        classes += -classes % products.LANES
        kept = self._samples * (3 * hidden + 2 * classes)
        wide = products.WIDEST * (MOST_ROWS * (3 * hidden + 2 * classes) + size)
        device = self.chunks[0].inputs.device
        return (kept + worker_count(device) * wide + products.WIDEST * size) * self._item

    def panel_bytes(self, hidden: int) -> int:
        """Count what panels keep and work on, beside the panel."""
        return panel_bytes(self._samples, self.inputs, hidden, rows=MOST_ROWS, item=self._item, threads=SHARES)

    @property
    def _samples(self) -> int:
        return sum(len(chunk.labels) for chunk in self.chunks)

    @property
    def _item(self) -> int:
        return self.chunks[0].inputs.element_size()
