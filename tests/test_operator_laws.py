"""Laws that every operator of the registry obeys, for directions that hypothesis chooses."""

from functools import cache

import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

EPS = 64 * 2.0**-52


@cache
def built(case):
    A = case.operator(torch.float64, torch.device("cpu"))
    return A, float(torch.linalg.matrix_norm(case.oracle(), 2))


def directions(size, width):
    """Entries between -8 and 8, some zero, never so small that rounding is all there is."""
    entry = st.integers(-1024, 1024).map(lambda n: n / 128)
    return arrays.arrays(float, (size, width), elements=entry).map(torch.from_numpy)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@settings(max_examples=4)
@given(st.data())
def test_products_are_linear_adjoint_and_stack(case, data):
    A, size = built(case)
    V = data.draw(directions(A.shape[1], 3))
    U = data.draw(directions(A.shape[0], 2))
    a, b = data.draw(st.floats(-4, 4)), data.draw(st.floats(-4, 4))
    AV, AtU = A.apply(V), A.apply_adjoint(U)
    level = EPS * size

    stacked = torch.stack([A.apply(v) for v in V.mT], 1)
    assert float((AV - stacked).norm()) <= level * float(V.norm())

    v, w = V[:, 0], V[:, 1]
    combined = A.apply(a * v + b * w)
    expected = a * AV[:, 0] + b * AV[:, 1]
    assert float((combined - expected).norm()) <= level * float(abs(a) * v.norm() + abs(b) * w.norm())

    assert float((U.mT @ AV - AtU.mT @ V).abs().max()) <= level * float(U.norm() * V.norm())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_product_twice_is_the_same_bit_for_bit(case):
    A, _ = built(case)
    V = torch.linspace(-1, 1, 2 * A.shape[1], dtype=torch.float64).reshape(-1, 2)
    assert torch.equal(A.apply(V), A.apply(V))
    again = case.operator(torch.float64, torch.device("cpu"))
    assert torch.equal(A.apply(V), again.apply(V))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_direction_is_counted_once(case):
    A = case.operator(torch.float64, torch.device("cpu"))
    assert A.products == 0
    A.apply(torch.ones(A.shape[1], dtype=torch.float64))
    A.apply_adjoint(torch.ones(A.shape[0], 3, dtype=torch.float64))
    assert A.products == 4


def test_products_of_a_transpose_are_counted_by_its_original():
    case = next(case for case in CASES if case.name == "view: map")
    A = case.operator(torch.float64, torch.device("cpu"))
    A.T.apply(torch.ones(A.shape[0], 2, dtype=torch.float64))
    assert A.products == 2
