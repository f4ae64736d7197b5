"""RoI operations of torchvision over a pyramid, timed call by call in an interpreter that has torchvision.

Reads commands from standard input, one JSON object a line, ``{"do": function name, ...arguments}``, and
answers each with an object; one with "error" where torchvision cannot do what was requested.
"""

import json
import sys
import time

import numpy as np
import torch
import torchvision

STATE = {}  # set by "load" and "prepare", used by "run"


def versions(device):
    """Selects the device, "cpu" or "cuda", and returns versions."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this torch finds no CUDA device")
    STATE["device"] = device
    return {
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "torch_threads": torch.get_num_threads(),
    }  # fmt: skip


def load(file, dtype):
    """Loads features, RoIs and a cotangent, channels first."""
    with np.load(file) as arrays:
        maps = [arrays[name] for name in sorted(arrays) if name.startswith("features")]
        boxes, levels, cotangent = arrays["boxes"], arrays["levels"].reshape(-1), arrays["cotangent"]
    image = np.repeat(np.arange(len(boxes)), boxes.shape[1]).astype(np.float32)
    boxes = np.concatenate([image[:, None], boxes.reshape(-1, 4)], axis=1)
    cotangent = cotangent.reshape(-1, *cotangent.shape[2:])

    def tensor(array):
        return torch.from_numpy(array).to(STATE["device"], getattr(torch, dtype)).contiguous()

    STATE["maps"] = [tensor(features.transpose(0, 3, 1, 2)) for features in maps]
    STATE["boxes"] = tensor(boxes)  # must be of the features' dtype
    STATE["levels"] = torch.from_numpy(levels).to(STATE["device"])
    STATE["cotangent"] = tensor(cotangent.transpose(0, 3, 1, 2))
    return {}


def prepare(operation, samples, bins, strides, backward):
    """Selects ``roi_align`` or ``roi_pool``, with the gradient of the features or without."""

    def pool(features, boxes, stride):
        if operation == "roi_pool":
            return torchvision.ops.roi_pool(features, boxes, bins, 1 / stride)
        return torchvision.ops.roi_align(features, boxes, bins, 1 / stride, samples, aligned=True)

    STATE.update(pool=pool, strides=strides, backward=backward)
    for features in STATE["maps"]:
        features.requires_grad_(backward)
    return {}


def run():
    """Times one call; on CUDA also measures peak bytes besides arguments and results."""
    maps, cuda = STATE["maps"], STATE["device"] == "cuda"
    STATE["pooled"] = None
    for features in maps:
        features.grad = None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(STATE["backward"]):
        pooled = pool_levels()
    if STATE["backward"]:
        pooled.backward(STATE["cotangent"])
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    STATE["pooled"] = pooled.detach()
    if not cuda:
        return {"seconds": seconds}
    results = [pooled, *(features.grad for features in maps if features.grad is not None)]
    size = sum(array.numel() * array.element_size() for array in results)
    return {"seconds": seconds, "temp_bytes": max(0, torch.cuda.max_memory_allocated() - before - size)}


def result(out):
    """Writes the pooled features and gradients of the last run, channels last."""
    arrays = {"pooled": STATE["pooled"]}
    if STATE["backward"]:
        arrays |= {f"gradient{level}": features.grad for level, features in enumerate(STATE["maps"])}
    np.savez(out, **{name: array.float().permute(0, 2, 3, 1).cpu().numpy() for name, array in arrays.items()})
    return {}


def pool_levels():
    """Pools level by level into the places of the result, as torchvision.ops.MultiScaleRoIAlign does."""
    maps, boxes, pool = STATE["maps"], STATE["boxes"], STATE["pool"]
    if len(maps) == 1:
        return pool(maps[0], boxes, STATE["strides"][0])
    pooled = torch.zeros_like(STATE["cotangent"])
    for level, (features, stride) in enumerate(zip(maps, STATE["strides"], strict=True)):
        index = torch.where(STATE["levels"] == level)[0]
        pooled[index] = pool(features, boxes[index], stride)
    return pooled


COMMANDS = {function.__name__: function for function in (versions, load, prepare, run, result)}

if __name__ == "__main__":
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = COMMANDS[arguments.pop("do")](**arguments)
        except RuntimeError as error:  # including NotImplementedError and OutOfMemoryError
            answer = {"error": str(error).strip().splitlines()[0]}
        print(json.dumps(answer), flush=True)
