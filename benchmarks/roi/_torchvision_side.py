"""torchvision's side of torchvision_process.py, run by an interpreter that has torchvision: its RoI operations over a pyramid, timed call by call.

Reads commands from standard input, a JSON object a line, ``{"do": name of a function below, ...its arguments}``, and answers each with a line, an
object too; one with "error" where torchvision cannot do what was asked.
"""

import json
import sys
import time

import numpy as np
import torch
import torchvision

STATE = {}  # what "load" and "prepare" leave for "run"


def versions(device):
    """Settles the device, "cpu" or "cuda", and says what runs there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this torch finds no CUDA device")
    STATE["device"] = device
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "torch_threads": torch.get_num_threads()}


def load(file, dtype):
    """Features, RoIs and a cotangent from the arrays of ``torchvision_process._send``, channels first as torchvision wants them."""
    device, dtype = STATE["device"], getattr(torch, dtype)
    with np.load(file) as arrays:
        maps = [arrays[f"features{level}"] for level in range(sum(name.startswith("features") for name in arrays))]
        boxes, levels, cotangent = arrays["boxes"], arrays["levels"].reshape(-1), arrays["cotangent"]
    image = np.repeat(np.arange(len(boxes)), boxes.shape[1]).astype(np.float32)
    boxes = np.concatenate([image[:, None], boxes.reshape(-1, 4)], axis=1)
    STATE["maps"] = [torch.from_numpy(features.transpose(0, 3, 1, 2)).to(device, dtype).contiguous() for features in maps]
    STATE["boxes"] = torch.from_numpy(boxes).to(device, dtype)  # torchvision wants them in the features' numbers
    STATE["levels"] = torch.from_numpy(levels).to(device)
    STATE["cotangent"] = torch.from_numpy(cotangent.reshape(-1, *cotangent.shape[2:]).transpose(0, 3, 1, 2)).to(device, dtype).contiguous()
    return {}


def prepare(operation, samples, bins, strides, backward):
    """Settles what "run" does: ``roi_align`` or ``roi_pool``, with the features' gradient or without."""

    def read(features, boxes, stride):
        if operation == "roi_pool":
            return torchvision.ops.roi_pool(features, boxes, bins, 1 / stride)
        return torchvision.ops.roi_align(features, boxes, bins, 1 / stride, samples, aligned=True)

    STATE.update(read=read, strides=strides, backward=backward)
    for features in STATE["maps"]:
        features.requires_grad_(backward)
    return {}


def run():
    """One call and its seconds; peak bytes besides arguments and results where the device counts them."""
    maps, cuda = STATE["maps"], STATE["device"] == "cuda"
    STATE["pooled"] = None
    for features in maps:
        features.grad = None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    synchronise()
    start = time.perf_counter()
    with torch.set_grad_enabled(STATE["backward"]):
        pooled = pool()
    if STATE["backward"]:
        pooled.backward(STATE["cotangent"])
    synchronise()
    seconds = time.perf_counter() - start
    STATE["pooled"] = pooled.detach()
    if not cuda:
        return {"seconds": seconds}
    results = sum(array.numel() * array.element_size() for array in [pooled, *(features.grad for features in maps if features.grad is not None)])
    return {"seconds": seconds, "temp_bytes": max(0, torch.cuda.max_memory_allocated() - before - results)}


def result(out):
    """What the last run made, pooled and gradients, as a file of arrays, channels last."""
    arrays = {"pooled": STATE["pooled"].float().permute(0, 2, 3, 1)}
    arrays |= {f"gradient{level}": features.grad.float().permute(0, 2, 3, 1) for level, features in enumerate(STATE["maps"]) if STATE["backward"]}
    np.savez(out, **{name: array.cpu().numpy() for name, array in arrays.items()})
    return {}


def pool():
    """RoIs from the levels, as torchvision.ops.MultiScaleRoIAlign goes about it: level by level, each into its places of the result."""
    maps, boxes, read = STATE["maps"], STATE["boxes"], STATE["read"]
    if len(maps) == 1:
        return read(maps[0], boxes, STATE["strides"][0])
    pooled = torch.zeros_like(STATE["cotangent"])
    for level, (features, stride) in enumerate(zip(maps, STATE["strides"], strict=True)):
        index = torch.where(STATE["levels"] == level)[0]
        pooled[index] = read(features, boxes[index], stride)
    return pooled


def synchronise():
    if STATE["device"] == "cuda":
        torch.cuda.synchronize()


COMMANDS = {function.__name__: function for function in (versions, load, prepare, run, result)}

if __name__ == "__main__":
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = COMMANDS[arguments.pop("do")](**arguments)
        except RuntimeError as error:  # NotImplementedError and OutOfMemoryError too
            answer = {"error": str(error).strip().splitlines()[0]}
        print(json.dumps(answer), flush=True)
