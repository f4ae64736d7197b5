"""Notebooks: what is committed is whole and small; tests/slow executes them."""

import json
import re

import pytest
from paths import REPOSITORY
from scripts import load_script

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
notebooks = load_script(REPOSITORY / "docs" / "_notebooks.py")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_executed_small_and_without_places_of_a_machine(path):
    text = path.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert len(text) < 200_000 and "image/jpeg" in text
    assert not re.search(r"/tmp/|/home/|/root|/work/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_page_of_a_notebook_shows_code_and_outputs(path):
    notebook = json.loads(path.read_text())
    page = notebooks.to_markdown(notebook)
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert all(source in page for source in sources)
    assert page.count("```") % 2 == 0 and "data:image/jpeg;base64," in page
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)", page):
        assert (path.parent / link).exists(), link


def test_cells_share_names_and_show_what_they_print_and_their_last_value():
    sources = ["value = 6", "print('printed')\nvalue * 7", "value = None\nvalue"]
    notebook = {"cells": [{"cell_type": "code", "source": [source]} for source in sources]}
    notebooks.execute(notebook)
    first, second, third = (cell["outputs"] for cell in notebook["cells"])
    assert first == third == [] and second[0]["text"] == ["printed\n"]
    assert second[1]["data"] == {"text/plain": ["42"]}
