"""Mutated COCO files: each is prepared with a report, or refused in one sentence."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzz import Campaign
from hypothesis import given
from hypothesis import strategies as st
from small_sets import write_set

from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.holdout import SplitSample

pytestmark = pytest.mark.slow
CAMPAIGN = Campaign("coco_files", cases=5_000, cases_in_ci=300)

ODD_VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e-9, 1e9, 1e300, float("nan"), float("inf"), -float("inf"),
    10**18, 2**63, -(2**63), 10**400, "", "0", "1", "1.0", "-1", "nan", "1e400", "true", "nose", "nose,tail",
    "[1, 2]", "[[", "\0", "\ud800", "[/red]", "\n", "../..", "/", "x" * 1000, [], {}, [[]], [[[]]], [{}],
    [None], {"a": 1}, {"size": [64, 96], "counts": "PPP"}, {"size": [64, 96], "counts": [6144]},
    {"counts": [1, -1]},
    {"x": 1, "y": 2}, [1, 2], [[1, 2, 1]], ["a", "b"], [1.5] * 6, [[1, 2, 3, 4, 5, 6]], [1e6, -1e6] * 50,
]  # fmt: skip
odd_values = st.sampled_from(ODD_VALUES)


def make_content() -> dict[str, Any]:
    """Returns a valid file of three images, with polygons, run-length codes, crowds and keypoints."""
    content = json.loads((FOLDER / "annotations/all.json").read_text())
    for category in content["categories"]:
        category |= {"keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]], "supercategory": "x"}
    for annotation in content["annotations"]:
        annotation |= {"keypoints": [30, 20, 2, 50, 30, 1], "num_keypoints": 2}
    crowd = {"size": [64, 96], "counts": [1000, 64, 5080]}
    content["annotations"][1] |= {"segmentation": crowd, "iscrowd": 1}
    content["annotations"][2]["segmentation"] = {"size": [64, 96], "counts": "Ph1l0T5"}
    return content | {"info": {}, "licenses": []}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    global FOLDER
    FOLDER = write_set(tmp_path_factory.mktemp("fuzz") / "set", count=3, suffix="png")


FOLDER = Path()


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Returns container and key of every node below a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [node for key in keys for node in [(value, key), *nodes(value[key])]]


@st.composite
def changes(draw) -> list[tuple]:
    """Draws what is done with which node: a place, from 0 to 1 among all nodes, and a value."""
    kinds = ["replace", "drop", "repeat", "nest", "text", "swap", "everywhere"]
    return draw(
        st.lists(
            st.tuples(st.sampled_from(kinds), st.integers(0, 10**6), st.integers(0, 10**6), odd_values),
            min_size=1, max_size=6,
        )
    )  # fmt: skip


def change(content: dict, kind: str, place: int, other: int, value: Any) -> None:
    """Changes one node of a file, or all nodes of one name, in place."""
    found = nodes(content)
    if not found:
        return
    container, key = found[place % len(found)]
    value = copy.deepcopy(value)
    if kind == "replace":
        container[key] = value
    elif kind == "drop":
        del container[key]
    elif kind == "repeat" and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif kind == "nest":
        for _ in range(1 + other % 3):
            container[key] = [container[key]]
    elif kind == "text":
        container[key] = str(container[key])
    elif kind == "swap":
        container[key] = copy.deepcopy(found[other % len(found)][0])
    elif kind == "everywhere":
        for other_container, other_key in found:
            if other_key == key and other_container is not container and isinstance(other_container, dict):
                other_container[other_key] = copy.deepcopy(value)


damages = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 3)), max_size=2)
damage = st.one_of(st.just([]), st.just([]), st.just([]), damages)


def prepare(data: bytes, out: Path, options: dict[str, Any]) -> None:
    file = FOLDER / "annotations/changed.json"
    file.write_bytes(data)
    parts = [SplitSample(split, (("validation", 1),)) for split in ("train", "validation")]
    splits = {part.split: CocoSplit(FOLDER / "images", file, part) for part in parts}
    shutil.rmtree(out, ignore_errors=True)
    reports = coco.prepare(splits, out, **options)
    assert all(str(report) for report in reports.values())
    for report in reports.values():
        str(report).encode()


options = st.fixed_dictionaries({
    "strict": st.sampled_from([False] * 7 + [True]),
    "max_bad": st.sampled_from([0.0, 0.05, 0.7, 1.0]),
})  # fmt: skip


@CAMPAIGN.settings
@given(changes(), damage, options)
def test_mutated_coco_file_is_prepared_or_refused(given_changes, damaged, chosen):
    content = make_content()
    for one in given_changes:
        change(content, *one)
    data = json.dumps(content).encode()
    for place, inserted, dropped in damaged:
        start = int(place * len(data))
        data = data[:start] + inserted + data[start + dropped :]
    with CAMPAIGN.case():
        prepare(data, FOLDER.parent / "out", chosen)


def test_figures_are_written():
    CAMPAIGN.write()
