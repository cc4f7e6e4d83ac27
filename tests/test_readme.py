"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
DOCS = sorted((README.parent / "docs").glob("*.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_the_examples_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 3
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "5 of 5 eigenpairs (SA)" in printed
    assert "Inertia(shift=0.95, above=" in printed


@pytest.mark.parametrize("page", [path for path in DOCS if "```python" in path.read_text()], ids=lambda path: path.stem)
def test_the_examples_of_the_docs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("command", ["&& jvp-ops spectrum", "&& pytest"])
def test_each_of_the_two_commands_stands_on_one_line_and_makes_its_own_environment(command):
    (line,) = [line for line in README.read_text().splitlines() if line.endswith(command)]
    assert line.startswith("python3 -m venv .venv")


def test_every_file_that_it_names_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
