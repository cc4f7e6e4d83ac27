"""Products of modules' losses against those of other libraries, on batches of unequal size."""

import warnings

import pytest
import torch
from cases import MODULES, numbers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

curvlinops = pytest.importorskip("curvlinops")

SAME = 1e-10


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
    model = module.model()
    with sdpa_kernel(SDPBackend.MATH):
        peer = peer_of(model, nn.CrossEntropyLoss(), dict(model.named_parameters()), batches, check_deterministic=False)
        V = numbers(1, peer.shape[1], 3)
        expected = peer @ V
    loss = module.loss()
    image = getattr(loss, kind)(loss.initial()).apply(V)
    assert (image - expected).norm() <= SAME * expected.norm()


@pytest.mark.parametrize("name", ["perceptron", "convolutions with batch-norm"])
def test_products_are_those_of_hessian_eigenthings(name):
    eigenthings = pytest.importorskip("hessian_eigenthings")
    module, batches = parts(name)
    print(eigenthings, batches, warnings)
