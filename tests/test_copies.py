"""Copies and pickles: by recipe, linearized anew on the other side, or refused by name."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import jvp_ops as jo
from jvp_ops.linear import LinearMap
from jvp_ops.testing import conjugated, operator_of

DATA = jo.load_digits().subset(60)


def two_layer():
    return jo.TwoLayerLoss(DATA, hidden=3)


def module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    pair = (torch.tensor(DATA.inputs), torch.tensor(DATA.labels))
    return jo.ModelLoss(net, nn.functional.cross_entropy, pair, regularizer=penalty)


def penalty(parameters):
    return 0.01 * parameters["0.weight"].square().sum()


def quartic(x):
    return (x**4).sum() + x[0] * x[1]


def swap(x):
    return torch.stack([x[1] ** 2, x[0]])


def operators():
    loss, net = two_layer(), module()
    theta = loss.initial(rng=0)
    H = loss.hessian(theta)
    function = jo.FunctionLoss(quartic, size=4)
    adam, momentum = jo.Adam(loss, 0.01), jo.HeavyBall(loss, 0.1, 0.9)
    batches = jo.MinibatchSGD(loss, 20)
    yield "hessian", H
    yield "gauss-newton", loss.gauss_newton(theta)
    yield "module", net.hessian(net.initial())
    yield "module's gauss-newton", net.gauss_newton(net.initial())
    yield "part of a module's data", net.subset(range(10)).hessian(net.initial())
    yield "module in float64", net.to(dtype="float64").hessian(net.initial().double())
    yield "function", function.hessian(torch.ones(4))
    yield "map", jo.FunctionMap(swap, size=2).jacobian(torch.ones(2))
    yield "descent", jo.GradientDescent(loss, 0.1).jacobian(theta)
    yield "adam", adam.jacobian(adam.initial(theta), 2)
    yield "adam's curvature", adam.curvature(adam.initial(theta))
    yield "momentum", momentum.jacobian(momentum.initial(theta))
    yield "batches", batches.jacobian(theta, 3)
    yield "one of several losses", jo.MinibatchSGD.of([loss, loss.subset(range(9))]).jacobian(theta, 1)
    yield "block", H.block("W1", "b2")
    yield "rows and columns", H.part(slice(0, 5), [3, 1])
    yield "transpose", momentum.jacobian(momentum.initial(theta)).T
    yield "sum", H + 2 * H.shifted(0.5) - H @ H
    yield "power", H**3
    yield "identity", jo.identity(loss.parameters)
    yield "diagonal", jo.diagonal_operator(theta, loss.parameters)
    yield "in float64", H.in_float64()
    yield "array", jo.as_operator(np.arange(6.0).reshape(2, 3))
    yield "sparse", jo.as_operator(scipy.sparse.eye_array(3))
    yield "testing", operator_of(np.eye(3))
    yield "orbit", jo.Orbit(jo.GradientDescent(loss, 0.1), theta, 3).jacobian()


OPERATORS = dict(operators())


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_an_operator_comes_back_the_same(name, how):
    A = OPERATORS[name]
    B = {"pickle": lambda A: pickle.loads(pickle.dumps(A)), "copy": copy.copy, "deepcopy": copy.deepcopy}[how](A)
    assert B is not A
    assert (type(B), B.shape, B.torch_dtype, B.symmetric) == (type(A), A.shape, A.torch_dtype, A.symmetric)
    assert (B.rows, B.columns) == (A.rows, A.columns)
    V, U = torch.ones(A.shape[1], 2, dtype=A.torch_dtype), torch.ones(A.shape[0], dtype=A.torch_dtype)
    before = A.products
    torch.testing.assert_close(B.apply(V), A.linear.apply(V))
    torch.testing.assert_close(B.apply_adjoint(U), A.linear.adjoint(U[:, None])[:, 0])
    assert A.products == before
    assert B.identity() == A.identity()


def losses():
    return {"two-layer": two_layer(), "module": module(), "function": jo.FunctionLoss(quartic, size=4)}


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_a_loss_comes_back_the_same(name, how):
    loss = losses()[name]
    other = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy, "deepcopy": copy.deepcopy}[how](loss)
    theta = loss.initial(rng=0) if name != "module" else loss.initial()
    assert torch.equal(other.gradient(theta), loss.gradient(theta))
    assert other.identity() == loss.identity()
    assert repr(other) == repr(loss)


def test_results_and_data_are_pickled():
    pairs = jo.eigenpairs(OPERATORS["descent"], 2, "LA")
    again = pickle.loads(pickle.dumps(pairs))
    assert np.array_equal(again.values, pairs.values)
    assert repr(again) == repr(pairs)
    assert pickle.loads(pickle.dumps(DATA)).labels.tolist() == DATA.labels.tolist()


def test_the_data_of_a_loss_are_carried_once():
    loss = two_layer()
    loss.to(dtype="float64")
    assert len(pickle.dumps(loss)) < 60 * 64 * 4


def top(A):
    return float(jo.eigenpairs(A, 1, "LA").values[0])


def test_another_process_finds_the_same_eigenvalues():
    wanted = [OPERATORS[name] for name in ("hessian", "module", "descent", "sum")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(top, wanted))
    np.testing.assert_allclose(found, [top(A) for A in wanted], rtol=1e-6)


def test_what_stands_in_the_way_is_named():
    layout = jo.Parameters.of({"x": (2,)})
    bare = jo.HessianOperator(
        LinearMap.symmetric_of(lambda V: 2 * V, layout, torch.float32, torch.device("cpu"), identity=dict)
    )
    for A in (bare, conjugated([1.0, 2.0]).operator):
        with pytest.raises(jo.InputError, match=r"was made of products alone.* from its loss or map and its state"):
            pickle.dumps(A)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(jo.FunctionLoss(lambda x: x.sum(), size=2).hessian(torch.ones(2)))
    assert copy.deepcopy(bare).apply(torch.ones(2)).tolist() == [2.0, 2.0]


def test_a_copy_in_a_fresh_interpreter(tmp_path):
    file = tmp_path / "H.pickle"
    H = two_layer().hessian(two_layer().initial(rng=0))
    file.write_bytes(pickle.dumps(H))
    code = f"import pickle; A = pickle.load(open({str(file)!r}, 'rb')); print(A.shape, type(A).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{H.shape} HessianOperator"


# --- found by review ----------------------------------------------------------------------------------------------


class Damped(jo.ModelLoss):
    """A subclass that builds on the Hessian: twins and pickles must build on it once."""

    def __init__(self, model, data, damping=0.5):
        super().__init__(model, nn.functional.cross_entropy, data)
        self.damping = damping

    def value(self, theta):
        return super().value(theta) + self.damping * (theta**2).sum()

    def gradient(self, theta):
        return super().gradient(theta) + 2 * self.damping * theta

    def hessian(self, theta):
        return super().hessian(theta).shifted(2 * self.damping)


class Shifted(jo.FunctionLoss):
    def hessian(self, theta):
        return super().hessian(theta).shifted(1.0)


class Doubled(jo.GradientDescent):
    def jacobian(self, state, step=0):
        return 2 * super().jacobian(state, step)


def damped():
    torch.manual_seed(0)
    data = (torch.randn(12, 5), torch.randint(0, 3, (12,)))
    return Damped(nn.Linear(5, 3), data)


def test_overrides_that_build_on_the_class_are_applied_once():
    loss = damped()
    theta = loss.initial()
    H = loss.hessian(theta)
    M = H.dense()
    torch.testing.assert_close(H.in_float64().dense().float(), M, rtol=1e-5, atol=1e-6)
    exact = np.linalg.eigvalsh(M.double())
    np.testing.assert_allclose(jo.eigenpairs(H, 2, "LA").values, exact[:-3:-1], rtol=1e-5)
    J = jo.GradientDescent(loss, lr=0.1).jacobian(theta)
    np.testing.assert_allclose(jo.eigenpairs(J, 2, "SA").values, 1 - 0.1 * exact[:-3:-1], rtol=1e-5)
    here = loss.at(theta)
    assert torch.equal(here.gradient, loss.gradient(theta))
    assert torch.equal(here.value, loss.value(theta))
    for again in (pickle.loads(pickle.dumps(H)), here.hessian(), pickle.loads(pickle.dumps(here)).hessian()):
        torch.testing.assert_close(again.dense(), M)
    loss.damping = 2.0
    other = pickle.loads(pickle.dumps(loss))
    assert torch.equal(other.value(theta), loss.value(theta))
    function = Shifted(quartic, size=4)
    x = torch.ones(4)
    for A in (pickle.loads(pickle.dumps(function.hessian(x))), function.at(x).hessian()):
        assert torch.equal(A.dense(), function.hessian(x).dense())
    f = Doubled(two_layer(), 0.1)
    start = f.loss.initial(rng=0)
    J = f.jacobian(start)
    V = torch.ones(J.shape[1])
    for A in (pickle.loads(pickle.dumps(J)), f.linearize(start)[1], J.in_float64()):
        torch.testing.assert_close(A.apply(V.to(A.torch_dtype)).float(), J.apply(V), rtol=1e-5, atol=1e-5)


def test_what_was_given_may_change_later():
    a = np.arange(6.0).reshape(2, 3)
    s = scipy.sparse.csr_array(np.diag([1.0, 2.0, 3.0]))
    A, S = jo.as_operator(a), jo.as_operator(s)
    kept, held = A.dense().clone(), S.dense().clone()
    index, rows = [0, 5, 9], [0, 2]
    loss = module()
    part = loss.subset(index)
    theta = loss.initial()
    expected = part.gradient(theta)
    chosen = loss.hessian(theta).part(rows, [3, 4])
    entries = chosen.dense()
    a *= 2
    s.data *= 2
    index[0], rows[0] = 7, 9
    for made, matrix in ((A, kept), (S, held), (chosen, entries)):
        assert torch.equal(made.dense(), matrix)
        torch.testing.assert_close(pickle.loads(pickle.dumps(made)).dense(), matrix)
        assert torch.equal(copy.deepcopy(made).dense(), matrix)
    torch.testing.assert_close(pickle.loads(pickle.dumps(part)).gradient(theta), expected)


@pytest.mark.parametrize("change", ["constants", "start", "data"])
def test_a_model_loss_whose_model_or_data_changed_is_not_made_again_in_silence(change):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    data = (torch.randn(8, 4), torch.randint(2, (8,)))
    loss = jo.ModelLoss(net, nn.functional.cross_entropy, data, parameters="2.*")
    start = loss.initial()
    H = loss.hessian(start)
    matrix = H.dense()
    with torch.no_grad():
        {"constants": net[0].weight, "start": net[2].weight, "data": data[0]}[change].mul_(3)
    with pytest.raises(jo.DataError, match=r"cannot be made again|changed in place"):
        pickle.loads(pickle.dumps(H))
    if change != "data":
        for other in (copy.copy(loss), copy.deepcopy(loss)):
            assert torch.equal(other.initial(), start)
            torch.testing.assert_close(other.hessian(start).dense(), matrix)


def test_the_dtype_that_was_found_is_carried():
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    loss = jo.ModelLoss(net, nn.functional.cross_entropy, (torch.randn(8, 4), torch.randint(2, (8,))))
    net.double()
    assert pickle.loads(pickle.dumps(loss)).dtype == loss.dtype == torch.float32


def test_a_diagonal_by_name_keeps_its_names():
    H = jo.FunctionLoss(quartic, shapes={"a": (2, 1), "b": (2,)}).hessian(torch.ones(4))
    D = jo.diagonal_operator({"a": torch.full((2, 1), 2.0), "b": torch.full((2,), 3.0)})
    assert torch.equal((D @ H).dense(), torch.tensor([[2.0], [2.0], [3.0], [3.0]]) * H.dense())
    assert D.block("b", "b").dense().diagonal().tolist() == [3.0, 3.0]
    with pytest.raises(jo.InputError, match="do not meet"):
        jo.diagonal_operator({"b": torch.ones(2), "a": torch.ones(2, 1)}) @ H


def test_a_matrix_that_is_said_to_be_symmetric_and_is_not_is_refused_at_once():
    for M in (np.array([[1.0, 2.0], [0.0, 1.0]]), scipy.sparse.csr_array([[1.0, 2.0], [0.0, 1.0]])):
        with pytest.raises(jo.InputError, match="differ from their mirrors by up to 2"):
            jo.as_operator(M, symmetric=True)
    nearly = np.array([[1.0, 2.0 + 1e-14], [2.0, 1.0]])
    assert jo.as_operator(nearly, symmetric=True).symmetric


def test_threads_that_share_a_point_share_its_pass():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    loss = jo.ModelLoss(net, nn.functional.cross_entropy, (torch.randn(600, 20).double(), torch.randint(3, (600,))))
    theta = loss.initial()
    value, gradient = loss.value(theta), loss.gradient(theta)
    for _ in range(4):
        here = loss.at(theta)
        with ThreadPoolExecutor(6) as pool:
            asked = [
                pool.submit(lambda here=here, what=what: getattr(here, what)) for what in ("gradient", "value") * 3
            ]
            asked.append(pool.submit(here.hessian))
            for what, future in zip(("gradient", "value") * 3, asked, strict=False):
                torch.testing.assert_close(future.result(), gradient if what == "gradient" else value)
