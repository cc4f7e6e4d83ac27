"""Singular values with both vectors, against LAPACK: graded, multiple, tiny and rectangular spectra."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as sla
import torch
from cases import TWO_LAYER

import jvp_ops as jo
from jvp_ops.testing import operator_of


def matrix(values, shape, seed=0):
    """Make a matrix of given singular values; the rest are zero."""
    random = np.random.default_rng(seed)
    U, V = (np.linalg.qr(random.standard_normal((n, len(values))))[0] for n in shape)
    return (U * values) @ V.T


SPECTRA = {
    "graded": np.geomspace(1, 1e-6, 60),
    "steep": np.geomspace(1, 1e-14, 60),
    "multiple": np.repeat([3.0, 2.0, 1.0], 20),
    "clustered": 1 + 1e-9 * np.arange(60),
    "tiny": np.concatenate([np.linspace(1, 2, 57), [1e-9, 1e-11, 1e-13]]),
    "low rank": np.concatenate([np.linspace(1, 2, 10), np.zeros(50)]),
    "large": 1e150 * np.linspace(1, 2, 60),
    "small": 1e-150 * np.linspace(1, 2, 60),
    "zero": np.zeros(60),
}
SHAPES = [(60, 60), (90, 60), (60, 100), (400, 60)]


def holds(found, exact):
    """Match intervals with singular values one to one: the largest to the largest, in every set that overlaps."""
    order = np.argsort(found.values)
    low, high = found.intervals[order].T
    for i in range(len(order)):
        for j in range(i, len(order)):
            inside = ((exact >= low[i : j + 1].min()) & (exact <= high[i : j + 1].max())).sum()
            if inside < j - i + 1:
                return False
    return True


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["LM", "SM"])
@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_intervals_hold_whatever_the_spectrum(name, shape, which, method):
    M = matrix(SPECTRA[name], shape)
    exact = np.linalg.svd(M, compute_uv=False)
    found = jo.svd(operator_of(M), 6, which, method=method)
    assert len(found) == 6
    slack = 4 * np.finfo(float).eps * exact.max()  # LAPACK's own
    wider = jo.svd(operator_of(M), 6, which, method=method)
    assert np.array_equal(wider.values, found.values)
    assert ((found.values[:-1] - found.values[1:]) * (1 if which == "LM" else -1) >= -slack).all()
    order = np.argsort(found.values)
    expected = np.sort(exact)[-6:] if which == "LM" else np.sort(exact)[:6]
    if found.converged.all():
        np.testing.assert_allclose(found.values[order], expected, rtol=0, atol=1e-9 * max(exact.max(), 1e-300))
    if found.complete:
        assert (np.abs(found.values[order] - expected) <= found.bounds[order] + slack).all()
    padded = np.concatenate([exact, exact - slack, exact + slack])
    assert holds(found, padded)
    U, V = found.left.numpy(), found.right.numpy()
    residuals = [np.linalg.norm(M @ V - U * found.values, axis=0), np.linalg.norm(M.T @ U - V * found.values, axis=0)]
    np.testing.assert_allclose(found.residuals, np.max(residuals, axis=0), rtol=1e-3, atol=20 * slack)
    np.testing.assert_allclose(U.T @ U, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(V.T @ V, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("which", ["LM", "SM"])
def test_what_can_be_resolved_converges(which):
    for values in (np.geomspace(1, 1e-5, 60), SPECTRA["multiple"], SPECTRA["clustered"]):
        for shape in SHAPES:
            found = jo.svd(operator_of(matrix(values, shape)), 4, which, method="lanczos")
            assert found.converged.all(), (shape, found)
            assert found.bounds.max() < 3e-10 * found.norm
    for name in SPECTRA:
        found = jo.svd(operator_of(matrix(SPECTRA[name], (90, 60))), 4, which)
        assert found.method == "dense"
        assert found.converged.all(), (name, found)
        assert found.complete


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["graded", "steep", "tiny", "low rank", "zero"])
def test_no_condition_number_is_squared(name, shape):
    M = matrix(SPECTRA[name], shape)
    found = jo.svd(operator_of(M), 3, "SM", method="lanczos")
    exact = np.sort(np.linalg.svd(M, compute_uv=False))[:3]
    assert found.converged.all()
    assert found.stopped == "converged"
    np.testing.assert_allclose(found.values, exact, rtol=0, atol=1e-12)
    assert (np.abs(found.values - exact) <= found.bounds + 1e-15).all()
    assert found.bounds.max() < 2e-10


def test_what_a_gram_matrix_would_lose_is_found_in_a_larger_one():
    values = np.concatenate([np.linspace(1, 2, 496), [1e-7, 1e-9, 1e-11, 1e-13]])
    for shape in ((500, 500), (800, 500), (500, 900)):
        found = jo.svd(operator_of(matrix(values, shape)), 4, "SM")
        assert found.method == "lanczos"
        assert found.converged.all()
        np.testing.assert_allclose(found.values, values[:-5:-1], rtol=0, atol=1e-14 * 50)


def with_zeros(shape, zeros, seed=0):
    """Make a sparse matrix with rows and columns of nothing but zeros, which no rounding fills."""
    random = np.random.default_rng(seed)
    M = scipy.sparse.random_array(shape, density=0.02, rng=random).toarray()
    M[np.arange(min(shape)), np.arange(min(shape))] += 3
    M[zeros], M[:, zeros] = 0, 0
    return M


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(300, 300), (420, 300), (300, 420)], ids=str)
@pytest.mark.parametrize("zeros", [[0], [7], [3, 50, 120]], ids=str)
def test_exact_null_vectors_of_both_sides_are_found(zeros, shape, dtype):
    for M in (np.eye(*shape) * np.r_[np.linspace(1, 2, shape[1])], with_zeros(shape, zeros)):
        M[zeros], M[:, zeros] = 0, 0
        found = jo.svd(operator_of(M, dtype=dtype), len(zeros) + 1, "SM", method="lanczos")
        exact = np.sort(np.linalg.svd(operator_of(M, dtype=dtype).dense().double().numpy())[1])
        assert found.converged.all()
        np.testing.assert_allclose(
            found.values, exact[: len(zeros) + 1], rtol=0, atol=1e-9 if dtype == "float64" else 1e-5
        )
        assert (np.abs(found.values - exact[: len(zeros) + 1]) <= found.bounds + 1e-14).all()
        assert found.products < 4000


def test_an_adjoint_that_is_not_the_transpose_is_refused():
    M = matrix(np.linspace(1, 2, 300), (400, 300))
    A = sla.LinearOperator(M.shape, matvec=lambda x: M @ x, rmatvec=lambda x: 1.001 * (M.T @ x), dtype=float)
    with pytest.raises(jo.InputError, match=r"adjoint is not its transpose.*mend its adjoint product"):
        jo.svd(A, 2)


@pytest.mark.parametrize("which", ["LM", "SM"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_certified_in_float64(which, shape):
    M = matrix(np.geomspace(1, 1e-2, 60), shape)
    for method in ("dense", "lanczos"):
        found = jo.svd(operator_of(M, dtype="float32"), 4, which, method=method)
        exact = np.sort(np.linalg.svd(M, compute_uv=False))
        expected = exact[-4:][::-1] if which == "LM" else exact[:4]
        assert found.float64_products > 0
        assert found.left.dtype == found.right.dtype == torch.float32
        assert (np.abs(found.values - expected) <= found.bounds + 1e-15).all()
        assert found.converged.all()
    alone = jo.svd(operator_of(M, dtype="float32", float64=False), 4, which, method="lanczos")
    assert "not certified in float64" in alone.notes[-1]


def test_it_is_what_scipys_svds_finds_on_a_block_and_a_jacobian():
    problem = TWO_LAYER["two classes"]
    f = jo.HeavyBall(problem.loss(), 0.3, 0.9)
    J = f.jacobian(f.initial(problem.theta()))
    for A in (J, J.T, J.block("theta", "v"), J.block("theta.W1", "*"), J @ J):
        theirs = np.sort(sla.svds(A, k=3, v0=np.ones(min(A.shape)))[1])[::-1]
        mine = jo.svd(A, 3, method="lanczos")
        np.testing.assert_allclose(mine.values, theirs, rtol=1e-9)
        assert (mine.row_parameters, mine.column_parameters) == (A.rows, A.columns)
        assert mine.products > 0


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array, sla.aslinearoperator, torch.from_numpy])
def test_it_takes_whatever_multiplies(kind):
    M = matrix(np.linspace(1, 5, 40), (70, 40))
    for given, shape in ((kind(M), (70, 40)), (kind(M.T.copy()), (40, 70))):
        found = jo.svd(given, 2, method="lanczos")
        np.testing.assert_allclose(found.values, [5, 5 - 4 / 39], rtol=1e-12)
        assert (found.left.shape, found.right.shape) == ((shape[0], 2), (shape[1], 2))


def test_budgets_and_callbacks_stop_it_with_intervals_that_hold():
    M = matrix(1 / np.arange(1, 401.0), (500, 400))
    found = jo.svd(operator_of(M), 5, "SM", max_products=200)
    assert found.stopped == "max_products"
    assert found.products <= 260
    assert holds(found, np.linalg.svd(M, compute_uv=False))
    stopped = jo.svd(operator_of(M), 5, "SM", callback=lambda status: True)
    assert stopped.stopped == "cancelled"
    assert "stopped by cancelled" in stopped.notes[0]


def test_a_checkpoint_is_resumed_to_the_same_bits(tmp_path):
    A = operator_of(matrix(1 / np.arange(1, 401.0), (500, 400)))
    file = tmp_path / "svd.npz"
    whole = jo.svd(A, 3, checkpoint=tmp_path / "whole.npz")
    jo.svd(A, 3, checkpoint=file, max_products=60)
    again = jo.svd(A, 3, checkpoint=file, resume=True)
    assert np.array_equal(again.values, whole.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "LA"}, "which must be one of LM, SM, not 'LA'"),
        ({"method": "scipy"}, "method must be one of auto, dense, lanczos"),
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"k": 4}, "k=4 is out of range"),
        ({"k": 3, "method": "lanczos"}, "at most 2"),
        ({"tol": -1}, "tol must be at least 0"),
        ({"max_products": 10, "method": "dense"}, "max_products is an option of the iterative methods"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(jo.InputError, match=message):
        jo.svd(operator_of(np.ones((5, 3))), **{"k": 1, **options})


def test_an_operator_without_an_adjoint_is_refused():
    A = sla.LinearOperator((300, 280), matvec=lambda x: np.resize(x, 300), dtype=float)
    with pytest.raises(jo.InputError, match="has no adjoint product"):
        jo.svd(A, 2)


def test_it_is_shown_as_a_table():
    found = jo.svd(np.diag([3.0, 2.0, 1.0]), 2)
    lines = repr(found).splitlines()
    assert lines[0].startswith("2 of 2 singular triplets (LM), dense")
    assert lines[1].split() == ["singular", "value", "residual", "bound", "converged"]
    assert lines[2].split()[0] == "3"
    assert found._repr_html_().count("<tr>") == 3


def test_it_is_drawn():
    pytest.importorskip("matplotlib")
    found = jo.svd(np.diag([3.0, 2.0, 1.0]), 2)
    assert found.plot().get_ylabel() == "singular value"


def test_very_large_and_very_small_entries_are_scaled():
    for scale in (1e170, 1e-170, 1e-300):
        found = jo.svd(operator_of(scale * matrix(np.linspace(1, 2, 60), (90, 60))), 3, method="lanczos")
        assert found.converged.all()
        np.testing.assert_allclose(found.values / scale, [2, 2 - 1 / 59, 2 - 2 / 59], rtol=1e-10)
        assert (found.bounds < 1e-9 * scale).all()


def test_a_checkpoint_costs_no_digits(tmp_path):
    A = operator_of(matrix(np.concatenate([np.linspace(1, 2, 297), [0.003, 0.002, 0.001]]), (500, 300)))
    found = jo.svd(A, 3, "SM", checkpoint=tmp_path / "svd.npz")
    assert found.converged.all()
