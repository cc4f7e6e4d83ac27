"""Exact facts about the two-layer network's Hessian that hold at every θ."""

import numpy as np
import pytest
import torch
from cases import TWO_LAYER, TwoLayer, numbers

import jvp_ops as jo


def null_basis(d, h, c, dead):
    """Predict an orthonormal basis of directions that change no output, beside those of dead inputs."""
    n = d * h + h + h * c + c
    columns = []
    for i in dead:
        for j in range(h):
            columns.append(torch.zeros(n).double())
            columns[-1][i * h + j] = 1
    start = d * h + h
    for first in range(start, n, c):  # each row of W2, then b2
        columns.append(torch.zeros(n).double())
        columns[-1][first : first + c] = c**-0.5
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", TWO_LAYER)
def test_the_hessian_vanishes_on_the_predicted_null_space(name):
    p = TWO_LAYER[name]
    N = null_basis(p.inputs, p.hidden, p.classes, p.dead)
    for A in (p.loss().hessian(p.theta()), p.loss().gauss_newton(p.theta())):
        assert A.apply(N).abs().max() <= 1e-14 * float(p.H().norm())


@pytest.mark.parametrize("name", TWO_LAYER)
def test_the_loss_gives_its_null_space_as_sparse_orthonormal_columns(name):
    p = TWO_LAYER[name]
    given = p.loss(torch.float32).null_space()
    assert given.is_sparse
    torch.testing.assert_close(given.to_dense(), null_basis(p.inputs, p.hidden, p.classes, p.dead), rtol=0, atol=1e-15)


def test_with_its_null_space_deflated_a_gauss_newton_matrix_shows_its_lowest_eigenvalue_that_is_not_zero():
    p = TWO_LAYER["several chunks that nothing divides"]  # every input is live, and samples abound
    G, N = p.loss().gauss_newton(p.theta()), p.loss().null_space()
    exact = np.linalg.eigvalsh(p.G().numpy())
    pairs = jo.eigenpairs(G, 1, "SA", deflate=N)
    assert np.abs(exact[: N.shape[1]]).max() < 1e-12 < exact[N.shape[1]]
    assert pairs.values[0] == pytest.approx(exact[N.shape[1]], abs=1e-10)


@pytest.mark.parametrize("name", TWO_LAYER)
def test_the_step_has_eigenvalue_one_on_the_null_space(name):
    p = TWO_LAYER[name]
    N = null_basis(p.inputs, p.hidden, p.classes, p.dead)
    A = jo.GradientDescent(p.loss(), lr=0.1).jacobian(p.theta())
    assert (A.apply(N) - N).abs().max() <= 1e-15 * max(1.0, float(p.H().norm()))


def test_dead_inputs_give_exact_zeros(dtype, device):
    p = TWO_LAYER["dead inputs"]
    A = p.loss(dtype, device).hessian(p.theta(dtype, device))
    dead = null_basis(p.inputs, p.hidden, p.classes, p.dead)[:, : 2 * p.hidden].to(device, dtype)
    assert torch.count_nonzero(A.apply(dead)) == 0
    anything = A.apply(numbers(5, A.shape[1], 3).to(device, dtype))
    assert torch.count_nonzero(dead.mT @ anything) == 0
    assert torch.count_nonzero(anything) == anything.numel() - 3 * 2 * p.hidden


def test_the_null_space_is_no_larger_than_predicted():
    p = TwoLayer(200, 5, 2, 3, dead=(3,), seed=7)
    h = torch.linalg.eigvalsh(p.loss().hessian(p.theta()).dense())
    predicted = null_basis(p.inputs, p.hidden, p.classes, p.dead).shape[1]
    assert predicted == 1 * 2 + 2 + 1
    assert int((h.abs() <= 1e-13 * h.abs().max()).sum()) == predicted
    assert int((h.abs() <= 1e-7 * h.abs().max()).sum()) == predicted


def sign_flip(p, unit):
    """Build T of θ → Tθ that negates a hidden unit: w, b, W2 → −, b2 → b2 + W2."""
    d, h, c = p.inputs, p.hidden, p.classes
    n = d * h + h + h * c + c
    T = torch.eye(n).double()
    row = d * h + h + unit * c
    for index in [*range(unit, d * h, h), d * h + unit, *range(row, row + c)]:
        T[index, index] = -1
    for k in range(c):
        T[n - c + k, row + k] = 1
    return T


@pytest.mark.parametrize("unit", [0, 2])
def test_flipping_the_sign_of_a_hidden_unit_transforms_the_hessian(unit):
    p = TwoLayer(15, 4, 3, 3, seed=8)
    T, loss, theta = sign_flip(p, unit), p.loss(), p.theta()
    torch.testing.assert_close(loss.value(T @ theta), loss.value(theta), rtol=1e-13, atol=0)
    inverse = torch.linalg.inv(T)
    expected = inverse.mT @ loss.hessian(theta).dense() @ inverse
    found = loss.hessian(T @ theta).dense()
    assert not torch.allclose(found, loss.hessian(theta).dense())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))


def test_permuting_hidden_units_permutes_the_hessian():
    p = TwoLayer(15, 4, 3, 3, seed=9)
    order = torch.tensor([2, 0, 1])
    parts = dict(zip(("W1", "b1", "W2", "b2"), p.split(torch.arange(len(p.theta()))), strict=True))
    index = torch.cat(
        [parts["W1"][:, order].reshape(-1), parts["b1"][order], parts["W2"][order].reshape(-1), parts["b2"]]
    )
    loss, theta = p.loss(), p.theta()
    H = loss.hessian(theta).dense()
    found = loss.hessian(theta[index]).dense()
    assert not torch.allclose(found, H)
    torch.testing.assert_close(found, H[index][:, index], rtol=0, atol=1e-13 * float(H.abs().max()))


@pytest.mark.mnist
@pytest.mark.slow
def test_3401_directions_of_the_mnist_network_are_in_the_null_space(device):
    data = jo.load_mnist()
    inputs = data.inputs
    dead = np.flatnonzero(~inputs.any(axis=0))
    assert len(dead) == 67
    loss = jo.TwoLayerLoss(inputs, data.labels, hidden=50, device=device)
    H = loss.hessian(loss.initial(rng=0))
    assert H.shape == (39_760, 39_760)
    assert len(dead) * 50 + 50 + 1 == 3401 == loss.null_space().shape[1]
    V, exact = torch.zeros(39_760, 12).double(), torch.zeros(39_760, 12).double()
    parts = loss.parameters.unflatten(V)
    parts["W2"][:] = numbers(6, 50, 1, 12)
    parts["b2"][:] = numbers(7, 1, 12)
    for directions in (V, exact):
        loss.parameters.unflatten(directions)["W1"][dead] = numbers(8, 67, 50, 12)
    size = float(H.apply(torch.ones(39_760, device=device)).norm()) / 39_760**0.5  # at most ‖H‖
    image = H.apply((V / V.norm(dim=0)).to(device, torch.float32))
    assert image.norm(dim=0).max() <= 32 * 2.0**-23 * size
    assert torch.count_nonzero(H.apply(exact.to(device, torch.float32))) == 0
