"""Recognises the library and the kind of model that tensors belong to by their names."""

import os.path
import re
from collections.abc import Iterable

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.param_map import Tensors

SOURCES = ("torchvision", "detectron2")
SUPPORTED = (
    "Faster, Mask and Keypoint R-CNN of torchvision, Detectron2 and Detectron on ResNet or ResNeXt, and "
    "these backbones alone"
)
_DETECTRON2 = (
    r"conv1_w|stem\.conv1\.weight|proposal_generator\..*|backbone\.(bottom_up\.)?(stem|res\d)\..*"
    r"|backbone\.fpn_(lateral|output)\d\..*"
)
_TORCHVISION = r"(backbone\.body|backbone\.fpn|rpn\.head)\..*|conv1\.weight|layer[1-4]\.\d+\.conv1\.weight"
_OTHERS = (
    ("a model of mmdetection", r"(roi_head|bbox_head|rpn_head|neck|panoptic_fpn_head)\..*"),
    ("a model of maskrcnn-benchmark", r"(backbone\.body\.stem|roi_heads\.box\.feature_extractor)\..*"),
    ("a Mask R-CNN of Keras", r"mrcnn_.*"),
    ("a YOLO of ultralytics", r"\d+\.(conv|cv\d|m\.\d|bn|dfl|i?ch)\..*"),
    ("a DETR", r".*(class_embed|query_embed|query_position_embeddings|class_labels_classifier)\b.*"),
    ("an SSD", r"(backbone\.extra\.|head\.classification_head\.module_list\.|backbone\.vgg).*"),
    ("a FCOS", r"(head\.regression_head\.bbox_ctrness|proposal_generator\.fcos_head).*"),
    ("a RetinaNet", r"(head\.(classification_head|regression_head|cls_subnet|bbox_subnet|cls_score)\.).*"),
    ("a Cascade R-CNN", r"roi_heads\.box_(head|predictor)\.\d+\.(fc|cls_score).*"),
    ("a PointRend", r"roi_heads\.mask_(point_head|coarse_head|head\.(point|coarse)_head).*"),
    ("a panoptic or semantic segmentation of Detectron2", r"sem_seg_head\..*"),
    ("a detector on MobileNet", r"backbone\.(body\.|features\.)?\d+\.\d\.(\d\.)?.*|backbone\.features\..*"),
    ("a detector on a transformer", r"backbone\.(net|trunk|bottom_up)\.(blocks|layers|patch_embed)\..*"),
    ("a Segment Anything", r"(image_encoder|prompt_encoder)\..*"),
    ("a model of semantic segmentation", r"backbone\.(conv1|layer1)\..*|(aux_)?classifier\.[1-9]\d*\..*"),
    ("a MobileNet, EfficientNet or VGG", r"(conv_stem|features\.\d+)\..*"),
    ("a transformer or ConvNeXt, as of timm or Hugging Face",
     r"(patch_embed|blocks\.\d|stages\.\d|layers\.\d\.blocks|encoder\.layers?|vit|embeddings|cls_token)\b.*"),
    ("a ResNet of Hugging Face", r"(resnet\.)?(embedder|encoder\.stages)\..*"),
    ("the state of an optimizer", r"exp_avg|momentum_buffer"),
)  # fmt: skip
"""Kinds of models that are not supported, and the name of a tensor that only they have."""


def strip_shared_prefix(tensors: Tensors) -> Tensors:
    """Returns tensors without what wraps all names of a supported model, such as "model._orig_mod.".

    Drops the counter "n_averaged" of PyTorch's averaged models, which stands outside of their "module.".
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    shared = os.path.commonprefix(list(tensors)) if len(tensors) > 1 else ""
    shared = shared[: shared.rfind(".") + 1]
    stripped = {name[len(shared) :]: tensor for name, tensor in tensors.items()}
    return stripped if _has(f"{_DETECTRON2}|{_TORCHVISION}", stripped) else tensors


def _has(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def recognize_library(tensors: Tensors, origin: str, source: str | None = None) -> str:
    """Returns the library whose names tensors have: one of ``SOURCES``.

    Args:
        tensors: without a shared prefix.
        origin: name of the file, for messages.
        source: the library that is expected, if any.

    Raises:
        InputError: the model is not supported, or another library's than the expected one.
    """
    if source not in (*SOURCES, None):
        raise InputError(f"the source of weights must be one of {', '.join(SOURCES)}, not {source!r}")
    wrapped = r"((model|module|net|_orig_mod)\.)*"
    if kind := next((kind for kind, pattern in _OTHERS if _has(f"{wrapped}({pattern})", tensors)), None):
        raise InputError(f"{origin} is {kind}, which is not supported; supported are {SUPPORTED}")
    patterns = {"detectron2": _DETECTRON2, "torchvision": _TORCHVISION}
    library = next((name for name, pattern in patterns.items() if _has(pattern, tensors)), None)
    if library is None:
        first = ", ".join(ascii(name[:80])[1:-1] for name in list(tensors)[:3])
        text = f"{origin} is not a supported model: those are {SUPPORTED}; its first tensors are {first}"
        raise InputError(text)
    if source not in (library, None):
        raise InputError(f"{origin} has the names of {library}, not of {source}: leave the library out")
    return library
