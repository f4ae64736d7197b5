"""Catalogue of published weights: names, addresses and accuracy of what can be imported.

Addresses, checksums and accuracy are those of torchvision 0.28 (its weights enums) and of Detectron2's model
zoo (MODEL_ZOO.md, model_zoo.py and the README of Detectron1-Comparisons). torchvision states the sizes of its
files; Detectron2's are those of the tensors.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

LICENCES = {
    "torchvision": "not stated; terms of the training data may apply",
    "detectron2": "CC BY-SA 3.0",
}
"""Terms of the weights as the libraries state them, by library."""
_VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Classes of PASCAL VOC in the order of the weights."""


@dataclass(frozen=True)
class Entry:
    """Published weights."""

    name: str
    """Library and model, "torchvision/maskrcnn_resnet50_fpn_v2"."""
    url: str
    tasks: tuple[str, ...]
    """Outputs of the model, as in ``model.tasks``; nothing for a backbone."""
    megabytes: float | None
    """Size in units of 2**20 bytes; None if it is not stated."""
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    trained_on: str = "COCO"
    """Data set that the weights were trained on; the published AP is that of the same."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that cannot be inferred from the tensors and differ from Detectron2's defaults."""
    inferred: bool = False
    """User-supplied file: missing settings are assumed and reported."""

    @property
    def library(self) -> str:
        """Returns "torchvision" or "detectron2"; of weights elsewhere the first part of their name."""
        return self.name.partition("/")[0]

    @property
    def licence(self) -> str:
        """Returns the terms of the weights."""
        return LICENCES.get(self.library, "")

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Returns the algorithm and the first digits of the checksum, which are in the name of the file."""
        match = re.search(r"[-_]([0-9a-f]{6,8})\.(pth|pkl)$", self.url)
        if self.inferred or match is None:
            return None
        return ("sha256" if match[2] == "pth" else "md5"), match[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the class names, unless inferable from their number (COCO)."""
        if self.trained_on == "Cityscapes":
            from mrcnn_jax.data.formats.cityscapes import LABELS  # here, as it imports JAX

            return tuple(LABELS)
        return _VOC if self.trained_on == "VOC" else ()

    @property
    def description(self) -> str:
        """Returns the tasks as text."""
        return ", ".join(self.tasks) or "backbone"

    @property
    def short_name(self) -> str:
        """Returns the last part of the name."""
        return self.name.rpartition("/")[2]


_DETECTORS = """
fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_coco-258fb6c6 159.743 37.0
fasterrcnn_resnet50_fpn_v2 fasterrcnn_resnet50_fpn_v2_coco-dd69338a 167.104 46.7
maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_coco-bf2d0c1e 169.84 37.9 34.6
maskrcnn_resnet50_fpn_v2 maskrcnn_resnet50_fpn_v2_coco-73cbd019 177.219 47.4 41.8
keypointrcnn_resnet50_fpn keypointrcnn_resnet50_fpn_coco-fc266e95 226.054 54.6 - 65.0
keypointrcnn_resnet50_fpn_coco_legacy keypointrcnn_resnet50_fpn_coco-9f466800 226.054 50.6 - 61.1
"""
"""torchvision's detectors: name, file, megabytes, box, mask and keypoint AP."""
_BACKBONES = """
resnet101_imagenet1k_v1 resnet101-63fe2227 170.511
resnet101_imagenet1k_v2 resnet101-cd907fc2 170.53
resnet152_imagenet1k_v1 resnet152-394f9c45 230.434
resnet152_imagenet1k_v2 resnet152-f82ba261 230.474
resnet18_imagenet1k_v1 resnet18-f37072fd 44.661
resnet34_imagenet1k_v1 resnet34-b627a593 83.275
resnet50_imagenet1k_v1 resnet50-0676ba61 97.781
resnet50_imagenet1k_v2 resnet50-11ad3fa6 97.79
resnext101_32x8d_imagenet1k_v1 resnext101_32x8d-8ba56ff5 339.586
resnext101_32x8d_imagenet1k_v2 resnext101_32x8d-110c445d 339.673
resnext101_64x4d_imagenet1k_v1 resnext101_64x4d-173b62eb 319.318
resnext50_32x4d_imagenet1k_v1 resnext50_32x4d-7cdf4587 95.789
resnext50_32x4d_imagenet1k_v2 resnext50_32x4d-1a0047aa 95.833
wide_resnet101_2_imagenet1k_v1 wide_resnet101_2-32ee1156 242.896
wide_resnet101_2_imagenet1k_v2 wide_resnet101_2-d733dc28 484.747
wide_resnet50_2_imagenet1k_v1 wide_resnet50_2-95faca4d 131.82
wide_resnet50_2_imagenet1k_v2 wide_resnet50_2-9ba9bcbe 263.124
"""
"""torchvision's backbones, trained on ImageNet: name with the version of the weights, file, megabytes."""
_MODEL_ZOO = """
COCO-Detection/faster_rcnn_R_50_C4_1x 137257644/model_final_721ade 129 35.7
COCO-Detection/faster_rcnn_R_50_DC5_1x 137847829/model_final_51d356 632 37.3
COCO-Detection/faster_rcnn_R_50_FPN_1x 137257794/model_final_b275ba 159 37.9
COCO-Detection/faster_rcnn_R_50_C4_3x 137849393/model_final_f97cb7 129 38.4
COCO-Detection/faster_rcnn_R_50_DC5_3x 137849425/model_final_68d202 632 39.0
COCO-Detection/faster_rcnn_R_50_FPN_3x 137849458/model_final_280758 159 40.2
COCO-Detection/faster_rcnn_R_101_C4_3x 138204752/model_final_298dad 202 41.1
COCO-Detection/faster_rcnn_R_101_DC5_3x 138204841/model_final_3e0943 705 40.6
COCO-Detection/faster_rcnn_R_101_FPN_3x 137851257/model_final_f6e8b1 232 42.0
COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x 139173657/model_final_68b088 401 43.0
COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x 137259246/model_final_9243eb 137 36.8 32.2
COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x 137260150/model_final_4f86c3 658 38.3 34.2
COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x 137260431/model_final_a54504 170 38.6 35.2
COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x 137849525/model_final_4ce675 137 39.8 34.4
COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x 137849551/model_final_84107b 658 40.0 35.9
COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x 137849600/model_final_f10217 170 41.0 37.2
COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x 138363239/model_final_a2914c 210 42.6 36.7
COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x 138363294/model_final_0464b7 731 41.9 37.3
COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x 138205316/model_final_a3ec72 242 42.9 38.6
COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x 139653917/model_final_2d9806 411 44.3 39.5
new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ 42047764/model_final_bb69de 177 44.6 40.3
new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ 42047638/model_final_89a8d3 177 46.3 41.7
new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ 42019571/model_final_14d201 177 47.4 42.5
new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ 42025812/model_final_4f7b58 250 46.4 41.6
new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ 42131867/model_final_0bb7ae 250 48.0 43.1
new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ 42073830/model_final_f96b26 250 48.9 43.7
COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x 137261548/model_final_04e291 226 53.6 - 64.0
COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x 137849621/model_final_a6e10b 226 55.4 - 65.5
COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x 138363331/model_final_997cc7 299 56.4 - 66.1
COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x 139686956/model_final_5ad38f 468 57.3 - 66.0
LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x 144219072/model_final_571f7c 193 23.6 24.4
LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x 144219035/model_final_824ab5 266 25.6 25.9
LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x 144219108/model_final_5e3439 435 26.7 27.1
Cityscapes/mask_rcnn_R_50_FPN 142423278/model_final_af9cf5 168 - 36.5
PascalVOC-Detection/faster_rcnn_R_50_C4 142202221/model_final_b1acc2 127 51.9
Misc/mask_rcnn_R_50_FPN_3x_syncbn 169527823/model_final_3b3c51 175 41.9 37.8
Misc/mask_rcnn_R_50_FPN_3x_gn 138602888/model_final_dc5d9e 174 42.6 38.6
Misc/scratch_mask_rcnn_R_50_FPN_3x_gn 138602908/model_final_01ca85 174 39.9 36.6
Misc/scratch_mask_rcnn_R_50_FPN_9x_gn 183808979/model_final_da7b4c 174 43.7 39.6
Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn 184226666/model_final_5ce33e 175 43.6 39.3
Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x 137781054/model_final_7ab50c 159 36.9
Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x 137781281/model_final_62ca52 170 37.8 34.9
Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x 137781195/model_final_cce136 226 53.1 - 64.2
"""
"""Detectron2's detectors: configuration, id and file, megabytes, box, mask and keypoint AP."""
_MODEL_ZOO_BACKBONES = """
MSRA/R-50
MSRA/R-101
FAIR/X-101-32x8d
torchvision/R-50
"""
"""Detectron2's backbones, trained on ImageNet."""

_FROM_SCRATCH = {"MODEL.BACKBONE.FREEZE_AT": 0}
_SCALED_PIXELS = {"MODEL.PIXEL_STD": (57.375, 57.12, 58.395)}
_LVIS = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001, "TEST.DETECTIONS_PER_IMAGE": 300}
_DETECTRON1 = {"INPUT.MIN_SIZE_TRAIN": [800], "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,
               "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0}  # fmt: skip
for _head in ("BOX", "MASK", "KEYPOINT"):
    _DETECTRON1 |= {f"MODEL.ROI_{_head}_HEAD.POOLER_TYPE": "ROIAlign",
                    f"MODEL.ROI_{_head}_HEAD.POOLER_SAMPLING_RATIO": 2}  # fmt: skip
_SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("new_baselines/.*", _FROM_SCRATCH),
    ("Misc/scratch_.*_3x_gn", _FROM_SCRATCH),
    ("Misc/scratch_.*_9x_gn", _FROM_SCRATCH | _SCALED_PIXELS),
    ("Misc/scratch_.*_9x_syncbn", _FROM_SCRATCH | _SCALED_PIXELS | {"MODEL.RESNETS.STRIDE_IN_1X1": False}),
    ("LVIS.*", _LVIS),
    ("Detectron1-Comparisons/keypoint.*",
     _DETECTRON1 | {"INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800]}),
    ("Detectron1-Comparisons/.*", _DETECTRON1),
    ("Cityscapes/.*", {"INPUT.MIN_SIZE_TRAIN": list(range(800, 1025, 32)), "INPUT.MIN_SIZE_TEST": 1024,
                       "INPUT.MAX_SIZE_TEST": 2048}),
    ("PascalVOC.*", {"INPUT.MIN_SIZE_TRAIN": list(range(480, 801, 32))}),
)  # fmt: skip
"""Settings of Detectron2's configuration files that differ from those inferred from tensors, by pattern; the
first that matches counts."""
_TASKS = {"keypoint": ("boxes", "keypoints"), "mask": ("boxes", "masks"), "faster": ("boxes",)}
_DATA_SETS = {"LVIS": "LVIS v0.5", "Cityscapes": "Cityscapes", "Pascal": "VOC"}


def _entries() -> Iterator[Entry]:
    pytorch, zoo = "https://download.pytorch.org/models/", "https://dl.fbaipublicfiles.com/detectron2/"
    for name, file, *numbers in map(str.split, _DETECTORS.strip().splitlines()):
        yield Entry(f"torchvision/{name}", f"{pytorch}{file}.pth", _tasks(name), *map(_number, numbers))
    for name, file, size in map(str.split, _BACKBONES.strip().splitlines()):
        yield Entry(f"torchvision/{name}", f"{pytorch}{file}.pth", (), float(size), trained_on="ImageNet")
    for name, file, *numbers in map(str.split, _MODEL_ZOO.strip().splitlines()):
        yield Entry(
            "detectron2/" + re.sub("^COCO-[A-Za-z]+/", "", name), f"{zoo}{name}/{file}.pkl",
            _tasks(name.rpartition("/")[2]), *map(_number, numbers),
            trained_on=next((data for key, data in _DATA_SETS.items() if name.startswith(key)), "COCO"),
            settings=next((given for key, given in _SETTINGS if re.fullmatch(key, name)), {}),
        )  # fmt: skip
    for name in _MODEL_ZOO_BACKBONES.split():
        path = f"ImageNetPretrained/{name}"
        yield Entry(f"detectron2/{path}", f"{zoo}{path}.pkl", (), None, trained_on="ImageNet")


def _tasks(name: str) -> tuple[str, ...]:
    return next(tasks for kind, tasks in _TASKS.items() if kind in name)


def _number(text: str) -> float | None:
    return None if text == "-" else float(text)


ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _entries()}
"""All published weights that can be imported, by name."""


def nearest(name: str) -> list[str]:
    """Returns the names in the catalogue that are most like another, the nearest first."""
    tails = {entry.rpartition("/")[2].lower(): entry for entry in ENTRIES}
    whole = {entry.lower(): entry for entry in ENTRIES}
    close = [whole[match] for match in get_close_matches(name.lower(), whole, 3, 0.6)]
    close += [tails[match] for match in get_close_matches(name.lower().rpartition("/")[2], tails, 2, 0.8)]
    return list(dict.fromkeys(close))[:3]


def find(words: tuple[str, ...]) -> list[Entry]:
    """Returns the entries whose name, tasks or data set contain all words."""
    def text(entry: Entry) -> str:
        return f"{entry.name} {entry.description} {entry.trained_on}".lower()

    return [entry for entry in ENTRIES.values() if all(word.lower() in text(entry) for word in words)]
