"""The assembled detector and its networks: shapes, sizes, normalisation, padding and precision."""


import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import tiny

from mrcnn_jax.config import BackboneConfig, KeypointHeadConfig, ModelConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.models import init_variables, make_model
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.resnet import ResNet


def shapes_of_parts(config: ModelConfig, height: int = 128, width: int = 160):
    """Shapes of everything computed for a batch of two images, and of the variables; nothing is computed."""

    def parts(model, images, sizes):
        features = model.backbone(images.astype(jnp.float32))
        pyramid = model.pyramid(images, sizes)
        box, mask = (
            model.roi_features(pyramid, jnp.zeros((2, 7, 4)), config.pool_of(name))
            for name in ("box", "mask")
        )
        return {
            "features": features, "pyramid": pyramid, "objectness": model.objectness(pyramid),
            "classify": model.classify(box), "masks": model.mask_logits(mask),
            "predictions": model(images, sizes),
        }  # fmt: skip

    inputs = jnp.zeros((2, height, width, 3), jnp.uint8), jnp.full((2, 2), height)
    return jax.eval_shape(nn.init_with_output(parts, MaskRCNN(config)), jax.random.key(0), *inputs)


@pytest.mark.parametrize("name, expansion", [("resnet18", 1), ("resnet50", 4)])
def test_shapes_of_every_part(name, expansion):
    out, variables = shapes_of_parts(ModelConfig(num_classes=80, backbone=BackboneConfig(name=name)))
    grids = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    for index, features in enumerate(out["features"]):
        assert features.shape == (2, *grids[index], expansion * 64 * 2**index)
    assert [level.shape for level in out["pyramid"]] == [(2, *grid, 256) for grid in grids]
    anchors = [3 * height * width for height, width in grids]
    logits, deltas = out["objectness"]
    assert [level.shape for level in logits] == [(2, number) for number in anchors]
    assert [level.shape for level in deltas] == [(2, number, 4) for number in anchors]
    logits, deltas = out["classify"]
    assert logits.shape == (2, 7, 81) and deltas.shape == (2, 7, 80, 4)
    assert out["masks"].shape == (2, 7, 28, 28, 80)
    found = out["predictions"]
    assert found.boxes.shape == (2, 100, 4)
    assert found.scores.shape == found.classes.shape == found.valid.shape == (2, 100)
    assert found.masks.shape == (2, 100, 28, 28)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("in_1x1, side", [(True, 8), (False, 16)])
def test_bottleneck_has_its_stride_in_the_configured_convolution(in_1x1, side):
    model = ResNet(BackboneConfig(name="resnet50", width=4, stride_in_1x1=in_1x1))
    images = jnp.zeros((1, 64, 64, 3))

    def inner_shapes():
        variables = model.init(jax.random.key(0), images)
        _, seen = model.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
        return [seen["intermediates"]["res3_0"][name]["__call__"][0] for name in ("conv1", "conv2")]

    assert [x.shape for x in jax.eval_shape(inner_shapes)] == [(1, side, side, 8), (1, 8, 8, 8)]


def test_sides_must_be_multiples_of_32():
    with pytest.raises(ValueError, match="multiples of 32 for a feature pyramid, not 100 x 160"):
        shapes_of_parts(tiny.model_config(), height=100)


@pytest.fixture
def unchecked_types():
    """Calls as without the tests' type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "images, sizes, message",
    [
        ((2, 3, 64, 64), (2, 2), r"images must have shape \[B, H, W, 3\], not \[2, 3, 64, 64\]; .* last"),
        ((2, 64, 64, 4), (2, 2), r"images must have shape \[B, H, W, 3\], not \[2, 64, 64, 4\]"),
        ((64, 64, 3), (2, 2), r"images must have shape \[B, H, W, 3\], not \[64, 64, 3\]"),
        ((2, 64, 64, 3), (1, 2), r"sizes must have shape \[2, 2\], not \[1, 2\]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(unchecked_types, images, sizes, message):
    model = MaskRCNN(tiny.model_config())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(images), jnp.zeros(sizes, jnp.int32)))


def test_boxes_of_five_numbers_are_refused(unchecked_types):
    config = tiny.model_config()
    pyramid = [jnp.zeros((1, 64 // stride, 64 // stride, 16)) for stride in (4, 8, 16, 32, 64)]
    with pytest.raises(ValueError, match=r"boxes must have shape \[B, N, 4\], not \[1, 3, 5\]"):
        args = pyramid, jnp.zeros((1, 3, 5)), config.pool_of("box")
        MaskRCNN(config).apply({}, *args, method="roi_features")


# ---- the whole network: one program in float32, one in bfloat16 ----


@pytest.fixture(scope="module")
def frozen():
    config = tiny.model_config(norm="frozen")
    return config, tiny.variables(config)


@pytest.fixture(scope="module")
def forward(frozen):
    """forward(dtype, images, sizes): outputs of all parts for a batch and fixed boxes."""
    config, variables = frozen
    boxes = jnp.asarray([[[0, 0, 20, 20], [10, 5, 60, 55], [30, 30, 34, 60]]] * 2, jnp.float32)
    classes = jnp.asarray([[0, 1, 2]] * 2)

    def parts(model, images, sizes):
        pyramid = model.pyramid(images, sizes)
        box, mask = (model.roi_features(pyramid, boxes, config.pool_of(name)) for name in ("box", "mask"))
        masks = model.mask_logits(mask)
        return {
            "pyramid": pyramid, "objectness": model.objectness(pyramid), "masks": masks,
            "own_masks": model.mask_probabilities(masks, classes), "classify": model.classify(box),
            "predictions": model(images, sizes),
        }  # fmt: skip

    dtypes = "float32", "bfloat16"
    compiled = {dtype: jax.jit(nn.apply(parts, MaskRCNN(config, jnp.dtype(dtype)))) for dtype in dtypes}
    return lambda dtype, images, sizes: compiled[dtype](variables, images, sizes)


def test_bfloat16_is_finite_and_close(forward):
    batch = tiny.batch([2, 3])
    exact, rough = (forward(dtype, batch.images, batch.sizes) for dtype in ("float32", "bfloat16"))
    assert {level.dtype for level in rough["pyramid"]} == {jnp.dtype("bfloat16")}
    for part in ("objectness", "classify", "masks"):  # losses and boxes are computed in full precision
        assert {leaf.dtype for leaf in jax.tree.leaves(rough[part])} == {jnp.dtype("float32")}
    for part in ("pyramid", "objectness", "classify", "masks"):
        for a, b in zip(jax.tree.leaves(exact[part]), jax.tree.leaves(rough[part]), strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.isfinite(b).all()
            assert 0 < np.sqrt(np.mean((a - b) ** 2)) < 0.03 * np.sqrt(np.mean(a**2)), part
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rough["predictions"]))


def test_predictions_are_well_formed(forward):
    batch = tiny.batch([2, 3])
    found = jax.tree.map(np.asarray, forward("float32", batch.images, batch.sizes)["predictions"])
    assert found.valid.any() and (found.valid[:, :-1] >= found.valid[:, 1:]).all()  # valid ones first
    assert (np.diff(found.scores, axis=1) <= 0).all() and (found.scores[found.valid] > 0.05).all()
    height, width = batch.sizes[0]
    boxes = found.boxes[found.valid]
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (found.boxes[~found.valid] == 0).all() and (found.scores[~found.valid] == 0).all()
    assert (found.masks > 0).all() and (found.masks < 1).all()


def test_mask_probability_is_of_the_given_class(forward):
    batch = tiny.batch([2, 3])
    out = forward("float32", batch.images, batch.sizes)
    for roi in range(3):  # whose class is roi
        expected = nn.sigmoid(out["masks"][:, roi, ..., roi])
        np.testing.assert_allclose(out["own_masks"][:, roi], expected, atol=1e-6)


def test_content_of_the_padding_is_ignored(forward):
    """Padding counts as the mean colour, zero after normalisation."""
    batch = tiny.batch([2, 3])
    scrawled = batch.images.copy()
    scrawled[:, 60:] = np.random.default_rng(0).integers(0, 256, scrawled[:, 60:].shape)
    expected = forward("float32", batch.images, batch.sizes)
    tiny.assert_same(forward("float32", scrawled, batch.sizes), expected)
    seen = forward("float32", scrawled, np.full_like(batch.sizes, 64))
    assert (seen["pyramid"][0] != expected["pyramid"][0]).any()


def test_more_padding_does_not_change_features_far_inside(frozen):
    """C2 has a receptive field of 43 x 43 pixels: only cells nearer than 21 to the padding may change."""
    config, variables = frozen
    backbone = {name: part["backbone"] for name, part in variables.items()}
    features = jax.jit(lambda images: ResNet(config.backbone).apply(backbone, images)[0])
    image = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
    close = features(image)
    wide = features(np.pad(image, ((0, 0), (0, 32), (0, 64), (0, 0))))
    assert close.shape[1:3] == (16, 16) and wide.shape[1:3] == (24, 32)
    np.testing.assert_allclose(wide[:, :10, :10], close[:, :10, :10], atol=1e-5)
    assert np.abs(wide[:, :16, :16] - close).max() > 1e-2  # at the border it does


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_frozen_stages_get_no_gradient_at_all(stages):
    config = tiny.model_config(norm="frozen", freeze_stages=stages)
    model, variables = MaskRCNN(config), tiny.variables(config)
    images, sizes = tiny.batch([1]).images, np.int32([[60, 64]])

    @jax.jit
    def gradient(params):
        def total(params):
            pyramid = model.apply({**variables, "params": params}, images, sizes, method="pyramid")
            return sum(jnp.sum(level**2) for level in pyramid)

        return jax.grad(total)(params)

    gradients = gradient(variables["params"])
    frozen = ("stem", "res2", "res3", "res4", "res5")[:stages]
    for name, leaf in tiny.names_and_leaves(gradients["backbone"]).items():
        assert leaf.any() != name.startswith(tuple(f"['{stage}" for stage in frozen)), name
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["fpn"]))


@pytest.mark.parametrize(
    "name, config",
    [
        ("num_classes", ModelConfig(num_classes=0)),
        (
            "keypoint.num_keypoints",
            ModelConfig(tasks=("boxes", "keypoints"), keypoint=KeypointHeadConfig(num_keypoints=0)),
        ),
    ],
)
def test_numbers_left_to_the_data_set_are_refused(name, config):
    with pytest.raises(InputError, match=f"^model.{name} must be greater than 0 in a network"):
        init_variables(make_model(config), jax.random.key(0))


def test_no_images_are_refused():
    with pytest.raises(ValueError, match=r"images must hold a pixel of at least one image, not \[0, 64, "):
        init = MaskRCNN(ModelConfig()).init_with_output
        jax.eval_shape(init, jax.random.key(0), jnp.zeros((0, 64, 64, 3)), jnp.zeros((0, 2), int))
