"""The page for those who know other libraries: fields exist, and are what Detectron2's settings become."""

import re
from functools import reduce

import pytest
from paths import REPOSITORY

from mrcnn_jax import ops
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.coco_classes import COCO, COCO_WITH_GAPS
from mrcnn_jax.weights.detectron2_experiment import make_experiment
from mrcnn_jax.weights.detectron2_settings import ZOO

PAGE = (REPOSITORY / "docs" / "guides" / "coming_from.md").read_text()
TABLE = PAGE.split("<!-- detectron2 -->")[1].split("\n\n")[0]
ROWS = [
    tuple(re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:3]) for row in TABLE.splitlines()[3:]
]
BASE = ZOO | {"MODEL.MASK_ON": True, "MODEL.ROI_BOX_HEAD.NUM_CONV": 1}
OTHERS = {
    "MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.NORM": "BN",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4, "MODEL.FPN.NORM": "GN",
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16.0], [64.0], [128.0], [256.0], [512.0]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0, 2.0]],
}  # fmt: skip
"""Values of settings whose type does not suggest another one."""


def other(name: str):
    value = ZOO[name]
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not BASE[name]
    return tuple(0.9 * one for one in value) if isinstance(value, tuple) else type(value)(value / 2 or 1)


def fields(config: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in config.items():
        found |= fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("theirs, ours", ROWS, ids=lambda names: " ".join(names))
def test_a_setting_of_detectron2_becomes_the_field_beside_it(theirs, ours):
    before = fields(to_dict(make_experiment(BASE, False, "base")))
    for name in theirs:
        settings = BASE | {f"MODEL.{name}": other(f"MODEL.{name}")}
        after = fields(to_dict(make_experiment(settings, False, "other")))
        changed = {field for field in after if after[field] != before[field]} - {"name"}
        assert changed == {f"model.{one}" for one in ours}


def test_all_named_fields_exist():
    assert len(ROWS) > 35
    named = set(re.findall(r"`((?:model|data|train|evaluation)\.[\w.]+)`", PAGE))
    assert len(named) > 60
    for name in named:
        reduce(getattr, name.split("."), Experiment())
    for name in re.findall(r"mrcnn_jax\.ops\.(\w+)", PAGE):
        assert callable(getattr(ops, name))


def test_number_of_cocos_classes():
    """A classifier of COCO's ids, up to 90, has ten rows without objects."""
    assert "has 90 foreground classes: COCO's own ids, of which ten" in PAGE
    assert (COCO.num_classes, COCO_WITH_GAPS.num_classes) == (80, 90)
    assert len(set(COCO_WITH_GAPS.category_ids) - set(COCO.category_ids)) == 10
