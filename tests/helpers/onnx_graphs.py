"""Comparison of the ONNX graph of a small model with the model."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import tiny

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.data.transforms import image_type
from mrcnn_jax.inference.export import onnx
from mrcnn_jax.models.systems import make_model


def compare_graph(config: ModelConfig, folder: Path) -> None:
    """Asserts that graph and model predict the same for noise with padding, in all detection slots."""
    config = replace(config, box=replace(config.box, score_threshold=0.0))
    variables = tiny.variables(config)
    onnx.write(folder, config, variables)
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3), dtype=np.uint8)
    images, sizes = images.astype(image_type(config.conventions)), np.int32([[90, 61]])
    found = onnx.read(folder / onnx.FILE, config.box.max_detections)(images, sizes)
    expected = jax.device_get(jax.jit(make_model(config).apply)(variables, images, sizes))
    assert found["valid"].all() and expected.valid.all()
    np.testing.assert_array_equal(found["classes"], expected.classes)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-3, rtol=0)
    for name in {"scores", "masks", "keypoints"} & found.keys():
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-3, rtol=0, err_msg=name)
