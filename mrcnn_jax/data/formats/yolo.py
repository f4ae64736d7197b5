"""Reader of YOLO's label files: boxes, polygons and keypoints, a line an object.

    data.yaml                    images of each split, classes, keypoints; without it, folders and classes.txt
    images/train/1.jpg           images
    labels/train/1.txt           labels: beside the image, or in the folder with labels in place of images

A line is the class, from 0, and numbers from 0 to 1, relative to the upright image: the centre, width and
height of a box; a polygon of three points or more; or a box and keypoints of 2 or 3 numbers.

References:
    https://docs.ultralytics.com/datasets/segment and /datasets/pose
"""

from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.image_location import locate_images
from mrcnn_jax.data.formats.listing import Collector, common_folder
from mrcnn_jax.data.formats.sibling_files import SiblingFiles
from mrcnn_jax.data.formats.split_names import group_by_folder
from mrcnn_jax.data.formats.yolo_description import (
    KEYS,
    Description,
    find_description,
    named_descriptions,
    read_description,
)
from mrcnn_jax.data.image_content import upright_size
from mrcnn_jax.data.image_files import IMAGE_SUFFIXES, image_files_in
from mrcnn_jax.errors import InputError

NAME = "YOLO"
LOOKS_FOR = "YOLO: data.yaml or labels/*.txt"
_OTHER_TEXTS = ("classes.txt", "obj.names", "train.txt", "val.txt", "test.txt")
_MOST = 2  # a number beyond which it is no longer relative to the image


class _Line(NamedTuple):
    """A line of a label file."""

    split: str
    image: str
    place: str
    class_: int
    numbers: list[float]


def recognises(folder: Path, files: dict[str, list[Path]]) -> bool:
    """Returns whether files, by suffix, hold a description or labels of YOLO."""
    texts = [path for path in files.get(".txt", []) if path.name.lower() not in _OTHER_TEXTS]
    return find_description(files) is not None or any(map(_is_label_file, texts[:50]))


def _is_label_file(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            line = file.read(2000).split(b"\n")[0].split()
        return len(line) >= 5 and line[0].isdigit() and all(0 <= float(number) <= 1 for number in line[1:5])
    except (OSError, ValueError):
        return False


def read(folder: Path, files: dict[str, list[Path]]) -> dict[str, CocoSplit]:
    """Reads the splits of a data set.

    Args:
        folder: its root.
        files: in and below it, by suffix.

    Raises:
        InputError: the description cannot be used, or no label belongs to an image.
    """
    path = find_description(files)
    description = read_description(path) if path else _describe(folder, files)
    reader = _Reader(description)
    for split, places in description.places.items():
        reader.read_split(split, places)
    return reader.splits()


def _describe(folder: Path, files: dict[str, list[Path]]) -> Description:
    """Returns what is known of a data set without a description."""
    images = sorted(path for suffix in IMAGE_SUFFIXES for path in files.get(suffix, []))
    if not images:
        raise InputError(f"{folder} holds label files of YOLO (*.txt), but no images")
    listing = next((path for path in files.get(".txt", []) if path.name.lower() == "classes.txt"), None)
    listing = listing or next(iter(files.get(".names", [])), None)
    lines = listing.read_bytes().decode("utf-8-sig", "replace").splitlines() if listing else []
    names = dict(enumerate(line.strip() for line in lines if line.strip()))
    notes = [f"{path} has none of the keys of YOLO ({', '.join(KEYS)}): it is not used" for path in
             named_descriptions(files)]  # fmt: skip
    return Description(folder, group_by_folder(folder, images), names, (), [], 0, notes)


class _Reader:
    """Collects the label files of a data set."""

    def __init__(self, description: Description):
        self._description, self._files = description, SiblingFiles()
        self._collectors: dict[str, Collector] = {}
        self._folders: dict[str, Path] = {}
        self._lines: list[_Line] = []
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}

    def read_split(self, split: str, places: list[Path]) -> None:
        """Reads the labels of the images in some folders and lists."""
        images = self._images(places)
        folder = self._folders[split] = common_folder(images)
        collector = self._collectors[split] = Collector(NAME, self._description.path, drawn_upright=True)
        used: dict[Path, set[Path]] = {}
        unlabelled = []
        for image in images:
            name = image.absolute().relative_to(folder).as_posix()
            size = upright_size(image)
            collector.add_image(name, size)
            self._sizes[split, name] = size or (1, 1)
            labels = self._label_file(image)
            if labels is None:
                unlabelled.append(name)
                continue
            used.setdefault(labels.parent, set()).add(labels)
            self._lines += self._read_labels(split, name, labels)
        self._warn(collector, images, unlabelled, used)

    def _images(self, places: list[Path]) -> list[Path]:
        """Returns the images of a split, those that a list names but are not there included."""
        found: list[Path] = []
        for place in places:
            if place.is_dir():
                found += image_files_in(place)
            elif place.suffix.lower() == ".txt":
                lines = place.read_bytes().decode("utf-8-sig", "replace").splitlines()
                names = [line.strip() for line in lines if line.strip()]
                located = locate_images(names, self._description.path, place.parent)
                missing = {name: place.parent / PureWindowsPath(name).name for name in located.missing}
                found += [(located.paths | missing)[name] for name in names]
            else:
                found.append(place)
        if not found:
            raise InputError(f"{self._description.path}: there is no image in {', '.join(map(str, places))}")
        return list(dict.fromkeys(found))

    def _label_file(self, image: Path) -> Path | None:
        """Returns the label file of an image, if it has one."""
        parts, name = image.parent.parts, f"{image.stem}.txt"
        places = [image.parent, image.parent.parent / "labels"]
        at = max((i for i, part in enumerate(parts) if part.lower() == "images"), default=None)
        if at is not None:
            places.insert(0, Path(*parts[:at], "labels", *parts[at + 1 :]))
        return next((found for place in places if (found := self._files.find(place, name))), None)

    def _read_labels(self, split: str, image: str, path: Path) -> Iterator[_Line]:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        for number, line in enumerate(content.splitlines(), start=1):
            words, place = line.replace(b",", b" ").split(), f"{image}, line {number}"
            if not words:
                continue
            try:
                class_, numbers = float(words[0]), list(map(float, words[1:]))
            except ValueError:
                self._collectors[split].leave_out(image, "line of other things than numbers", place)
                continue
            if not class_.is_integer() or class_ < 0:
                self._collectors[split].leave_out(image, "line whose class is no number from 0", place)
                continue
            yield _Line(split, image, place, int(class_), numbers)

    def _warn(
        self, collector: Collector, images: list[Path], unlabelled: list[str], used: dict[Path, set[Path]]
    ) -> None:
        if len(unlabelled) == len(images):
            wanted = f"{Path(unlabelled[0]).stem}.txt in labels/ in place of images/, or beside the image"
            raise InputError(f"{collector.path}: none of {len(images)} images has a label file ({wanted})")
        if unlabelled:
            count = f"{len(unlabelled):,} of {len(images):,} images have no label file ({unlabelled[0]})"
            collector.warnings.append(f"{count}: they count as images without objects")
        others = [
            path for folder, known in used.items() for path in sorted(folder.glob("*.txt"))
            if path not in known and path.name.lower() not in _OTHER_TEXTS
        ]  # fmt: skip
        if others:
            collector.warnings.append(f"{len(others):,} label files have no image ({others[0].name})")

    def splits(self) -> dict[str, CocoSplit]:
        """Returns the splits, once all are read, as only all lines show if numbers are relative."""
        description, first = self._description, next(iter(self._collectors.values()))
        first.warnings += description.notes
        beyond = sum(max(line.numbers, default=0) > _MOST for line in self._lines)
        relative = 2 * beyond <= len(self._lines)
        if not relative:
            first.warnings.append("labels are in pixels, not relative to the image's size as YOLO's are")
        for line in self._lines:
            height, width = self._sizes[line.split, line.image] if relative else (1, 1)
            fields = _read_object(line.numbers, width, height, description)
            if fields is None:
                kind = f"line of {len(line.numbers)} numbers, which is no box, polygon or pose"
                self._collectors[line.split].leave_out(line.image, kind, line.place)
            else:
                self._collectors[line.split].add_object(line.image, line.class_, line.place, **fields)
        names = description.names or dict.fromkeys(sorted({line.class_ for line in self._lines}), "")
        if not names:
            raise InputError(f"{description.path}: no class is named, and no label file holds an object")
        keypoints = {"keypoints": list(description.keypoints), "skeleton": description.skeleton}
        categories = [{"id": id_, "name": name} | keypoints for id_, name in sorted(names.items())]
        return {
            split: CocoSplit(self._folders[split], description.path, None, collector.listing(categories))
            for split, collector in self._collectors.items()
        }


def _read_object(
    numbers: list[float], width: int, height: int, description: Description
) -> dict[str, Any] | None:
    """Returns the fields of an object; None if there are not as many numbers as one has.

    Args:
        numbers: of its line, after the class.
        width, height: what they are relative to.
        description: of the keypoints.
    """
    dimensions, count = description.dimensions, len(description.keypoints)
    pose = bool(count) and len(numbers) == 4 + count * dimensions
    if len(numbers) == 4 or pose:
        x, y, w, h = numbers[:4]
        fields: dict[str, Any] = {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
        if pose:
            fields["keypoints"] = []
            for i in range(4, len(numbers), dimensions):
                x, y, *seen = numbers[i : i + dimensions]
                fields["keypoints"] += [x * width, y * height, seen[0] if seen else 2 * (x > 0 or y > 0)]
        return fields
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    scales = [width, height] * (len(numbers) // 2)
    return {"segmentation": [[number * scale for number, scale in zip(numbers, scales, strict=True)]]}
