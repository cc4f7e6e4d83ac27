"""Our own warnings fail a test that does not expect them; those of torch, numpy or a peer do not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jvp_ops as jo

ROOT = Path(jo.__file__).parent
SETTINGS = Path(__file__).parents[1] / "pyproject.toml"
PLANTED = """
import warnings
import pytest
import jvp_ops as jo
from jvp_ops.errors import JvpOpsWarning

def warn(category, module):
    warnings.warn_explicit("planted", category, "planted.py", 1, module=module)

def test_ours_unexpected(): warn(JvpOpsWarning, "elsewhere")
def test_numpy_s_at_a_line_of_ours(): warn(RuntimeWarning, "jvp_ops.eigen._lanczos")
def test_a_real_one_of_ours():
    import torch
    loss = jo.FunctionLoss(lambda x: x.sum() ** 2, size=1, dtype="float64")
    jo.GradientDescent(loss, 0.25, clip=2 + 1e-6).jacobian(torch.ones(1, dtype=torch.float64))
def test_a_real_one_of_numpy_at_a_line_of_ours():
    import numpy
    exec(compile("numpy.log(numpy.zeros(1))", "planted.py", "exec"), {"__name__": "jvp_ops.data", "numpy": numpy})

def test_passes_ours_expected():
    with pytest.warns(JvpOpsWarning): warn(JvpOpsWarning, "elsewhere")
def test_passes_torch_s_deprecation_at_a_line_of_ours(): warn(FutureWarning, "jvp_ops.maps._run")
def test_passes_torch_s_deprecation(): warn(DeprecationWarning, "torch.jit._script")
def test_passes_torch_s_warning_at_a_line_of_ours(): warn(UserWarning, "jvp_ops.losses")
def test_passes_a_peer_s(): warn(RuntimeWarning, "curvlinops")
"""


def test_only_our_own_warnings_are_errors(tmp_path):
    planted = tmp_path / "test_planted.py"
    planted.write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", "-c", str(SETTINGS), "-p", "no:cacheprovider", "-rA", str(planted)]
    done = subprocess.run(command, cwd=SETTINGS.parent, capture_output=True, text=True)
    outcomes = {}
    for line in done.stdout.splitlines():
        if line.startswith(("PASSED ", "FAILED ", "ERROR ")):
            outcome, _, rest = line.partition(" ")
            outcomes[rest.partition("::")[2].split(" ")[0]] = outcome
    names = [node.name for node in ast.parse(PLANTED).body if getattr(node, "name", "").startswith("test_")]
    assert len(names) == 9
    assert outcomes == {name: "PASSED" if name.startswith("test_passes") else "FAILED" for name in names}, done.stdout


def categories(source):
    """Yield (line, category as written) of every call of warnings.warn."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warn", "warnings.warn"):
            given = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "category")]
            yield node.lineno, ast.unparse(given[0]) if given else "none"


@pytest.mark.parametrize(
    ("call", "category"), [("warn('x')", "none"), ("warnings.warn('x', UserWarning)", "UserWarning")]
)
def test_a_warning_of_another_category_would_be_seen(call, category):
    assert list(categories(call)) == [(1, category)]


def test_every_warning_of_ours_is_of_our_category():
    found = {
        f"{path.relative_to(ROOT)}:{line}": category
        for path in ROOT.rglob("*.py")
        for line, category in categories(path.read_text())
    }
    assert len(found) >= 2
    assert set(found.values()) == {"JvpOpsWarning"}, found
    assert issubclass(jo.JvpOpsWarning, RuntimeWarning)
