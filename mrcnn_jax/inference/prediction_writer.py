"""Files of a prediction: pictures, masks and crops of each image, videos, and lists of all images."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mrcnn_jax.atomic_io import replacing
from mrcnn_jax.data.dataset import coco_categories
from mrcnn_jax.data.video_io import VideoWriter
from mrcnn_jax.detections import Detections
from mrcnn_jax.inference.detector import print_warning
from mrcnn_jax.inference.result_files import LEGEND, JsonList, write_list, write_object
from mrcnn_jax.inference.sources import Source
from mrcnn_jax.inference.stream import StreamResult
from mrcnn_jax.run_length_masks import RunLengthMasks
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.typing import UInt8, UInt16
from mrcnn_jax.visualize.draw import ColorBy, Picture, draw_detections
from mrcnn_jax.visualize.files import save_picture
from mrcnn_jax.visualize.sheets import TILE, SheetOfMany

MAX_SIDE = 2048
"""Pixels of the longer side to which overlay pictures are reduced."""
_SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class Outputs:
    """Choice of what a prediction writes beside its lists.

    Attributes:
        score: minimum score of the objects in pictures, masks, crops and coco.json.
        color_by: colours of the pictures; None is "object", and "class" for videos.
        masks: a PNG of the objects' numbers for each image.
        crops: a picture of each object.
    """

    score: float = 0.5
    color_by: ColorBy | None = None
    masks: bool = False
    crops: bool = False


class Rendered(NamedTuple):
    """Pictures of an image: names of the files that are written, and what is still to be collected."""

    files: dict[str, Any]
    frame: Picture | None = None  # of a video
    thumbnail: Picture | None = None


class PredictionWriter:
    """Writes what is found in images: ``render`` may run in threads, ``add`` takes the images in order.

    ====================  ============================================================================
    0001_NAME.png, .jpg   overlay picture of an image, at most 2048 pixels a side and 3 MB
    0001_NAME.mp4         overlay of a video
    contact_sheet         overlays of up to 16 images, spread over all
    coco.json             COCO format: images, categories, annotations with scores
    results.json          COCO results of all detections, also of those below the minimum score
    images.json           file, size, pictures, masks and crops of each image_id
    masks/                PNG of each pixel's object number, and legend.json
    crops/                pictures of the objects
    ====================  ============================================================================

    Args:
        out: directory that is written; None keeps the lists alone.
        folder: that file names in coco.json are relative to.
        info: classes and keypoints of the detector.
        outputs: what is written beside the lists.
    """

    def __init__(self, out: Any, folder: str, info: DatasetInfo, outputs: Outputs):
        self._out, self._folder, self._info, self.outputs = out, folder, info, outputs
        self.results, self.images = JsonList(), JsonList()
        self._coco_images, self._annotations, self._legend = JsonList(), JsonList(), JsonList()
        self._sheet = SheetOfMany()
        self._video: tuple[Path, str, VideoWriter] | None = None

    def render(self, number: int, source: Source, result: StreamResult) -> Rendered:
        """Draws an image and writes its pictures.

        Args:
            number: of the image, which is its id, from 1.
            source: of the image.
            result: with its pixels and detections.
        """
        if self._out is None:
            return Rendered({})
        image, found = result.image, result.detections
        shown = found[np.asarray(found.scores) >= self.outputs.score]
        name, files = f"{number:04}_{_short(source)}", {}
        is_frame = source.frame is not None
        picture = self._draw(image, found, source, MAX_SIDE)
        if not is_frame:
            saved = None if picture is None else save_picture(self._out / f"{name}.png", picture)
            files["picture"] = saved and saved.name
        if self.outputs.masks:
            files["masks"] = f"masks/{name}.png"
            encoded = cv2.imencode(".png", instance_ids(shown))[1].tobytes()
            with replacing(self._out / files["masks"]) as temporary:
                temporary.write_bytes(encoded)
        if self.outputs.crops:
            saved = [
                save_picture(self._out / f"crops/{name}_{index:03}.png", crop)
                for index, crop in enumerate(shown.crops(image), start=1)
            ]
            files["crops"] = [f"crops/{file.name}" for file in saved]
        thumbnail = self._draw(image, found, source, TILE) if self._sheet.wants(number) else None
        return Rendered(files, picture if is_frame else None, thumbnail)

    def add(self, number: int, source: Source, result: StreamResult, rendered: Rendered) -> None:
        """Adds an image to the lists, and a frame to its video."""
        found, (height, width) = result.detections, result.image.shape[:2]
        if rendered.frame is not None:
            rendered.files["video"] = self._add_frame(number, source, rendered.frame)
        size = {"height": height, "width": width}
        self.images.extend([{"id": number, "file_name": source.name, **size, **rendered.files}])
        self.results.extend(found.to_coco(number, self._info))
        name = Path(os.path.relpath(os.path.abspath(source.name), self._folder)).as_posix()
        self._coco_images.extend([{"id": number, "file_name": name, **size}])
        shown = found[np.asarray(found.scores) >= self.outputs.score]
        annotations = shown.to_coco_annotations(number, self._info, len(self._annotations) + 1)
        if self.outputs.masks and self._out is not None:
            objects = [
                {"value": value, "annotation_id": one["id"], "category_id": one["category_id"],
                 "category": self._info.category_names[class_id], "score": one["score"]}
                for value, (one, class_id) in enumerate(zip(annotations, shown.class_ids, strict=True), 1)
            ]  # fmt: skip
            self._legend.extend([{"file": rendered.files["masks"], "image_id": number, "objects": objects}])
        self._annotations.extend(annotations)
        if rendered.thumbnail is not None:
            title = f"{name}: {summarize(found, self.outputs.score)}"
            self._sheet.add(number, rendered.thumbnail, title)

    def save(self) -> None:
        """Writes the lists so far, if there are images."""
        if self._out is None or not len(self.images):
            return
        write_list(self._out / "images.json", self.images)
        write_list(self._out / "results.json", self.results)
        fields = {
            "info": {
                "description": f"objects that were detected with a score of at least {self.outputs.score:g}",
                "image_folder": self._folder,
            },
            "licenses": [], "categories": coco_categories(self._info),
        }  # fmt: skip
        lists = {"images": self._coco_images, "annotations": self._annotations}
        write_object(self._out / "coco.json", fields, lists)
        if self.outputs.masks:
            write_list(self._out / LEGEND, self._legend)

    def finish(self) -> None:
        """Completes the video at hand, and writes the lists and the contact sheet."""
        try:
            self._close_video()
        finally:
            self.save()
        if self._out is not None and (sheet := self._sheet.draw()) is not None:
            save_picture(self._out / _SHEET, sheet)

    def _draw(self, image: Picture, found: Detections, source: Source, side: int) -> Picture | None:
        """Returns the overlay picture of an image, or None if it cannot be drawn."""
        default: ColorBy = "object" if source.frame is None else "class"
        try:
            return draw_detections(
                image, found, score_threshold=self.outputs.score, skeleton=self._info.skeleton,
                max_side=side, color_by=self.outputs.color_by or default,
            )  # fmt: skip
        except Exception as error:  # the results are worth more than the picture
            name = source.name
            print_warning(f"the picture of {name} cannot be drawn ({type(error).__name__}: {error})")
            return None

    def _add_frame(self, number: int, source: Source, picture: Picture) -> str:
        """Adds the frame of a video, and returns the name of the video that is written."""
        if self._video is None or self._video[0] != source.file:
            self._close_video()
            name = f"{number:04}_{_short(source)}.mp4"
            writer = VideoWriter(Path(self._out, name), source.frames_per_second)
            self._video = source.file, name, writer
        self._video[2].add(picture)
        return self._video[1]

    def _close_video(self) -> None:
        if self._video is not None:
            writer, self._video = self._video[2], None
            writer.close()


def instance_ids(detections: Detections) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """Returns the number of the object that each pixel belongs to, from 1 in their order, or 0.

    Where objects overlap, it is the first, which is the best.
    """
    masks = RunLengthMasks.of(detections.masks)
    ids = np.zeros(masks.shape[1:], np.uint8 if len(masks) < 256 else np.uint16)
    for index in reversed(range(len(masks))):
        window, mask = masks.crop(index)
        ids[window][mask] = index + 1
    return ids


def summarize(detections: Detections, score_threshold: float) -> str:
    """Returns the numbers of the detected objects above a score, by class: "2 person, 1 dog"."""
    names, scores = detections.class_names, np.asarray(detections.scores)
    counts = Counter(np.asarray(detections.class_ids)[scores >= score_threshold].tolist())
    words = [f"{count} {names[class_id] if names else f'class {class_id}'}"
             for class_id, count in counts.most_common()]  # fmt: skip
    return ", ".join(words) or f"nothing above {score_threshold:g}"


def _short(source: Source) -> str:
    """Returns the first part of a file's name: names are limited to 255 bytes."""
    return os.fsencode(source.file.stem)[:150].decode(errors="ignore")
