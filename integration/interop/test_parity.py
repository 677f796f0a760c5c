"""The parity table has a row for every public name of the installed Orbax, and tells the truth."""

import re
from pathlib import Path

import pytest

import holdfast as hf
from integration.interop.public_names import modules

PAGE = Path(__file__).resolve().parents[2] / "docs/migration/parity.md"
NAMES = {module: names for module, names in modules() if names}


def table():
    """The rows by module: names, the cell of holdfast, and what differs."""
    found, module = {}, ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            module = line.removeprefix("## ").strip("`")
            found[module] = []
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 3, line
            found[module].append((re.findall(r"`([^`]+)`", cells[0]), cells[1], cells[2]))
    return found


TABLE = table()


def test_orbax_s_modules_are_the_sections():
    assert len(NAMES) > 30
    assert sorted(TABLE) == sorted(NAMES)


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_has_one_row(module):
    rows = [name for names, _, _ in TABLE[module] for name in names]
    assert sorted(rows) == sorted(NAMES[module])


@pytest.mark.parametrize("module", NAMES)
def test_what_a_row_names_is_there_and_none_has_a_reason(module):
    for names, there, differs in TABLE[module]:
        if there == "none":
            assert differs, names
            continue
        value = hf
        for part in there.strip("`").removeprefix("hf.").split("."):
            value = getattr(value, part)
