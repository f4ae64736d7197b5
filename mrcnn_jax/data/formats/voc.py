"""Reader of Pascal VOC (Everingham et al. 2010): boxes in XML files, masks in SegmentationObject.

    Annotations/1.xml           objects and their boxes, or the XML files beside the images
    JPEGImages/1.jpg
    SegmentationObject/1.png    a pixel n is of the n-th object in the XML file; 0 is background, 255 unknown
    ImageSets/Main/train.txt    names of each split; ImageSets/Segmentation where there are masks

An object that is ``difficult`` is ignored by VOC's evaluation and becomes a crowd region, which has the same
effect.

References:
    http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.coco_numbers import to_number, to_whole
from mrcnn_jax.data.formats.label_images import read_label_image, split_values
from mrcnn_jax.data.formats.listing import Collector, common_folder, list_by_name
from mrcnn_jax.data.formats.sibling_files import SiblingFiles
from mrcnn_jax.data.formats.split_names import SPLITS, group_by_folder
from mrcnn_jax.data.formats.xml_elements import read_elements, root_tag
from mrcnn_jax.errors import InputError

NAME = "Pascal VOC"
LOOKS_FOR = "Pascal VOC: Annotations/*.xml"
_LISTS = {"train": "train", "val": "validation", "test": "test", "trainval": "train"}
_UNKNOWN = 255
_IMAGES = ("JPEGImages", "images", "Images")
_FEW_FRACTIONS = 0.01  # share of the boxes up to which fractions are slips of the annotators
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognises(folder: Path, files: dict[str, list[Path]]) -> bool:
    """Returns whether files, by suffix, hold annotations of Pascal VOC."""
    return any(root_tag(path) == "annotation" for path in files.get(".xml", [])[:50])


def read(folder: Path, files: dict[str, list[Path]]) -> dict[str, CocoSplit]:
    """Reads the splits of a data set, determined by ImageSets or by the names of folders.

    Args:
        folder: its root.
        files: in and below it, by suffix.

    Raises:
        InputError: a file is not well-formed, or none is in a split.
    """
    paths = [path for path in files[".xml"] if root_tag(path) in ("annotation", None)]
    siblings, warnings = SiblingFiles(), list[str]()
    splits = _split(folder, paths, warnings)
    entries = {split: [_Entry(path, siblings) for path in found] for split, found in splits.items()}
    zero_based = _count_from_zero([entry for found in entries.values() for entry in found], warnings)
    folders = {split: common_folder(entry.image for entry in found) for split, found in entries.items()}
    collectors = {split: Collector(NAME, folder) for split in entries}
    next(iter(collectors.values())).warnings += warnings
    for split, found in entries.items():
        for entry in found:
            entry.collect(collectors[split], folders[split], zero_based)
    listings = list_by_name(collectors)
    return {split: CocoSplit(folders[split], folder, None, listing) for split, listing in listings.items()}


def _split(folder: Path, paths: list[Path], warnings: list[str]) -> dict[str, list[Path]]:
    """Groups annotation files by the lists of ImageSets, or else by folders."""
    groups: dict[str, list[Path]] = {split: [] for split in SPLITS}
    lists = {root: _read_lists(root) for root in {path.parent.parent for path in paths}}
    if not any(lists.values()):
        return group_by_folder(folder, paths)
    unused = []
    for path in paths:
        split = lists[path.parent.parent].get(path.stem)
        groups[split].append(path) if split else unused.append(path)
    if unused:
        count = f"{len(unused):,} annotation files are in no list of ImageSets ({unused[0].name})"
        warnings.append(f"{count}: they are not used")
    if not groups["train"]:
        raise InputError(f"{folder}: no annotation file is listed in ImageSets/*/train.txt or trainval.txt")
    return {split: found for split, found in groups.items() if found}


def _read_lists(root: Path) -> dict[str, str]:
    """Returns the split of each name in the lists of ImageSets, those for masks if there are any."""
    masks = (root / "SegmentationObject").is_dir()
    for kind in ("Segmentation", "Main") if masks else ("Main", ""):
        folder, found = root / "ImageSets" / kind, {}
        for name in ("trainval", "test", "val", "train"):
            path = folder / f"{name}.txt"
            lines = path.read_text("utf-8-sig", "replace").splitlines() if path.is_file() else []
            found |= {line.strip(): _LISTS[name] for line in lines if line.strip()}
        if found:
            return found
    return {}


class _Entry:
    """An annotation file, read."""

    def __init__(self, path: Path, siblings: SiblingFiles):
        self.path = path
        root = next(read_elements(path, "annotation"), None)
        if root is None:
            raise InputError(f"{path} is no annotation file of Pascal VOC: it has no element annotation")
        self.objects = [_read_object(one) for one in root.findall("object")]
        size = [to_whole(_text(root, f"size/{side}")) for side in ("height", "width")]
        self.size = (size[0], size[1]) if all(size) else None
        self.image = self._find_image(_text(root, "filename"), siblings)
        self.masks = siblings.find(path.parent.parent / "SegmentationObject", f"{path.stem}.png")

    def _find_image(self, name: str, siblings: SiblingFiles) -> Path:
        """Returns the image, which may be missing; of the same name where ``filename`` has none."""
        name = name.replace("\\", "/").split("/")[-1]
        folders = [self.path.parent.parent / folder for folder in _IMAGES] + [self.path.parent]
        found = (siblings.find(folder, name) for folder in folders if name)
        stems = (siblings.find_image(folder, self.path.stem) for folder in folders)
        known = next((folder for folder in folders if folder.is_dir()), folders[-1])
        return next(filter(None, (*found, *stems)), known / (name or f"{self.path.stem}.jpg"))

    def collect(self, collector: Collector, folder: Path, zero_based: bool) -> None:
        """Adds the image and its objects."""
        name = self.image.absolute().relative_to(folder).as_posix()
        if name in collector:
            collector.warnings.append(f"{self.path} describes the image {name} once more: it is not used")
            return
        collector.add_image(name, self.size)
        masks = self._read_masks(collector)
        for number, (class_, corners, polygons, difficult) in enumerate(self.objects, start=1):
            place = f"{self.path.name}, object {number}"
            if not class_:
                collector.leave_out(name, "object without a name", place)
                continue
            fields: dict[str, Any] = {"iscrowd": int(difficult)}
            if corners:
                x1, y1, x2, y2 = corners
                x1, y1 = (x1, y1) if zero_based else (x1 - 1, y1 - 1)
                fields["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if number in masks or polygons:
                fields["segmentation"] = masks.get(number, [polygons])
            collector.add_object(name, class_, place, **fields)
        for value in masks:
            if value > len(self.objects):
                place = f"{self.path.name}, object {value}"
                collector.leave_out(name, "mask without an object in the XML file", place)

    def _read_masks(self, collector: Collector) -> dict[int, dict[str, Any]]:
        if self.masks is None:
            return {}
        try:
            return split_values(read_label_image(self.masks), background=(0, _UNKNOWN))
        except InputError as error:
            collector.warnings.append(f"{self.masks}: {error}: its objects have no masks")
            return {}


def _read_object(element: Element) -> tuple[str, list[float] | None, list[float], bool]:
    """Returns the class of an object, the corners of its box, its polygon and whether it is difficult."""
    corners = [to_number(_text(element, f"bndbox/{corner}")) for corner in _CORNERS]
    polygon = element.find("polygon")
    leaves = [one for one in polygon.iter() if one.tag[0] in "xy"] if polygon is not None else []
    points = [to_number(one.text) for one in leaves]
    known = None if None in corners else corners
    difficult = _text(element, "difficult").lower() in ("1", "true")
    return _text(element, "name"), known, points if None not in points else [], difficult


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _count_from_zero(entries: list[_Entry], warnings: list[str]) -> bool:
    """Returns whether boxes have continuous corners from 0, in place of VOC's pixels from 1.

    A first pixel of 0 is not possible in VOC's; other tools write it, and fractions, of which VOC has a few.
    """
    corners = [corners for entry in entries for _, corners, _, _ in entry.objects if corners]
    odd = [one for one in corners if min(one[:2]) < 1]
    fractions = [one for one in corners if any(side % 1 for side in one)]
    if len(fractions) > _FEW_FRACTIONS * len(corners):
        odd += fractions
    if odd:
        numbers = " ".join(f"{side:g}" for side in odd[0])
        warnings.append(f"boxes count from 0, not from 1 as Pascal VOC's, as corners such as {numbers} show")
    return bool(odd)
