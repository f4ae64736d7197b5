"""Records narrow detectors of torchvision: weights, detections, losses and gradients (golden/README.md).

Run by an interpreter that has torch and torchvision, from the repository:

    python tests/golden/record_torchvision.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import detection, resnet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from torchvision_side import Calibration, detect, draw_image, freeze_norms, to_tensor  # noqa: E402

SHRINK = 32  # channels of the published networks over those of the narrow ones
CHANNELS, HIDDEN, CLASSES, KEYPOINTS = 8, 16, 4, 3
SIZES = ((8,), (16,), (32,), (64,), (128,))
IMAGE = (75, 100)  # resized to 96 x 128
PROPOSALS, DETECTIONS = 40, 15
CASES = {"maskrcnn_resnet50_fpn": 1, "maskrcnn_resnet18_fpn_v2": 2, "keypointrcnn_resnet18_fpn": 3}
"""Cases and the seeds of their weights."""


class NarrowResNet(resnet.ResNet):
    """A ResNet with fewer channels throughout."""

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # the first stage
            self.inplanes = 64 // SHRINK
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, planes // SHRINK, blocks, stride, dilate)


def build(name):
    """Builds a narrow detector; those of the first generation have frozen batch norm without epsilon."""
    second_generation = name.endswith("v2")
    norm = nn.BatchNorm2d if second_generation else None
    depth = {"resnet50": (resnet.Bottleneck, [3, 4, 6, 3]), "resnet18": (resnet.BasicBlock, [2, 2, 2, 2])}
    block, blocks = depth[name.split("_")[1]]
    body = NarrowResNet(block, blocks)
    if not second_generation:
        freeze_norms(body, 0.0)
        for part in (body.conv1, body.layer1):
            part.requires_grad_(False)
    widths = [64 * 2**stage * block.expansion // SHRINK for stage in range(4)]
    layers = {f"layer{stage + 1}": str(stage) for stage in range(4)}
    backbone = BackboneWithFPN(body, layers, widths, CHANNELS, norm_layer=norm)
    box_head = TwoMLPHead(CHANNELS * 49, HIDDEN)
    if second_generation:
        box_head = FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 2, [HIDDEN], norm_layer=norm)
    names = ["0", "1", "2", "3"]
    heads = {
        "rpn_anchor_generator": AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5),
        "rpn_head": RPNHead(CHANNELS, 3, conv_depth=2 if second_generation else 1),
        "box_roi_pool": torchvision.ops.MultiScaleRoIAlign(names, 7, 2, canonical_scale=56),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(HIDDEN, CLASSES),
    }
    branch_pool = torchvision.ops.MultiScaleRoIAlign(names, 14, 2, canonical_scale=56)
    limits = {
        "min_size": 96, "max_size": 128, "rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": PROPOSALS,
        "rpn_pre_nms_top_n_train": 60, "rpn_post_nms_top_n_train": PROPOSALS, "box_score_thresh": 0.0,
        "box_detections_per_img": DETECTIONS,
        "rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6,  # nothing is sampled
    }  # fmt: skip
    if name.startswith("mask"):
        return detection.MaskRCNN(
            backbone, **heads, **limits, mask_roi_pool=branch_pool,
            mask_head=MaskRCNNHeads(CHANNELS, [CHANNELS] * 2, 1, norm_layer=norm),
            mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES),
        )  # fmt: skip
    return detection.KeypointRCNN(
        backbone, **heads, **limits, keypoint_roi_pool=branch_pool,
        keypoint_head=KeypointRCNNHeads(CHANNELS, [CHANNELS] * 2),
        keypoint_predictor=KeypointRCNNPredictor(CHANNELS, KEYPOINTS),
    )  # fmt: skip


def draw_targets(rng, name):
    """Draws three objects in the resized image: boxes, labels, and elliptic masks or keypoints."""
    height, width = 96, 128
    centres = np.float32([[36, 30], [84, 50], [60, 74]])
    sides = np.float32(rng.uniform(24, 40, (3, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    targets = {"boxes": boxes, "labels": rng.integers(1, CLASSES, 3)}
    if name.startswith("mask"):
        y, x = np.mgrid[:height, :width] + 0.5
        pairs = zip(centres, sides, strict=True)
        targets["masks"] = np.uint8([np.hypot((x - c[0]) / s[0], (y - c[1]) / s[1]) < 0.5 for c, s in pairs])
    else:
        keypoints = rng.uniform(boxes[:, None, :2], boxes[:, None, 2:], (3, KEYPOINTS, 2))
        visible = np.full((3, KEYPOINTS, 1), 2.0)
        visible[0, 0] = 0
        targets["keypoints"] = np.float32(np.concatenate([keypoints, visible], axis=2))
    return targets


def losses_and_gradients(model, image, targets):
    """Computes losses and gradients in float64, with batch norm at its running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    targets = {name: torch.from_numpy(value) for name, value in targets.items()}
    targets["boxes"] = targets["boxes"].double()  # keypoints must be float32
    losses = model([to_tensor(image, np.float64)], [targets])
    sum(losses.values()).backward()
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters() if value.requires_grad}
    first = np.zeros((len(gradients), 8))
    for row, gradient in zip(first, gradients.values(), strict=True):
        beginning = gradient.ravel()[:8]
        row[: len(beginning)] = beginning
    return {name: float(value.detach()) for name, value in losses.items()} | {
        "grad_names": np.array(list(gradients)),
        "grad_l2": np.array([np.linalg.norm(gradient) for gradient in gradients.values()]),
        "grad_sum": np.array([gradient.sum() for gradient in gradients.values()]),
        "grad_first8": first,
    }


def record(name, seed):
    """Writes narrow/<name>.npz."""
    torch.manual_seed(seed)
    model, rng = build(name).eval(), np.random.default_rng(seed)
    image = draw_image(rng, *IMAGE)
    with torch.no_grad(), Calibration(model, torch.Generator().manual_seed(seed)):
        model([to_tensor(image)])
    model.load_state_dict({
        key: value.half().float() if value.is_floating_point() else value  # so that float16 stores them
        for key, value in model.state_dict().items()
    })  # fmt: skip
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    floats = {key: value for key, value in state.items() if value.dtype == np.float32}
    arrays = {  # in one array, as every member of an .npz file takes some hundred bytes
        "state/shapes": np.array(json.dumps({key: value.shape for key, value in floats.items()})),
        "state/values": np.concatenate([value.ravel() for value in floats.values()]).astype(np.float16),
        "state/counters": np.array(json.dumps({key: int(state[key]) for key in state if key not in floats})),
    }
    arrays |= {f"det/{key}": value for key, value in detect(model, image).items()}
    resized = draw_image(rng, 96, 128)  # of the size that the model works at
    targets = draw_targets(rng, name)
    arrays |= {f"target/{key}": value for key, value in targets.items()} | {"target/image": resized}
    arrays |= {f"train/{key}": value for key, value in losses_and_gradients(model, resized, targets).items()}
    folder = Path(__file__).parent / "narrow"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **{
        key: np.float32(value) if np.asarray(value).dtype == np.float64 else value
        for key, value in arrays.items()
    })  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)  # the same sums every time
    for case, seed in CASES.items():
        record(case, seed)
