"""Registry of the quirks of people's files that tests of tests/quirks reproduce, and the page made from it.

`python tests/helpers/quirks.py` writes docs/reference/real_files.md.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs/reference/real_files.md"
INTRODUCTION = """\
# What happens to real files

Files of other tools, cameras and people deviate from their formats. Whatever has one meaning only is
mended and counted; whatever cannot be used is left out, counted and named; the rest is refused in one
sentence before any long work. Every row of these tables is a test in `tests/quirks`, from which this
page is generated.
"""


def quirk(given: str, outcome: str) -> Callable:
    """Decorates a test with its row of the page.

    Args:
        given: the tool or the peculiarity of the input, e.g. "Label Studio: `images\\\\` before file names".
        outcome: what is done with it, e.g. "found relative to the JSON file".
    """

    def decorate(test: Callable) -> Callable:
        test.quirk = given, outcome
        return test

    return decorate


def make_page() -> str:
    """Returns the page: one table for each file of tests/quirks, under the first line of its docstring."""
    return "\n".join([INTRODUCTION, *(_table(path) for path in sorted((TESTS / "quirks").glob("test_*.py")))])


def _table(path: Path) -> str:
    spec = importlib.util.spec_from_file_location(f"quirks_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    title = inspect.getdoc(module).splitlines()[0].rstrip(".")
    rows = [f"| {given} | {outcome} |" for given, outcome in _rows(module)]
    return "\n".join([f"## {title}", "", "| input | what is done with it |", "|---|---|", *rows, ""])


def _rows(module) -> Iterator[tuple[str, str]]:
    for member in vars(module).values():
        if hasattr(member, "quirk"):
            yield member.quirk


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers"), str(TESTS / "slow")]
    PAGE.write_text(make_page())
