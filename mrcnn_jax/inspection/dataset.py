"""Report on a data set: what it holds, and how it fits an experiment."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_jax.config import Experiment
from mrcnn_jax.config.model import STRIDES
from mrcnn_jax.data.object_table import ObjectTable
from mrcnn_jax.data.statistics import overview
from mrcnn_jax.inspection.contents import DatasetContents, Split
from mrcnn_jax.inspection.dataset_pictures import draw_distributions, draw_pairs, draw_samples
from mrcnn_jax.inspection.duplicates import (
    Pair,
    look_alikes,
    make_thumbnails,
    repeated_files,
    same_files,
)
from mrcnn_jax.inspection.report import InspectionReport, Section
from mrcnn_jax.training.anchor_coverage import POOR, Resized, coverage, resize_boxes
from mrcnn_jax.training.data_checks import data_warnings

MAX_PAIRS = 50
"""Pairs of duplicates that are named."""
_SIZES_SHOWN = 8
_NOTABLE = 0.1  # share of objects without a good anchor that is a finding
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


def report_dataset(
    path: Path, contents: DatasetContents, experiment: Experiment, *, near: int = 0, pictures: int = 0
) -> InspectionReport:
    """Makes the report of a data set.

    Args:
        path: of the set, for the title.
        contents: of it.
        experiment: whose image sizes, anchors and ``data.max_objects`` the objects are held against.
        near: images of each split that are compared for near duplicates.
        pictures: images of each split's sheet; 0 draws no picture at all.
    """
    splits, info = contents.splits, contents.info
    tables = {name: split.table for name, split in splits.items()}
    resized = {name: resize_boxes(table, experiment) for name, table in tables.items()}
    training = "train" if "train" in splits else next(iter(splits))
    thumbnails = {name: make_thumbnails(split.records, near) for name, split in splits.items() if near}
    pairs = same_files(tables), look_alikes(thumbnails, tables)
    compared = {name: len(each.images) for name, each in thumbnails.items()}
    data = {
        "path": str(path), "experiment": experiment.name, "training": training,
        "splits": {name: _describe(split, resized[name], experiment) for name, split in splits.items()},
        "classes": _classes(contents), "duplicates": _name_pairs(pairs, splits, compared),
        "notes": list(contents.notes),
    }  # fmt: skip
    statistics = {name: split.statistics for name, split in splits.items()}
    findings = [*data_warnings(experiment, info, statistics, training), *_findings(data, experiment)]
    sections = [
        Section("Images and objects", ("", *splits), _overview(contents, data)),
        Section("Classes", ("id", "class", *(f"{name} {kind}" for name in splits for kind in
                            ("objects", "images"))), _class_rows(data), left=(1,)),
        Section("Distributions", ("", "split", "least", *(f"{q:.0%}" for q in _QUANTILES[1:-1]), "most"),
                _distribution_rows(data), left=(0, 1), note="Sides are square roots of the areas of boxes."),
        _anchor_section(data, experiment),
        Section("Most frequent image sizes", ("width x height", *splits), _size_rows(tables)),
        _duplicate_section(data),
        Section("Notes of the reader", ("",), [(note,) for note in contents.notes]),
    ]  # fmt: skip
    if pictures:
        figures = draw_distributions(info, tables, resized, training, experiment.data.max_objects)
        sections.insert(1, Section("Figures", pictures=figures))
        sections += draw_samples(splits, pictures)
        sections.append(Section("Look alike", pictures=draw_pairs(splits, pairs[1])))
    kind = "prepared data set" if contents.prepared else "not prepared yet"
    counts = ", ".join(f"{name}: {len(table.counts):,} images" for name, table in tables.items())
    subtitle = f"{path}: {kind}; {counts}; compared with the experiment {experiment.name}."
    return InspectionReport(f"Data set {info.name}", subtitle, findings, sections, {"dataset": data})


def _describe(split: Split, resized: Resized, experiment: Experiment) -> dict[str, Any]:
    """Returns the numbers of a split."""
    table, sides = split.table, resized.sides
    limits = np.tile(table.sizes[:, ::-1], 2)[table.images]
    beyond = np.abs(table.boxes - table.boxes.clip(0, limits)).max(axis=1, initial=0) > 1
    width, height = (table.boxes[:, 2:] - table.boxes[:, :2]).astype(np.float64).T
    usable = ~table.crowd & (width > 0) & (height > 0)
    cell = min(STRIDES[experiment.model.backbone.features])
    excess = (table.counts - experiment.data.max_objects).clip(0)
    return split.statistics | {
        "boxes_beyond_images": int(beyond.sum()),
        "tiny": int((sides[usable] < cell).sum()),
        "repeated_images": repeated_files(table),
        "images_beyond_max_objects": int((excess > 0).sum()),
        "objects_beyond_max_objects": int(excess.sum()),
        "quantiles": {
            "side, pixels": _quantiles(np.sqrt(width * height)[usable]),
            "side after the resize, pixels": _quantiles(sides[usable]),
            "height / width": _quantiles(height[usable] / width[usable]),
            "objects per image": _quantiles(table.counts),
        },
        "anchors": coverage(resized, table),
    }  # fmt: skip


def _quantiles(values: np.ndarray) -> list[float] | None:
    return [round(float(value), 2) for value in np.quantile(values, _QUANTILES)] if len(values) else None


def _classes(contents: DatasetContents) -> list[dict[str, Any]]:
    """Returns objects and images of each class in each split, the class with the most objects first."""
    info, counts = contents.info, {}
    for name, split in contents.splits.items():
        classes = split.table.classes
        shown = np.unique(split.table.images * info.num_classes + classes) % max(1, info.num_classes)
        counts[name] = [np.bincount(each, minlength=info.num_classes) for each in (classes, shown)]
    total = np.sum([objects for objects, _ in counts.values()], axis=0)
    return [
        {
            "id": info.category_ids[index], "class": info.category_names[index],
            "splits": {name: {"objects": int(objects[index]), "images": int(images[index])}
                       for name, (objects, images) in counts.items()},
        }
        for index in np.argsort(-total, kind="stable")
    ]  # fmt: skip


def _name_pairs(
    pairs: tuple[list[Pair], list[Pair]], splits: Mapping[str, Split], compared: dict[str, int]
) -> dict[str, Any]:
    """Returns the numbers of duplicates between splits, and the first with the names of their files."""
    found: dict[str, Any] = {"compared": compared}
    for kind, listed in zip(("same", "alike"), pairs, strict=True):
        by_splits = Counter(pair.splits for pair in listed)
        found[kind] = {
            "between": [{"splits": list(names), "images": number} for names, number in by_splits.items()],
            "first": [
                [{"split": name, "file": splits[name].records[index].file_name}
                 for name, index in zip(pair.splits, pair.images, strict=True)]
                + [pair.correlation]
                for pair in listed[:MAX_PAIRS]
            ],
        }  # fmt: skip
    return found


def _findings(data: dict[str, Any], experiment: Experiment) -> Iterator[str]:
    if len(data["splits"]) == 1:
        yield "there is no validation split, so that a training cannot be evaluated"
    for name, split in data["splits"].items():
        usable = sum(row["objects"] for row in split["anchors"])
        if split["tiny"]:
            cell = min(STRIDES[experiment.model.backbone.features])
            share = f"{split['tiny']:,} of {usable:,} objects of the split '{name}'"
            yield f"{share} are smaller than a cell of the finest feature map ({cell} pixels) once resized"
        if repeated := split["repeated_images"]:
            yield f"{repeated:,} images of the split '{name}' are there more than once"
    rows = data["splits"][data["training"]]["anchors"]
    usable, poor = (sum(row[key] for row in rows) for key in ("objects", "poor"))
    if poor > _NOTABLE * usable:
        worst = max(rows, key=lambda row: row["poor"])
        where = f"{worst['poor']:,} of them {_range(worst)} pixels a side after the resize"
        advice = "model.rpn.anchor_sizes, model.rpn.aspect_ratios and data.short_edge change that"
        yield (f"{poor:,} of {usable:,} objects of the split '{data['training']}' overlap no anchor with an "
               f"IoU of {POOR}, {where}: {advice}")  # fmt: skip
    for kind, verb in (("same", "are also in"), ("alike", "look like images of")):
        for entry in data["duplicates"][kind]["between"]:
            one, other = entry["splits"]
            yield (f"{entry['images']:,} images of the split '{other}' {verb} '{one}': scores on them do "
                   "not tell how well other images are understood")  # fmt: skip


def _overview(contents: DatasetContents, data: dict[str, Any]) -> list[tuple[Any, ...]]:
    described = data["splits"]
    rows = overview(contents.info, described)
    more = {
        "boxes beyond the image": "boxes_beyond_images", "smaller than a cell after the resize": "tiny",
        "images with more than data.max_objects": "images_beyond_max_objects",
        "objects beyond data.max_objects": "objects_beyond_max_objects",
        "images repeated": "repeated_images",
    }  # fmt: skip
    rows |= {title: [f"{split[key]:,}" for split in described.values()] for title, key in more.items()}
    return [(title, *numbers) for title, numbers in rows.items()]


def _class_rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (str(row["id"]), row["class"], *(number for split in row["splits"].values() for number in
                                         (split["objects"], split["images"])))
        for row in data["classes"]
    ]  # fmt: skip


def _distribution_rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    kinds = next(iter(data["splits"].values()))["quantiles"]
    return [
        (kind, name, *(f"{value:,g}" for value in values))
        for kind in kinds
        for name, split in data["splits"].items()
        if (values := split["quantiles"][kind])
    ]


def _anchor_section(data: dict[str, Any], experiment: Experiment) -> Section:
    rpn, name = experiment.model.rpn, data["training"]
    rows = [
        (_range(row), row["objects"], "–" if row["median"] is None else f"{row['median']:.2f}", row["poor"],
         row["fair"])
        for row in data["splits"][name]["anchors"]
        if row["objects"]
    ]  # fmt: skip
    sizes, ratios = (" ".join(f"{value:g}" for value in values) for values in
                     (rpn.anchor_sizes, rpn.aspect_ratios))  # fmt: skip
    header = "side after the resize", "objects", "median of best IoU", "below 0.5", "0.5 to 0.7"
    note = (f"Objects of the split '{name}' against all anchors of {experiment.name}: sides {sizes}, "
            f"height / width {ratios}. An object's best anchor learns it in any case; below "
            f"{rpn.foreground_iou:g} it is the only one.")  # fmt: skip
    return Section("Overlap with anchors", header, rows, note)


def _range(row: dict[str, Any]) -> str:
    return f"from {row['from']:g}" if row["to"] is None else f"{row['from']:g} to {row['to']:g}"


def _size_rows(tables: Mapping[str, ObjectTable]) -> list[tuple[Any, ...]]:
    counts = {name: Counter(map(tuple, table.sizes.tolist())) for name, table in tables.items()}
    total = sum(counts.values(), Counter())
    rows = [
        (f"{width} x {height}", *(count[height, width] for count in counts.values()))
        for (height, width), _ in total.most_common(_SIZES_SHOWN)
    ]
    if len(total) > _SIZES_SHOWN:
        shown = [size for size, _ in total.most_common(_SIZES_SHOWN)]
        rest = [sum(count.values()) - sum(count[size] for size in shown) for count in counts.values()]
        rows.append((f"{len(total) - _SIZES_SHOWN:,} more", *rest))
    return rows


def _duplicate_section(data: dict[str, Any]) -> Section:
    found, rows = data["duplicates"], []
    for kind, text in (("same", "the same file"), ("alike", "looks alike")):
        for one, other, correlation in found[kind]["first"]:
            files = [f"{image['split']}: {image['file']}" for image in (one, other)]
            rows.append((text, *files, f"{correlation:.3f}"))
    compared = ", ".join(f"{number:,} of {name}" for name, number in found["compared"].items())
    note = f"Images compared for resemblance: {compared}." if len(found["compared"]) > 1 else ""
    return Section("Images in two splits", ("", "one", "other", "correlation"), rows, note, left=(0, 1, 2))
