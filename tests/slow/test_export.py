"""The ONNX graph of networks that the fast tests leave out computes what the model does."""

from dataclasses import replace

import pytest
from onnx_graphs import compare_graph
from variants import BASE, C4_BOTTLENECKS, RESNEXT, VARIANTS

from mrcnn_jax.config import DETECTRON, TORCHVISION, Conventions, ModelConfig


def dc5() -> ModelConfig:
    """A dilated res5, and what the original Detectron does otherwise."""
    model = replace(VARIANTS["dc5, RoIWarp average"], pool=BASE.pool, conventions=DETECTRON)
    box = replace(model.box, class_agnostic_nms=True, delta_weights=(1.0, 1.0, 1.0, 1.0))
    return replace(model, box=box, tasks=("boxes", "keypoints"), channel_order="bgr")


def resnext() -> ModelConfig:
    """Groups, batch norm, convolutions in the box head, adaptive samples, and what torchvision does."""
    box = replace(RESNEXT.box, convolutions=1, convolution_channels=16, fully_connected=1, norm="batch")
    mask = replace(RESNEXT.mask, class_agnostic=True)
    pool = replace(RESNEXT.pool, sampling_ratio=0)
    return replace(RESNEXT, box=box, mask=mask, pool=pool, conventions=TORCHVISION)


def c4() -> ModelConfig:
    """Norm without statistics of few pixels, which the library's fast variance rounds away."""
    backbone = replace(C4_BOTTLENECKS.backbone, norm="batch")
    mask = replace(C4_BOTTLENECKS.mask, loss="softmax")
    conventions = Conventions(level_epsilon=0.0)
    return replace(C4_BOTTLENECKS, backbone=backbone, mask=mask, conventions=conventions)


@pytest.mark.parametrize("config", [c4(), dc5(), resnext()], ids=["c4", "dc5", "resnext"])
def test_the_graph_computes_what_the_model_does(config, tmp_path):
    compare_graph(config, tmp_path)
