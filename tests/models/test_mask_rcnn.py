"""The assembled detector and its networks: shapes, sizes, normalisation, padding and precision."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import tiny
from paths import GOLDEN

from mrcnn_jax.config import BackboneConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.heads import MaskHead
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.models.norm import BatchNorm, FrozenBatchNorm, GroupNorm
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.presets import coco


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


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


# Parameters of torchvision's classification networks without the last layer, batch norm's vectors included.
@pytest.mark.parametrize(
    "name, groups, group_width, size",
    [
        ("resnet18", 1, 64, 11_176_512),
        ("resnet34", 1, 64, 21_284_672),
        ("resnet50", 1, 64, 23_508_032),
        ("resnet101", 1, 64, 42_500_160),
        ("resnet152", 1, 64, 58_143_808),
        ("resnet101", 32, 8, 86_742_336),
        ("resnet101", 64, 4, 81_406_272),
    ],
)
def test_backbone_size_is_the_published_networks(name, groups, group_width, size):
    config = BackboneConfig(name=name, groups=groups, group_width=group_width, norm="batch")
    variables = jax.eval_shape(ResNet(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert count(variables["params"]) == size


def parts_of(config: ModelConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Number of trained parameters and of frozen values in each part."""
    variables = jax.eval_shape(lambda: init_variables(MaskRCNN(config), jax.random.key(0)))
    assert set(variables) == {"params", "frozen"}
    return tuple(
        {name: count(part) for name, part in variables[kind].items()} for kind in ("params", "frozen")
    )


PERSON = ModelConfig(num_classes=1, tasks=("boxes", "keypoints"))


# Weights and biases by part are in golden/parameter_counts.json; Detectron2's state dict of R_50_FPN also has
# the four vectors of each of 53 frozen batch norms.
@pytest.mark.parametrize(
    "model, config",
    [
        ("d2_mask_rcnn_R_50_FPN", ModelConfig()),
        ("d2_mask_rcnn_R_50_C4", coco.mask_rcnn_r50_c4().model),
        ("d2_keypoint_rcnn_R_50_FPN", PERSON),
    ],
)
def test_parameter_counts_are_those_of_detectron2(model, config):
    expected = json.loads((GOLDEN / "parameter_counts.json").read_text())[model]
    trained, frozen = parts_of(config)
    assert trained == expected
    assert sum(frozen.values()) == 4 * 26_560


# The published classification networks without the vectors of their norms (two numbers per channel).
@pytest.mark.parametrize(
    "experiment, backbone, norms",
    [(coco.mask_rcnn_r101_fpn, 42_500_160, 52_672), (coco.mask_rcnn_x101_fpn, 81_406_272, 101_440)],
)
def test_a_deeper_backbone_changes_nothing_else(experiment, backbone, norms):
    trained, frozen = parts_of(experiment().model)
    assert sum(frozen.values()) == 4 * norms
    assert trained == parts_of(ModelConfig())[0] | {"backbone": backbone - 2 * norms}


def test_torchvision_has_parameters_of_one_more_class():
    """maskrcnn_resnet50_fpn of 90 classes and background has 44 401 393 parameters, of which 4 100 are box
    deltas and 257 the mask of the background, which we do not have."""
    assert sum(parts_of(ModelConfig(num_classes=90))[0].values()) == 44_401_393 - 4_100 - 257


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


def centre_kernels(names):
    """Convolutions of the pyramid that pass their centre unchanged."""
    one, three = jnp.ones((1, 1, 1, 1)), jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    kernels = {name: one if name.startswith("lateral") else three for name in names}
    return {name: {"kernel": kernel, "bias": jnp.zeros(1)} for name, kernel in kernels.items()}


def test_pyramid_adds_from_the_top_down():
    """With kernels that pass their centre unchanged, P_n is the sum of C_n to C_5."""
    features = [jnp.full((1, 16 // 2**i, 16 // 2**i, 1), 10.0**i) for i in range(4)]
    model = FPN(channels=1)
    variables = model.init(jax.random.key(0), features)
    pyramid = model.apply({"params": centre_kernels(variables["params"])}, features)
    assert [level.shape for level in pyramid] == [(1, side, side, 1) for side in (16, 8, 4, 2, 1)]
    assert [float(level.min()) for level in pyramid] == [1111, 1110, 1100, 1000, 1000]
    assert [float(level.max()) for level in pyramid] == [1111, 1110, 1100, 1000, 1000]


def test_pyramid_copies_the_nearest_cell_and_p6_takes_every_second():
    features = [jnp.zeros((1, side, side, 1)) for side in (8, 4, 2, 1)]
    features[2] = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
    model = FPN(channels=1)
    kernels = centre_kernels(f"{kind}{level}" for kind in ("lateral", "output") for level in range(2, 6))
    p2, *_ = model.apply({"params": kernels}, features)
    np.testing.assert_array_equal(p2[0, :, :, 0], np.kron([[1, 2], [3, 4]], np.ones((4, 4))))
    features[3] = jnp.arange(15.0).reshape(1, 3, 5, 1)
    features[:3] = [jnp.zeros((1, 3 * 2**i, 5 * 2**i, 1)) for i in (3, 2, 1)]
    p6 = model.apply({"params": kernels}, features)[4]
    np.testing.assert_array_equal(p6[0, :, :, 0], [[0, 2, 4], [10, 12, 14]])


# ---- normalisation ----


@pytest.mark.parametrize(
    "norm, collections",
    [("frozen", {"params", "frozen"}), ("batch", {"params", "batch_stats"}), ("group", {"params"})],
)
def test_collections_of_each_kind_of_normalisation(norm, collections):
    model = MaskRCNN(tiny.model_config(norm=norm))
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    assert set(variables) == collections
    trained = jax.tree_util.tree_leaves_with_path(variables["params"]["backbone"])
    vectors = [path for path, _ in trained if path[-1].key != "kernel"]
    assert bool(vectors) == (norm != "frozen")  # the backbone's convolutions have no bias
    if norm == "frozen":
        frozen = jax.tree_util.tree_leaves_with_path(variables["frozen"])
        assert {path[-1].key for path, _ in frozen} == {"scale", "bias", "mean", "var"}


def test_frozen_batch_norm_is_a_fixed_affine_map():
    rng = np.random.default_rng(0)
    shapes = (2, 3, 3, 5), 5, 5, 5
    x, scale, bias, mean = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    var = rng.uniform(1e-4, 2, 5).astype(np.float32)
    given = {"frozen": {"scale": scale, "bias": bias, "mean": mean, "var": var}}
    out = FrozenBatchNorm(epsilon=1e-3).apply(given, x)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-3) * scale + bias, atol=2e-5, rtol=2e-5)
    fresh = FrozenBatchNorm(epsilon=0.0).init(jax.random.key(0), x)
    np.testing.assert_allclose(FrozenBatchNorm(epsilon=0.0).apply(fresh, x), x, rtol=1e-6)


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 16), (8, 8)])
def test_group_norm_has_32_groups_or_the_most_that_divide(channels, groups):
    x = 3 + 2 * np.random.default_rng(0).standard_normal((2, 4, 4, channels)).astype(np.float32)
    out = GroupNorm().apply(GroupNorm().init(jax.random.key(0), x), x)
    grouped = x.reshape(2, 16, groups, -1).astype(np.float64)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = (grouped - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(out, expected.reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_batch_norm_weights_every_valid_entry_equally(devices):
    """Statistics, outputs and running averages are those of the valid entries, on however many devices."""
    rng = np.random.default_rng(0)
    x = (2 + 3 * rng.standard_normal((8, 3, 2, 5))).astype(np.float32)
    valid = np.array([1, 0, 1, 1, 0, 0, 0, 0], bool)  # none on the second device
    layer = BatchNorm(epsilon=1e-3, train=True)
    variables = BatchNorm(epsilon=1e-3).init(jax.random.key(0), x)
    split = [array.reshape(devices, -1, *array.shape[1:]) for array in (x, valid)]
    train = partial(layer.apply, variables, mutable=["batch_stats"])
    apply = jax.vmap(train, axis_name=DEVICE_AXIS)
    out, updated = apply(*split)
    counted = x[valid].astype(np.float64)
    mean, var = counted.mean((0, 1, 2)), counted.var((0, 1, 2))
    np.testing.assert_allclose(out.reshape(x.shape), (x - mean) / np.sqrt(var + 1e-3), atol=1e-4)
    for device in range(devices):
        np.testing.assert_allclose(updated["batch_stats"]["mean"][device], 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(updated["batch_stats"]["var"][device], 0.9 + 0.1 * var, atol=1e-4)
    out, updated = apply(split[0], np.zeros_like(split[1]))
    assert np.isfinite(out).all()
    unchanged = jax.tree.map(lambda leaf: leaf[0], updated["batch_stats"])  # without any valid entry
    tiny.assert_same(unchanged, variables["batch_stats"])
    running = {"mean": mean.astype(np.float32), "var": var.astype(np.float32)}
    out = BatchNorm(epsilon=1e-3).apply({"params": variables["params"], "batch_stats": running}, x)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-3), atol=1e-4)


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
