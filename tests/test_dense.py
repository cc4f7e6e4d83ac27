"""Dense assembly: structured against products against automatic differentiation, selections, memory, symmetry."""

import numpy as np
import pytest
import torch
from cases import TWO_LAYER, numbers

import jvp_ops as jo
from jvp_ops.operators import _dense
from jvp_ops.operators._tensor_operator import TensorOperator

SAME = 1e-12


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_dense, "BLOCK_BYTES", 2000)


@pytest.fixture(scope="module")
def digits():
    data = jo.load_digits()
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=4, dtype="float64")
    return loss, loss.initial(rng=0)


def close(A, B):
    assert A.shape == B.shape
    assert float((A - B).norm()) <= SAME * float(B.norm()) + 1e-300


@pytest.mark.parametrize("name", TWO_LAYER)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_structured_assembly_products_and_automatic_differentiation_agree(name, kind, small_blocks):
    case = TWO_LAYER[name]
    loss = case.loss()
    A = getattr(loss, kind)(case.theta())
    assert A.linear.panels is not None
    structured = A.dense()
    close(structured, A.apply(torch.eye(A.shape[0], dtype=torch.float64)))
    close(structured, case.H() if kind == "hessian" else case.G())
    assert torch.equal(structured, structured.mT)


def test_the_jacobian_of_gradient_descent_is_assembled_with_its_identity(digits, small_blocks):
    loss, theta = digits
    Df = jo.GradientDescent(loss, lr=0.3, weight_decay=0.1).jacobian(theta)
    H = loss.hessian(theta).dense()
    close(Df.dense(), (1 - 0.3 * 0.1) * torch.eye(len(H), dtype=torch.float64) - 0.3 * H)


def test_an_input_that_is_zero_everywhere_has_exact_identity_rows(digits):
    loss, theta = digits
    A = jo.GradientDescent(loss, lr=0.1).jacobian(theta).dense()
    dead = [i for i in range(64) if not jo.load_digits().images.reshape(-1, 64)[:, i].any()]
    assert len(dead) > 0
    rows = torch.cat([torch.arange(4 * i, 4 * i + 4) for i in dead])
    assert torch.equal(A[rows], torch.eye(len(A), dtype=torch.float64)[rows])
    assert torch.equal(A[:, rows], torch.eye(len(A), dtype=torch.float64)[:, rows])


def test_all_sixteen_blocks_are_those_of_the_whole(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    whole = H.dense()
    for row in H.rows:
        for column in H.columns:
            close(H.block(row.name, column.name).dense(), whole[row.slice, column.slice])


def test_float32_assembly_is_float64s_to_its_own_rounding(digits):
    loss, theta = digits
    single = loss.to(dtype="float32").hessian(theta.float()).dense()
    double = loss.hessian(theta).dense()
    assert single.dtype == torch.float32
    assert float((single - double).norm()) <= 20 * torch.finfo(torch.float32).eps * float(double.norm())


@pytest.mark.parametrize(
    "rows, cols",
    [
        (None, "b2"),
        ("W2", None),
        ("b1", "W*"),
        (["b2", "W1"], ["W2", "b1"]),
        (slice(3, 9), None),
        (slice(None, None, 7), slice(250, 270)),
        ([5, 0, 299], [1, 2]),
        (torch.tensor([4]), "b2"),
        ("b2", [0, 1]),
        (None, []),
    ],
)
def test_rows_and_columns_are_chosen_by_names_slices_and_numbers(digits, rows, cols):
    loss, theta = digits
    H = loss.hessian(theta)
    whole = H.dense()

    def index(chosen):
        if chosen is None:
            return torch.arange(len(whole))
        if isinstance(chosen, slice):
            return torch.arange(len(whole))[chosen]
        if isinstance(chosen, str) or (chosen and isinstance(chosen[0], str)):
            return H.rows.index(chosen, H.device)
        return torch.as_tensor(chosen, dtype=torch.long)

    close(H.dense(rows=rows, cols=cols), whole[index(rows)][:, index(cols)])


@pytest.mark.parametrize(
    "selection, says",
    [
        ([0, 0], "1 numbers twice"),
        ([-1], "must be 0 to 309; they run from -1 to -1"),
        ([0, 310], "run from 0 to 310"),
        ([0.5], "integers"),
        ([True], "integers"),
        ([[1]], "integers"),
        (3.0, "integers"),
        ("W3", "the names are W1, b1, W2, b2"),
    ],
)
def test_selections_that_make_no_sense_are_refused(digits, selection, says):
    loss, theta = digits
    H = loss.hessian(theta)
    assert H.shape == (310, 310)
    for side in ("rows", "cols"):
        with pytest.raises(jo.InputError, match=says):
            H.dense(**{side: selection})


def test_a_non_symmetric_matrix_is_not_transposed(small_blocks):
    M = numbers(1, 7, 7)
    A = jo.FunctionMap(lambda x: M @ x, size=7, dtype="float64").jacobian(torch.zeros(7, dtype=torch.float64))
    close(A.dense(), M)
    close(A.T.dense(), M.mT)
    close(A.dense(rows=[6, 1, 3], cols=[2, 0]), M[[6, 1, 3]][:, [2, 0]])


def test_the_side_with_fewer_unit_vectors_is_taken(digits):
    loss, theta = digits
    for row, column in (("b2", "W1"), ("W1", "b2")):
        block = loss.hessian(theta).block(row, column)
        block.dense()
        assert block.products == 10


def test_structured_assembly_takes_far_fewer_products_than_columns(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    H.dense()
    assert H.products == H.shape[0] - 64 * 4


def test_what_does_not_fit_the_memory_is_refused_before_any_work(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    with pytest.raises(jo.MemoryBudgetError, match=r"a dense 310 × 310 matrix .* needs .*iB, more than the 10 KiB"):
        H.dense(max_memory="10KiB")
    assert H.products == 0


def test_dtype_is_that_of_the_result_and_not_of_the_products(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    assert torch.equal(H.dense(dtype="float32"), H.dense().float())


def test_nan_in_a_panel_is_named(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    from dataclasses import replace

    panels = H.linear.panels
    broken = replace(panels, prepare=lambda: lambda start, stop: panels.prepare()(start, stop) * float("nan"))
    with pytest.raises(jo.NonFiniteError, match="the block of rows 0 to "):
        TensorOperator(replace(H.linear, panels=broken)).dense()


def test_a_symmetric_matrix_without_panels_is_exactly_symmetric(small_blocks):
    M = numbers(9, 40, 40).float()
    M = M @ M.mT
    loss = jo.FunctionLoss(lambda x: torch.sin(M @ x).sum(), size=40)
    A = loss.hessian(loss.initial()).dense()
    assert torch.equal(A, A.mT)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_indices_of_any_integer_type_are_taken(digits, dtype):
    loss, theta = digits
    H = loss.hessian(theta)
    close(H.dense(rows=np.array([60, 100], dtype=dtype), cols=[3]), H.dense()[[60, 100]][:, [3]])


@pytest.mark.parametrize("selection", [slice(400, 500), slice(5, 2), slice(None, None, 0), slice(1.5, 2)])
def test_slices_that_hold_nothing_are_refused(digits, selection):
    loss, theta = digits
    with pytest.raises(jo.InputError, match="rows"):
        loss.hessian(theta).dense(rows=selection)


def test_negative_steps_go_backwards(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    close(H.dense(rows=slice(9, 0, -2), cols="b2"), H.block("*", "b2").dense()[torch.arange(9, 0, -2)])


def test_an_error_in_the_hessian_is_not_hidden_by_the_identity(digits):
    loss, theta = digits
    Df = jo.GradientDescent(loss, lr=0.1).jacobian(theta)
    assert jo.product_error(Df, Df.dense()) < 1e-12
    assert jo.product_error(Df, torch.eye(310, dtype=torch.float64)) > 0.1


def test_symmetry_error_of_nan_is_refused():
    with pytest.raises(jo.NonFiniteError):
        jo.symmetry_error(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_symmetry_error_measures_what_it_says(tmp_path):
    S, K = numbers(2, 5, 5), numbers(3, 5, 5)
    S, K = S + S.mT, K - K.mT
    assert jo.symmetry_error(S) == 0
    assert jo.symmetry_error(S + 1e-3 * K) == pytest.approx(2e-3 * float(K.norm() / (S + 1e-3 * K).norm()), rel=1e-12)
    assert jo.symmetry_error(np.zeros((3, 3))) == 0
    with pytest.raises(jo.InputError, match="square"):
        jo.symmetry_error(np.zeros((3, 2)))


def test_symmetry_error_goes_through_blocks(monkeypatch):
    from jvp_ops.operators import _compare

    M = numbers(4, 23, 23)
    expected = float((M - M.mT).norm() / M.norm())
    monkeypatch.setattr(_compare, "BLOCK_ROWS", 5)
    assert jo.symmetry_error(M) == pytest.approx(expected, rel=1e-12)


def test_product_error_sees_one_wrong_entry(digits):
    loss, theta = digits
    H = loss.hessian(theta)
    A = H.dense()
    assert jo.product_error(H, A) < 1e-14
    A[3, 5] += 1e-3 * A.norm()
    assert jo.product_error(H, A) > 1e-4
    with pytest.raises(jo.InputError, match="shape"):
        jo.product_error(H, A[:5])


def test_the_dense_method_finds_every_eigenvalue(digits):
    loss, theta = digits
    Df = jo.GradientDescent(loss, lr=0.1).jacobian(theta)
    exact = np.linalg.eigvalsh(Df.dense().numpy())
    everything = jo.eigenpairs(Df, k=310, which="SA", method="dense")
    np.testing.assert_allclose(everything.values, exact, atol=1e-13)
    assert everything.converged.all()
    for which, expected in (("LA", exact[::-1][:5]), ("SA", exact[:5]), ("BE", np.r_[exact[:2], exact[-3:]])):
        np.testing.assert_allclose(jo.eigenpairs(Df, 5, which, method="dense").values, expected, atol=1e-13)
    with pytest.raises(jo.InputError, match="at most 310"):
        jo.eigenpairs(Df, 315, "LA", method="dense")
    with pytest.raises(jo.InputError, match="method must be"):
        jo.eigenpairs(Df, 3, "LA", method="magic")


def test_the_dense_method_takes_non_symmetric_maps():
    M = numbers(5, 9, 9)
    A = jo.FunctionMap(lambda x: M @ x, size=9, dtype="float64").jacobian(torch.zeros(9, dtype=torch.float64))
    pairs = jo.eigenpairs(A, 9, "LM", method="dense")
    np.testing.assert_allclose(np.sort_complex(pairs.values), np.sort_complex(np.linalg.eigvals(M.numpy())), atol=1e-10)
    assert (pairs.residuals < 1e-12).all()


def test_both_ends_found_matrix_free_are_those_of_the_full_spectrum_with_the_exact_one(digits):
    loss, theta = digits
    Df = jo.GradientDescent(loss, lr=0.1).jacobian(theta)
    mu = jo.eigenpairs(Df, 310, "SA", method="dense").values
    for which, expected in (("SA", mu[:4]), ("LA", mu[::-1][:4])):
        np.testing.assert_allclose(jo.eigenpairs(Df, 4, which).values, expected, atol=1e-9)
    live = jo.load_digits().images.reshape(-1, 64).any(axis=0).sum()
    predicted = (64 - live) * 4 + 4 + 1
    assert (np.abs(mu - 1) < 1e-14).sum() >= predicted
    h = np.sort(np.abs(jo.eigenpairs(loss.hessian(theta), 310, "LA", method="dense").values))
    assert h[predicted - 1] < 1e-13 < h[predicted]


@pytest.mark.mnist
@pytest.mark.slow
def test_the_full_spectrum_of_a_reduced_reference_problem_is_what_is_found_matrix_free(monkeypatch):
    """All of MNIST, pooled to 7 × 7 pixels, with 20 hidden units: n = 1,210."""
    data = jo.load_mnist()
    inputs = data.images.reshape(60_000, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(60_000, 49) / 255
    loss = jo.TwoLayerLoss(inputs, data.labels, hidden=20, dtype="float64")
    f = jo.GradientDescent(loss, lr=0.1)
    Df = f.jacobian(f.run(loss.initial(rng=0), steps=10))
    assert Df.shape == (1210, 1210)
    everything = jo.eigenpairs(Df, 1210, "SA", method="dense")
    mu = everything.values
    for which, expected in (("SA", mu[:6]), ("LA", mu[::-1][:4])):
        pairs = jo.eigenpairs(Df, len(expected), which)
        np.testing.assert_allclose(pairs.values, expected, atol=1e-9)
        for value, bound in zip(pairs.values, pairs.bounds, strict=True):
            assert np.abs(mu - value).min() <= bound + 1e-14
    dead = int((inputs.max(axis=0) == 0).sum())
    predicted = dead * 20 + 20 + 1
    h = np.sort(np.abs(everything.hessian_values))
    assert h[predicted - 1] < 1e-15 < 1e-13 < h[predicted], h[predicted - 2 : predicted + 2]
    assert jo.inertia(Df.dense(), shift=float(mu[4] + mu[5]) / 2).below == 5
