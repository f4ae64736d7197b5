"""`mrcnn inspect`: tables, files and messages."""

import json
from pathlib import Path

from cli_inputs import listing, write_coco
from pages import Page


def test_inspect_shows_a_prepared_set_and_its_folder(mrcnn):
    mrcnn("dataset", write_coco(), "--out", "set")
    before = listing()
    status, out, err = mrcnn("inspect", "set")
    assert (status, err) == (0, "") and listing() == before
    lines = [line.split() for line in out.splitlines()]
    assert ["images", "3"] in lines and ["90", "dog", "2", "2"] in lines and ["3", "cat", "4", "1"] in lines
    assert "there is no validation split" in out and "compared with the experiment small" in out
    status, out, _ = mrcnn("inspect", "pets", "--experiment", "nuclei")
    assert status == 0 and "box wholly outside the image (annotation 15)" in out
    assert "compared with the experiment nuclei" in out


def test_inspect_writes_a_page_and_numbers(mrcnn):
    mrcnn("dataset", write_coco(), "--out", "set", "--validation-images", "1")
    files = ("--out", "new/page.html", "--json", "numbers.json")
    status, out, _ = mrcnn("inspect", "set", *files, "--pictures", 1)
    assert status == 0 and out.endswith("The page is new/page.html.\nThe numbers are in numbers.json.\n")
    assert Page(Path("new/page.html").read_text()).tags["img"] >= 6 + 2
    assert json.loads(Path("numbers.json").read_text())["dataset"]["splits"]["train"]["images"] == 2


def test_inspect_refuses(mrcnn, rejected):
    mrcnn("dataset", write_coco(), "--out", "set")
    assert "there is nothing at nothing" in rejected("inspect", "nothing")
    assert "there is no experiment 'huge'" in rejected("inspect", "set", "--experiment", "huge")
    assert "--pictures must be" in rejected("inspect", "set", "--pictures", 0)
    assert "are the same file x" in rejected("inspect", "set", "--out", "x", "--json", "./x")
    assert "it is a folder" in rejected("inspect", "set", "--out", "pets")
    assert "needs PATH|NAME" in rejected("inspect")
