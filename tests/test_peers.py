"""Products of modules' losses against those of other libraries, on batches of unequal size."""

import copy

import pytest
import torch
from cases import MODULES, numbers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PEER = "{}, which is compared, is not installed: pip install 'jvp-ops[bench]'"
curvlinops = pytest.importorskip("curvlinops", reason=PEER.format("curvlinops"))

SAME = 1e-10


class PlainNorm(nn.Module):
    """Layer norm written out: torch's own, twice differentiated under vmap as curvlinops does, is wrong (2 % here)."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


def parts(name):
    module = MODULES[name]
    cut = len(module.targets) // 2 + 1
    batches = [(module.inputs[:cut], module.targets[:cut]), (module.inputs[cut:], module.targets[cut:])]
    return module, batches


@pytest.mark.parametrize("name", ["perceptron", "convolutions with batch-norm", "transformer block"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_are_those_of_curvlinops(name, kind):
    module, batches = parts(name)
    peer_of = {"hessian": curvlinops.HessianLinearOperator, "gauss_newton": curvlinops.GGNLinearOperator}[kind]
    model = copy.deepcopy(module.model())
    for part in ("norm1", "norm2"):
        if hasattr(model, part):
            setattr(model, part, PlainNorm(getattr(model, part)))
    with sdpa_kernel(SDPBackend.MATH):
        peer = peer_of(model, nn.CrossEntropyLoss(), list(model.parameters()), batches, check_deterministic=False)
        V = numbers(1, peer.shape[1], 3)
        expected = peer @ V
    loss = module.loss()
    image = getattr(loss, kind)(loss.initial()).apply(V)
    assert (image - expected).norm() <= SAME * expected.norm()


@pytest.mark.parametrize("name", ["perceptron", "convolutions with batch-norm"])
def test_products_are_those_of_hessian_eigenthings(name):
    eigenthings = pytest.importorskip("hessian_eigenthings", reason=PEER.format("hessian_eigenthings"))
    module = MODULES[name]

    def total(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    peer = eigenthings.HessianOperator(module.model(), [(module.inputs, module.targets)], total)
    loss = module.loss()
    v = numbers(2, loss.parameters.size)
    expected = peer.matvec(v)
    assert (loss.hessian(loss.initial()).apply(v) - expected).norm() <= SAME * expected.norm()
