"""Anchors: literal cells and centres, and those of the libraries."""

import numpy as np
import pytest

from mrcnn_jax.ops import best_anchor_iou, cell_anchors, grid_anchors, iou, pyramid_anchors

SIZES, RATIOS, STRIDES = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0), (4, 8, 16, 32, 64)


def test_cell_anchors_of_32_pixels():
    half = 16 * np.sqrt(2)
    expected = [[-half, -half / 2, half, half / 2], [-16, -16, 16, 16], [-half / 2, -half, half / 2, half]]
    cells = cell_anchors([32], RATIOS)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells, expected, rtol=1e-6)
    rounded = cell_anchors([32], RATIOS, "corners")
    np.testing.assert_array_equal(rounded, [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])


def test_halves_are_rounded_to_even():
    np.testing.assert_array_equal(cell_anchors([5, 7], [1.0], "corners"), [[-2, -2, 2, 2], [-4, -4, 4, 4]])


def test_grid_order_is_row_column_cell():
    cells = np.float32([[-1, -2, 1, 2], [0, 0, 3, 3]])
    first_row = [[-1, -2, 1, 2], [0, 0, 3, 3], [9, -2, 11, 2], [10, 0, 13, 3]]
    expected = [*first_row, [-1, 2, 1, 6], [0, 4, 3, 7], [9, 2, 11, 6], [10, 4, 13, 7]]
    np.testing.assert_array_equal(grid_anchors(cells, (2, 2), (4, 10)), expected)
    shifted = grid_anchors(cells, (2, 2), (4, 10), offset=0.5)
    np.testing.assert_array_equal(shifted, np.add(expected, [5, 2, 5, 2]))


def test_cell_anchors_equal_the_libraries(golden):
    arrays = golden("anchors")
    for level, size in enumerate(SIZES):
        np.testing.assert_array_equal(cell_anchors([size], RATIOS, "corners"), arrays[f"tv_cell_{level}"])
        np.testing.assert_allclose(
            cell_anchors([size], RATIOS), arrays[f"d2_cell_{level}"], atol=1e-4, rtol=0
        )


def test_several_sizes_per_level_equal_the_libraries(golden):
    arrays = golden("anchors")
    cells = cell_anchors(SIZES, RATIOS)
    np.testing.assert_allclose(cells, arrays["d2_c4_cell"], atol=1e-4, rtol=0)
    (level,) = pyramid_anchors([SIZES], RATIOS, [(5, 7)], [16])
    np.testing.assert_allclose(level, arrays["d2_c4_anchors_5x7"], atol=1e-4, rtol=0)
    # torchvision's order is ratio-major
    ratio_major = cell_anchors(SIZES, RATIOS, "corners").reshape(5, 3, 4).transpose(1, 0, 2).reshape(15, 4)
    np.testing.assert_array_equal(ratio_major, arrays["tv_c4_cell"])


def test_rounded_sides_equal_detectron():
    # the nine anchors listed in Faster R-CNN's first release, 16 pixels a cell, inclusive and counted from 1
    listed = np.float64([
        [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
        [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
        [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
    ])  # fmt: skip
    listed[:, :2] -= 1
    ratio_major = listed.reshape(3, 3, 4).transpose(1, 0, 2).reshape(9, 4)
    (level,) = pyramid_anchors([(128, 256, 512)], RATIOS, [(1, 1)], [16], "sides", offset=0.5)
    np.testing.assert_array_equal(level, ratio_major)


# all of 192 x 160, every 31st of 320 x 416; on both, torchvision's stride on P6 is not 64, as the grid was
# rounded up
PADDED = [("192x160", ""), ("320x416", "_every31")]


def every(levels, kept: str):
    return np.concatenate(levels)[:: int(kept.removeprefix("_every") or 1)]


@pytest.mark.parametrize("size, kept", PADDED)
def test_pyramid_equals_torchvision(golden, size, kept):
    arrays = golden("anchors")
    grids, strides = (list(map(tuple, arrays[f"{name}_{size}"].tolist())) for name in ("grid", "tv_strides"))
    height, width = map(int, size.split("x"))
    assert strides == [(height // rows, width // columns) for rows, columns in grids] and strides[-1] != (
        64,
        64,
    )
    levels = pyramid_anchors(SIZES, RATIOS, grids, strides, "corners")
    np.testing.assert_array_equal(every(levels, kept), arrays[f"tv_anchors_{size}{kept}"])


@pytest.mark.parametrize("size, kept", PADDED)
def test_pyramid_equals_detectron2(golden, size, kept):
    arrays = golden("anchors")
    grids = list(map(tuple, arrays[f"grid_{size}"].tolist()))
    cells = (cell_anchors([side], RATIOS) for side in SIZES)
    levels = every(pyramid_anchors(SIZES, RATIOS, grids, STRIDES), kept)
    np.testing.assert_allclose(levels, arrays[f"d2_anchors_{size}_off0.0{kept}"], atol=1e-4, rtol=0)
    centred = [
        grid_anchors(cell, grid, (stride, stride), 0.5)
        for cell, grid, stride in zip(cells, grids, STRIDES, strict=True)
    ]
    np.testing.assert_allclose(
        every(centred, kept), arrays[f"d2_anchors_{size}_off0.5{kept}"], atol=1e-4, rtol=0
    )


def test_fewer_strides_than_sizes_are_refused():
    with pytest.raises(ValueError, match="^each level must have sizes, a grid and a stride, not 5 sizes, 5 "):
        pyramid_anchors(SIZES, RATIOS, [(1, 1)] * 5, STRIDES[:4])


def test_other_roundings_are_refused(without_type_checks):
    with pytest.raises(ValueError, match="rounding must be \"none\", \"corners\" or \"sides\", not 'corner'"):
        cell_anchors([32], RATIOS, "corner")


@pytest.mark.parametrize("rounding, offset", [("none", 0.0), ("corners", 0.0), ("sides", 0.5)])
def test_best_iou_is_that_of_all_anchors(rounding, offset):
    """Small, large and long boxes, within the grid and beyond it, equal to the maximum over all anchors."""
    random = np.random.default_rng(0)
    corners = random.uniform(-20, 150, (200, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 90, (200, 2))], axis=1).astype(np.float32)
    cells = cell_anchors([16, 40], RATIOS, rounding, 8)
    expected = np.asarray(iou(boxes, grid_anchors(cells, (12, 15), (8, 10), offset))).max(axis=1)
    found = best_anchor_iou(boxes, cells, (12, 15), (8, 10), offset)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(best_anchor_iou(boxes[:0], cells, (12, 15), (8, 10))) == 0
