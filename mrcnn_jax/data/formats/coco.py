"""Reader of data sets in COCO format: annotation files and image folders -> a prepared data set.

What has one meaning only is mended, what cannot be used is left out, and both are reported; a file or too
many images that cannot be trusted raise an InputError.

References:
    https://cocodataset.org/#format-data
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.formats.coco_annotation import Judgement, judge
from mrcnn_jax.data.formats.coco_categories import Classes, unite
from mrcnn_jax.data.formats.coco_contents import OF_A_BAD_IMAGE, ListingContents
from mrcnn_jax.data.formats.coco_json import load
from mrcnn_jax.data.formats.coco_layout import CocoSplit, find_splits, sample_splits
from mrcnn_jax.data.formats.coco_numbers import annotated_size, to_whole
from mrcnn_jax.data.formats.coco_suspicions import Suspicions, warn_of_classes, warn_of_shared_images
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.formats.holdout import SplitSample
from mrcnn_jax.data.formats.image_location import locate_images, unlisted_images
from mrcnn_jax.data.formats.listing import CONTENT, place_of
from mrcnn_jax.data.stored_image import Rotation, StoredImage, read_stored_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

FEW = 20
"""Number of images held out up to which they are read before they are chosen."""


def prepare(
    splits: str | os.PathLike | Mapping[str, CocoSplit],
    out: str | os.PathLike,
    *,
    validation_images: int = 0,
    keypoints: bool = False,
    name: str | None = None,
    progress: bool = False,
    overwrite: bool = False,
    max_bad: float = 0.05,
    strict: bool = False,
    rotation: Rotation = "auto",
    seed: int = 0,
) -> dict[str, ConversionReport]:
    """Converts data in COCO format into a prepared data set; see ``data.prepare.prepare``.

    Args:
        splits: a folder, searched by ``find_splits``, or the files of each split.
        name: by default that of the folder or of the output directory.

    Returns:
        Which annotations and images were kept, left out and mended, for each split.
    """
    if not isinstance(splits, Mapping):
        name = name or Path(splits).absolute().name
        found = find_splits(splits, keypoints=keypoints)
        splits = sample_splits(found, Path(splits), validation_images=validation_images, seed=seed)
    name = name or Path(out).absolute().name
    contents = {}
    for source in splits.values():
        if source.key not in contents:
            contents[source.key] = ListingContents(source.listing or load(source.annotations))
    options = {"name": name, "max_bad": max_bad, "strict": strict, "rotation": rotation}
    files = {
        split: CocoFile(
            source.images, source.annotations, source.part, contents=contents[source.key], **options
        )
        for split, source in splits.items()
    }
    classes = _unite(name, {split: file.contents for split, file in files.items()}, strict)
    for split, file in files.items():
        file.report.name, file.report.source = split, file.contents.source
        file.use_classes(classes, split)
    write_dataset(out, classes.info, files, progress=progress, overwrite=overwrite)
    parents = {c.name: c.parent for file in files.values() for c in file.contents.categories.values()}
    found = warn_of_classes(classes.info, {split: file.suspicions for split, file in files.items()}, parents)
    shared = warn_of_shared_images({split: file.pictures for split, file in files.items()})
    for split, file in files.items():
        file.report.warnings += [*found[split], *shared[split]]
    if unlisted := unlisted_images(path for file in files.values() for path in file.image_files()):
        report = next(iter(files.values())).report
        report.image_notes["that is not listed, so that it is not used"] += unlisted
    return {split: file.report for split, file in files.items()}


class CocoFile:
    """The images of one annotation file, or a part of them: a sequence of records in the order of image ids.

    The constructor reads and checks the annotation file; images are read, and annotations judged, one record
    at a time, and an iteration passes over images that cannot be used. ``report`` is complete once every
    record has been read.

    Args:
        images: their folder; None if it is not known.
        annotations: the file.
        part: the images to take, where some are held out for validation.
        name: of the data set.
        contents: of the file, if it has been read already.
        max_bad: largest share of images that may be left out.
        strict: refuse whatever would be mended or left out.
        rotation: frame of the annotations of photos with an EXIF orientation.

    Raises:
        InputError: from the constructor for the annotation file and missing images; from reading a record
            for an image that cannot be used; from an iteration for more than ``max_bad`` of them.
    """

    def __init__(
        self,
        images: str | os.PathLike | None,
        annotations: str | os.PathLike,
        part: SplitSample | None = None,
        *,
        name: str | None = None,
        contents: ListingContents | None = None,
        max_bad: float = 0.05,
        strict: bool = False,
        rotation: Rotation = "auto",
    ):
        self.path, self._max_bad, self._strict, self._rotation = Path(annotations), max_bad, strict, rotation
        self.contents = contents or ListingContents(load(self.path))
        images_by_id = self.contents.images
        names = {id_: image["file_name"] for id_, image in images_by_id.items()}
        embedded = {image["file_name"]: self.path for image in images_by_id.values() if CONTENT in image}
        located = locate_images(
            names.values(), self.path, Path(images) if images else None, only_exact=embedded.keys()
        )
        paths = embedded | located.paths
        self.paths = {id_: paths[name] for id_, name in names.items() if name in paths}
        missing = [id_ for id_ in images_by_id if id_ not in self.paths]
        wanted = sum(part.counts(len(self.paths)).values()) if part else 0
        too_many = part and wanted >= len(self.paths)
        part = None if too_many else part  # missing images are reported before the error
        self._ids, first = self._choose(part), part is None or part.split == "train"
        rest = missing if first else []  # once per file, not in each split of it
        listed = sum(len(self.contents.annotations[id_]) for id_ in (*self._ids, *rest))
        self.report = ConversionReport(self.path.name, len(self._ids) + len(rest), listed)
        self._start_report(set(self._ids) | set(rest), first)
        for id_ in rest:
            folder = images or self.path.parent
            self._leave_out_image(id_, f"missing from {folder}")
        if first:
            self.report.warnings += [*self.contents.warnings, *located.notes, *self._warn_of_repeated_files()]
        self._check_images()
        if too_many:
            left = f"none of its {len(self.paths)} images is left for training"
            raise InputError(f"{self.path}: {left}, if {wanted} are held out")
        if not self._ids:
            raise InputError(f"{self.path}: none of its {len(self.paths)} images is left for this split")
        self.use_classes(_unite(name or self.path.stem, {"": self.contents}), "")

    def use_classes(self, classes: Classes, split: str) -> None:
        """Sets the classes of the data set that this split is a part of."""
        self.info: DatasetInfo = classes.info
        self._training = split == "train"
        self.pictures: dict[int, str] = {}  # file names by the hash of their content
        self._class_of, self._with_keypoints = classes.class_of[split], classes.keypoints_of[split]
        self.report.warnings += classes.warnings[split] if split else []
        self.suspicions = Suspicions(self.info.num_classes)
        self._judged: set[int] = set()

    def _choose(self, part: SplitSample | None) -> list[int]:
        ids = list(self.paths)
        if not part:
            return ids
        names = {id_: self.contents.images[id_]["file_name"] for id_ in ids}
        shown = {id_: {a["category_id"] for a in self.contents.annotations[id_]} for id_ in ids}
        others, count = part.divide(names, shown), sum(part.counts(len(ids)).values())
        if count <= FEW:  # one bad image would be much of them, so it goes to the other side
            while (bad := self._unusable(set(others))) and len(shown) - len(bad) > count:
                shown = {id_: classes for id_, classes in shown.items() if id_ not in bad}
                others = part.divide(names, shown)
        return [id_ for id_ in ids if others.get(id_, "train") == part.split]

    def _unusable(self, ids: set[int]) -> set[int]:
        """Returns which images cannot be used, without a word in the report."""
        bad = set()
        for id_ in ids:
            try:
                self._read_image(id_)
            except InputError:
                bad.add(id_)
        return bad

    def _read_image(self, id_: int) -> StoredImage:
        image, path = self.contents.images[id_], self.paths[id_]
        data = image[CONTENT]() if CONTENT in image and path == self.path else None
        size, upright = annotated_size(image), self.contents.drawn_upright
        return read_stored_image(path, size, self._rotation, data, upright)

    def _start_report(self, images: set[int], first: bool) -> None:
        for flaw in self.contents.flaws:
            if flaw.image_id in images or (flaw.image_id is None and first):
                flaw.add_to(self.report)
                self.report.annotations += flaw.heading == "left_out"
                self.report.images += flaw.heading == "images_left_out"

    def image_files(self) -> list[Path]:
        """Returns the files of its images, without those that are embedded in the annotations."""
        return [path for path in self.paths.values() if path != self.path]

    def _warn_of_repeated_files(self) -> list[str]:
        paths = self.image_files()
        if len(set(paths)) == len(paths):
            return []
        first = max(paths, key=Counter(paths).__getitem__)
        repeated = f"{len(paths) - len(set(paths))} images are listed again under other ids ({first.name})"
        return [f"{repeated}: their objects are then no objects in the other entry"]

    def _leave_out_image(self, id_: int, kind: str) -> None:
        image = self.contents.images[id_]
        self._note(self.report.images_left_out, kind, image)
        if annotations := self.contents.annotations[id_]:
            self.report.left_out[OF_A_BAD_IMAGE] |= set(map(place_of, annotations))

    def _check_images(self) -> None:
        if self.report.images_left_out:
            self.report.require_few_bad_images(self.path, 0 if self._strict else self._max_bad)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Record]:
        for id_ in self._ids:
            try:
                record = self._record(id_)
            except InputError as error:
                reason = str(error).replace(f"cannot read image {self.paths[id_]}: ", "")
                self._leave_out_image(id_, reason.replace(f"image {self.paths[id_]} ", ""))
            else:
                self.pictures[hash(record.image)] = record.file_name
                yield record
        self._check_images()
        if self._training:
            self.report.require_an_object(self.path)
        found = [*self.suspicions.warnings(), *self.report.warn_of_share_left_out(self._max_bad)]
        self.report.warnings += [warning for warning in found if warning not in self.report.warnings]
        if self._strict:
            self.report.require_no_flaw(self.path)

    def __getitem__(self, index: int) -> Record:
        return self._record(self._ids[index])

    def _record(self, id_: int) -> Record:
        image = self.contents.images[id_]
        stored = self._read_image(id_)
        for given in (image.get("height"), image.get("width")):
            if given and (isinstance(given, str) or (to_whole(given) or -1) < 0):
                self._note(self.report.images_mended, "whose annotated size is text or no size", image)
        for note in stored.notes:
            self._note(self.report.image_notes, note, image)
        objects = self._objects(id_, stored.height, stored.width)
        size = stored.height, stored.width
        return Record(stored.data, id_, image["file_name"], *size, objects, upright=stored.upright)

    @staticmethod
    def _note(notes: dict[str, list[str]], kind: str, image: dict) -> None:
        if image["file_name"] not in notes[kind][-1:]:
            notes[kind].append(image["file_name"])

    def _objects(self, image_id: int, height: int, width: int) -> Objects:
        """Judges the annotations of an image, and returns the objects that are left."""
        annotations, judged = [], list[Judgement]()
        for annotation in self.contents.annotations[image_id]:
            number = len(self.info.keypoint_names) * (annotation["category_id"] in self._with_keypoints)
            result = judge(annotation, height, width, number, self.report)
            if result:
                annotations.append(annotation)
                judged.append(result)
        keypoints = np.zeros((len(judged), len(self.info.keypoint_names), 3), np.float32)
        for i, one in enumerate(judged):
            if one.keypoints is not None:
                keypoints[i] = one.keypoints
        objects = Objects(
            ids=np.array([annotation["id"] for annotation in annotations], np.int64),
            boxes=np.array([one.box for one in judged], np.float64).reshape(-1, 4),
            classes=np.array([self._class_of[a["category_id"]] for a in annotations], np.int32),
            areas=np.array([one.area for one in judged], np.float64),
            crowd=np.array([one.crowd for one in judged], bool),
            rles=[one.rle for one in judged],
            keypoints=keypoints,
        )
        if image_id not in self._judged:
            self._judged.add(image_id)
            self.suspicions.add(objects, [one.outline for one in judged], (height, width))
        return objects


def _unite(name: str, splits: Mapping[str, ListingContents], strict: bool = False) -> Classes:
    categories = {split: contents.categories for split, contents in splits.items()}
    with_keypoints = {split: contents.count_keypoints() for split, contents in splits.items()}
    return unite(name, categories, with_keypoints, strict)
