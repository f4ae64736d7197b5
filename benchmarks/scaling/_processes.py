"""Training processes on virtual CPU devices: a small model, their environment, the phases of a run."""

import os
import shlex
import socket
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PHASES = ("start-up", "compiling", "steps", "checkpoint", "evaluation")
TINY_MODEL = shlex.split("""
    --data.short-edge 64 --data.short-edge-test 64 --data.long-edge 96
    --data.max-objects 4 --data.mask-size 28
    --model.backbone.width 8 --model.backbone.features c5 --model.roi.levels 5 5
    --model.rpn.anchor-sizes 8 16 32 64 128 --model.rpn.samples-per-image 32
    --model.rpn.pre-nms-train 16 --model.rpn.post-nms-train 24
    --model.rpn.pre-nms-test 16 --model.rpn.post-nms-test 16
    --model.roi.samples-per-image 12 --model.roi.positive-fraction 0.5
    --model.box.channels 32 --model.box.max-candidates 24 --model.box.max-detections 6
    --model.mask.pool.size 7 --model.mask.layers 1 --model.mask.channels 16
    --train.log-every 1 --train.warmup-steps 5 --train.keep-checkpoints 4
    --evaluation.images-per-device 2 --evaluation.pictures 2
""")
"""Options of `mrcnn train demo` with which a step takes a fraction of a second; every step is logged."""


def device_environment(devices: int) -> dict[str, str]:
    """Returns the environment of a process with virtual CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    return environment | {"COLUMNS": "1000"}  # no message is wrapped


def free_port() -> int:
    """Returns a port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
