"""What scipy asks of a LinearOperator: dtypes, shapes, algebra, adjoints, and its own solvers."""

import dataclasses

import numpy as np
import pytest
import scipy
import scipy.sparse.linalg as sla
import torch
from cases import CASES, MODULES, TWO_LAYER, numbers

import jvp_ops as jo

NAMED = {case.name: case for case in CASES}
PICKED = [
    "two-layer: dead inputs: Hessian",
    "two-layer: dead inputs: descent with decay",
    "two-layer: two classes: heavy ball with all",
    "module: perceptron: adam",
    "module: perceptron: Hessian",
    "module: perceptron: Gauss-Newton",
    "view: block",
    "view: map",
    "view: transposed map",
    "view: function",
]
CPU = torch.device("cpu")
SCIPY = tuple(map(int, scipy.__version__.split(".")[:2]))


@pytest.fixture(params=PICKED)
def pair(request, dtype):
    """Build an operator and its matrix in the operator's dtype."""
    case = NAMED[request.param]
    A = case.operator(dtype, CPU)
    return A, case.oracle().numpy().astype(A.dtype)


def random(seed, *shape):
    return numbers(seed, *shape).numpy()


def same(actual, expected, dtype):
    """Hold values to a dtype's rounding and the result's dtype to that dtype."""
    assert actual.dtype == dtype
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=200 * np.finfo(dtype).eps * max(1, np.abs(expected).max(initial=0))
    )


def test_the_dtype_is_the_one_that_is_computed_in(pair, dtype):
    A, _ = pair
    assert isinstance(A, sla.LinearOperator)
    assert A.args == A.H.args == ()
    assert (A + A).args == (A, A)
    expected = np.dtype(str(dtype).removeprefix("torch."))
    assert A.dtype == expected
    assert A.H.dtype == A.T.dtype == expected
    assert (A @ np.ones(A.shape[1], dtype=expected)).dtype == expected
    assert (A @ np.ones((A.shape[1], 2))).dtype == expected  # float64 numbers gain no digits


@pytest.mark.parametrize("factor", [2, 2.0, -0.5, np.float64(2), np.float32(2), np.int64(3), True])
def test_a_real_multiple_keeps_the_dtype(pair, factor):
    A, M = pair
    x = random(1, A.shape[1]).astype(A.dtype)
    y = random(2, A.shape[0]).astype(A.dtype)
    for multiple in (factor * A, A * factor):
        assert multiple.dtype == A.dtype
        same(multiple @ x, float(factor) * (M @ x), A.dtype)
        same(multiple.H @ y, float(factor) * (M.T @ y), A.dtype)
        same(multiple @ np.stack([x, x], 1), float(factor) * (M @ np.stack([x, x], 1)), A.dtype)


def test_quotients_negatives_sums_and_differences_keep_the_dtype(pair):
    A, M = pair
    x = random(1, A.shape[1]).astype(A.dtype)
    y = random(2, A.shape[0]).astype(A.dtype)
    for operator, matrix in (
        (A / 2, M / 2),
        (A / np.float64(2), M / 2),
        (-A, -M),
        (A + A, 2 * M),
        (A - A, 0 * M),
        (A + 2 * A, 3 * M),
        (A - 0.5 * A, M / 2),
        (A.T.T - 3 * A, -2 * M),
    ):
        assert operator.dtype == A.dtype
        same(operator @ x, matrix @ x, A.dtype)
        same(operator.T @ y, matrix.T @ y, A.dtype)
        same(operator.H @ y, matrix.T @ y, A.dtype)


def test_products_and_powers_keep_the_dtype(pair):
    A, M = pair
    x = random(1, A.shape[1]).astype(A.dtype)
    squared = A.T @ A
    assert squared.dtype == A.dtype
    same(squared @ x, M.T @ (M @ x), A.dtype)
    same((A.T * A) @ x, M.T @ (M @ x), A.dtype)
    if A.shape[0] == A.shape[1]:
        for power in (0, 1, 2, 3):
            assert (A**power).dtype == A.dtype
            same((A**power) @ x, np.linalg.matrix_power(M.astype(float), power) @ x, A.dtype)
        same((A @ A) @ x, M @ (M @ x), A.dtype)


def test_the_adjoint_of_a_symmetric_operator_is_itself(pair):
    A, _ = pair
    assert (A.H is A) == A.symmetric
    assert (A.T is A) == A.symmetric
    assert A.H.H.H is A.H or A.H.H is A
    assert A.T.T.T is A.T or A.T.T is A
    assert A.H.shape == A.T.shape == A.shape[::-1]
    assert A.H.rows == A.columns
    assert A.H.columns == A.rows


def test_complex_and_integer_inputs_are_multiplied(pair):
    A, M = pair
    real, imaginary = random(1, A.shape[1]), random(2, A.shape[1])
    complex_dtype = np.result_type(A.dtype, np.complex64)
    x = (real + 1j * imaginary).astype(complex_dtype)
    same(A @ x, M @ x, complex_dtype)
    same(A @ x[:, None], (M @ x)[:, None], complex_dtype)
    y = (random(3, A.shape[0]) + 1j * random(4, A.shape[0])).astype(complex_dtype)
    same(A.H @ y, M.T.conj() @ y, complex_dtype)
    same(A.T @ y, M.T @ y, complex_dtype)
    whole = np.arange(A.shape[1]) - 2
    same(A @ whole, M @ whole, A.dtype)
    same(A @ list(map(int, whole)), M @ whole, A.dtype)


def test_layouts_of_the_input_do_not_matter_and_it_is_left_alone(pair):
    A, M = pair
    X = random(1, A.shape[1], 6).astype(A.dtype)
    kept = X.copy()
    for view in (X[:, ::2], np.asfortranarray(X), np.ascontiguousarray(X.T).T, X[::-1][::-1]):
        same(A @ view, M @ view, A.dtype)
    X.flags.writeable = False
    same(A @ X, M @ X, A.dtype)
    np.testing.assert_array_equal(X, kept)


def test_batches_of_vectors_are_taken_along_the_last_axis_as_scipy_1_18_hands_them(pair):
    A, M = pair
    x, y = random(1, 4, A.shape[1]), random(2, 2, 3, A.shape[0])
    same(A._matvec(x), x @ M.T, A.dtype)
    same(A._rmatvec(y), y @ M, A.dtype)
    X, Y = random(3, 4, A.shape[1], 2), random(4, 5, A.shape[0], 3)
    same(A._matmat(X), M @ X, A.dtype)
    same(A._rmatmat(Y), M.T @ Y, A.dtype)
    column = random(5, A.shape[1], 1)
    same(A._matvec(column), M @ column, A.dtype)
    same(A.matvec(column), M @ column, A.dtype)


def test_no_directions_give_no_images(pair):
    A, _ = pair
    assert (A @ np.ones((A.shape[1], 0))).shape == (A.shape[0], 0)
    assert A.rmatmat(np.ones((A.shape[0], 0))).shape == (A.shape[1], 0)
    assert A.apply_adjoint(torch.ones(A.shape[0], 0, dtype=A.torch_dtype)).shape == (A.shape[1], 0)


@pytest.mark.parametrize("batch", [(0,), (0, 1), (1, 0), (3, 0), (0, 3, 2)], ids=str)
def test_an_empty_batch_gives_an_empty_batch(pair, batch):
    A, _ = pair
    m, n = A.shape
    for image, shape in (
        (A._matvec(np.ones((*batch, n))), (*batch, m)),
        (A._rmatvec(np.ones((*batch, m))), (*batch, n)),
        (A._matmat(np.ones((*batch, n, 2))), (*batch, m, 2)),
        (A._rmatmat(np.ones((*batch, m, 2))), (*batch, n, 2)),
        (A._matmat(np.ones((*batch, n, 0))), (*batch, m, 0)),
        (A._matvec(np.ones((*batch, n), dtype=complex)).real, (*batch, m)),
    ):
        assert (image.shape, image.dtype) == (shape, A.dtype)
    for adjoint in (A.H, A.T):
        assert adjoint._matvec(np.ones((*batch, m))).shape == (*batch, n)
        assert adjoint._matmat(np.ones((*batch, m, 2))).shape == (*batch, n, 2)


@pytest.mark.skipif(SCIPY < (1, 18), reason="scipy takes batches from 1.18 on")
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,), (0, 1), (3, 0)], ids=str)
def test_the_public_products_take_batches(pair, batch):
    A, M = pair
    m, n = A.shape
    same(A.matvec(random(1, *batch, n)), random(1, *batch, n) @ M.T, A.dtype)
    same(A.rmatvec(random(2, *batch, m)), random(2, *batch, m) @ M, A.dtype)
    same((2 * A + A).matvec(random(1, *batch, n)), random(1, *batch, n) @ (3 * M.T), A.dtype)
    for k in (0, 1, 2):
        X, Y = random(3, *batch, n, k), random(4, *batch, m, k)
        same(A.matmat(X), M @ X, A.dtype)
        same(A @ X, M @ X, A.dtype)
        same(A.rmatmat(Y), M.T @ Y, A.dtype)
        same(A.H @ Y, M.T @ Y, A.dtype)


@pytest.mark.skipif(SCIPY < (1, 18), reason="scipy says what to do from 1.18 on")
def test_a_sparse_right_hand_side_is_refused_with_scipy_s_advice(pair):
    A, _ = pair
    with pytest.raises(TypeError, match="Try wrapping the matrix with `aslinearoperator` first"):
        A @ scipy.sparse.eye_array(A.shape[1])


def test_wrong_shapes_are_refused(pair):
    A, _ = pair
    for call in (A.matvec, A.matmat, A.dot, lambda x: A @ x):
        with pytest.raises(ValueError, match=r"(?i)dimension|shape|expected"):
            call(np.ones(A.shape[1] + 1))
    with pytest.raises(ValueError, match="zero"):
        A / 0


def test_symmetric_solvers_of_scipy_run_on_it():
    A, M = (NAMED["two-layer: dead inputs: Hessian"].operator(torch.float64, CPU), TWO_LAYER["dead inputs"].H().numpy())
    h = np.linalg.eigvalsh(M)
    start = random(1, len(M))
    np.testing.assert_allclose(sla.eigsh(A, k=3, which="LA", v0=start)[0], h[-3:], rtol=1e-10)
    np.testing.assert_allclose(
        sla.lobpcg(A, random(2, len(M), 2), largest=True, maxiter=200, tol=1e-8)[0], h[:-3:-1], rtol=1e-6
    )
    b = random(3, len(M))
    shifted = A + sla.aslinearoperator(np.eye(len(M)))
    x, info = sla.cg(shifted, b, rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(M @ x + x, b, rtol=0, atol=1e-10)
    assert sla.aslinearoperator(A) is A
    np.random.seed(0)  # noqa: NPY002  # an estimate from random signs, which of a matrix too is wrong 1 time in 60
    assert sla.onenormest(A) == pytest.approx(np.abs(M).sum(0).max())


def test_solvers_for_matrices_that_are_not_symmetric_run_on_it():
    A, M = NAMED["view: map"].operator(torch.float64, CPU), NAMED["view: map"].oracle().numpy()
    start = random(1, len(M))
    found = sla.eigs(A, k=2, v0=start)[0]
    largest = sorted(np.linalg.eigvals(M), key=abs)[-2:]
    np.testing.assert_allclose(sorted(abs(found)), sorted(map(abs, largest)), rtol=1e-10)
    s = np.linalg.svd(M, compute_uv=False)
    np.testing.assert_allclose(np.sort(sla.svds(A, k=2, v0=start)[1]), s[1::-1], rtol=1e-10)
    x, info = sla.gmres(A, start, rtol=1e-12, restart=6)
    assert info == 0
    np.testing.assert_allclose(M @ x, start, rtol=0, atol=1e-9)
    np.testing.assert_allclose(sla.lsqr(A, start, atol=1e-14, btol=1e-14)[0], x, rtol=1e-6)


def test_a_float32_operator_meets_arpack_in_float32():
    A = TWO_LAYER["dead inputs"].loss(torch.float32).hessian(TWO_LAYER["dead inputs"].theta(torch.float32))
    values, vectors = sla.eigsh(A, k=2, v0=np.ones(A.shape[0], dtype=np.float32))
    assert values.dtype == vectors.dtype == np.float32
    with torch.no_grad():
        expected = torch.linalg.eigvalsh(TWO_LAYER["dead inputs"].H())
    top = sorted(expected.tolist(), key=abs)[-2:]
    np.testing.assert_allclose(sorted(values), sorted(top), rtol=1e-5)


def test_tensors_stay_tensors_on_the_device(dtype, device):
    loss = MODULES["perceptron"].loss(dtype, device)
    A = loss.hessian(loss.initial())
    V = numbers(1, A.shape[1], 3).to(device, dtype)
    kept = V.clone()
    for image in (A @ V, A.dot(V), A.matmat(V), A.rmatmat(V), A * V, (V.mT @ A).mT):
        assert isinstance(image, torch.Tensor)
        assert (image.device, image.dtype, image.shape) == (device, dtype, V.shape)
        assert not image.requires_grad
    for image in (A @ V[:, 0], A.matvec(V[:, 0]), A.rmatvec(V[:, 0]), V[:, 0] @ A):
        assert image.shape == (A.shape[0],)
    assert torch.equal(V, kept)


def test_a_tensor_reaches_the_product_without_a_copy(dtype, device):
    seen = []
    case = NAMED["view: map"].operator(dtype, device)
    linearization = case.linear

    def watched(V):
        seen.append(V.data_ptr())
        return linearization.apply(V)

    A = jo.JacobianOperator(dataclasses.replace(linearization, apply=watched))
    v, V = torch.ones(6, dtype=dtype, device=device), torch.ones(6, 2, dtype=dtype, device=device)
    leaf = v.clone().requires_grad_()
    A.apply(v), A @ v, A.apply(V), A @ V, A @ leaf
    assert seen == [v.data_ptr(), v.data_ptr(), V.data_ptr(), V.data_ptr(), leaf.data_ptr()]


def test_the_representation_names_shape_kind_and_dtype():
    loss = MODULES["perceptron"].loss(torch.float32)
    assert repr(loss.hessian(loss.initial())) == "<31x31 HessianOperator with dtype=float32>"
