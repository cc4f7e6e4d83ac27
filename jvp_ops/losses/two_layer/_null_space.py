"""The exact null space of the two-layer network's Hessian."""

import torch
from torch import Tensor

from jvp_ops.parameters import Parameters


def null_space(parameters: Parameters, dead: Tensor) -> Tensor:
    """Build orthonormal columns, sparse: W1's rows of dead inputs, then each row of W2, then b2, along 1."""
    W1, _, W2, b2 = parameters
    hidden, classes = W2.shape
    first = (dead.cpu()[:, None] * hidden + torch.arange(hidden)).reshape(-1) + W1.start
    along = torch.cat([torch.arange(W2.start, W2.stop), torch.arange(b2.start, b2.stop)])
    groups = len(along) // classes
    rows = torch.cat([first, along])
    columns = torch.cat([torch.arange(len(first)), len(first) + torch.arange(groups).repeat_interleave(classes)])
    ones = torch.ones(len(first), dtype=torch.float64)
    values = torch.cat([ones, torch.full((len(along),), classes**-0.5, dtype=torch.float64)])
    shape = (parameters.size, len(first) + groups)
    index = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()
