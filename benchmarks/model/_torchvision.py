"""torchvision's Mask R-CNN, in its own process (benchmarks/_torchvision.py): weights, programs and times."""

import copy
import time
from collections import Counter
from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from benchmarks._torchvision import serve

CLASSES = 91
CANDIDATES = 1000
"""Pairs of box and class above the score threshold, in the image that has the fewest."""
NEAR = 7
"""Proposals near each object in training."""
STAGES = (
    ("resize and pad", "transform", "forward"), ("pyramid", "backbone", "forward"),
    ("RPN head", "rpn.head", "forward"), ("proposals", "rpn", "forward"),
    ("RoI pooling, boxes", "roi_heads.box_roi_pool", "forward"),
    ("box head", "roi_heads.box_head", "forward"), ("box head", "roi_heads.box_predictor", "forward"),
    ("detection", "roi_heads", "postprocess_detections"),
    ("RoI pooling, masks", "roi_heads.mask_roi_pool", "forward"),
    ("mask head", "roi_heads.mask_head", "forward"), ("mask head", "roi_heads.mask_predictor", "forward"),
    ("pasting", "transform", "postprocess"),
)  # fmt: skip
"""Stages of inference, and the methods whose time they are."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
models, programs = {}, {}


def make_model(backbone: str, size: list, arrays: str, out: str) -> float:
    """Makes a randomly initialised model and saves its state dict; returns the score threshold.

    The backbone's batch norm is frozen with its statistics of the images, which keeps activations in the
    range of a trained model's. The threshold lets through as many candidates as such a model finds.
    """
    models.clear()
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d)
    edges = {"min_size": min(size), "max_size": max(size)}
    model = MaskRCNN(body, num_classes=CLASSES, box_score_thresh=0.0, **edges).train()
    images = [_tensor(image) for image in np.load(arrays)["images"]]
    norms = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for _, norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        body(model.transform(images)[0].tensors)
        for name, norm in norms:
            frozen = FrozenBatchNorm2d(norm.num_features, eps=0.0)
            frozen.load_state_dict(norm.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, frozen)
        for name in ("conv1", "layer1"):
            body.body.get_submodule(name).requires_grad_(False)
        logits = []
        model.eval().roi_heads.box_predictor.register_forward_hook(lambda *given: logits.append(given[2][0]))
        for image in images:
            with mock.patch.object(model.roi_heads, "postprocess_detections", _no_detections):
                model([image])
    model.roi_heads.box_predictor._forward_hooks.clear()
    best = [each.softmax(dim=1)[:, 1:].flatten().topk(CANDIDATES).values[-1] for each in logits]
    model.roi_heads.score_thresh = float(min(best))
    torch.save(model.state_dict(), out)
    models["eager"] = model.to(DEVICE)
    return model.roi_heads.score_thresh


def _no_detections(*_):
    return [torch.zeros(0, 4)], [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]


def _tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1).to(torch.float32) / 255


def _model(variant):
    """Returns the model in a variant: "eager", or of the words "channels-last", "compiled" and "autocast"."""
    kind = variant.replace("autocast", "").strip() or "eager"
    if kind not in models:
        model = copy.deepcopy(models["eager"])
        if "channels-last" in kind:
            model = model.to(memory_format=torch.channels_last)
        if "compiled" in kind:  # the backbone, as shapes behind it depend on the image
            model.backbone = torch.compile(model.backbone)
        models[kind] = model
    return models[kind]


def prepare(work: str, variant: str, arrays: str) -> dict:
    """Prepares a program and runs it once; returns its numbers of objects and its memory."""
    with np.load(arrays) as file:
        arrays = dict(file)
    program = (_Inference if work == "inference" else _Training)(_model(variant), variant, arrays)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    program()
    programs[work, variant] = program
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
    return {"objects": program.objects, "peak_bytes": peak}


def run(work: str, variant: str) -> float:
    """Returns the seconds of a run."""
    begin = time.perf_counter()
    programs[work, variant]()
    return time.perf_counter() - begin


def stages(work: str, variant: str) -> dict:
    """Returns the seconds of the stages of a run."""
    return programs[work, variant].stages()


def release() -> None:
    """Frees the programs."""
    programs.clear()
    torch.cuda.empty_cache()


class _Program:
    def __init__(self, model, variant, arrays):
        self.model, self.images = model, arrays["images"]
        self.autocast = torch.autocast(DEVICE, torch.bfloat16, enabled="autocast" in variant)

    def synchronize(self):
        if DEVICE == "cuda":
            torch.cuda.synchronize()


class _Inference(_Program):
    """From images on the host to detections with masks; on a GPU these stay on it."""

    def __call__(self):
        self.model.eval()
        with torch.no_grad(), self.autocast:
            images = [torch.from_numpy(image).to(DEVICE).permute(2, 0, 1) / 255 for image in self.images]
            found = self.model(images)
        self.synchronize()
        self.objects = [len(each["boxes"]) for each in found]

    def stages(self):
        seconds = Counter()

        def timed(name, method):
            def call(*arguments):
                self.synchronize()
                begin = time.perf_counter()
                result = method(*arguments)
                self.synchronize()
                seconds[name] += time.perf_counter() - begin
                return result

            return call

        with ExitStack() as patches:
            for name, module, method in STAGES:
                module = self.model.get_submodule(module)
                patches.enter_context(
                    mock.patch.object(module, method, timed(name, getattr(module, method)))
                )
            self()
        seconds["proposals"] -= seconds["RPN head"]
        return dict(seconds)


class _Training(_Program):
    """A step of SGD on images and objects on the device.

    As by a trained RPN, ``NEAR`` boxes near each object are proposed: they are positive, as the object is.
    """

    def __init__(self, model, variant, arrays):
        super().__init__(model, variant, arrays)
        self.tensors = [_tensor(image).to(DEVICE) for image in self.images]
        height, width = self.images.shape[1:3]
        self.targets, self.near = [], []
        for boxes in arrays["boxes"]:
            masks = np.zeros((len(boxes), height, width), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int), strict=True):
                mask[y1:y2, x1:x2] = 1
            labels = torch.arange(1, len(boxes) + 1)
            target = {"boxes": torch.from_numpy(boxes), "labels": labels, "masks": torch.from_numpy(masks)}
            self.targets.append({name: value.to(DEVICE) for name, value in target.items()})
            shift = 0.05 * torch.rand(NEAR, len(boxes), 2) * (target["boxes"][:, 2:] - target["boxes"][:, :2])
            self.near.append((target["boxes"] + torch.cat([shift, shift], dim=2)).reshape(-1, 4).to(DEVICE))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def __call__(self):
        self.stages()

    def stages(self):
        self.model.train()
        counts, propose = [], self.model.rpn.forward

        def trained_rpn(*given):
            proposals, losses = propose(*given)
            pairs = zip(self.near, proposals, strict=True)
            return [torch.cat([near, boxes[len(near) :]]) for near, boxes in pairs], losses

        mask_head = self.model.roi_heads.mask_head
        hook = mask_head.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
        times = [time.perf_counter()]
        with self.autocast, mock.patch.object(self.model.rpn, "forward", trained_rpn):
            loss = sum(self.model(self.tensors, self.targets).values())
        self._lap(times)
        loss.backward()
        self._lap(times)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._lap(times)
        hook.remove()
        self.objects = counts
        return dict(zip(("forward", "backward", "update"), np.diff(times).tolist(), strict=True))

    def _lap(self, times):
        self.synchronize()
        times.append(time.perf_counter())


if __name__ == "__main__":
    serve(make_model, prepare, run, stages, release)
