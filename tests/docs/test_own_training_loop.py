"""The code of docs/guides/own_training_loop.md runs and trains."""

import re

import numpy as np
import pytest
from paths import REPOSITORY

pytestmark = pytest.mark.slow  # compiles a detector for training and for detection


def test_the_code_of_the_guide_trains():
    text = (REPOSITORY / "docs" / "guides" / "own_training_loop.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(compile(block, "own_training_loop.md", "exec"), names)
    first, *_, last = names["history"]
    parts = {"loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    assert set(first) == parts | {"loss"}
    assert all(np.isfinite(value) for value in last.values()) and last["loss"] < first["loss"]
    assert names["boxes"].shape[1] == 4
