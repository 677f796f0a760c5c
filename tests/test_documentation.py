"""Documents that can be executed are, and what they point at exists."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    p
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "packages/*/*.md", "backends/*/*.md")
    for p in ROOT.glob(pattern)
)
EXECUTED = [p for p in DOCUMENTS if "```python\n" in p.read_text("utf-8")]


def label(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return fenced.findall(path.read_text("utf-8"))


@pytest.mark.parametrize("path", EXECUTED, ids=label)
def test_the_python_of_a_document_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path))
    names = {"__name__": "__document__"}
    for block in blocks(path, "python"):
        exec(compile(block, label(path), "exec"), names)


def test_the_readme_promises_a_resume_and_its_code_does_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path))
    (block,) = blocks(ROOT / "README.md", "python")
    assert len(block.strip().splitlines()) <= 16
    first = {}
    exec(block, first)
    assert first["step"] == first["state"]["step"] == 500
    again = {}
    exec(block, again)
    assert "step" not in again  # the loop had nothing left to do
    assert again["state"]["step"] == 500


def test_the_readme_starts_with_two_commands_of_one_line_each():
    commands = [b.splitlines() for b in blocks(ROOT / "README.md", "sh")]
    assert [len(lines) for lines in commands[:2]] == [1, 1]
    assert "examples/train.py" in commands[0][0]
    assert "pytest" in commands[1][0]


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert "grep -m 1 'uv run pytest' README.md" in script
    readme = (ROOT / "README.md").read_text("utf-8")
    first = next(line for line in readme.splitlines() if "uv run pytest" in line)
    assert first == blocks(ROOT / "README.md", "sh")[1].strip()
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("path", DOCUMENTS, ids=label)
def test_a_link_inside_the_repository_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=label)
def test_actions_are_pinned_and_may_only_read(path):
    text = path.read_text("utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), action
    assert re.search(r"^permissions:\n  contents: read\n", text, re.MULTILINE)
    assert re.search(r"^concurrency:\n", text, re.MULTILINE)
    assert "persist-credentials: false" in text


def test_examples_in_docstrings_are_under_the_heading_that_the_site_shows_as_code():
    sources = [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("backends/*/src/**/*.py")]
    other = re.compile(r"^ +Example:$", re.MULTILINE)
    assert sources
    assert [label(path) for path in sources if other.search(path.read_text("utf-8"))] == []
