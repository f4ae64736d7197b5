"""Operations: boxes, scores and RoIs that are unusual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quirks import quirk

from mrcnn_jax import ops
from mrcnn_jax.models.rpn import select_proposals

OVERLAPPING = [[0, 0, 400, 400], [1, 1, 401, 401], [500, 500, 600, 600]]
NAN, INF = float("nan"), float("inf")


@quirk(
    "`nms` or `iou` of float16, bfloat16 or integer boxes, whose areas would overflow",
    "computed in float32",
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "int32", "uint16", "float32"])
def test_half_precision_and_integers(dtype):
    boxes = jnp.asarray(OVERLAPPING, dtype)
    assert ops.nms(boxes, jnp.asarray([9, 8, 7], dtype), 0.5).tolist() == [True, False, True]
    overlaps = ops.iou(boxes, boxes)
    assert overlaps.dtype == jnp.float32 and float(overlaps[0, 1]) > 0.95
    assert float(ops.area(boxes)[0]) == 160_000 and float(ops.giou(boxes, boxes)[1, 1]) == 1


@quirk("`nms` of a box with NaN or an infinite coordinate", "not kept, and suppresses nothing")
@pytest.mark.parametrize("bad", [[NAN] * 4, [0, 0, INF, 10], [-INF, 0, 10, 10], [0, NAN, 10, 10]])
def test_boxes_that_are_not_finite(bad):
    boxes = np.float32([[0, 0, 10, 10], bad, [1, 0, 10, 10], [30, 30, 40, 40]])
    keep = ops.nms(boxes, np.float32([0.5, 0.9, 0.4, 0.1]), 0.5)
    assert keep.tolist() == [True, False, False, True]


@quirk("scores of NaN or -inf in `nms` and `masked_top_k`", "rank last, but are kept")
def test_scores_that_are_not_finite():
    boxes, scores = np.float32([[0, 0, 10, 10]] * 3 + [[50, 50, 60, 60]]), np.float32([NAN, -INF, 0.1, NAN])
    assert ops.nms(boxes, scores, 0.5).tolist() == [False, False, True, True]
    index, valid = ops.masked_top_k(np.array([True, True, False, True]), scores, 4)
    assert index[:3].tolist() == [0, 1, 3] and valid.tolist() == [True, True, True, False]


@quirk("an RPN whose logits hold NaN", "its anchors rank last among the proposals")
def test_logits_of_nan():
    anchors = jnp.asarray([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    logits = jnp.asarray([[NAN, 1.0, 2.0]])
    found = select_proposals([logits], [jnp.zeros((1, 3, 4))], [anchors], jnp.asarray([[64, 64]]), 3, 3, 0.7)
    np.testing.assert_array_equal(found.boxes[0], anchors[::-1])


@quirk("`nms`: an IoU equal to the threshold; equal scores", "kept; the first box is kept")
def test_thresholds_and_ties():
    halves = np.float32([[0, 0, 2, 1], [0, 0, 1, 1]])
    assert ops.nms(halves, np.float32([1, 1]), 0.5).tolist() == [True, True]
    assert ops.nms(halves, np.float32([1, 1]), 0.49).tolist() == [True, False]


@quirk("`nms` of 50,000 boxes", "memory that grows with their number, not with its square")
def test_many_boxes():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((50_000, 4), (50_000,))]
    compiled = jax.jit(lambda boxes, scores: ops.nms(boxes, scores, 0.5)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20e6


@quirk(
    "arguments of wrong shapes: `iou` of [N, 3], `nms` of 3 boxes and 4 scores, RoIs of [N, 6]",
    "refused by the name of the argument",
)
@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: ops.iou(jnp.zeros((2, 3)), jnp.zeros((2, 4))), "a"),
        (lambda: ops.giou(jnp.zeros((2, 4)), jnp.zeros(4)), "b"),
        (lambda: ops.nms(jnp.zeros((3, 4)), jnp.zeros(4), 0.5), "scores"),
        (lambda: ops.masked_top_k(jnp.ones(3, bool), jnp.zeros(4), 2), "scores"),
        (lambda: ops.mask_iou(jnp.zeros((2, 5, 5)), jnp.zeros((2, 5, 4))), "b"),
        (lambda: ops.masks_to_boxes(jnp.zeros(5)), "masks"),
        (lambda: ops.roi_align(jnp.zeros((5, 5, 1)), jnp.zeros((2, 6)), 2), "boxes"),
        (lambda: ops.roi_pool(jnp.zeros((2, 5, 5, 1)), jnp.zeros((2, 4)), 2), "boxes"),
        (lambda: ops.decode_keypoints(np.zeros((2, 1, 4, 4)), np.zeros((3, 4))), "boxes"),
    ],
)
def test_wrong_shapes(without_type_checks, call, name):
    with pytest.raises(ValueError, match=rf"^{name} must have shape \["):
        call()


@quirk("`match` and `max_overlap` without object slots", "all candidates are background")
def test_no_objects():
    none = jnp.zeros(0, bool)
    index, labels = ops.match(lambda slot: jnp.zeros(3), 3, none, 0.7, 0.3, allow_low_quality=True)
    assert index.tolist() == [0, 0, 0] and labels.tolist() == [0] * 3
    assert ops.max_overlap(lambda slot: jnp.zeros(3), 3, none).tolist() == [0, 0, 0]


@quirk("RoI operations of no RoIs, images or channels", "an empty result")
@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool, ops.roi_warp])
@pytest.mark.parametrize(
    "features, boxes", [((4, 4, 0), (2, 4)), ((4, 4, 3), (0, 4)), ((0, 4, 4, 3), (0, 5)), ((0, 0, 3), (0, 4))]
)
def test_nothing_to_pool(pool, features, boxes):
    assert pool(jnp.zeros(features), jnp.zeros(boxes), 2).shape == (boxes[0], 2, 2, features[-1])


@quirk("RoIs with NaN", "their NaN coordinates count as 0; other RoIs are not affected")
@pytest.mark.parametrize("implementation", ops.roi_implementations("align"))
def test_rois_with_nan(implementation):
    boxes = np.float32([[[1, 1, 9, 9], [NAN] * 4, [2, NAN, 30, 30], [0, 0, 31, 31]]])
    pyramid = [np.random.default_rng(0).normal(size=(1, side, side, 2)).astype(np.float32) for side in (8, 4)]

    def pool(boxes):
        levels = ops.assign_levels(boxes, 2, 3, canonical_size=16.0, canonical_level=3) - 2
        return levels, ops.pool_rois(pyramid, boxes, levels, (4, 8), 3, implementation=implementation)

    levels, pooled = pool(boxes)
    assert levels.tolist() == [[0, 0, 0, 1]] and np.isfinite(pooled).all()
    _, clean = pool(np.nan_to_num(boxes))
    np.testing.assert_allclose(pooled[:, [0, 1, 3]], clean[:, [0, 1, 3]], rtol=1e-6)


@quirk("RoIs as [N, 5] with the image's index first, as torchvision has them", "pooled from [B, H, W, C]")
@pytest.mark.parametrize("operation", ["align", "pool"])
def test_batch_indices_equal_torchvision(golden, operation):
    arrays = golden(f"roi_{operation}")
    features, rois = arrays["x"].transpose(0, 2, 3, 1), arrays["rois_s0.25"]
    pool, name = {
        "align": (lambda **how: ops.roi_align(features, rois, 7, 0.25, **how), "out_s0.25_7x7_aligned1_sr2"),
        "pool": (lambda **how: ops.roi_pool(features, rois, 7, 0.25, **how), "out_s0.25_7x7"),
    }[operation]
    for implementation in ops.roi_implementations(operation, {"pool": "max"}.get(operation, "average")):
        pooled = pool(implementation=implementation)
        np.testing.assert_allclose(pooled, arrays[name].transpose(0, 2, 3, 1), rtol=0, atol=2e-5)


@quirk("levels or image indices that do not exist", "count as the nearest")
def test_indices_that_do_not_exist():
    features = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    boxes = np.float32([[0, 0, 3, 3]])
    first, last = (ops.roi_align(one, boxes, 2)[0] for one in features)
    rois = np.float32([[image, 0, 0, 3, 3] for image in (-1, NAN, 0, 1, 7)])
    for pooled, expected in zip(
        ops.roi_align(features, rois, 2), [first, first, first, last, last], strict=True
    ):
        np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    pooled = ops.pool_rois([features], boxes[None].repeat(2, 0), jnp.asarray([[-3], [5]]), (1,), 2)
    np.testing.assert_allclose(pooled[:, 0], [first, last], rtol=1e-6)


@quirk(
    "`jax.jvp`, `jax.jacfwd` and `jax.hessian` of RoI operations",
    'work with `implementation="reference"`; the others define reverse mode alone (JAX raises TypeError)',
)
def test_forward_mode():
    boxes, features = jnp.asarray([[0.5, 0.5, 3.0, 3.0]]), jnp.arange(16.0).reshape(4, 4, 1) ** 1.5

    def total(boxes, implementation):
        return jnp.sum(ops.roi_align(features, boxes, 2, implementation=implementation) ** 2)

    forward = jax.jacfwd(total)(boxes, "reference")
    np.testing.assert_allclose(forward, jax.grad(total)(boxes, "gather"), rtol=1e-4)
    assert jnp.isfinite(jax.hessian(total)(boxes, "reference")).all()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(total)(boxes, "gather")
