"""A tiny detector of torchvision, and the command line called with it."""

import tiny
from cli_inputs import call_cli

CLASSES = ("ant", "bee", "cow", "dog", "eel")
BACKBONE = {"norm": "frozen", "norm_epsilon": 0.0, "freeze_stages": 2, "stride_in_1x1": False}
MODEL = tiny.model_config(len(CLASSES), **BACKBONE)
FIELDS = (
    "--model.backbone.pyramid-channels", 16, "--model.rpn.anchor-sizes", 8, 16, 32, 64, 128,
    "--model.rpn.pre-nms-test", 16, "--model.rpn.post-nms-test", 16,
    "--model.rpn.pre-nms-train", 16, "--model.rpn.post-nms-train", 24,
    "--model.rpn.samples-per-image", 32, "--model.roi.samples-per-image", 12,
    "--model.box.channels", 32, "--model.box.max-candidates", 80, "--model.box.max-detections", 40,
    "--model.box.score-threshold", 0, "--model.mask.channels", 16,
    "--data.short-edge", 64, "--data.short-edge-test", 64, "--data.long-edge", 96,
    "--data.max-objects", tiny.SLOTS, "--data.mask-size", tiny.MASK, "--data.threads", 2,
)  # fmt: skip
"""Channels of this model, which its file does not tell, and a small number of everything."""


def mrcnn(*arguments, columns: int = 200) -> tuple[int, str]:
    """Calls the command line; returns its exit status and all that it prints, on one line."""
    status, printed = call_cli(*arguments, columns=columns)
    return status, " ".join(printed.replace("│", " ").split())
