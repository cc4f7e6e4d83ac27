"""The package as a whole: lazy imports, public names, and which part may import which."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jvp_ops

ROOT = Path(jvp_ops.__file__).parent
LAYERS = [
    {"errors", "_version"},
    {"_random", "_memory", "_progress", "_checks", "_sums", "_explained", "_ladder"},
    {"parameters", "_one_sided"},
    {"_autodiff", "_differences"},
    {"store"},
    {"data"},
    {"_sitting"},
    {"_result"},
    {"linear"},
    {"operators"},
    {"testing"},
    {"losses"},
    {"maps"},
    {"plots"},
    {"krylov"},
    {"eigen"},
    {"dynamics"},
    {"cli"},
    {"_load"},
    {"__main__"},
]
LEAVES = {"testing"}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NAMES = {
    "Adam",
    "AdamW",
    "ConvergenceError",
    "CovariantVectors",
    "DataError",
    "Dataset",
    "FiniteTimeExponents",
    "FunctionLoss",
    "FunctionMap",
    "GaussNewtonOperator",
    "GradientDescent",
    "HeavyBall",
    "HessianOperator",
    "InputError",
    "JacobianOperator",
    "JvpOpsError",
    "JvpOpsWarning",
    "LyapunovSpectrum",
    "MemoryBudgetError",
    "MinibatchSGD",
    "MissingExtraError",
    "ModelLoss",
    "Nesterov",
    "NonFiniteError",
    "Parameter",
    "Parameters",
    "RMSProp",
    "Tracking",
    "TwoLayerLoss",
    "covariant_vectors",
    "eigenpairs",
    "finite_time_exponents",
    "leading_frame",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "local_growth",
    "lyapunov_spectrum",
    "track_eigenpairs",
}


@pytest.mark.parametrize("module", ["jvp_ops", "jvp_ops.cli", "jvp_ops.data", "jvp_ops.errors"])
def test_importing_it_imports_no_torch(module):
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "jvp_ops" in imported
    assert not imported & {"torch", "scipy", "matplotlib"}


def test_public_names_are_listed_and_found_where_they_live():
    assert set(dir(jvp_ops)) >= NAMES
    assert "__version__" in dir(jvp_ops)
    assert set(jvp_ops._HOME) <= set(dir(jvp_ops))
    for name in NAMES - {"eigenpairs"}:
        found = getattr(jvp_ops, name)
        assert found.__name__ == name
        assert found.__module__.startswith("jvp_ops")
        assert getattr(jvp_ops, name) is found


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jvp_ops' has no attribute 'eigenpears'"):
        _ = jvp_ops.eigenpears
    with pytest.raises(ImportError):
        exec("from jvp_ops import eigenpears")


def test_every_error_has_the_one_root_and_a_builtin_kin():
    kin = {
        "InputError": ValueError,
        "DataError": ValueError,
        "MemoryBudgetError": MemoryError,
        "NonFiniteError": ArithmeticError,
        "ConvergenceError": RuntimeError,
        "MissingExtraError": ImportError,
    }
    for name, builtin in kin.items():
        assert issubclass(getattr(jvp_ops, name), jvp_ops.JvpOpsError)
        assert issubclass(getattr(jvp_ops, name), builtin)


def imports_of(source, path):
    """Yield (line, part of jvp_ops) of every import that runs, inside functions too."""

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from visit(other)
                continue
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno} is a relative import"
                below = [f"{child.module}.{alias.name}" for alias in child.names]
                names = below if child.module == "jvp_ops" else [child.module]
            else:
                names = []
            for name in names:
                if name == "jvp_ops" or name.startswith("jvp_ops."):
                    yield child.lineno, name.split(".")[1] if "." in name else ""
            yield from visit(child)

    return visit(ast.parse(source))


def test_no_module_imports_itself_by_way_of_others_not_even_for_types():
    def name_of(path):
        return ".".join(("jvp_ops", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")

    paths = {name_of(path): path for path in ROOT.rglob("*.py")}
    del paths["jvp_ops"]  # whose names are imported when they are used
    graph = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {other if other in paths else node.module for other in below}
        graph[name] = found & set(paths)
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_import_reader_sees_what_it_should():
    source = """
import numpy
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from jvp_ops.maps import run
def f():
    from jvp_ops.cli import main
    import jvp_ops.losses
from jvp_ops import eigen
"""
    assert [part for _, part in imports_of(source, "x")] == ["cli", "losses", "eigen"]


def test_each_part_imports_only_from_parts_to_its_left():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    assert len(files) > 20
    wrong = []
    for path in files:
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert part in RANK, f"{part} has no place in the order"
        for line, other in imports_of(path.read_text(), path):
            if other != part and (other in LEAVES or RANK.get(other, len(LAYERS)) >= RANK[part]):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {other or 'jvp_ops itself'}")
    assert not wrong, "\n".join(wrong)
