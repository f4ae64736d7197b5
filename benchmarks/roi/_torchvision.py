"""torchvision's RoI operations over a pyramid, and NMS, in its own process (benchmarks/_torchvision.py)."""

import time

import numpy as np
import torch
import torchvision

from benchmarks._torchvision import serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
prepared = []


def prepare(
    arrays: str, operation: str, strides: list, bins: int, samples: int, dtype: str, groups: int
) -> None:  # fmt: skip
    """Prepares pooling and, if there is a cotangent, gradients; frees what was prepared before."""
    prepared[:] = [_program(np.load(arrays), operation, strides, bins, samples, dtype, groups)]


def run() -> float:
    """Returns the seconds of the program that was prepared."""
    begin = time.perf_counter()
    results = prepared[0]()  # freed after the time is taken
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    del results
    return seconds


def save(out: str) -> None:
    """Writes the pooled features and the gradients, channels last."""
    results = [result.permute(0, 2, 3, 1).float().cpu().numpy() for result in prepared[0]()]
    np.savez(out, *results)


def nms(arrays: str, threshold: float) -> tuple:
    """Returns the seconds of NMS, image by image, and the number of boxes kept."""
    with np.load(arrays) as file:
        arrays = [torch.tensor(file[name], device=DEVICE) for name in ("boxes", "scores", "groups")]
    begin = time.perf_counter()
    kept = [torchvision.ops.batched_nms(*image, threshold) for image in zip(*arrays, strict=True)]
    number = sum(map(len, kept))  # known to the host, which waits for it
    return time.perf_counter() - begin, number


def _program(arrays, operation, strides, bins, samples, dtype, groups):
    """Returns a function that computes the pooled features and, backward, the gradients, channels first."""

    def tensor(array):
        return torch.tensor(array, device=DEVICE, dtype=getattr(torch, dtype))

    def pool(features, rois, stride):
        if operation == "roi_pool":
            return torchvision.ops.roi_pool(features, rois, bins, 1 / stride)
        if operation == "ps_roi_pool":
            return torchvision.ops.ps_roi_pool(features, rois, bins, 1 / stride)
        if operation == "ps_roi_align":
            return torchvision.ops.ps_roi_align(features, rois, bins, 1 / stride, samples)
        return torchvision.ops.roi_align(features, rois, bins, 1 / stride, samples, aligned=True)

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
        gradients = torch.autograd.grad(pooled, maps, cotangent) if backward else ()
        return [pooled.detach(), *gradients]

    boxes, backward = arrays["boxes"], "cotangent" in arrays
    image = np.repeat(np.arange(len(boxes)), boxes.shape[1])
    rois = tensor(np.column_stack([image, boxes.reshape(-1, 4)]))
    levels = torch.tensor(arrays["levels"].reshape(-1), device=DEVICE)
    maps = [tensor(arrays[f"map{level}"]).permute(0, 3, 1, 2) for level in range(len(strides))]
    # groups come before the channels of each here, after them in torchvision
    maps = [features.unflatten(1, (groups**2, -1)).transpose(1, 2).flatten(1, 2).contiguous()
            for features in maps]  # fmt: skip
    for features in maps:
        features.requires_grad_(backward)
    if backward:
        cotangent = tensor(arrays["cotangent"]).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    return run


if __name__ == "__main__":
    serve(prepare, run, save, nms)
