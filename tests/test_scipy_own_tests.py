"""scipy's own tests of LinearOperator, run where they are installed, on our operators in place of scipy's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scipy
from scipy_with_ours import MODULE, REPORT

pytestmark = pytest.mark.skipif(
    scipy.__version__.split(".")[:2] != ["1", "18"] or not importlib.util.find_spec(MODULE.rpartition(".")[0]),
    reason=f"scipy {scipy.__version__}, or without its tests: those of scipy 1.18 have been sorted",
)

FINDS_A_DTYPE = "finds the dtype of a function: an operator of ours states its own, float32 or float64"
CANNOT = {
    "TestAsLinearOperator::test_xp[numpy-int64]": "expects products in integers, ours are in float32 or float64",
    "test_identity[numpy]": "expects products in integers, ours are in float32 or float64",
    "test_inheritance[numpy]": "expects products in integers, and no product with the adjoint, which ours have",
    "test_pickle[numpy]": "the operator is made of functions, which are compared by identity and do not pickle",
    "test_no_double_init[numpy]": "counts the calls by which scipy finds the dtype of a function",
    "test_sparse_matmat_exception": "expects A @ sparse to be sparse; ours refuses it by scipy's TypeError",
    "test_determine_lo_dtype_for_int[numpy]": FINDS_A_DTYPE,
    **{
        f"test_determine_lo_dtype_from_matvec[numpy-{dtype}]": FINDS_A_DTYPE
        for dtype in ("int8", "int16", "int32", "int64", "longdouble", "clongdouble")
    },
}
SKIPPED = {
    "an operator of ours is one matrix, not a batch of them",
    "should work but doesn't - see gh-24510",  # scipy's own words about scipy
}
LOOK_ONLY = {  # at dtypes, attributes, references
    "test_attributes",
    "test_determine_lo_dtype_from_matvec",
    "test_dtypes_of_operator_sum",
    "test_MatrixLinearOperator_refcycle",
    "test_ndim",
    "test_repr",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run them in a process of their own: {name: outcome, why, products of our operators}."""
    folder = tmp_path_factory.mktemp("scipy")
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = [Path(__file__).parent, Path(__file__).parents[1], os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        REPORT: str(folder / "report.json"),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "scipy_with_ours", "-p", "no:cacheprovider", "-q", "--pyargs", MODULE],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # all passed, or some failed
    return json.loads((folder / "report.json").read_text())


def test_all_that_can_pass_with_our_operators_do(found):
    failed = {name: test["why"] for name, test in found.items() if test["outcome"] == "failed"}
    assert set(failed) <= set(CANNOT), "\n\n".join(f"{name}:\n{failed[name]}" for name in set(failed) - set(CANNOT))
    assert sum(test["outcome"] == "passed" for test in found.values()) >= 80


def test_each_that_is_named_as_one_that_cannot_does_fail(found):
    assert {name: found[name]["outcome"] for name in CANNOT} == dict.fromkeys(CANNOT, "failed")


def test_those_that_are_skipped_are_skipped_for_the_reasons_stated(found):
    assert {test["why"] for test in found.values() if test["outcome"] == "skipped"} == SKIPPED


def test_those_that_pass_multiply_by_our_operators(found):
    idle = {name for name, test in found.items() if test["outcome"] == "passed" and not test["products"]}
    assert {name.partition("[")[0] for name in idle} == LOOK_ONLY
