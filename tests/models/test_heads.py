"""Heads and variants of the backbone, each against its definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax.config import BackboneConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.models.heads import BoxHead, KeypointHead, MaskHead
from mrcnn_jax.models.layers.non_local import NonLocalBlock
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.resnet import Res5, ResNet


def drawn(module: nn.Module, *inputs, seed: int = 0):
    """Variables of noise."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def shapes(module: nn.Module, *inputs):
    """Shapes of output and variables; nothing is computed."""
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *inputs))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# ---- heads ----


def test_keypoint_head_is_a_transposed_convolution_and_a_bilinear_enlargement():
    head, rois = KeypointHead(KeypointHeadConfig(num_keypoints=3, layers=0)), noise(2, 5, 4, 6)
    variables = drawn(head, rois)
    kernel, bias = variables["params"]["logits_kernel"], variables["params"]["logits_bias"]
    maps = np.zeros((2, 10, 8, 3))
    for out_y in range(10):  # out[o] sums in[i] kernel[o + 1 - 2 i]: stride 2, padding 1
        for out_x in range(8):
            for y in range(5):
                for x in range(4):
                    row, column = out_y + 1 - 2 * y, out_x + 1 - 2 * x
                    if 0 <= row < 4 and 0 <= column < 4:
                        maps[:, out_y, out_x] += rois[:, y, x] @ kernel[row, column]
    maps += bias

    def enlarge(maps, axis):  # pixel centres stay where they are, the border is repeated
        size = maps.shape[axis]
        position = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = np.expand_dims(position - low, tuple(range(1, maps.ndim - axis)))
        return np.take(maps, low, axis) * (1 - share) + np.take(maps, high, axis) * share

    expected = enlarge(enlarge(maps, 1), 2).transpose(0, 3, 1, 2)
    out = jax.jit(head.apply)(variables, rois)
    assert out.shape == (2, 3, 20, 16)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(
    "config, maps",
    [
        (MaskHeadConfig(channels=4), 5),
        (MaskHeadConfig(channels=4, class_agnostic=True), 1),
        (MaskHeadConfig(channels=4, loss="softmax"), 6),  # background besides
        (MaskHeadConfig(channels=4, head="mlp", layers=2), 5),
        (MaskHeadConfig(channels=4, head="mlp", layers=3, class_agnostic=True), 1),
    ],
)
def test_mask_head_has_the_configured_layers_and_maps(config, maps):
    head, rois = MaskHead(config, num_classes=5), noise(2, 3, 4, 6)
    out, variables = shapes(head, rois)
    assert out.shape == (2, 6, 8, maps)
    layers = {name for name in variables["params"] if name.startswith(("conv", "fc"))}
    kind = "fc" if config.head == "mlp" else "conv"
    assert layers == {f"{kind}{index}" for index in range(1, config.layers + 1)}


def test_mlp_mask_head_is_a_reshaped_matrix_product():
    head, rois = MaskHead(MaskHeadConfig(channels=4, head="mlp", layers=1), num_classes=2), noise(3, 2, 3, 5)
    variables = drawn(head, rois)
    fc1, logits = variables["params"]["fc1"], variables["params"]["logits"]
    hidden = np.maximum(rois.reshape(3, -1) @ fc1["kernel"] + fc1["bias"], 0)
    expected = hidden @ logits["kernel"] + logits["bias"]
    np.testing.assert_allclose(head.apply(variables, rois), expected.reshape(3, 4, 6, 2), atol=1e-4)


def test_mask_probabilities_of_each_loss():
    """Softmax divides a pixel among classes and background; sigmoid treats each class on its own."""
    logits, classes = noise(1, 4, 2, 2, 4), np.array([[0, 1, 2, 0]])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def probabilities(logits, **mask):
        model = MaskRCNN(ModelConfig(num_classes=3, mask=MaskHeadConfig(**mask)))
        return model.apply({}, jnp.asarray(logits), jnp.asarray(classes), method="mask_probabilities")[0]

    sigmoid = 1 / (1 + np.exp(-logits))
    for roi, kind in enumerate(classes[0]):
        softmax = probabilities(logits, loss="softmax")[roi]
        np.testing.assert_allclose(softmax, shares[0, roi, ..., kind], atol=1e-6)
        np.testing.assert_allclose(probabilities(logits)[roi], sigmoid[0, roi, ..., kind], atol=1e-6)
    agnostic = probabilities(logits[..., :1], class_agnostic=True)
    np.testing.assert_allclose(agnostic, sigmoid[0, ..., 0], atol=1e-6)


def test_box_head_without_layers_averages_positions():
    head, rois = BoxHead(BoxHeadConfig(fully_connected=0), num_classes=2), noise(3, 2, 2, 5)
    variables = drawn(head, rois)
    logits, deltas = head.apply(variables, rois)
    mean = rois.mean(axis=(1, 2))
    for out, name, shape in ((logits, "classes", (3, 3)), (deltas, "deltas", (3, 2, 4))):
        expected = mean @ variables["params"][name]["kernel"] + variables["params"][name]["bias"]
        np.testing.assert_allclose(out, expected.reshape(shape), atol=1e-4)


def test_mask_head_upsamples_with_a_transposed_convolution():
    config = MaskHeadConfig(layers=0, channels=6)
    head = MaskHead(config, num_classes=3)
    rois = np.random.default_rng(0).standard_normal((2, 5, 7, 4)).astype(np.float32)
    shapes = jax.eval_shape(head.init, jax.random.key(0), rois)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    upsample, logits = variables["params"]["upsample"], variables["params"]["logits"]
    kernel = upsample["kernel"].reshape(4, 2, 2, 6).transpose(1, 2, 3, 0)  # [2, 2, out, in]
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_transpose(rois, kernel, (2, 2), "VALID", dimension_numbers=layout, transpose_kernel=True)
    x = np.maximum(np.asarray(x) + variables["params"]["upsample_bias"], 0)
    expected = x @ logits["kernel"] + logits["bias"]
    np.testing.assert_allclose(head.apply(variables, rois), expected, atol=1e-4)


# ---- backbones ----


def test_dilated_res5_contains_the_cells_of_res5():
    """With the stride in the first 1x1 convolution, cells of c5 are every second cell of dc5."""
    images = noise(1, 96, 64, 3)
    configs = [BackboneConfig(name="resnet50", width=4, features=features) for features in ("c5", "dc5")]
    c5, dc5 = map(ResNet, configs)
    variables = tiny.jittered(jax.eval_shape(c5.init, jax.random.key(0), images))
    coarse, fine = (jax.jit(lambda model=model: model.apply(variables, images)[-1])() for model in (c5, dc5))
    assert coarse.shape == (1, 3, 2, 128) and fine.shape == (1, 6, 4, 128)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-5 * np.abs(coarse).max())
    assert np.abs(np.asarray(fine[:, 1::2, 1::2]) - coarse).max() > 1e-2 * np.abs(coarse).max()


def test_c4_stops_before_res5_which_is_applied_to_rois():
    config = BackboneConfig(name="resnet18", width=4, features="c4")
    features, variables = shapes(ResNet(config), jnp.zeros((1, 64, 96, 3)))
    assert [x.shape for x in features] == [(1, 16, 24, 4), (1, 8, 12, 8), (1, 4, 6, 16)]
    assert not any(name.startswith("res5") for name in variables["params"])
    for stride, side in ((1, 7), (2, 4)):
        out, variables = shapes(Res5(config, stride), jnp.zeros((5, 7, 7, 16)))
        assert out.shape == (5, side, side, 32) and set(variables["params"]) == {"res5_0", "res5_1"}


def test_groups_divide_the_3x3_convolution():
    config = BackboneConfig(name="resnet50", groups=4, group_width=8, stride_in_1x1=False)
    variables = jax.eval_shape(ResNet(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    for index in range(4):
        block, inner, outer = variables["params"][f"res{index + 2}_1"], 32 * 2**index, 256 * 2**index
        assert {name: leaf["kernel"].shape for name, leaf in block.items()} == {
            "conv1": (1, 1, outer, inner), "conv2": (3, 3, inner // 4, inner), "conv3": (1, 1, inner, outer),
        }  # fmt: skip


def test_non_local_block_attends_to_every_position():
    x = noise(2, 4, 6, 8)
    block = NonLocalBlock()
    variables = drawn(block, x)
    layers = variables["params"]
    theta, phi, g = (
        np.float64(x @ layers[name]["kernel"] + layers[name]["bias"]) for name in ("theta", "phi", "g")
    )
    phi, g = (part.reshape(2, 2, 2, 3, 2, 4).max(axis=(2, 4)).reshape(2, 6, 4) for part in (phi, g))
    products = np.einsum("bic,bjc->bij", theta.reshape(2, 24, 4), phi) / 2  # the root of four channels
    weights = np.exp(products - products.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    seen = np.einsum("bij,bjc->bic", weights, g).reshape(2, 4, 6, 4)
    out = layers["out"]
    expected = x + seen @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(block.apply(variables, x), expected, atol=1e-4)
    initial = block.init(jax.random.key(0), x)
    np.testing.assert_array_equal(block.apply(initial, x), x)
