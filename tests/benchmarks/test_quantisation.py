"""Places where RoI operations read, worked out by hand or bounded; attainable masks; the program."""

import itertools
import json

import numpy as np
import pytest

from benchmarks._program import RESULTS
from benchmarks.quantisation import measure as quantisation
from benchmarks.quantisation.measure import (
    FINE,
    OPERATIONS,
    SIZES,
    STRIDES,
    bin_centres,
    covered_shares,
    mask_iou,
    read_places,
    regions,
    silhouettes,
)
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.inference.paste import paste_masks

BINS = 7
BOXES = regions(20, seed=3).reshape(-1, 4)
SIDES = (BOXES[:, 2:] - BOXES[:, :2]).min(axis=1)  # the shorter one
CELLS = 10
OBJECTS = silhouettes(7, CELLS * FINE, seed=4)


@pytest.fixture(scope="module")
def displacement():
    """``displacement(operation, stride)`` of each bin, in cells, for RoIs at least a cell wide and high."""
    centres = bin_centres(BOXES, BINS)
    displacements = {operation: read_places(operation, BOXES, BINS) - centres for operation in OPERATIONS}
    return lambda operation, stride: displacements[operation][STRIDES.index(stride)][SIDES >= stride] / stride


# ---- displacement


def test_regions_have_their_sizes_and_lie_inside_the_image():
    boxes = regions(50, seed=0)
    sides = boxes[..., 2:] - boxes[..., :2]
    expected = np.broadcast_to(np.array(SIZES)[:, None], (len(SIZES), 50))
    np.testing.assert_allclose(np.sqrt(sides.prod(axis=-1)), expected, rtol=1e-3)
    aspect = sides[..., 0] / sides[..., 1]
    assert 0.499 < aspect.min() < 0.6 and 1.8 < aspect.max() < 2.001
    assert boxes.min() >= 2 * max(STRIDES) and boxes.max() <= quantisation.IMAGE - 2 * max(STRIDES)


def test_bin_centres_of_a_box():
    centres = bin_centres(np.float32([[10, 20, 18, 60]]), 4)
    np.testing.assert_array_equal(centres[0, 1], [[11, 35], [13, 35], [15, 35], [17, 35]])
    np.testing.assert_array_equal(centres[0, :, 3], [[17, 25], [17, 35], [17, 45], [17, 55]])


@pytest.mark.parametrize("stride", STRIDES)
def test_roi_align_reads_bins_at_their_centres(displacement, stride):
    """Bilinear interpolation is exact on a linear field, and the samples' mean is the bin's centre."""
    assert np.abs(displacement("RoIAlign", stride)).max() * stride < 5e-4
    # also where RoIs are smaller than a cell
    places = read_places("RoIAlign", BOXES, BINS)[STRIDES.index(stride)]
    np.testing.assert_allclose(places, bin_centres(BOXES, BINS), rtol=0, atol=5e-4)


@pytest.mark.parametrize("stride", STRIDES)
def test_roi_align_without_half_pixel_is_off_by_half_a_cell(displacement, stride):
    found = displacement("RoIAlign, aligned=False", stride)
    np.testing.assert_allclose(found, 0.5, rtol=0, atol=1e-4)
    distances = np.linalg.norm(found * stride, axis=-1)
    np.testing.assert_allclose(distances, stride / 2 * np.sqrt(2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("stride", STRIDES)
def test_roi_warp_is_off_by_a_rounding_and_half_a_cell(displacement, stride):
    """Each corner moves by up to half a cell when it is rounded and by half a cell when it is read."""
    found = displacement("RoIWarp", stride)
    assert -1e-4 <= found.min() < 0.15 and 0.85 < found.max() <= 1 + 1e-4


@pytest.mark.parametrize("stride", STRIDES)
def test_roi_pool_is_off_by_two_roundings_and_a_cell(displacement, stride):
    """The first corner moves by up to half a cell, the last one by up to half a cell beyond the cell that it
    includes.

    The ends of a bin are rounded outwards by less than a cell: its centre moves by less than half a cell
    more.
    """
    found = displacement("RoIPool", stride)
    assert -1 < found.min() < -0.4 and 1.4 < found.max() < 2


def test_roi_pool_places_equal_those_worked_out_by_hand():
    """At stride 16 columns 4 to 7 and rows 4 to 6, as 70 / 16 = 4.4, 118 / 16 = 7.4, 102 / 16 = 6.4.

    A bin has two columns; the middle row is in both rows of bins.
    """
    places = read_places("RoIPool", np.float32([[70, 70, 118, 102]]), 2)[STRIDES.index(16), 0]
    np.testing.assert_array_equal(places, [[[80, 80], [112, 80]], [[80, 96], [112, 96]]])


def test_roi_warp_places_equal_those_worked_out_by_hand():
    """At stride 16 corners are rounded to cells 4 and 7, 4 and 6; x = 4 is read at the cell's centre, 72."""
    places = read_places("RoIWarp", np.float32([[70, 70, 118, 102]]), 2)[STRIDES.index(16), 0]
    np.testing.assert_allclose(places, [[[84, 80], [108, 80]], [[84, 96], [108, 96]]], rtol=0, atol=1e-4)


# ---- attainable masks


def test_silhouettes_fill_their_rasters():
    for side in (OBJECTS[:, 0], OBJECTS[:, -1], OBJECTS[:, :, 0], OBJECTS[:, :, -1]):
        assert side.any(axis=1).all()
    assert 0.15 < OBJECTS.mean(axis=(1, 2)).min() and OBJECTS.mean(axis=(1, 2)).max() < 0.95
    middle = CELLS * FINE // 2
    assert OBJECTS[0, middle, middle] and not OBJECTS[4, middle, middle]  # a disk and a ring


def attainable_masks(displacement):
    return quantisation.attainable_masks(covered_shares(OBJECTS), displacement)


def shares(objects):
    """How much of each mask cell an object covers."""
    return objects.reshape(len(objects), CELLS, FINE, CELLS, FINE).mean(axis=(2, 4))


def pasted(masks):
    boxes = np.tile(np.float32([0, 0, 1, 1]) * CELLS * FINE, (len(masks), 1))
    return paste_masks(masks, boxes, CELLS * FINE, CELLS * FINE)


def test_masks_without_displacement_are_limited_by_the_grid():
    reached = attainable_masks(np.zeros((len(OBJECTS), CELLS // 2, CELLS // 2, 2)))
    np.testing.assert_array_equal(reached, pasted(shares(OBJECTS)))
    assert 0.85 < mask_iou(reached, OBJECTS).min() < 1


@pytest.mark.parametrize("axis", [0, 1])
def test_displacement_of_a_mask_cell_gives_the_next_cell(axis):
    offset = np.zeros((len(OBJECTS), CELLS // 2, CELLS // 2, 2))
    offset[..., axis] = 1 / CELLS
    next_cells = np.zeros((len(OBJECTS), CELLS, CELLS))
    if axis == 0:
        next_cells[:, :, :-1] = shares(OBJECTS)[:, :, 1:]
    else:
        next_cells[:, :-1] = shares(OBJECTS)[:, 1:]
    np.testing.assert_array_equal(attainable_masks(offset), pasted(next_cells))


def test_far_displacement_gives_empty_masks():
    assert not attainable_masks(np.full((len(OBJECTS), CELLS // 2, CELLS // 2, 2), 1.5)).any()


def test_mask_iou_of_known_masks():
    one, other = np.zeros((2, 2, 4, 4), bool)
    one[:, :2], other[0, 1:3], other[1, :2] = True, True, True
    np.testing.assert_allclose(mask_iou(one, other), [1 / 3, 1])


# ---- the program


@pytest.fixture
def program(capsys, tmp_path, monkeypatch):
    """``program(*arguments)``: exit status, stdout, stderr, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[int, str, str]:
        try:
            status = quantisation.main(list(arguments))
        except SystemExit as exit:  # how the argument parser ends
            status = exit.code
        return status, *capsys.readouterr()

    return call


def test_program_writes_measurements_page_and_pictures(program, tmp_path):
    status, out, _ = program("--rois", "3", "--bins", "4", "--out", "new/cost.json")
    names = ["cost.json", "COST.md", "cost.png", "cost_example.png"]
    assert status == 0 and out == f"Wrote {', '.join(f'new/{name}' for name in names)}.\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*names, "new"])

    result = json.loads((tmp_path / "new/cost.json").read_text())
    assert result["command"] == "python -m benchmarks.quantisation.measure --rois 3 --bins 4"
    rows = {(row["operation"], row["stride"], row["size"]): row for row in result["rows"]}
    assert set(rows) == set(itertools.product(OPERATIONS, STRIDES, SIZES))
    for (operation, _, _), row in rows.items():
        assert row["mean"] <= row["largest"] and row["percentile_95"] <= row["largest"]
        if operation == "RoIAlign":
            assert row["as_read"] == row["constant_undone"] == result["ceiling"]
    half = rows["RoIAlign, aligned=False", 16, 128]
    assert half["mean"] == half["largest"] == 11.31 and half["rest_rms"] < 1e-3
    assert half["constant_undone"] == result["ceiling"] and half["as_read"]["iou"] < result["ceiling"]["iou"]
    coarse, fine = (rows["RoIPool", stride, 64]["constant_undone"]["iou"] for stride in (32, 4))
    assert coarse < fine < result["ceiling"]["iou"]

    tables = (tmp_path / "new/COST.md").read_text()
    assert tables.count("| RoIPool | 32 |") == 4 and "(cost.png)" in tables and "(cost_example.png)" in tables
    row = rows["RoIPool", 8, 32]
    assert f"| {row['mean']:.1f} ({row['percentile_95']:.1f}) |" in tables
    assert f"| {rows['RoIWarp', 8, 32]['as_read']['iou']:.2f} |" in tables
    for name in names[2:]:
        picture = read_image(tmp_path / "new" / name)
        assert min(picture.shape[:2]) > 500 and picture.std() > 10


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--rois", "0"), "--rois is 0, but must be 1 or more"),
        (("--bins", "-1"), "--bins is -1, but must be 1 or more"),
        (("--seed", "-1"), "--seed is -1, but must be 0 or more"),
        (("--out", "cost.txt"), "--out is cost.txt, but must end in .json"),
    ],
)
def test_options_out_of_range_are_refused(program, tmp_path, arguments, sentence):
    assert program(*arguments) == (2, "", f"python -m benchmarks.quantisation.measure: {sentence}\n")
    assert not list(tmp_path.iterdir())


def test_published_page_is_made_from_the_measurements():
    result = json.loads((RESULTS / "quantisation.json").read_text())
    page = quantisation.report.markdown(result, "quantisation.png", "quantisation_example.png")
    assert (RESULTS / "QUANTISATION.md").read_text() == page


def test_unknown_options_are_refused(program):
    status, _, err = program("--roi", "5")
    assert status == 2 and "--roi" in err and "Traceback" not in err
    status, out, _ = program("--help")
    assert status == 0 and all(option in out for option in ("--rois", "--bins", "--seed", "--out"))
