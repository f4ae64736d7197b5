"""Anchors: literal cells and centres, and the two libraries' own."""

import numpy as np
import pytest

from mrcnn_jax.ops import cell_anchors, grid_anchors, pyramid_anchors

SIZES, RATIOS, STRIDES = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0), (4, 8, 16, 32, 64)


def test_cells_of_a_square_of_32_pixels():
    half = 16 * np.sqrt(2)
    expected = [[-half, -half / 2, half, half / 2], [-16, -16, 16, 16], [-half / 2, -half, half / 2, half]]
    cells = cell_anchors([32], RATIOS)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells, expected, rtol=1e-6)
    np.testing.assert_array_equal(cell_anchors([32], RATIOS, "corners"), [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])


def test_rounding_takes_halves_to_even():
    np.testing.assert_array_equal(cell_anchors([5, 7], [1.0], "corners"), [[-2, -2, 2, 2], [-4, -4, 4, 4]])


def test_grid_runs_over_columns_first_then_rows_and_cells_are_innermost():
    cells = np.float32([[-1, -2, 1, 2], [0, 0, 3, 3]])
    expected = [[-1, -2, 1, 2], [0, 0, 3, 3], [9, -2, 11, 2], [10, 0, 13, 3], [-1, 2, 1, 6], [0, 4, 3, 7], [9, 2, 11, 6], [10, 4, 13, 7]]
    np.testing.assert_array_equal(grid_anchors(cells, (2, 2), (4, 10)), expected)
    np.testing.assert_array_equal(grid_anchors(cells, (2, 2), (4, 10), offset=0.5), np.add(expected, [5, 2, 5, 2]))


def test_cells_equal_the_libraries(golden):
    arrays = golden("anchors")
    for level, size in enumerate(SIZES):
        np.testing.assert_array_equal(cell_anchors([size], RATIOS, "corners"), arrays[f"tv_cell_{level}"])
        np.testing.assert_allclose(cell_anchors([size], RATIOS), arrays[f"d2_cell_{level}"], atol=1e-4, rtol=0)


def test_several_sizes_on_one_level(golden):
    arrays = golden("anchors")
    cells = cell_anchors(SIZES, RATIOS)
    np.testing.assert_allclose(cells, arrays["d2_c4_cell"], atol=1e-4, rtol=0)
    (level,) = pyramid_anchors([SIZES], RATIOS, [(5, 7)], [16])
    np.testing.assert_allclose(level, arrays["d2_c4_anchors_5x7"], atol=1e-4, rtol=0)
    # torchvision goes through the ratios first
    ratio_major = cell_anchors(SIZES, RATIOS, "corners").reshape(5, 3, 4).transpose(1, 0, 2).reshape(15, 4)
    np.testing.assert_array_equal(ratio_major, arrays["tv_c4_cell"])


def test_detectrons_rounding():
    # the nine anchors that Faster R-CNN's first release lists, 16 pixels a cell; there the last pixel belongs to a box, and they count from 1
    listed = np.float64([
        [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
        [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
        [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
    ])  # fmt: skip
    listed[:, :2] -= 1
    ratio_major = listed.reshape(3, 3, 4).transpose(1, 0, 2).reshape(9, 4)
    (level,) = pyramid_anchors([(128, 256, 512)], RATIOS, [(1, 1)], [16], "sides", offset=0.5)
    np.testing.assert_array_equal(level, ratio_major)


# 192 x 160 whole, of 320 x 416 every 31st; on both, torchvision's stride on P6 is not 64 along x, where the grid was rounded up
PADDED = [("192x160", ""), ("320x416", "_every31")]


def every(levels, kept: str):
    return np.concatenate(levels)[:: int(kept.removeprefix("_every") or 1)]


@pytest.mark.parametrize("size, kept", PADDED)
def test_pyramid_equals_torchvision(golden, size, kept):
    arrays = golden("anchors")
    grids, strides = (list(map(tuple, arrays[f"{name}_{size}"])) for name in ("grid", "tv_strides"))
    height, width = map(int, size.split("x"))
    assert strides == [(height // rows, width // columns) for rows, columns in grids] and strides[-1] != (64, 64)
    levels = pyramid_anchors(SIZES, RATIOS, grids, strides, "corners")
    np.testing.assert_array_equal(every(levels, kept), arrays[f"tv_anchors_{size}{kept}"])


@pytest.mark.parametrize("size, kept", PADDED)
def test_pyramid_equals_detectron2(golden, size, kept):
    arrays = golden("anchors")
    grids = list(map(tuple, arrays[f"grid_{size}"]))
    np.testing.assert_allclose(every(pyramid_anchors(SIZES, RATIOS, grids, STRIDES), kept), arrays[f"d2_anchors_{size}_off0.0{kept}"], atol=1e-4, rtol=0)
    halfway = [grid_anchors(cell_anchors([side], RATIOS), grid, (stride, stride), 0.5) for side, grid, stride in zip(SIZES, grids, STRIDES, strict=True)]
    np.testing.assert_allclose(every(halfway, kept), arrays[f"d2_anchors_{size}_off0.5{kept}"], atol=1e-4, rtol=0)


def test_pyramid_wants_as_many_strides_as_sizes():
    with pytest.raises(ValueError, match="shorter|longer"):
        pyramid_anchors(SIZES, RATIOS, [(1, 1)] * 5, STRIDES[:4])
