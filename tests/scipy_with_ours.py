"""A pytest plugin: scipy's own tests of LinearOperator run on our operators, and what became of each is written down.

The tests are the installed scipy's; only the name under which they find scipy's operators is changed here.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse.linalg._interface as interface
from scipy.sparse import issparse

from jvp_ops.operators import TensorOperator
from jvp_ops.testing import operator_of

MODULE = "scipy.sparse.linalg.tests.test_interface"
REPORT = "SCIPY_WITH_OURS_REPORT"
PRODUCTS = [0]
FOUND = {}


def ours(matrix, dtype):
    """Make one of our operators of a matrix; of a complex one, the sum of two: real + 1j * imaginary."""
    if matrix.ndim > 2:
        pytest.skip("an operator of ours is one matrix, not a batch of them")
    dtype = np.dtype(dtype)
    if dtype.kind == "c" or np.any(np.imag(matrix)):
        real = np.zeros(0, dtype).real.dtype
        return ours(matrix.real, real) + 1j * ours(matrix.imag, real)
    rows, columns = matrix.shape
    square = np.zeros((max(matrix.shape),) * 2)
    square[:rows, :columns] = matrix.real
    whole = operator_of(square, symmetric=False, dtype="float32" if dtype == np.float32 else "float64")
    return whole if rows == columns else whole.part(slice(0, rows), slice(0, columns))


def matrix_of(operator):
    """Multiply by the unit vectors: all at once, or as a batch where a test's function insists on one."""
    unit = np.eye(operator.shape[-1], dtype=operator.dtype)
    try:
        return operator.matmat(unit)
    except AssertionError:
        return operator.matmat(unit[None])[0]


def replaced(operator):
    """Put one of ours in place of an operator that scipy made."""
    return ours(matrix_of(operator) if operator.ndim == 2 else np.empty(operator.shape), operator.dtype)


class Replacing(type):
    """Operators made of functions, or by a subclass that a test writes, become ours once they are made."""

    def __call__(cls, *args, **kwargs):
        if cls is Operator:
            return replaced(interface.LinearOperator(*args, **kwargs))
        return replaced(super().__call__(*args, **kwargs))

    def __instancecheck__(cls, thing):
        return isinstance(thing, interface.LinearOperator)


class Operator(interface.LinearOperator, metaclass=Replacing):
    """What the tests call ``interface.LinearOperator``."""


def aslinearoperator(A):
    """Do what scipy's does, with an operator of ours."""
    if isinstance(A, interface.LinearOperator):
        return A
    dense = A.toarray() if issparse(A) else np.asarray(A)
    return ours(dense, dense.dtype)


SUBSTITUTE = SimpleNamespace(
    **{
        **vars(interface),
        "LinearOperator": Operator,
        **{  # what is composed of ours is ours
            f"_{kind}LinearOperator": (getattr(interface, f"_{kind}LinearOperator"), TensorOperator)
            for kind in ("Scaled", "Sum", "Product", "Power")
        },
        "aslinearoperator": aslinearoperator,
        "MatrixLinearOperator": lambda A, xp: aslinearoperator(A),
        "IdentityOperator": lambda shape, dtype=None, xp=None: ours(np.eye(*shape), dtype or np.float64),
    }
)


def pytest_collection_modifyitems(items):
    for module in {item.module for item in items}:
        module.interface = SUBSTITUTE
        module.matrix = complex_matrix
        without_integers(module.TestAsLinearOperator)
    product = TensorOperator._product

    def counted(self, *args):
        PRODUCTS[0] += 1
        return product(self, *args)

    TensorOperator._product = counted


def complex_matrix(numbers, dtype=complex):
    """Make np.matrix complex, as all other numbers of scipy's test_matvec are."""
    return np.matrix(numbers, dtype=dtype)


def without_integers(tests):
    """Leave out the cases of integer matrices: an operator of ours computes in float32 or float64."""
    setup = tests.setup_method

    def setup_method(self):
        setup(self)
        self.cases = [(M, A) for M, A in self.cases if np.dtype(M.dtype).kind in "fc"]
        assert self.cases

    tests.setup_method = setup_method


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = PRODUCTS[0]
    try:
        return (yield)
    finally:
        item.user_properties.append(("products", PRODUCTS[0] - before))


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        why = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else str(report.longrepr or "")
        FOUND[report.nodeid.partition("::")[2]] = {
            "outcome": report.outcome,
            "why": why,
            "products": dict(report.user_properties).get("products", 0),
        }


def pytest_sessionfinish():
    Path(os.environ[REPORT]).write_text(json.dumps(FOUND))
