"""Mutated files of formats beside COCO: each set is prepared, or refused in one sentence."""

import shutil
from pathlib import Path

import pytest
from format_writers import WRITERS
from fuzz import Campaign
from hypothesis import given
from hypothesis import strategies as st

from mrcnn_jax.data.prepare import prepare

pytestmark = pytest.mark.slow
CAMPAIGN = Campaign("format_files", cases=1_500, cases_in_ci=100)

ODD_TEXTS = [
    b"", b"0", b"-1", b"2", b"1e400", b"nan", b"null", b"true", b"[]", b"{}", b"[[", b'"', b"\0", b"\xff",
    b"/", b"..", b"\n", b"<", b">", b"</a>", b"&x;", b"<a>", b": ", b"- ", b"*a", b"&a", b"9" * 400,
    b"x" * 1000, b"0.5 " * 50,
]  # fmt: skip
SETS = [(name, kind) for name, (_, kinds) in WRITERS.items() for kind in kinds if name != "COCO"]
mutation = st.tuples(st.floats(0, 1), st.sampled_from(ODD_TEXTS), st.sampled_from([0, 1, 3, 20]))
mutations = st.lists(mutation, min_size=1, max_size=3)


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    global ROOT
    ROOT = tmp_path_factory.mktemp("fuzz")
    for name, kind in SETS:
        WRITERS[name][0](ROOT / f"{name} {kind}", kind)


ROOT = Path()


@CAMPAIGN.settings
@given(st.sampled_from(SETS), st.integers(0, 100), mutations)
def test_mutated_files_are_prepared_or_refused(chosen, number, changes):
    source, folder, out = ROOT / " ".join(chosen), ROOT / "changed", ROOT / "out"
    for path in (folder, out):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    texts = [path for path in files if path.suffix != ".png"] or files
    path = texts[number % len(texts)]
    content = path.read_bytes()
    for place, text, removed in changes:
        start = int(place * len(content))
        content = content[:start] + text + content[start + removed :]
    path.write_bytes(content)
    with CAMPAIGN.case():
        _, reports = prepare(folder, out, max_bad=0.5)
        assert all(str(report) for report in reports.values())


def test_figures_are_written():
    CAMPAIGN.write()
