"""Products with the Hessian of the reference problem: 784-50-10, all of MNIST, float32.

Each bench first checks that all contenders give the same product, then times them in turns. The peer is given
the data as one batch and as batches of 1,000, and is counted at whichever is faster.
"""

from typing import Any

import pytest
import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings.operators import HessianOperator as EigenthingsHessian
from paired import ratio, relative_difference
from torch import Tensor, nn

import jvp_ops as jo

HIDDEN = 50


class Problem:
    """The reference problem, as jvp_ops and as its peers hold it, at one random start."""

    def __init__(self, data: Any, device: str, hidden: int = HIDDEN) -> None:
        self.inputs = torch.from_numpy(data.inputs).to(device)
        self.labels = torch.tensor(data.labels, device=device)
        self.loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=hidden, device=device)
        self.theta = self.loss.initial(rng=0)
        self.network = nn.Sequential(nn.Linear(784, hidden), nn.Sigmoid(), nn.Linear(hidden, 10)).to(device)
        self.parameters = [self.network[0].weight, self.network[0].bias, self.network[2].weight, self.network[2].bias]
        for parameter, values in zip(self.parameters, self.split(self.theta), strict=True):
            parameter.data.copy_(values)
        self.cross_entropy = nn.CrossEntropyLoss()

    def split(self, v: Tensor) -> list[Tensor]:
        """Lay a flat vector (n,) or (n, m) out as torch does: weights are (outputs, inputs)."""
        W1, b1, W2, b2 = self.loss.parameters.unflatten(v).values()
        return [W1.transpose(0, 1).contiguous(), b1, W2.transpose(0, 1).contiguous(), b2]

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Undo `split`."""
        W1, b1, W2, b2 = tensors
        pieces = zip((W1.transpose(0, 1), b1, W2.transpose(0, 1), b2), self.loss.parameters, strict=True)
        return torch.cat([piece.reshape(entry.size, *piece.shape[len(entry.shape) :]) for piece, entry in pieces])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Divide the data as the peers want it."""
        return list(zip(self.inputs.split(size), self.labels.split(size), strict=True))

    def gradient(self) -> list[Tensor]:
        """Run forward and backward once, in plain torch."""
        value = self.cross_entropy(self.network(self.inputs), self.labels)
        return list(torch.autograd.grad(value, self.parameters))

    def double_backward(self, v: list[Tensor]) -> list[Tensor]:
        """Form the product in plain torch."""
        value = self.cross_entropy(self.network(self.inputs), self.labels)
        slopes = torch.autograd.grad(value, self.parameters, create_graph=True)
        return list(torch.autograd.grad(slopes, self.parameters, v))

    def curvlinops(self, batch: int) -> Any:
        """Build the peer's operator."""
        return HessianLinearOperator(
            self.network, self.cross_entropy, self.parameters, self.batches(batch), check_deterministic=False
        )


@pytest.fixture(scope="module")
def problem(mnist: Any, device: str) -> Problem:
    """Build the problem once."""
    return Problem(mnist, device)


def test_one_product(problem: Problem, race: Any) -> None:
    v = torch.randn(problem.loss.parameters.size, generator=torch.Generator().manual_seed(1)).to(problem.theta)
    parts = problem.split(v)
    H = problem.loss.hessian(problem.theta)
    whole, batched = problem.curvlinops(60_000), problem.curvlinops(1_000)
    eigenthings = EigenthingsHessian(
        problem.network, problem.batches(60_000), lambda model, batch: problem.cross_entropy(model(batch[0]), batch[1])
    )
    flat = torch.cat([part.reshape(-1) for part in parts])
    expected = problem.join(problem.double_backward(parts))
    assert relative_difference(H.apply(v), expected) < 1e-4
    assert relative_difference(problem.join(whole @ parts), expected) < 1e-4
    times = race(
        {
            "ours": lambda: H.apply(v),
            "gradient (forward + backward)": problem.gradient,
            "torch double backward": lambda: problem.double_backward(parts),
            "curvlinops, one batch": lambda: whole @ parts,
            "curvlinops, batches of 1000": lambda: batched @ parts,
            "hessian-eigenthings": lambda: eigenthings.matvec(flat),
        }
    )
    peer = min(("curvlinops, one batch", "curvlinops, batches of 1000"), key=lambda name: times[name].min())
    race.info["ratios"] = {
        "ours / gradient": 1 / ratio(times, "gradient (forward + backward)", "ours"),
        "curvlinops / ours": ratio(times, peer, "ours"),
        "hessian-eigenthings / ours": ratio(times, "hessian-eigenthings", "ours"),
        "torch double backward / ours": ratio(times, "torch double backward", "ours"),
    }


def test_32_directions(problem: Problem, race: Any) -> None:
    V = torch.randn(problem.loss.parameters.size, 32, generator=torch.Generator().manual_seed(1)).to(problem.theta)
    v, parts = V[:, 0].clone(), problem.split(V)
    H = problem.loss.hessian(problem.theta)
    whole, batched = problem.curvlinops(60_000), problem.curvlinops(1_000)
    assert relative_difference(H.apply(V), problem.join(batched @ parts)) < 1e-4
    times = race(
        {
            "ours": lambda: H.apply(V),
            "ours, one direction": lambda: H.apply(v),
            "curvlinops, one batch": lambda: whole @ parts,
            "curvlinops, batches of 1000": lambda: batched @ parts,
        },
        rounds=5,
    )
    race.info["ratios"] = {
        "a direction of 32 / one product": ratio(times, "ours", "ours, one direction") / 32,
        "curvlinops in one batch / ours": ratio(times, "curvlinops, one batch", "ours"),
        "curvlinops in batches of 1000 / ours": ratio(times, "curvlinops, batches of 1000", "ours"),
    }
