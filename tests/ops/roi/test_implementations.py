"""Every form of the RoI operations: the oracle's numbers forwards and backwards, in small pieces and on several tables."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rois import HUGE, PYRAMID, STRIDES, boxes_and_levels, reference

from benchmarks.roi._workloads import WORKLOADS
from mrcnn_jax import ops
from mrcnn_jax.ops.roi import dispatch as roi_dispatch
from mrcnn_jax.ops.roi import matmul as roi_matmul
from mrcnn_jax.ops.roi import tiles as roi_pieces

pytestmark = pytest.mark.usefixtures("strict_promotion")

KINDS = [("align", "average", 2), ("align", "average", 0), ("align", "max", 2), ("align", "max", 0), ("pool", "max", 2)]
CASES = [(kind, form) for kind in KINDS for form in ops.roi_implementations(*kind)] + [(("align", "average", 3), "matmul")]
every_form = pytest.mark.parametrize("kind, form", CASES)
BOXES, LEVELS = boxes_and_levels()
COTANGENT = np.random.default_rng(8).standard_normal((*LEVELS.shape, 3, 5, 2), dtype=np.float32)
SHIPPED = {name: getattr(roi_dispatch, name) for name in ("SMALL", "PIECE_OF_EQUALS", "PIECE", "PIECE_OF_GRADIENT")}
DIRECTION = [np.random.default_rng(9 + level).standard_normal(features.shape) for level, features in enumerate(PYRAMID)]


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    """So small that RoIs of a few need several."""
    jax.clear_caches()  # of what was traced with the usual ones
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_dispatch, "SMALL", 0)
        for name, rows in (("PIECE_OF_EQUALS", 9), ("PIECE", 5), ("PIECE_OF_GRADIENT", 4)):
            patch.setattr(roi_dispatch, name, rows * 5 * 2 * 4)
        patch.setattr(roi_pieces, "FEW_CELLS", 3)
        patch.setattr(roi_matmul, "CHUNK", 3)
        yield
    jax.clear_caches()


@cache
def program(kind, form, dtype=jnp.float32):
    """Compiled: bins and features' gradient from pyramid, boxes and levels."""

    def both(pyramid, boxes, levels):
        operation, reduction, samples = kind
        pooled, backward = jax.vjp(
            lambda pyramid: ops.pool_rois(pyramid, boxes, levels, STRIDES, (3, 5), operation, reduction, samples, form=form), pyramid
        )
        return pooled, backward(COTANGENT.astype(dtype))[0]

    return jax.jit(both).lower([jnp.asarray(features, dtype) for features in PYRAMID], BOXES, LEVELS).compile()


@cache
def oracle(kind):
    """The bins, and how much they change in the cotangent's sense along DIRECTION."""
    operation, reduction, samples = kind

    def pooled(change):
        bins = np.zeros(COTANGENT.shape)
        for image, level in np.ndindex(2, len(PYRAMID)):
            own = LEVELS[image] == level
            features = PYRAMID[level][image] + change * DIRECTION[level][image]
            bins[image, own] = reference(features, BOXES[image, own], 1 / STRIDES[level], operation, reduction, samples, True)
        return bins

    return pooled(0.0), (COTANGENT * (pooled(1e-6) - pooled(-1e-6))).sum() / 2e-6


@every_form
def test_equals_the_oracle_forwards_and_backwards(kind, form):
    pooled, gradient = program(kind, form)(PYRAMID, BOXES, LEVELS)
    expected, change = oracle(kind)
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    assert abs(change) > 1
    np.testing.assert_allclose(sum((own * along).sum() for own, along in zip(gradient, DIRECTION, strict=True)), change, rtol=2e-4)
    for own, others in zip(gradient, program(kind, "gather")(PYRAMID, BOXES, LEVELS)[1], strict=True):
        np.testing.assert_allclose(own, others, atol=2e-5, rtol=0)


@every_form
def test_any_finite_box_gives_the_same_finite_numbers(kind, form):
    boxes, levels = BOXES.copy(), LEVELS.copy()
    boxes[:, : len(HUGE)] = HUGE
    levels[:, 1::2] = 0
    results = [program(kind, each)(PYRAMID, boxes, levels) for each in (form, "gather")]
    for own, others in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(own).all()
        np.testing.assert_allclose(own, others, atol=2e-5, rtol=0)


@every_form
def test_nothing_of_other_levels_and_images_is_read(kind, form):
    levels, anything = np.ones_like(LEVELS), 1e30 if form == "matmul" else np.nan  # whose weights of 0 do not hide what is no number
    spoiled = [np.full_like(PYRAMID[0], anything), PYRAMID[1].copy(), np.full_like(PYRAMID[2], anything)]
    spoiled[1][1] = anything
    others, own = (program(kind, form)(pyramid, BOXES, levels)[0][0] for pyramid in (spoiled, PYRAMID))
    np.testing.assert_array_equal(others, own)


@every_form
def test_levels_with_few_rois_or_none(kind, form):
    """The pieces of a level are as many as it has RoIs, also none."""
    levels = np.where(np.arange(LEVELS.shape[1]) < 1, 2, 0).astype(np.int32) * np.ones_like(LEVELS)
    (pooled, gradient), (expected, _) = (program(kind, each)(PYRAMID, BOXES, levels) for each in (form, "gather"))
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    assert gradient[0].any() and not gradient[1].any()


@pytest.mark.parametrize("form", ops.roi_implementations("align"))
def test_low_precision_features_are_added_up_in_float32(form):
    kind, rounded = KINDS[0], [jnp.asarray(features, jnp.bfloat16) for features in PYRAMID]
    pooled, gradient = program(kind, form, jnp.bfloat16)(rounded, BOXES, LEVELS)
    expected, to_maps = program(kind, form)([np.asarray(features, np.float32) for features in rounded], BOXES, LEVELS)
    assert pooled.dtype == jnp.bfloat16 and all(own.dtype == jnp.bfloat16 for own in gradient)
    np.testing.assert_allclose(pooled.astype(jnp.float32), expected, atol=0.03)
    for own, others in zip(gradient, to_maps, strict=True):  # dozens of parts of a cell, each rounded by up to 1/256 in the cotangent
        np.testing.assert_allclose(own.astype(jnp.float32), others, atol=0.01 * np.abs(others).max())


def test_each_platform_takes_its_own_form():
    def lowered(platform, form=None):
        pool = jax.jit(lambda pyramid: ops.pool_rois(pyramid, BOXES, LEVELS, STRIDES, 3, form=form))
        return pool.trace([jnp.asarray(features) for features in PYRAMID]).lower(lowering_platforms=(platform,)).as_text()

    assert [ops.default_implementation("align", platform=platform) for platform in ("cpu", "gpu", "tpu")] == ["pieces", "gather", "matmul"]
    assert "dot_general" in lowered("tpu") and "dot_general" not in lowered("cpu") and "dot_general" in lowered("cpu", "matmul")
    assert lowered("cuda").count("stablehlo.while") < lowered("cpu").count("stablehlo.while")  # no loop over pieces


@pytest.mark.parametrize(
    "name, kind",
    [("FPN inference", KINDS[0]), ("FPN box training", KINDS[0]), ("FPN mask training", KINDS[0]), *[("FPN inference", kind) for kind in KINDS[1:]]],
)
def test_temporary_memory_stays_below_twice_the_bins_and_the_pyramid(monkeypatch, name, kind):
    for constant, value in SHIPPED.items():
        monkeypatch.setattr(roi_dispatch, constant, value)
    workload, (operation, reduction, samples) = WORKLOADS[name], kind
    shapes = [jax.ShapeDtypeStruct((1, *side, workload.channels), jnp.float32) for side in workload.maps]
    boxes, levels = (jax.ShapeDtypeStruct((1, workload.rois, *end), dtype) for end, dtype in (((4,), jnp.float32), ((), jnp.int32)))
    pool = jax.jit(lambda *given: ops.pool_rois(*given, workload.strides, workload.bins, operation, reduction, samples))
    memory = pool.lower(shapes, boxes, levels).compile().memory_analysis()
    pyramid = sum(4 * np.prod(shape.shape) for shape in shapes)
    assert memory.temp_size_in_bytes < 2 * memory.output_size_in_bytes + pyramid


def test_a_convolution_of_the_bins_does_not_keep_what_they_were_read_from(monkeypatch):
    for constant, value in SHIPPED.items():
        monkeypatch.setattr(roi_dispatch, constant, value)
    rois, bins, channels = 64, 14, 64

    def loss(kernel, features, boxes):
        pooled = ops.roi_align(features, boxes, bins)
        return jnp.sum(jax.nn.relu(jax.lax.conv_general_dilated(pooled, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, channels, channels), (24, 32, channels), (rois, 4))]
    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 6 * rois * bins**2 * channels * 4  # 16 cells of a bin, and what the convolution needs, would be 20


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'gather', 'pieces' or None, not 'matmul'"):
        ops.roi_pool(PYRAMID[0][0], BOXES[0], 7, form="matmul")
