"""Dense assembly from wide products."""

import torch
from torch import Tensor

from jvp_ops._memory import require, resolve_budget
from jvp_ops._progress import progress_bar
from jvp_ops.operators._linearization import Linearization, Product

WIDEST = 64


def assemble(
    apply: Product,
    adjoint: Product,
    linearization: Linearization,
    *,
    max_memory: int | str | None,
    progress: bool,
) -> Tensor:
    """Multiply the identity, a few columns at a time, from the side that has fewer of them."""
    shape = rows, columns = linearization.rows.size, linearization.columns.size
    by_rows = rows < columns
    product, count, other = (adjoint, rows, columns) if by_rows else (apply, columns, rows)
    width = min(WIDEST, count)
    item = torch.empty(0, dtype=linearization.dtype).element_size()
    budget = resolve_budget(max_memory, linearization.device)
    remedy = "take one block, raise max_memory, or use a matrix-free solver (jvp_ops.eigenpairs)"
    require(
        (rows * columns + width * (count + other)) * item,
        budget,
        f"a dense {rows} × {columns} matrix",
        remedy,
    )
    matrix = torch.empty(shape, dtype=linearization.dtype, device=linearization.device)
    with progress_bar(count, show=progress, description="dense", unit="row" if by_rows else "column") as bar:
        for start in range(0, count, width):
            stop = min(start + width, count)
            directions = torch.zeros(count, stop - start, dtype=linearization.dtype, device=linearization.device)
            directions[start:stop].fill_diagonal_(1)
            piece = product(directions)
            if by_rows:
                matrix[start:stop] = piece.mT
            else:
                matrix[:, start:stop] = piece
            bar.update(stop - start)
    return matrix
