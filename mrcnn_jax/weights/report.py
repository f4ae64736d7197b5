"""What there is to say, in plain lines, of weights that were imported or exported."""

from pathlib import Path

from mrcnn_jax.config import DataConfig, ModelConfig, RoIPooling
from mrcnn_jax.weights.import_export import Recognised


def describe(found: Recognised, model: ModelConfig) -> str:
    """What a file's tensors were recognised as, how many there are, and what the model that they are taken for predicts."""
    size = f"{len(found.tensors)} tensors, {sum(tensor.size for tensor in found.tensors.values()) / 1e6:.1f} M parameters"
    classes = "1 class" if model.num_classes == 1 else f"{model.num_classes} classes"
    task = "a backbone alone" if found.backbone_alone else f"{classes}; {', '.join(model.tasks)}"
    return f"{found.origin} is {found.experiment.name}: {size}; {task}."


def conventions(model: ModelConfig, data: DataConfig) -> list[str]:
    """How the model takes images and makes detections, wherever libraries differ; of a backbone alone what concerns it."""
    backbone, rpn, box = model.backbone, model.rpn, model.box
    stride = "" if backbone.name in ("resnet18", "resnet34") else f"; stride in the {'1x1' if backbone.stride_in_1x1 else '3x3'} convolution"
    shared = [
        f"pixels: {model.channel_order}, mean {_numbers(model.pixel_mean)}, std {_numbers(model.pixel_std)}",
        f"backbone: {backbone.norm} norm with epsilon {backbone.norm_epsilon:g}{stride}",
    ]
    if not model.tasks:
        return shared
    edges = f"shorter edge {data.short_edge_test}, longer at most {data.long_edge}"
    padding = f"to multiples of {data.padding_divisor}" if data.padding_divisor else "to two fixed sizes"
    rounding = {"none": "not rounded", "corners": "rounded to whole pixels", "sides": "their sides rounded"}[model.conventions.anchor_rounding]
    anchors = f"{_numbers(rpn.anchor_sizes)} pixels, height / width {_numbers(rpn.aspect_ratios)}, {rounding}"
    centres = f"centred {model.conventions.anchor_offset:g} cells from the corners of their cells, strides of the {model.conventions.anchor_strides}"
    pools = {"boxes": model.pool_of("box"), "masks": model.pool_of("mask"), "keypoints": model.pool_of("keypoint")}
    return [
        *shared,
        f"images: {edges}; {model.conventions.resize} resizing, sizes rounded {model.conventions.size_rounding}, padded {padding}",
        f"anchors: {anchors}; {centres}",
        f"RoIs: {'; '.join(f'{task} {_pool(pools[task])}' for task in model.tasks)}",
        f"boxes: delta weights {_numbers(box.delta_weights)}; scores above {box.score_threshold:g}, NMS at {box.nms_iou:g}, at most {box.max_detections}",
        *([f"masks: pasted over {'whole pixels' if model.conventions.mask_paste == 'integer' else 'the exact box'}"] if "masks" in model.tasks else []),
        *([f"keypoints: {model.keypoint.num_keypoints}, scored by {model.conventions.keypoint_score}"] if "keypoints" in model.tasks else []),
    ]


def _numbers(values):
    return " ".join(f"{value:g}" for value in values)


def _pool(pool: RoIPooling):
    samples = "" if pool.operation == "pool" else f", {pool.sampling_ratio or 'adaptive'} samples a bin and axis"
    half = ", half-pixel centres" if pool.operation == "align" and pool.half_pixel else ""
    return f"{pool.size}x{pool.size} {pool.operation}{samples}{half}"


def loading_in_torchvision(model: ModelConfig, file: Path) -> tuple[list[str], tuple[str, ...]]:
    """The two lines of Python that load an exported file in torchvision; and the fields of the model that they see to."""
    read = {
        ".npz": f'{{name: torch.from_numpy(array) for name, array in numpy.load("{file}").items()}}',
        ".safetensors": f'safetensors.torch.load_file("{file}")',
    }.get(file.suffix.lower(), f'torch.load("{file}", weights_only=True)')
    kind = "KeypointRCNN" if "keypoints" in model.tasks else "MaskRCNN" if "masks" in model.tasks else "FasterRCNN"
    heads = f"num_classes={model.num_classes + 1}" + (f", num_keypoints={model.keypoint.num_keypoints}" if "keypoints" in model.tasks else "")
    backbone = model.backbone
    if backbone.pyramid_norm == "batch":
        make, settled = f"{kind.lower()}_{backbone.name}_fpn_v2(weights=None, weights_backbone=None, {heads})", ()
    else:
        norm = f"lambda channels: torchvision.ops.FrozenBatchNorm2d(channels, eps={backbone.norm_epsilon:g})"
        features = f'backbone_utils.resnet_fpn_backbone(backbone_name="{backbone.name}", weights=None, norm_layer={norm})'
        make, settled = f"{kind}(torchvision.models.detection.{features}, {heads})", ("model.backbone.norm_epsilon",)
    return [f"model = torchvision.models.detection.{make}", f"model.load_state_dict({read})"], settled
