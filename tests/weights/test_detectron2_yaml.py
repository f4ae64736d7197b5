"""Detectron2's configuration files are read with their bases, and refused in one sentence if damaged."""

import pytest

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.detectron2_settings import ZOO
from mrcnn_jax.weights.detectron2_yaml import cast_settings, read_settings


def test_read_settings_merges_base_files(tmp_path):
    folder = tmp_path / "Detectron1-Comparisons"
    folder.mkdir()
    (tmp_path / "Base.yaml").write_text(
        "MODEL:\n  MASK_ON: True\n  RPN:\n    NMS_THRESH: 0.6\n    PRE_NMS_TOPK_TEST: 500\nSOLVER: [1, 2]\n"
    )
    (folder / "middle.yaml").write_text(
        '_BASE_: "../Base.yaml"\nMODEL:\n  RPN:\n    NMS_THRESH: 0.5\nINPUT:\n  MIN_SIZE_TRAIN: (800, )\n'
    )
    file = folder / "top.yaml"
    file.write_text(
        "_BASE_: middle.yaml\n"
        "MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: &w [1, 1, 1, 1]}, RPN: {BBOX_REG_WEIGHTS: *w}}\n"
    )
    assert read_settings(file) == {
        "MODEL.MASK_ON": True, "MODEL.RPN.NMS_THRESH": 0.5, "MODEL.RPN.PRE_NMS_TOPK_TEST": 500,
        "INPUT.MIN_SIZE_TRAIN": "(800, )",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [1, 1, 1, 1], "MODEL.RPN.BBOX_REG_WEIGHTS": [1, 1, 1, 1],
    }  # fmt: skip
    (tmp_path / "Base.yaml").write_text("_BASE_: Detectron1-Comparisons/top.yaml\n")
    with pytest.raises(InputError, match="top.yaml is based on itself through its _BASE_"):
        read_settings(file)
    (tmp_path / "Base.yaml").unlink()
    with pytest.raises(
        InputError, match=r"cannot read .*Base\.yaml, the _BASE_ of .*middle\.yaml: No such file"
    ):
        read_settings(file)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "which has sections such as MODEL and INPUT"),
        (b"- MODEL\n- INPUT\n", "which has sections such as MODEL and INPUT"),
        (b"MODEL: [unclosed\n", "is not valid YAML: while parsing"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01", "is not valid YAML"),
        (b"MODEL: \x00\n", "is not valid YAML"),
        (b"[" * 600, "is not valid YAML"),
        (
            b"!!python/object/apply:os.system ['true']\n",
            "is not valid YAML: could not determine a constructor",
        ),
        (b"!!int ''\n", "is not valid YAML"),
        (b"MODEL: 3\n", "MODEL must be a section of settings, not 3"),
        (b"MODEL: &m {RPN: *m}\n", "has none of the settings of Detectron2"),
        (b"MODEL: {RPN: &r {NMS_THRESH: *r}}\n", "MODEL.RPN.NMS_THRESH must look like 0.7, not"),
        (
            b"MODEL: {RPN: {NMS_THRESH: '" + b"(" * 9999 + b"'}}",
            "MODEL.RPN.NMS_THRESH must look like 0.7, not",
        ),
        (b"batch_size: 8\n", "has none of the settings of Detectron2"),
        (b"_BASE_: [1]\n", "_BASE_ must be the path"),
        (b"_BASE_: config.yaml\n", "is based on itself"),
        (b"_BASE_: .\n", "the _BASE_ of .*: Is a directory"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, reason):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        cast_settings(ZOO | read_settings(file))
    message = str(error.value)
    assert (
        (str(tmp_path) in message or "NMS_THRESH" in message) and "\n" not in message and len(message) < 600
    )


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.yaml: No such file"):
        read_settings(tmp_path / "nowhere.yaml")
