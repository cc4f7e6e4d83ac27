"""Products with the Hessian of any module: a CNN and a small transformer on 2,000 MNIST images, float32.

The peer is given several batch sizes and is counted at its fastest; ours chooses its own chunks.
"""

from typing import Any

import pytest
import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings.operators import HessianOperator as EigenthingsHessian
from paired import paired_times, ratio, relative_difference
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import jvp_ops as jo

SAMPLES = 2_000
BATCHES = (100, 500, SAMPLES)


def cnn() -> nn.Module:
    """Build two convolutions with batch-norm in eval mode, and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 10)),
    )


class Transformer(nn.Module):
    """One pre-norm encoder block over the 28 rows of an image.

    With RMSNorm: the peer differentiates through torch.func, which is wrong to second order for LayerNorm in
    torch 2.13 (its Hessian is not even symmetric), so there would be no common product to time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        self.norms = nn.ModuleList([nn.RMSNorm(64), nn.RMSNorm(64)])
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        x = self.embed(images.squeeze(1))
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.feed_forward(self.norms[1](x))
        return self.head(x.mean(1))


@pytest.mark.parametrize("make", [cnn, Transformer], ids=["cnn", "transformer"])
def test_any_module(make: Any, mnist: Any, device: str, race: Any) -> None:
    torch.manual_seed(0)
    model = make().to(device).eval()
    X = torch.from_numpy(mnist.inputs[:SAMPLES]).reshape(-1, 1, 28, 28).to(device)
    y = torch.tensor(mnist.labels[:SAMPLES], device=device)
    cross_entropy, parameters = nn.CrossEntropyLoss(), list(model.parameters())
    loss = jo.ModelLoss(model, cross_entropy, (X, y))
    H = loss.hessian(loss.initial())
    v = torch.randn(loss.parameters.size, generator=torch.Generator().manual_seed(1)).to(device)
    parts = list(loss.parameters.unflatten(v).values())

    def batches(size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(X.split(size), y.split(size), strict=True))

    def gradient() -> None:
        for inputs, labels in batches(500):
            torch.autograd.grad(cross_entropy(model(inputs), labels), parameters)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
        peers = {
            f"curvlinops, batches of {size}": HessianLinearOperator(
                model, cross_entropy, parameters, batches(size), check_deterministic=False
            )
            for size in BATCHES
        }
        best = _fastest({name: lambda peer=peer: peer @ parts for name, peer in peers.items()})
        peer = peers[best]
        eigenthings = EigenthingsHessian(
            model, batches(500), lambda module, batch: cross_entropy(module(batch[0]), batch[1])
        )
        expected = torch.cat([part.reshape(-1) for part in peer @ parts])
        assert relative_difference(H.apply(v), expected) < 1e-4
        times = race(
            {
                "ours": lambda: H.apply(v),
                "gradient (forward + backward)": gradient,
                best: lambda: peer @ parts,
                "hessian-eigenthings, batches of 500": lambda: eigenthings.matvec(v),
            },
            rounds=9,
            parameters=loss.parameters.size,
        )
    race.info["ratios"] = {
        "ours / gradient": 1 / ratio(times, "gradient (forward + backward)", "ours"),
        "curvlinops / ours": ratio(times, best, "ours"),
        "hessian-eigenthings / ours": ratio(times, "hessian-eigenthings, batches of 500", "ours"),
    }


def _fastest(functions: dict[str, Any]) -> str:
    times = paired_times(functions, rounds=3)
    return min(times, key=lambda name: times[name].min())
