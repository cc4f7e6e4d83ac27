"""A dense matrix that is declared symmetric is compared with its transpose before it is made exactly so."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import numbers

import jvp_ops as jo
from jvp_ops.linear import LinearMap
from jvp_ops.operators import TensorOperator, _dense
from jvp_ops.parameters import Parameters
from jvp_ops.testing import operator_of

N = 130
SAYS = r"declared symmetric, but its entry \((\d+), (\d+)\) is .* differ by .* of the largest entry met.*symmetry_error"
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Wrong(torch.autograd.Function):
    """x³ of each entry, with a rule of its own for the second derivative that mixes in a neighbour."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * Slope.apply(*ctx.saved_tensors)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 3 * x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 6 * x * g + 0.01 * g.roll(1)


def lying(dtype, size=N):
    loss = jo.FunctionLoss(
        lambda x: Wrong.apply(x).sum(),
        shapes={"a": (size // 2,), "b": (size - size // 2,)},
        second_derivatives="unchecked",
        dtype=dtype,
    )
    return loss.hessian(torch.ones(size, dtype=loss.dtype))


@pytest.fixture
def block(request, monkeypatch):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", request.param)


def in_blocks(*sizes):
    return pytest.mark.parametrize("block", sizes, indirect=True, ids=lambda size: f"blocks of {size} bytes")


@in_blocks(2000, 2**27)
@DTYPES
def test_a_wrong_second_derivative_is_told_in_memory(dtype, block):
    A = lying(dtype)
    measured = jo.symmetry_error(A.apply(torch.eye(N, dtype=A.torch_dtype)))
    assert 1e-4 < measured < 1e-2
    with pytest.raises(jo.InputError, match=SAYS) as caught:
        A.dense()
    assert "differ by 1.0e-02, 1.7e-03 of the largest entry met" in str(caught.value)
    assert ("compute in float64" in str(caught.value)) == (dtype == "float32")


@in_blocks(2000, 2**27)
@DTYPES
def test_it_is_told_in_a_file_of_which_nothing_is_left(dtype, block, tmp_path):
    for stored in (None, "float32", "float64"):
        for resume in (False, True):
            with pytest.raises(jo.InputError, match=SAYS):
                lying(dtype).dense(out=tmp_path / "H.npy", dtype=stored, resume=resume)
            assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", ["b", ["a", "b"], slice(20, 90), list(range(100, 40, -1))], ids=str)
@DTYPES
def test_it_is_told_in_a_block(dtype, chosen):
    with pytest.raises(jo.InputError, match=SAYS):
        lying(dtype).dense(rows=chosen, cols=chosen)
    if chosen == "b":
        with pytest.raises(jo.InputError, match=SAYS):
            lying(dtype).block("b", "b").dense()


def test_blocks_that_were_written_before_it_is_found_are_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", 30 * N * 8)
    matrix = numbers(1, N, N)
    matrix = matrix + matrix.mT
    matrix[110, 40] *= 1.5
    written = []
    original = _dense.MatrixFile.write
    monkeypatch.setattr(_dense.MatrixFile, "write", lambda *a: (written.append(a[1]), original(*a)))
    A = operator_of(matrix, symmetric=True)
    with pytest.raises(jo.InputError, match=r"its entry \(110, 40\) is|its entry \(40, 110\) is"):
        A.dense(out=tmp_path / "A.npy")
    assert written == [0, 30, 60]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(jo.InputError, match=SAYS):
        A.dense(out=tmp_path / "A.npy", resume=True)
    assert written == [0, 30, 60] * 2


def test_a_file_that_another_put_in_its_place_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", 2000)
    partial = tmp_path / "H.npy.partial"
    original = _dense.MatrixFile.columns

    def columns(self, *where):
        partial.rename(tmp_path / "moved")
        partial.write_text("another's")
        return original(self, *where)

    monkeypatch.setattr(_dense.MatrixFile, "columns", columns)
    with pytest.raises(jo.InputError, match=SAYS):
        lying("float64", size=10).dense(out=tmp_path / "H.npy")
    assert partial.read_text() == "another's"


def test_the_columns_beside_panels_are_compared_too():
    data = jo.load_digits().subset(50)
    H = jo.TwoLayerLoss(data, hidden=3, dtype="float64").hessian(torch.ones(64 * 3 + 3 + 30 + 10).double() / 9)
    known = H.linear

    def apply(V):
        out = known.apply(V)
        out[-1] += 0.1 * V[-20]
        return out

    H.dense()
    with pytest.raises(jo.InputError, match=SAYS):
        TensorOperator(replace(known, apply=apply, adjoint=apply)).dense()


def scaled(dtype, seed, *, small=1e-3, large=1e3, size=500):
    """Entries of 1e-6 to 1e6: S (JᵀJ + a part that is not definite) S, each product from its factors."""
    random = np.random.default_rng(seed)
    J, K = (torch.from_numpy(random.standard_normal((3 * size, size))).to(dtype) for _ in range(2))
    signs = torch.from_numpy(np.sign(random.standard_normal(3 * size))).to(dtype)
    S = torch.from_numpy(np.geomspace(small, large, size)[random.permutation(size)]).to(dtype)[:, None]

    def apply(V):
        scaled = S * V
        return S * (J.mT @ (J @ scaled) + K.mT @ (signs[:, None] * (K @ scaled))) / (3 * size)

    parameters = Parameters.of({"x": (size,)})
    known = LinearMap.symmetric_of(apply, parameters, dtype, torch.device("cpu"), identity=lambda: {"seed": seed})
    return TensorOperator(known)


@in_blocks(100_000, 2**27)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_an_honest_operator_of_badly_scaled_entries_passes(seed, dtype, block, tmp_path):
    A = scaled(dtype, seed)
    M = A.dense()
    assert torch.equal(M, M.mT)
    magnitudes = M.abs()[M != 0]
    assert magnitudes.min() < 1e-6 < 1e5 < magnitudes.max()
    raw = A.apply(torch.eye(500, dtype=dtype))
    assert (dtype == torch.float64) or float((raw - raw.mT).abs().max()) > 0
    np.testing.assert_array_equal(A.dense(out=tmp_path / "A.npy"), M.numpy())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_honest_network_in_float32_passes(scale):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 15), torch.nn.GELU(), torch.nn.Linear(15, 11))
        X, t = torch.randn(300, 20), torch.randint(11, (300,))
    loss = jo.ModelLoss(model, lambda z, t: scale * torch.nn.functional.cross_entropy(z, t), (X, t))
    for theta in (loss.initial(), 30 * loss.initial()):  # at the second nearly every sample is saturated
        H = loss.hessian(theta)
        assert H.shape[0] == 491
        M = H.dense()
        assert torch.equal(M, M.mT)


@DTYPES
def test_a_matrix_of_zeros_passes(dtype):
    assert not operator_of(torch.zeros(9, 9), dtype=dtype).dense().any()


def test_what_is_not_finite_is_named_before_it_is_compared(tmp_path):
    matrix = torch.eye(40, dtype=torch.float64)
    matrix[30, 3] = matrix[3, 30] = 1e300
    A = operator_of(matrix)
    with pytest.raises(jo.NonFiniteError, match="the block of rows"):
        A.dense(dtype="float32")
