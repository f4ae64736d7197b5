"""RoI operations of torchvision over a pyramid, on the same inputs as the other programs."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads sleep while JAX is timed

import jax
import numpy as np

from benchmarks.roi._programs import Group

DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def versions() -> dict[str, Any]:
    """Returns versions; {"torchvision": None} if it is not installed or lacks JAX's kind of device."""
    if find_spec("torchvision") and (device := DEVICES.get(jax.default_backend())):
        import torch
        import torchvision

        if device == "cpu" or torch.cuda.is_available():
            found = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
            return found | {"torch_threads": torch.get_num_threads()}
    return {"torchvision": None}


def program(group: Group) -> Callable[[], list[Any]]:
    """Returns a function that computes the pooled features and, backward, the gradients, channels first."""
    import torch
    import torchvision

    device, kind = DEVICES[jax.default_backend()], group.kind
    strides, bins = group.workload.strides, group.workload.bins
    features, boxes, levels, *cotangents = group.arguments

    def tensor(array):
        return torch.tensor(np.asarray(array, np.float32), device=device, dtype=getattr(torch, group.dtype))

    def pool(features, rois, stride):
        if kind.torchvision == "roi_pool":
            return torchvision.ops.roi_pool(features, rois, bins, 1 / stride)
        return torchvision.ops.roi_align(features, rois, bins, 1 / stride, kind.sampling_ratio, aligned=True)

    def pool_levels():  # into the places of the result, as torchvision.ops.MultiScaleRoIAlign does
        if len(maps) == 1:
            return pool(maps[0], rois, strides[0])
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], bins, bins)
        for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
            index = torch.where(levels == level)[0]
            pooled[index] = pool(features, rois[index], stride)
        return pooled

    def run():
        pooled = pool_levels()
        gradients = torch.autograd.grad(pooled, maps, cotangents) if cotangents else ()
        if device == "cuda":
            torch.cuda.synchronize()
        return [pooled.detach(), *gradients]

    image = np.repeat(np.arange(len(boxes)), boxes.shape[1])
    rois = tensor(np.column_stack([image, np.asarray(boxes).reshape(-1, 4)]))
    levels = torch.tensor(np.asarray(levels).reshape(-1), device=device)
    maps = [tensor(x).permute(0, 3, 1, 2).contiguous().requires_grad_(bool(cotangents)) for x in features]
    cotangents = [tensor(array).flatten(0, 1).permute(0, 3, 1, 2).contiguous() for array in cotangents]
    return run
