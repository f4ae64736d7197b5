"""The catalogue of published weights: literal rows, and settings of Detectron2 that make its configurations.

tests/slow/test_zoo.py compares torchvision's rows with torchvision itself.
"""

from dataclasses import replace

import pytest
from detectron2_zoo import zoo as narrow
from detectron2_zoo import zoo_tensors
from library_models import check_complete, zero_tensors

from mrcnn_jax.config import to_dict
from mrcnn_jax.weights import detectron2, zoo
from mrcnn_jax.weights.identify import identify_model

D2 = "https://dl.fbaipublicfiles.com/detectron2"


@pytest.mark.parametrize(
    "name, url, tasks, figures, checksum",
    [
        (
            "torchvision/maskrcnn_resnet50_fpn_v2",
            "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
            ("boxes", "masks"), (47.4, 41.8, None, 177.219), ("sha256", "73cbd019"),
        ),
        (
            "torchvision/resnet50_imagenet1k_v2", "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
            (), (None, None, None, 97.79), ("sha256", "11ad3fa6"),
        ),
        (
            "detectron2/mask_rcnn_R_50_FPN_3x",
            f"{D2}/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
            ("boxes", "masks"), (41.0, 37.2, None, 170.0), ("md5", "f10217"),
        ),
        (
            "detectron2/keypoint_rcnn_X_101_32x8d_FPN_3x",
            f"{D2}/COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/model_final_5ad38f.pkl",
            ("boxes", "keypoints"), (57.3, None, 66.0, 468.0), ("md5", "5ad38f"),
        ),
        (
            "detectron2/Cityscapes/mask_rcnn_R_50_FPN",
            f"{D2}/Cityscapes/mask_rcnn_R_50_FPN/142423278/model_final_af9cf5.pkl",
            ("boxes", "masks"), (None, 36.5, None, 168.0), ("md5", "af9cf5"),
        ),
        (
            "detectron2/ImageNetPretrained/MSRA/R-50", f"{D2}/ImageNetPretrained/MSRA/R-50.pkl", (),
            (None, None, None, None), None,
        ),
    ],
)  # fmt: skip
def test_rows(name, url, tasks, figures, checksum):
    entry = zoo.ENTRIES[name]
    assert (entry.url, entry.tasks, entry.checksum) == (url, tasks, checksum)
    assert (entry.box_ap, entry.mask_ap, entry.keypoint_ap, entry.megabytes) == figures


def test_every_file_is_named_once_and_can_be_checked():
    entries = zoo.ENTRIES.values()
    assert len(entries) == 70 and len({entry.url for entry in entries}) == 70
    unchecked = [entry.name for entry in entries if entry.checksum is None]
    assert unchecked == [f"detectron2/ImageNetPretrained/{name}" for name in zoo._MODEL_ZOO_BACKBONES.split()]
    for entry in entries:
        assert entry.library in zoo.LICENCES
        figures = {"boxes": entry.box_ap, "masks": entry.mask_ap, "keypoints": entry.keypoint_ap}
        assert {task for task, ap in figures.items() if ap} <= set(entry.tasks)
        assert not entry.tasks or figures[entry.tasks[-1]]


def test_words_select_and_mistakes_are_answered():
    assert [entry.name for entry in zoo.find(("lvis", "X_101"))] == [
        "detectron2/LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x"
    ]
    assert {entry.library for entry in zoo.find(("keypoints", "resnet50"))} == {"torchvision"}
    assert len(zoo.find(())) == 70 and zoo.find(("keypoints", "C4")) == []
    assert zoo.nearest("maskrcnn_resnet50_fpnv2")[0] == "torchvision/maskrcnn_resnet50_fpn_v2"


SCALED = {"model.pixel_std": (57.375, 57.12, 58.395), "model.backbone.freeze_stages": 0}


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("mask_rcnn_R_50_FPN_3x", {}, {}),
        ("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn", {"norm": "GN"}, {"model.backbone.freeze_stages": 0}),
        ("Misc/scratch_mask_rcnn_R_50_FPN_9x_gn", {"norm": "GN"}, SCALED),
        (
            "Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn", {"norm": "SyncBN"},
            SCALED | {"model.backbone.stride_in_1x1": False},
        ),
        (
            "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ", {"norm": "SyncBN"},
            {"model.backbone.freeze_stages": 0},
        ),
        (
            "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {},
            {"model.box.score_threshold": 1e-4, "model.box.max_detections": 300},
        ),
        (
            "Cityscapes/mask_rcnn_R_50_FPN", {},
            {"data.short_edge": (800, 832, 864, 896, 928, 960, 992, 1024), "data.short_edge_test": 1024,
             "data.long_edge": 2048},
        ),
        (
            "PascalVOC-Detection/faster_rcnn_R_50_C4", {"kind": "faster", "features": "c4"},
            {"data.short_edge": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)},
        ),
        (
            "Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x", {},
            {"data.short_edge": (800,), "model.rpn.smooth_l1_beta": 0.1111, "model.box.smooth_l1_beta": 1.0,
             "model.pool.sampling_ratio": 2, "model.conventions.roi_half_pixel": False},
        ),
        (
            "Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x", {"kind": "keypoint"},
            {"model.rpn.smooth_l1_beta": 0.1111, "model.box.smooth_l1_beta": 1.0,
             "model.pool.sampling_ratio": 2, "model.conventions.roi_half_pixel": False},
        ),
    ],
)  # fmt: skip
def test_settings_make_the_configuration(name, arguments, expected):
    """Fields in which a configuration differs from what its tensors alone tell, read in its YAML file."""
    entry, usual = zoo.ENTRIES[f"detectron2/{name}"], narrow(**arguments)
    if "LSJ" in name:
        usual = replace(usual, model=replace(usual.model, rpn=replace(usual.model.rpn, convolutions=2)))
        tensors = zero_tensors(usual.model, detectron2.make_param_map)
    else:
        tensors = zoo_tensors(usual)
    model = identify_model(None, tensors, name, entry.settings)
    check_complete(model, name)
    assert model.experiment.model.tasks == entry.tasks
    found, before = (to_dict(each) for each in (model.experiment, usual))
    changed = {}
    for part in ("model", "data"):
        changed |= _differences(found[part], before[part], f"{part}.")
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in changed.items()} == expected


def _differences(found, before, path):
    changed = {}
    for key, value in found.items():
        if isinstance(value, dict):
            changed |= _differences(value, before[key], f"{path}{key}.")
        elif value != before[key]:
            changed[f"{path}{key}"] = value
    return changed


def test_classes_are_named_where_their_number_does_not_tell():
    assert zoo.ENTRIES["detectron2/mask_rcnn_R_50_FPN_3x"].classes == ()
    assert len(zoo.ENTRIES["detectron2/PascalVOC-Detection/faster_rcnn_R_50_C4"].classes) == 20
    assert zoo.ENTRIES["detectron2/Cityscapes/mask_rcnn_R_50_FPN"].classes[:2] == ("person", "rider")
