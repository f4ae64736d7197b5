"""Pictures of a data set's report: distributions, sheets of annotated images, images that look alike."""

from collections.abc import Mapping, Sequence

import numpy as np

from mrcnn_jax.data.object_table import ObjectTable
from mrcnn_jax.data.transforms import decode_record
from mrcnn_jax.evaluation.report.html import shortened
from mrcnn_jax.inspection.contents import Split
from mrcnn_jax.inspection.duplicates import Pair
from mrcnn_jax.inspection.report import Section, Shown
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training.anchor_coverage import Resized
from mrcnn_jax.visualize.analysis_plots import encode_png
from mrcnn_jax.visualize.data_plots import plot_classes, plot_counts, plot_overlaps, plot_shares
from mrcnn_jax.visualize.files import jpeg_within, reduced
from mrcnn_jax.visualize.sheets import contact_sheet, ground_truth_sheet

MAX_PAIRS = 12
"""Pairs of images that look alike, of which pictures are drawn."""
_SHEET_SIDE, _SHEET_BYTES, _PAIR_SIDE, _PAIR_BYTES = 1800, 900_000, 400, 60_000


def draw_distributions(
    info: DatasetInfo, tables: Mapping[str, ObjectTable], resized: Mapping[str, Resized], training: str,
    max_objects: int,
) -> list[Shown]:  # fmt: skip
    """Draws sizes, aspect ratios, objects per image, classes and the overlap with anchors."""
    sides, after, ratios = {}, {}, {}
    for name, table in tables.items():
        width, height = (table.boxes[:, 2:] - table.boxes[:, :2]).T
        usable = ~table.crowd & (width > 0) & (height > 0)
        sides[name], ratios[name] = np.sqrt(width * height)[usable], height[usable] / width[usable]
        after[name] = resized[name].sides[usable]
    counts = {name: table.counts for name, table in tables.items()}
    objects = np.sum([np.bincount(t.classes, minlength=info.num_classes) for t in tables.values()], axis=0)
    counted = ~tables[training].crowd
    overlaps = resized[training].sides[counted], resized[training].best[counted]
    figures = {
        "Sides of objects in the stored image (dotted: COCO's bounds 32 and 96)":
            plot_shares(sides, "side, pixels", (2, 2048), (32, 96)),
        "Sides of objects after the resize": plot_shares(after, "side after the resize, pixels", (2, 2048)),
        "Aspect ratios of objects": plot_shares(ratios, "height / width", (1 / 16, 16), (0.5, 1, 2)),
        "Objects per image": plot_counts(counts, max_objects),
        f"Best IoU of the objects of {training} with an anchor": plot_overlaps(*overlaps),
        "Objects of each class, in all splits": plot_classes(info.category_names, objects),
    }  # fmt: skip
    return [Shown(encode_png(figure), "png", caption) for caption, figure in figures.items()]


def draw_samples(splits: Mapping[str, Split], count: int) -> list[Section]:
    """Draws images of each split with their objects."""
    sections = []
    for name, split in splits.items():
        sheet = reduced(ground_truth_sheet(split.records, count), _SHEET_SIDE)
        shown = Shown(jpeg_within(sheet, _SHEET_BYTES), "jpeg", f"Images spread evenly over {name}")
        sections.append(Section(f"Samples of {name}", pictures=[shown], wide=True))
    return sections


def draw_pairs(splits: Mapping[str, Split], pairs: Sequence[Pair]) -> list[Shown]:
    """Draws images of two splits side by side."""
    found = []
    for pair in pairs[:MAX_PAIRS]:
        records = [splits[name].records[index] for name, index in zip(pair.splits, pair.images, strict=True)]
        both = [reduced(decode_record(record), _PAIR_SIDE) for record in records]
        names = [f"{name}: {shortened(record.file_name)}" for name, record in
                 zip(pair.splits, records, strict=True)]  # fmt: skip
        caption = f"{' and '.join(names)}; correlation {pair.correlation:.3f}"
        found.append(Shown(jpeg_within(contact_sheet(both, 2, pad=2), _PAIR_BYTES), "jpeg", caption))
    return found
