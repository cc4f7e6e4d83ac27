"""The block basis by itself: orthonormal to rounding, with decisions of rank that LAPACK's SVD agrees with."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jvp_ops.krylov import BlockBasis, Ritz, TwoSidedBasis, defect, independent, orthonormal, scaled_gram
from jvp_ops.testing import SPECTRA, operator_of, spectrum

EPS = {torch.float32: 1.2e-7, torch.float64: 2.2e-16}


def basis_of(n, capacity, dtype=torch.float64, deflated=None):
    rng = np.random.default_rng(0)
    return BlockBasis(n, capacity, hermitian=True, dtype=dtype, device=torch.device("cpu"), rng=rng, deflated=deflated)


def normal(n, m, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, m))).to(dtype)


def graded(n, lengths, seed=0):
    """Make a block of known singular values, turned so that no column shows them."""
    random = np.random.default_rng(seed)
    m = len(lengths)
    U = scipy.linalg.qr(random.standard_normal((n, m)), mode="economic")[0]
    V = scipy.linalg.qr(random.standard_normal((m, m)))[0]
    return torch.from_numpy(U * lengths @ V.T), torch.from_numpy(U)


def rank_left(block, basis, least):
    """Count what a block of unit columns adds to a basis, by LAPACK; None where a length is near `least`."""
    block = block.double().numpy()
    block = block[:, np.abs(block).max(axis=0) > 0]
    block = block / np.linalg.norm(block, axis=0)
    V = basis.double().numpy()
    for _ in range(2):
        block = block - V @ (V.T @ block)
    sizes = np.linalg.svd(block, compute_uv=False) if block.size else np.zeros(0)
    near = (sizes > least / 3) & (sizes < least * 100)
    return None if near.any() else int((sizes >= least).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_rank_of_every_krylov_block_is_lapack_s_on_every_spectrum(name, width, dtype):
    matrix = spectrum(name, 60).operator.dense().to(dtype)
    basis, least, decided = basis_of(60, 60, dtype), max(1e-10, 10 * EPS[dtype]), 0
    block = independent(normal(60, width, dtype=dtype), ())
    while block.shape[1]:
        image = matrix @ block
        basis.expand(block, image)
        expected = rank_left(image, basis.vectors, least)
        block = independent(image, (basis.vectors,))
        if expected is not None:
            decided += 1
            assert block.shape[1] == min(expected, basis.room)
        block = block[:, : basis.room]
        assert defect(torch.cat([basis.vectors, block], dim=1)) < 40 * 60 * EPS[dtype]
    assert decided
    V, AV = basis.vectors.double(), basis.image.double()
    np.testing.assert_allclose(basis.projection, (V.T @ AV).numpy(), atol=100 * EPS[dtype] * matrix.abs().max())


@pytest.mark.parametrize("name, distinct", [("identity", 1), ("zero", 1), ("stepped", 5), ("low rank", 6)])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_an_exhausted_krylov_space_has_the_dimension_that_its_spectrum_gives(name, distinct, width):
    case = spectrum(name, 60)
    matrix, basis = case.operator.dense(), basis_of(60, 60)
    block = independent(normal(60, width), ())
    while block.shape[1]:
        basis.expand(block, matrix @ block)
        block = independent(matrix @ block, (basis.vectors,))
    counts = np.unique(case.values, return_counts=True)[1]
    assert len(counts) == distinct
    assert basis.size == np.minimum(counts, width).sum()


@pytest.mark.parametrize("lengths", [[1, 1e-3, 1e-6, 1e-9], [1, 1e-9], [1, 1, 1e-7, 1e-8, 3e-10], [1e-7] * 3])
def test_short_directions_are_seen_at_their_own_scale(lengths):
    block, U = graded(300, lengths)
    found = independent(block, ())
    assert found.shape[1] == len(lengths)
    assert defect(found) < 1e-13
    np.testing.assert_allclose((found.T @ U).norm(dim=0).numpy(), 1, atol=1e-5)


def test_the_longest_directions_come_first():
    block, _ = graded(300, [1, 1e-3, 1e-6, 1e-9])
    unit = block / block.norm(dim=0)
    U, lengths, _ = torch.linalg.svd(unit, full_matrices=False)
    found = independent(block, ())
    torch.testing.assert_close((found.T @ U).abs(), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close((found.T @ unit).norm(dim=1), lengths, rtol=1e-4, atol=0)


def test_what_rounding_made_is_no_direction():
    block, _ = graded(300, [1, 0.1, 1e-13, 1e-14])
    assert independent(block, ()).shape[1] == 2
    V = orthonormal(normal(300, 5), 5, against=(), rng=np.random.default_rng(0))
    assert independent(V @ normal(5, 4), (V,)).shape[1] == 0
    assert independent(torch.zeros(300, 3), ()).shape[1] == 0


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e30, 1e300])
def test_sizes_that_no_square_holds_do_not_matter(size):
    block = normal(200, 4) * torch.tensor([1, size, 1, size], dtype=torch.float64)
    found = independent(block, ())
    assert found.shape[1] == 4
    assert defect(found) < 1e-13
    unit, gram = scaled_gram(normal(200, 3) * size)
    assert np.isfinite(gram).all()
    assert gram.diagonal().min() > 0
    assert unit > size


@pytest.mark.parametrize("sparse", [False, True])
def test_missing_directions_are_drawn_orthogonal_to_all_others(sparse):
    E = torch.eye(40, dtype=torch.float64)[:, :6]
    basis = basis_of(40, 40, deflated=E.to_sparse_coo() if sparse else E)
    first = basis.orthonormal(torch.zeros(40, 2), 4)
    basis.expand(first, first)
    second = basis.orthonormal(first @ normal(4, 3), 50)
    assert (first.shape[1], second.shape[1]) == (4, 30)
    basis.expand(second, second)
    assert basis.room == 0
    assert defect(torch.cat([E, basis.vectors], dim=1)) < 1e-13


def test_a_restart_keeps_span_image_and_projection():
    matrix = normal(50, 50)
    basis = basis_of(50, 20)
    for seed in range(3):
        block = basis.orthonormal(normal(50, 4, seed), 4)
        basis.expand(block, matrix @ block)
    Q = scipy.linalg.qr(np.random.default_rng(1).standard_normal((12, 5)), mode="economic")[0]
    kept = basis.combine(Q)
    S = Q.T @ basis.projection @ Q
    basis.restart(Ritz(np.diag(S), Q, S, Q))
    torch.testing.assert_close(basis.vectors, kept)
    torch.testing.assert_close(basis.image, matrix @ kept)
    np.testing.assert_allclose(basis.projection, (kept.T @ matrix @ kept).numpy(), atol=1e-12)
    np.testing.assert_allclose(basis.projection, S, atol=1e-12)
    whole = Ritz(np.diag(S), np.eye(5), S, np.eye(5))
    expected = matrix @ kept - kept @ torch.from_numpy(S)
    torch.testing.assert_close(basis.residuals(whole), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [30, 9])
def test_two_bases_grow_together_and_hold_every_product(rank):
    A = normal(50, rank) @ normal(rank, 30, 1)
    operator = operator_of(A.numpy())
    basis = TwoSidedBasis(50, 30, 24, dtype=torch.float64, device=torch.device("cpu"), rng=np.random.default_rng(0))
    for seed in range(4):
        basis.grow(operator, basis.orthonormal(normal(30, 5, seed + 2), 5))
    assert defect(basis.vectors) < 1e-13
    assert defect(basis.left) < 1e-13
    size = float(torch.linalg.matrix_norm(A, 2))
    close = {"rtol": 0, "atol": 1e-13 * size}
    torch.testing.assert_close(A @ basis.vectors, basis.left @ torch.from_numpy(basis.projection.T), **close)
    torch.testing.assert_close(basis.image, A.T @ basis.left, **close)
    assert basis.asymmetry < 1e-13 * size
    best = basis.solve(lambda values: np.argsort(-values, kind="stable"), 6)
    np.testing.assert_allclose(best.values, np.linalg.svd((A @ basis.vectors).numpy())[1][:6], rtol=1e-12)
    expected = A.T @ basis.combine_left(best.P) - basis.combine(best.Q) * torch.from_numpy(best.values)
    torch.testing.assert_close(basis.residuals(best), expected, **close)
    basis.restart(best)
    torch.testing.assert_close(A @ basis.vectors, basis.left * torch.from_numpy(best.values), **close)
    np.testing.assert_allclose(basis.projection, np.diag(best.values), **close)
    torch.testing.assert_close(basis.image, A.T @ basis.left, **close)


class Calls(TorchDispatchMode):
    """Counts what would wait for a device, and refuses factorizations of tall blocks."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "linalg_qr" in name or "linalg_svd" in name or "geqrf" in name:
            raise AssertionError(f"{name} of shape {tuple(args[0].shape)}")
        self.waits += any(word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero"))
        narrow = args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float32
        self.waits += "_to_copy" in name and bool(narrow) and kwargs.get("dtype") == torch.float64  # a small matrix
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_as_often_for_many_vectors_as_for_one():
    waits = []
    for width in (1, 4, 16):
        basis = basis_of(2000, 40, torch.float32)
        block = basis.orthonormal(normal(2000, width, dtype=torch.float32), width)
        image = normal(2000, width, 1, dtype=torch.float32)
        with Calls() as calls:
            basis.expand(block, image)
            basis.orthonormal(image, width)
        waits.append(calls.waits)
    assert waits == [3, 3, 3]  # the projection, and one Gram matrix for each pass


def test_the_count_of_waits_sees_what_it_should():
    with Calls() as calls:
        float(torch.ones(1))
        bool(torch.ones(3).any())
        torch.ones(2).double()
        torch.ones(3).nonzero()
    assert calls.waits == 4
    with pytest.raises(AssertionError, match="linalg_qr"), Calls():
        torch.linalg.qr(torch.ones(5, 2))
