"""Which part of a model's outputs the loss is convex in, and whether it is."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from jvp_ops._autodiff import Tensors, pull_back
from jvp_ops.errors import InputError
from jvp_ops.losses.model._batches import Batch
from jvp_ops.losses.model._evaluation import Evaluation
from jvp_ops.losses.model._graphs import Part, Reading, names_of, outer_gradient, parts_of
from jvp_ops.losses.model._structures import all_tensors


def convex_part(at: Evaluation, leaves: Tensors, samples: Sequence[Batch], outputs: Part, again: Reading) -> Part:
    """Find the part of the outputs that the loss is convex in, and see on all samples tried that it is."""
    part = find_part(at, samples[0]) if outputs is None else outputs

    def curvature_of(batch: Batch, *, elsewhere: bool) -> float:
        z, slopes, inputs = outer_gradient(at, leaves, batch, part, again, elsewhere=elsewhere)
        return refuse_concave(slopes[: len(z)], inputs[: len(z)], batch.samples)

    largest = max(curvature_of(batch, elsewhere=False) for batch in samples)
    # a saturated loss is flat where it stands, a linear one everywhere
    if largest == 0 and not any(curvature_of(batch, elsewhere=True) for batch in samples):
        refuse_linear()
    return part


def find_part(at: Evaluation, batch: Batch) -> Part:
    """Find the one part of the outputs that the loss depends on.

    Raises
    ------
    InputError
        It depends on several.
    """
    found = at.outputs(batch)
    if isinstance(found, Tensor):
        return None
    parts = parts_of(found)
    floating = {
        name: [z for z in all_tensors(value) if z.is_floating_point() and z.requires_grad] for name, value in parts
    }
    value = at.loss(found, batch)
    used, met = [], set[int]()
    for name, tensors in floating.items():
        tensors = [z for z in tensors if z is not value and not (at.objective.function is None and name == "loss")]
        tensors = [z for z in tensors if id(z) not in met]
        met |= {id(z) for z in tensors}
        if tensors and any(
            g is not None for g in torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
        ):
            used.append(name)
    if len(used) != 1:
        raise InputError(
            f"gauss_newton needs the part of the model's outputs that the loss is convex in, and the loss depends on "
            f"{' and '.join(map(repr, used)) or 'none'} of {type(found).__name__}{names_of(found)}: name it by outputs="
        )
    return used[0]


def refuse_concave(slopes: Sequence[Tensor], outputs: Sequence[Tensor], samples: int) -> float:
    """Probe uᵀ (∂²ℓ/∂z²) u for each sample, and return the largest; a negative one shows that ℓ is not convex."""
    random, largest = torch.Generator().manual_seed(0), 0.0
    for _ in range(4):
        probes = [torch.randn(z.shape, generator=random).to(z) for z in outputs]
        curved = pull_back(slopes, outputs, probes)
        by_row = [(u * c).reshape(len(u) if u.ndim else 1, -1).sum(1) for u, c in zip(probes, curved, strict=True)]
        curvature = (
            sum(by_row) if all(len(row) == samples for row in by_row) else torch.stack([r.sum() for r in by_row])
        )
        assert isinstance(curvature, Tensor)
        largest = max(largest, float(curvature.abs().max()))
        if bool((curvature < -1e-4 * curvature.abs().max()).any()):
            raise InputError(
                "the loss function is not convex in the model's outputs (a curvature of "
                f"{float(curvature.min()):.3g} was met), so it has no Gauss-Newton matrix: use hessian(theta)"
            )
    return largest


def refuse_linear() -> NoReturn:
    """Refuse a Gauss-Newton matrix that is zero whatever θ is."""
    raise InputError(
        "the loss is linear in the model's outputs, so that its Gauss-Newton matrix is zero by definition (as of a "
        "model that ends in LogSoftmax with nll_loss): take cross_entropy on the logits, or hessian(theta)"
    )
