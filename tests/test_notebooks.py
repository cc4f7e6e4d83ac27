"""Every notebook is stored clean and runs from top to bottom in its fast mode."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'jvp-ops[notebook]'")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {"01_leading_eigenvalues": 2, "02_edge_of_stability": 2}
MACHINE_PATH = re.compile(r"(?<![\w./:])(/(home|Users|root|tmp|work|mnt|opt|usr|var|private)\b|[A-Z]:[\\/])")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def fast_environment(monkeypatch):
    """What the kernel inherits: the fast mode, no network, this tree's package."""
    monkeypatch.setenv("JVP_OPS_NOTEBOOK_FAST", "1")
    monkeypatch.setenv("JVP_OPS_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own makes pictures of figures


def test_there_are_notebooks_and_each_has_its_number_of_figures_stated_here():
    assert {path.stem for path in NOTEBOOKS} == set(FIGURES)


@each_notebook
def test_a_notebook_is_valid_and_stored_without_results(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@each_notebook
def test_a_notebook_names_no_path_of_one_machine(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not MACHINE_PATH.search(cell.source), cell.id


@pytest.mark.parametrize("text", ["see /home/me/data", '"/mnt/data"', r"C:\Users", "D:/data", "x=/tmp/a"])
def test_a_path_of_one_machine_would_be_seen(text):
    assert MACHINE_PATH.search(text)


@each_notebook
@pytest.mark.usefixtures("fast_environment")
def test_a_notebook_runs_and_its_checks_pass(path, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'jvp-ops[notebook]'")
    for package in ("ipykernel", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'jvp-ops[notebook]'")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    streams = {name: "".join(o.text for o in outputs if o.get("name") == name) for name in ("stdout", "stderr")}
    assert streams["stderr"] == ""
    assert streams["stdout"].endswith("all checks passed\n")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert not list(tmp_path.iterdir()), "the notebook wrote files"
