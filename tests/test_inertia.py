"""Inertia: counts of eigenvalues on each side of a shift, against LAPACK's eigenvalues."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jvp_ops as jo


def symmetric(seed, n, values=None):
    random = np.random.default_rng(seed)
    q, _ = np.linalg.qr(random.standard_normal((n, n)))
    values = random.standard_normal(n) * 10.0 ** random.integers(-3, 3, n) if values is None else np.asarray(values)
    matrix = q * values @ q.T
    return (matrix + matrix.T) / 2


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), shift=st.floats(-5, 5))
def test_counts_are_those_of_the_eigenvalues(seed, n, shift):
    matrix = symmetric(seed, n)
    eigenvalues = np.linalg.eigvalsh(matrix)
    if np.abs(eigenvalues - shift).min() < 1e-9 * (np.abs(eigenvalues).max() + abs(shift)):
        return
    found = jo.inertia(matrix, shift)
    assert found.above + found.undecided >= (eigenvalues > shift).sum() >= found.above
    assert found.below + found.undecided >= (eigenvalues < shift).sum() >= found.below


def test_well_separated_eigenvalues_are_all_decided():
    matrix = symmetric(1, 30, np.arange(30.0))
    for cut in (0, 7, 29):
        assert jo.inertia(matrix, cut + 0.5) == jo.Inertia(cut + 0.5, 29 - cut, cut + 1, 0)


def test_indefinite_matrices_with_zero_diagonal_take_two_by_two_pivots():
    matrix = np.kron(np.eye(3), [[0.0, 2.0], [2.0, 0.0]])
    assert jo.inertia(matrix) == jo.Inertia(0.0, 3, 3, 0)


def test_an_eigenvalue_at_the_shift_is_undecided():
    found = jo.inertia(symmetric(2, 20, np.arange(20.0)), 7.0)
    assert (found.above, found.below, found.undecided) == (12, 7, 1)
    assert jo.inertia(np.zeros((4, 4))) == jo.Inertia(0.0, 0, 0, 4)


def test_torch_tensors_and_float32_are_taken_and_left_alone():
    matrix = torch.from_numpy(symmetric(3, 12, np.arange(12.0))).float()
    before = matrix.clone()
    assert jo.inertia(matrix, 5.5).above == 6
    assert torch.equal(matrix, before)


def test_the_hessian_of_the_digits_is_counted():
    data = jo.load_digits().subset(300)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=3, dtype="float64")
    H = loss.hessian(loss.initial(rng=0)).dense()
    h = torch.linalg.eigvalsh(H).numpy()
    shift = float(h[-6] + h[-5]) / 2
    assert jo.inertia(H, shift).above == 5


def test_float32_entries_are_no_more_exact_than_float32():
    matrix = np.diag([1e-6, 10.0])
    assert jo.inertia(matrix).undecided == 0
    assert jo.inertia(matrix.astype(np.float32)).undecided == 1


def test_bad_matrices_are_refused():
    with pytest.raises(jo.InputError, match="symmetric"):
        jo.inertia(np.array([[1.0, 9.0], [0.0, 1.0]]))
    with pytest.raises(jo.InputError, match="square"):
        jo.inertia(np.zeros((2, 3)))
    with pytest.raises(jo.NonFiniteError, match="NaN or Inf"):
        jo.inertia(np.array([[np.nan]]))
    with pytest.raises(jo.InputError, match="shift"):
        jo.inertia(np.eye(2), float("inf"))
