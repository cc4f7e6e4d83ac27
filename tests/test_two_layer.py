"""The closed form of the two-layer network against automatic differentiation."""

from unittest import mock

import numpy as np
import pytest
import torch
from cases import TWO_LAYER, TwoLayer, numbers
from hypothesis import given
from hypothesis import strategies as st

import jvp_ops as jo
from jvp_ops.losses.two_layer import _chunks

NAMES = ("W1", "b1", "W2", "b2")


def within(actual, expected, rtol, scale=None):
    scale = float(expected.abs().max()) if scale is None else scale
    return float((actual - expected).abs().max()) <= rtol * scale


@st.composite
def networks(draw):
    sizes = {
        "samples": draw(st.integers(1, 40)),
        "inputs": draw(st.integers(1, 6)),
        "hidden": draw(st.integers(1, 4)),
        "classes": draw(st.integers(2, 4)),
    }
    return TwoLayer(**sizes, sparsity=draw(st.sampled_from([0.0, 0.3, 0.8, 1.0])), seed=draw(st.integers(0, 10**6)))


@pytest.mark.parametrize("rows", NAMES)
@pytest.mark.parametrize("columns", NAMES)
@pytest.mark.parametrize("kind", ["H", "G"])
def test_each_of_the_sixteen_blocks_is_that_of_autodiff(rows, columns, kind):
    problem = TwoLayer(20, 5, 3, 4, dead=(2,), seed=5)
    loss, theta = problem.loss(), problem.theta()
    A = loss.hessian(theta) if kind == "H" else loss.gauss_newton(theta)
    matrix = problem.H() if kind == "H" else problem.G()
    expected = matrix[loss.parameters[rows].slice, loss.parameters[columns].slice]
    assert expected.abs().max() > 0
    block = A.block(rows, columns)
    assert block.symmetric == (rows == columns)
    assert within(block.dense(), expected, 1e-12)


@given(networks(), st.integers(1, 12))
def test_products_are_those_of_autodiff_at_every_size_and_chunking(problem, most_rows):
    theta = problem.theta()
    with mock.patch.object(_chunks, "MOST_ROWS", most_rows):
        loss = problem.loss()
    assert sum(len(chunk.labels) for chunk in loss._form.chunks) == problem.samples
    assert all(len(chunk.labels) <= most_rows for chunk in loss._form.chunks)
    assert within(loss.hessian(theta).dense(), problem.H(), 1e-12)
    assert within(loss.gauss_newton(theta).dense(), problem.G(), 1e-12)


@given(networks())
def test_value_and_gradient_are_those_of_autodiff(problem):
    loss, theta = problem.loss(), problem.theta()
    leaf = theta.clone().requires_grad_()
    expected = problem.value(leaf)
    (slope,) = torch.autograd.grad(expected, leaf)
    assert loss.value(theta).shape == ()
    assert within(loss.value(theta), expected.detach(), 1e-13)
    assert within(loss.gradient(theta), slope, 1e-12)


@pytest.mark.parametrize("name", TWO_LAYER)
def test_value_and_gradient_hold_in_every_named_case_and_dtype(name, dtype, device):
    problem = TWO_LAYER[name]
    loss, theta = problem.loss(dtype, device), problem.theta(dtype, device)
    leaf = problem.theta().requires_grad_()
    expected = problem.value(leaf)
    (slope,) = torch.autograd.grad(expected, leaf)
    eps = 32 * torch.finfo(dtype).eps
    for found, true in ((loss.value(theta), expected.detach()), (loss.gradient(theta), slope)):
        assert found.dtype == dtype
        assert found.device == device
        assert within(found.cpu().double(), true, eps)


@given(networks(), st.integers(0, 100))
def test_the_order_of_the_samples_does_not_matter(problem, seed):
    X, t = problem.data()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(problem.samples))
    theta, options = problem.theta(), {"hidden": problem.hidden, "classes": problem.classes, "dtype": "float64"}
    with mock.patch.object(_chunks, "MOST_ROWS", 7):
        shuffled = jo.TwoLayerLoss(X[order], t[order], **options)
    assert within(shuffled.hessian(theta).dense(), problem.loss().hessian(theta).dense(), 1e-13)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_the_number_of_threads_does_not_matter(kind, threads):
    problem = TWO_LAYER["several sparse chunks"]
    assert len(problem.loss()._form.chunks) > 2
    A = getattr(problem.loss(), kind)(problem.theta())
    V = numbers(3, A.shape[1], 4)
    threads(1)
    one, value = A.apply(V), problem.loss().value(problem.theta())
    for count in (2, 3):
        threads(count)
        assert within(A.apply(V), one, 1e-13)
        assert within(problem.loss().value(problem.theta()), value, 1e-14)
        assert torch.equal(A.apply(V), A.apply(V))
        assert torch.get_num_threads() == count


@pytest.mark.parametrize("m", [0, 1, 15, 16, 17, 40])
def test_any_number_of_directions_is_multiplied_at_once(m):
    problem = TWO_LAYER["dead inputs"]
    V = numbers(4, len(problem.H()), m)
    image = problem.loss().hessian(problem.theta()).apply(V)
    assert image.shape == V.shape
    torch.testing.assert_close(image, problem.H() @ V, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_a_linearization_stays_at_its_state_when_theta_changes_in_place(kind):
    problem = TWO_LAYER["two classes"]
    theta = problem.theta()
    A = getattr(problem.loss(), kind)(theta)
    before = A.dense()
    theta.mul_(-3)
    assert torch.equal(A.dense(), before)


def test_data_that_the_caller_changes_later_are_not_seen():
    X, t = TWO_LAYER["two classes"].data()
    X, t = X.numpy(), t.numpy()
    loss = jo.TwoLayerLoss(X, t, hidden=3, dtype="float64")
    theta = loss.initial(rng=1)
    before = loss.value(theta)
    X[:] = 0
    t[:] = 0
    assert loss.value(theta) == before


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float16, bool])
def test_inputs_of_any_real_kind_are_converted(kind):
    X = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    loss = jo.TwoLayerLoss(X, np.array([0, 1], dtype=np.uint8), hidden=2)
    expected = jo.TwoLayerLoss(torch.tensor(X.astype(np.float32)), [0, 1], hidden=2)
    theta = loss.initial(rng=0)
    assert theta.dtype == torch.float32
    assert torch.equal(loss.gradient(theta), expected.gradient(theta))


def test_inputs_in_bfloat16_are_converted():
    X = torch.tensor([[0.5, 1.0], [1.0, 0.0]])
    loss, expected = (jo.TwoLayerLoss(inputs, [0, 1], hidden=2) for inputs in (X.bfloat16(), X))
    theta = loss.initial(rng=0)
    assert torch.equal(loss.gradient(theta), expected.gradient(theta))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    problem = TWO_LAYER["two classes"]
    with mode():
        H = problem.loss().hessian(problem.loss().initial(rng=1)).dense()
    assert torch.equal(H, problem.loss().hessian(problem.loss().initial(rng=1)).dense())


def test_large_integers_keep_their_digits_in_float64():
    X = np.array([[2**24 + 1], [-(2**24) - 3]])
    theta = torch.tensor([2.0**-24, 0.1, 0.5, -0.5, 0.0, 0.0], dtype=torch.float64)
    as_integers, as_floats = (
        jo.TwoLayerLoss(inputs, [0, 1], hidden=1, dtype="float64") for inputs in (X, X.astype(np.float64))
    )
    assert as_integers.value(theta) == as_floats.value(theta)


def test_to_gives_the_same_loss_in_another_dtype():
    problem = TWO_LAYER["dead inputs"]
    loss = problem.loss(torch.float32)
    double = loss.to(dtype="float64")
    assert double.dtype == torch.float64
    assert loss.dtype == torch.float32
    assert within(double.hessian(problem.theta()).dense(), problem.H(), 1e-12)
    A = loss.hessian(problem.theta(torch.float32)).in_float64()
    assert A.torch_dtype == torch.float64
    assert within(A.dense(), problem.H(), 1e-12)


def test_classes_default_to_one_more_than_the_largest_label_and_at_least_two():
    X = np.eye(3)
    assert jo.TwoLayerLoss(X, [0, 3, 1], hidden=2).parameters["b2"].size == 4
    assert jo.TwoLayerLoss(X, [0, 0, 0], hidden=2).parameters["b2"].size == 2
    assert jo.TwoLayerLoss(X, [0, 0, 0], hidden=2, classes=5).parameters["b2"].size == 5
