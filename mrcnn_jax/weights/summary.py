"""Summarises imported and exported weights in a few lines of text."""

import json
from pathlib import Path

from mrcnn_jax.config import DataConfig, Experiment, ModelConfig, RoIPooling
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.weights.identify import SourceModel


def summarize_model(source: SourceModel, model: ModelConfig) -> str:
    """Returns a line with the name, size and tasks of an identified model that is imported as ``model``."""
    parameters = sum(tensor.size for tensor in source.tensors.values()) / 1e6
    size = f"{len(source.tensors)} tensors, {parameters:.1f} M parameters"
    classes = "1 class" if model.num_classes == 1 else f"{model.num_classes} classes"
    task = "a backbone alone" if source.is_backbone else f"{classes}; {', '.join(model.tasks)}"
    return f"{source.origin} is {source.experiment.name}: {size}; {task}."


def describe_conventions(model: ModelConfig, data: DataConfig) -> list[str]:
    """Returns lines on how images, anchors, RoIs and results are computed; of a backbone alone on pixels."""
    backbone, rpn, box, conventions = model.backbone, model.rpn, model.box, model.conventions
    stride = "1x1" if backbone.stride_in_1x1 else "3x3"
    block = "" if backbone.name in BASIC else f"; stride in the {stride} convolution"
    lines = [
        f"pixels: {model.channel_order}, mean {_join(model.pixel_mean)}, std {_join(model.pixel_std)}",
        f"backbone: {backbone.norm} norm with epsilon {backbone.norm_epsilon:g}{block}",
    ]
    if not model.tasks:
        return lines
    padding = f"to multiples of {data.padding_divisor}" if data.padding_divisor else "to one of two sizes"
    rounding = {"none": "not rounded", "corners": "rounded to whole pixels", "sides": "with rounded sides"}
    branches = {"boxes": "box", "masks": "mask", "keypoints": "keypoint"}
    pools = [f"{task} {_describe_pool(model.pool_of(branches[task]))}" for task in model.tasks]
    lines += [
        f"images: shorter edge {data.short_edge_test}, longer at most {data.long_edge}; {conventions.resize} "
        f"resizing, sizes rounded {conventions.size_rounding}, padded {padding}",
        f"anchors: {_join(rpn.anchor_sizes)} pixels, height / width {_join(rpn.aspect_ratios)}, "
        f"{rounding[conventions.anchor_rounding]}; {conventions.anchor_offset:g} cells from the corners of "
        f"their cells, strides of the {conventions.anchor_strides}",
        f"RoIs: {'; '.join(pools)}",
        f"boxes: delta weights {_join(box.delta_weights)}; scores above {box.score_threshold:g}, "
        f"NMS at {box.nms_iou:g}, at most {box.max_detections}",
    ]
    if "masks" in model.tasks:
        area = "whole pixels" if conventions.mask_paste == "integer" else "the exact box"
        lines.append(f"masks: pasted into {area}")
    if "keypoints" in model.tasks:
        lines.append(f"keypoints: {model.keypoint.num_keypoints}, scored by {conventions.keypoint_score}")
    return lines


def describe_assumptions(source: SourceModel, experiment: Experiment) -> str | None:
    """Returns a sentence on what the file does not specify, except for fields that ``experiment`` changes."""
    if source.is_backbone:
        return None

    def values(experiment: Experiment) -> dict[str, str]:
        rpn, data, epsilon = experiment.model.rpn, experiment.data, experiment.model.backbone.norm_epsilon
        return {
            "--model.rpn.anchor-sizes": f"anchors of {_join(rpn.anchor_sizes)} pixels",
            "--model.rpn.aspect-ratios": f"aspect ratios (height / width) {_join(rpn.aspect_ratios)}",
            "--model.backbone.norm-epsilon": f"norm with epsilon {epsilon:g}",
            "--data.short-edge-test": f"images of {data.short_edge_test} pixels",
        }

    given, known = values(experiment), tuple(f"--{part}." for part in source.known)
    assumed = {
        option: text for option, text in values(source.experiment).items()
        if given[option] == text and not option.startswith(known)
    }  # fmt: skip
    if not assumed:
        return None
    return (
        f"assumed, as the file does not specify: {', '.join(assumed.values())}; if it was trained with "
        f"others, give {', '.join(assumed)}"
    )


def _join(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _describe_pool(pool: RoIPooling) -> str:
    name = f"{pool.size}x{pool.size} {pool.operation}"
    if pool.operation == "pool":
        return name
    half_pixel = ", half-pixel centres" if pool.operation == "align" and pool.half_pixel else ""
    return f"{name}, {pool.sampling_ratio or 'adaptive'} samples per bin and axis{half_pixel}"


def torchvision_loading_code(model: ModelConfig, file: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns two lines of Python that load an exported file in torchvision, and the fields that they set."""
    has_masks, has_keypoints, backbone = "masks" in model.tasks, "keypoints" in model.tasks, model.backbone
    name = json.dumps(str(file), ensure_ascii=False)  # whatever quotes are in it
    read = {
        ".npz": f"{{name: torch.from_numpy(array) for name, array in numpy.load({name}).items()}}",
        ".safetensors": f"safetensors.torch.load_file({name})",
    }.get(file.suffix.lower(), f"torch.load({name}, weights_only=True)")
    kind = "KeypointRCNN" if has_keypoints else "MaskRCNN" if has_masks else "FasterRCNN"
    heads = f"num_classes={model.num_classes + 1}"
    heads += f", num_keypoints={model.keypoint.num_keypoints}" if has_keypoints else ""
    if backbone.pyramid_norm == "batch":
        make = f"{kind.lower()}_{backbone.name}_fpn_v2(weights=None, weights_backbone=None, {heads})"
        fields = ()
    else:
        norm = f"lambda channels: torchvision.ops.FrozenBatchNorm2d(channels, eps={backbone.norm_epsilon:g})"
        arguments = f'backbone_name="{backbone.name}", weights=None, norm_layer={norm}'
        features = f"torchvision.models.detection.backbone_utils.resnet_fpn_backbone({arguments})"
        make, fields = f"{kind}({features}, {heads})", ("model.backbone.norm_epsilon",)
    return [f"model = torchvision.models.detection.{make}", f"model.load_state_dict({read})"], fields
