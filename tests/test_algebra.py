"""Sums, products, shifts, powers and multiples of operators: ours again, and right for every operator there is."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as sla
import torch
from cases import CASES, MODULES, TWO_LAYER, numbers

import jvp_ops as jo
from jvp_ops.testing import operator_of

CPU = torch.device("cpu")
BY_NAME = {case.name: case for case in CASES}
SQUARE = lambda M: M.shape[0] == M.shape[1]  # noqa: E731


def composed(A, M):
    """Name what can be made of an operator, beside the same made of its matrix."""
    yield "A.T @ A", A.T @ A, M.mT @ M
    yield "A @ A.T", A @ A.T, M @ M.mT
    yield "A + A", A + A, 2 * M
    yield "2 A - A / 4", 2 * A - A / 4, 1.75 * M
    yield "-A", -A, -M
    yield "(A + A).T", (A + A).T, 2 * M.mT
    if SQUARE(M) and A.rows == A.columns:
        eye = torch.eye(len(M), dtype=M.dtype)
        one = jo.identity(A.rows, dtype=A.torch_dtype, device=A.device)
        d = numbers(5, len(M))
        D = jo.diagonal_operator(d.to(A.device, A.torch_dtype), A.rows)
        d = d.to(A.torch_dtype).double()
        yield "A.shifted(c)", A.shifted(0.75), M + 0.75 * eye
        yield "A.shifted(c).shifted(-c)", A.shifted(0.75).shifted(-0.75), M
        yield "I - A / 2", one - A / 2, eye - M / 2
        yield "D A D", D @ A @ D, d[:, None] * M * d
        yield "A ** 2", A**2, M @ M
        yield "A ** 0", A**0, eye
        yield "sum of A and its transpose", sum([A, A.T]), M + M.mT


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_composed_is_ours_and_right(case, dtype, device):
    A, M = case.operator(dtype, device), case.oracle()
    for name, made, matrix in composed(A, M):
        assert isinstance(made, jo.TensorOperator), name
        assert (made.torch_dtype, made.device, made.shape) == (dtype, A.device, tuple(matrix.shape)), name
        V, U = numbers(1, matrix.shape[1], 3), numbers(2, matrix.shape[0], 2)
        eps = torch.finfo(dtype).eps * 300 * max(1.0, float(M.abs().sum(1).max()) ** 2)
        before = made.products
        for image, expected in (
            (made.apply(V.to(device, dtype)), matrix @ V),
            (made.apply_adjoint(U.to(device, dtype)), matrix.mT @ U),
        ):
            assert (image.cpu().double() - expected).abs().max() <= eps * expected.abs().max().clamp(min=1), name
        assert made.products == before + 5, name
        if made.symmetric:
            assert jo.symmetry_error(matrix) < 1e-9, name
        if name in ("A.T @ A", "A @ A.T", "sum of A and its transpose") or (A.symmetric and "A" in name):
            assert made.symmetric, name


@pytest.mark.parametrize("case", [c for c in CASES if "view" in c.name or "digits" in c.name], ids=lambda c: c.name)
def test_the_same_in_float64_follows_from_the_parts(case):
    A, exact = case.operator(torch.float32, CPU), case.operator(torch.float64, CPU)
    if A.in_float64() is None:
        pytest.skip("this operator has no counterpart in float64")
    for (name, made, _), (_, wide, _) in zip(composed(A, case.oracle()), composed(exact, case.oracle()), strict=True):
        counterpart = made.in_float64()
        assert counterpart.torch_dtype == torch.float64, name
        assert counterpart.symmetric == made.symmetric, name
        if "D" not in name:  # whose diagonal was rounded to float32 before it was given
            V = numbers(3, made.shape[1])
            torch.testing.assert_close(counterpart.apply(V), wide.apply(V), rtol=1e-12, atol=1e-12)


def test_eigenpairs_and_dense_take_what_is_composed(tmp_path):
    case = BY_NAME["view: map"]
    A, M = case.operator(torch.float64, CPU), case.oracle()
    gram = A.T @ A
    pairs = jo.eigenpairs(gram, 2, "LA")
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh((M.mT @ M).numpy())[:-3:-1], rtol=1e-10)
    assert pairs.complete
    written = gram.dense(out=tmp_path / "gram.npy")
    np.testing.assert_allclose(written, (M.mT @ M).numpy(), atol=1e-13)
    assert gram.identity() == (A.T @ A).identity() != (A @ A.T).identity()
    H = TWO_LAYER["two classes"].loss().hessian(TWO_LAYER["two classes"].theta())
    iterated = jo.eigenpairs(H.shifted(0.3) + H, 3, "LA", method="lanczos")
    expected = np.linalg.eigvalsh(2 * TWO_LAYER["two classes"].H().numpy())[:-4:-1] + 0.3
    np.testing.assert_allclose(iterated.values, expected, rtol=1e-9)
    assert iterated.hessian_values is None
    blocked = (H @ H).block("W1", "b2").dense()
    torch.testing.assert_close(blocked, torch.linalg.matrix_power(H.dense(), 2)[:12, -2:])


def test_a_float32_sum_is_certified_in_float64():
    problem = TWO_LAYER["two classes"]
    H = problem.loss(torch.float32).hessian(problem.theta(torch.float32))
    pairs = jo.eigenpairs(H.T @ H + 0.5 * H, 2, "LA", method="lanczos")
    h = np.linalg.eigvalsh(problem.H().numpy())
    expected = np.sort(h**2 + h / 2)[:-3:-1]
    assert pairs.float64_products > 0
    assert (np.abs(pairs.values - expected) <= pairs.bounds).all()
    assert pairs.bounds.max() < 1e-9 or pairs.bounds.max() < 1e-3 * pairs.norm


def test_with_scipys_operators_and_complex_factors_the_result_is_scipys():
    A = operator_of(np.diag([1.0, 2.0]).astype(np.float32))
    theirs = sla.aslinearoperator(np.eye(2, dtype=np.float32))
    for mixed in (A + theirs, theirs + A, A @ theirs, theirs @ A, 1j * A, A * 1j):
        assert isinstance(mixed, sla.LinearOperator)
        assert not isinstance(mixed, jo.TensorOperator)
    for factor in (1j, np.complex64(1j), np.complex128(1j)):
        assert (factor * A).dtype == (A * factor).dtype == np.complex64
        assert ((factor * A) @ np.ones(2, dtype=np.float32)).dtype == np.complex64
    assert (1j * operator_of(np.eye(2))).dtype == np.complex128


def test_numbers_of_any_kind_are_factors():
    A = operator_of(np.diag([1.0, 2.0]))
    for two in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0), np.array(2.0)):
        for made in (A * two, two * A if not isinstance(two, torch.Tensor | np.ndarray) else A * two):
            assert made.dense().tolist() == [[2.0, 0.0], [0.0, 4.0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda A, B: A + B, r"torch.float64 and one in torch.float32 do not compose: .*A.in_float64\(\)"),
        (lambda A, B: A @ B, "torch.float64 and one in torch.float32"),
        (lambda A, B: A + operator_of(np.eye(4)), "sizes 3 and 4 do not meet"),
        (lambda A, B: A @ operator_of(np.ones((4, 3))), "sizes 3 and 4 do not meet: the columns of the left"),
        (lambda A, B: A + 2, r"A.shifted\(2\)"),
        (lambda A, B: 2 - A, r"A.shifted\(-?2\)"),
        (lambda A, B: A**-1, "powers of integers of at least 0, not -1"),
        (lambda A, B: A**0.5, "not 0.5"),
        (lambda A, B: A.shifted("one"), "c must be a finite real number, not 'one'"),
        (lambda A, B: A.shifted(np.inf), "c must be a finite real number"),
        (lambda A, B: A.shifted(1j), "c must be a finite real number"),
        (lambda A, B: operator_of(np.ones((2, 3))).shifted(1), "a shift needs a square operator"),
        (lambda A, B: operator_of(np.ones((2, 3))) ** 2, "a power needs a square operator"),
        (lambda A, B: jo.identity(0), "parameters must be an integer of at least 1"),
        (lambda A, B: jo.diagonal_operator(torch.ones(2, 2)), r"d must be a vector .*shape \(2, 2\)"),
        (lambda A, B: jo.diagonal_operator(torch.ones(2).int()), "d must be a vector of float32 or float64"),
        (lambda A, B: jo.diagonal_operator([1.0]), "not list"),
        (lambda A, B: jo.diagonal_operator(torch.tensor([1.0, torch.nan])), "d holds 1 NaN or Inf"),
        (lambda A, B: jo.diagonal_operator(torch.ones(2), jo.Parameters.of({"a": (3,)})), "2 numbers.*are 3"),
        (lambda A, B: jo.as_operator("A"), "not str"),
        (lambda A, B: jo.as_operator(np.eye(2) * 1j), "real, not of dtype complex128"),
        (lambda A, B: jo.as_operator(np.ones(3)), r"not the shape \(3,\)"),
        (lambda A, B: jo.as_operator(np.ones((2, 3)), symmetric=True), "symmetric=True was said of .* 2 × 3"),
        (lambda A, B: jo.as_operator(A, symmetric=False), "symmetric=False was said of"),
    ],
)
def test_what_does_not_compose_is_refused(wrong, message):
    with pytest.raises(jo.JvpOpsError, match=message):
        wrong(operator_of(np.eye(3)), operator_of(np.eye(3), dtype="float32"))


def test_named_parameters_must_be_the_same_where_operators_meet():
    first, second = (
        jo.FunctionLoss(lambda x: (x**4).sum(), shapes={name: (3,)}, dtype="float64") for name in ("weights", "biases")
    )
    A, B = (loss.hessian(torch.ones(3).double()) for loss in (first, second))
    for wrong in (lambda: A @ B, lambda: A + B, lambda: B - A):
        with pytest.raises(jo.InputError, match=r"weights 3.*biases 3|biases 3.*weights 3"):
            wrong()
    nameless = jo.diagonal_operator(torch.ones(3).double())
    assert (A @ nameless).rows.names == (nameless @ A).columns.names == (A + nameless).rows.names == ("weights",)


def test_an_operator_that_gives_back_what_it_is_given_is_added_to_nothing():
    same = sla.LinearOperator((3, 3), matvec=lambda x: x, rmatvec=lambda x: x, matmat=lambda X: X, dtype=np.float64)
    A, V = jo.as_operator(same, symmetric=True), numbers(1, 3, 2)
    kept = V.clone()
    torch.testing.assert_close((A + A + A).apply(V), 3 * kept)
    image = jo.identity(3, dtype="float64").apply(V)
    image.zero_()
    assert torch.equal(V, kept)


def test_tensors_of_any_batch_shape_come_back_as_they_came(dtype):
    case = BY_NAME["view: block"]
    A, M = case.operator(dtype, CPU), case.oracle().to(dtype)
    m, n = M.shape
    X, Y = numbers(1, 2, 4, n, 3).to(dtype), numbers(2, 5, m, 2).to(dtype)
    for image, expected in (
        (A @ X, M @ X),
        (A.matmat(X), M @ X),
        (A.dot(X[0, 0]), M @ X[0, 0]),
        (A.rmatmat(Y), M.mT @ Y),
        (A.T @ Y, M.mT @ Y),
        (A.matvec(X[..., 0]), X[..., 0] @ M.mT),
        (A.rmatvec(Y[..., 0]), Y[..., 0] @ M),
        (A.matvec(X[0, 0, :, :1]), M @ X[0, 0, :, :1]),
        (A.rdot(Y.mT), Y.mT @ M),
        (A.rdot(Y[0, :, 0]), Y[0, :, 0] @ M),
        (Y.mT @ A, Y.mT @ M),
    ):
        assert isinstance(image, torch.Tensor)
        assert image.shape == expected.shape
        torch.testing.assert_close(image, expected, rtol=0, atol=200 * torch.finfo(dtype).eps)
    assert (A @ X[:, :0]).shape == (2, 0, m, 3)
    np.testing.assert_allclose(A.rdot(Y[0, :, 0].numpy()), Y[0, :, 0] @ M, rtol=1e-5, atol=1e-6)


def test_tensors_by_parameter_name_come_back_by_name():
    loss = MODULES["perceptron"].loss(torch.float64)
    A = loss.hessian(loss.initial())
    v, V = numbers(1, A.shape[1]), numbers(2, A.shape[1], 3)
    for flat in (v, V):
        named = loss.parameters.unflatten(flat)
        for image in (A @ named, A.dot(named), A.T @ named):
            assert list(image) == list(loss.parameters.names)
            assert all(image[name].shape == named[name].shape for name in named)
            assert torch.equal(torch.cat([part.reshape(-1, *flat.shape[1:]) for part in image.values()]), A.apply(flat))
        for kind in (list, tuple):
            listed = A @ kind(named.values())
            assert type(listed) is kind
            assert all(torch.equal(part, image[name]) for part, name in zip(listed, named, strict=True))
    short = dict(list(loss.parameters.unflatten(v).items())[1:])
    with pytest.raises(jo.InputError, match="expected " + ", ".join(loss.parameters.names)):
        A @ short
    with pytest.raises(jo.InputError, match="tensors were given for the"):
        A @ list(short.values())
    name, *_ = loss.parameters.names
    with pytest.raises(jo.InputError, match=rf"{name} has shape"):
        A @ {**loss.parameters.unflatten(v), name: torch.ones(2)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("kind", ["array", "sparse array", "sparse matrix", "operator", "tensor", "ours"])
def test_eigenpairs_and_dense_take_whatever_multiplies(kind, dtype):
    M = np.diag(np.arange(1, 41)).astype(dtype)
    M[0, 1] = M[1, 0] = 1
    made = {
        "array": lambda M: M,
        "sparse array": scipy.sparse.csr_array,
        "sparse matrix": scipy.sparse.csc_matrix,
        "operator": lambda M: sla.LinearOperator(M.shape, matvec=lambda x: M @ x, dtype=M.dtype),
        "tensor": torch.from_numpy,
        "ours": operator_of,
    }[kind]
    said = True if kind == "operator" else None
    for method in ("lanczos", "dense"):
        pairs = jo.eigenpairs(made(M), 2, "LA", symmetric=said, method=method)
        assert pairs.vectors.dtype == (torch.float32 if dtype == np.float32 else torch.float64)
        np.testing.assert_allclose(pairs.values, [40, 39], rtol=1e-6)
    np.testing.assert_array_equal(jo.dense(made(M)), M)
    lopsided = M.copy()
    lopsided[3, 5] = 2
    np.testing.assert_array_equal(jo.dense(made(lopsided)), lopsided)
    if kind != "operator":  # that have an adjoint, or entries to look at
        assert not jo.as_operator(made(lopsided)).symmetric
    pairs = jo.eigenpairs(made(lopsided), 2, "LM", method="krylov-schur")
    np.testing.assert_allclose(pairs.values, [40, 39], rtol=1e-6)
    with pytest.raises(jo.InputError, match="symmetric"):
        jo.eigenpairs(made(lopsided), 2, "LA", symmetric=True, method="lanczos")


def test_an_operator_without_an_adjoint_says_so_where_one_is_needed():
    A = jo.as_operator(sla.LinearOperator((3, 4), matvec=lambda x: x[:3], dtype=np.float64))
    assert A.dense().tolist() == np.eye(3, 4).tolist()
    with pytest.raises(jo.InputError, match=r"has no adjoint product.*rmatvec"):
        A.apply_adjoint(torch.ones(3, dtype=torch.float64))
    with pytest.raises(jo.InputError, match="has no adjoint product"):
        (A.T @ A).apply(torch.ones(4, dtype=torch.float64))


def test_what_scipys_holds_has_a_fingerprint_of_what_it_does():
    first, second = (jo.as_operator(scipy.sparse.csr_array(np.diag([1.0, x]))) for x in (2.0, 3.0))
    assert first.identity() == jo.as_operator(scipy.sparse.csr_array(np.diag([1.0, 2.0]))).identity()
    assert first.identity() != second.identity()
