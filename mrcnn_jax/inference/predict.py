"""Detection in image and video files: pictures, COCO files, masks and crops."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from etils import epath

from mrcnn_jax.atomic_io import require_writable
from mrcnn_jax.config.validation import require_whole
from mrcnn_jax.data.image_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ImageListing, find_image_files
from mrcnn_jax.directory_lock import locked
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import CheckpointChoice, Detector, load, print_warning
from mrcnn_jax.inference.image_inputs import ImageLike
from mrcnn_jax.inference.prediction_writer import Outputs, PredictionWriter, Rendered, summarize
from mrcnn_jax.inference.result_files import LISTS, Autosave, JsonList, earlier_files
from mrcnn_jax.inference.sources import Source, count_images, is_video, read_sources
from mrcnn_jax.inference.stream import StreamResult
from mrcnn_jax.visualize.draw import ColorBy

ReportLine = Callable[[str], None]
_RENDERERS = 2  # threads that draw and encode pictures while the next images are computed


@dataclass(frozen=True)
class FilePredictions:
    """Result of detecting in files; the lists are kept on disk until they are read."""

    _results: JsonList
    _images: JsonList
    unreadable: list[str]  # a message for each file that could not be read, or not to its end
    skipped: dict[str, int] = field(default_factory=dict)  # other files in the folders, by suffix

    @property
    def results(self) -> list[dict[str, Any]]:
        """The entries of a COCO results file; image_id counts files and frames from 1."""
        return self._results.read()

    @property
    def images(self) -> list[dict[str, Any]]:
        """The id, file_name, height and width of each image, and the names of the files written of it."""
        return self._images.read()

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of detections and of images."""
        return len(self._results), len(self._images)

    def raise_unreadable(self) -> None:
        """Raises InputError if files could not be read."""
        first, count = next(iter(self.unreadable), None), len(self.unreadable)
        if count > 1:
            first = f"{count} of {count + self.counts[1]} images cannot be read; the first: {first}"
        if count:
            raise InputError(first)


def predict_files(
    detector: Detector | str | os.PathLike, images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None, *, score_threshold: float = 0.5, color_by: ColorBy | None = None,
    masks: bool = False, crops: bool = False, every: int = 1,
    progress: Callable[[int, int], None] | None = None, report: ReportLine = lambda line: None,
    settings: Mapping[str, Any] = MappingProxyType({}), batch_size: int = 1, tile: int = 0,
    tile_overlap: float = 0.25, store_programs: bool = False, checkpoint: CheckpointChoice = "best",
) -> FilePredictions:  # fmt: skip
    """Detects objects in image and video files. Those that cannot be read are listed and do not stop others.

    Args:
        detector: or the directory of a training run or of imported weights.
        images: a file, a folder (with the folders below) or a pattern such as "photos/**/*.jpg", or a list of
            these. Pictures are turned upright as their EXIF orientation says.
        out: directory that gets what ``PredictionWriter`` writes. The lists are rewritten now and then, and
            when something stops the detection. Those of an earlier prediction are removed first, with its
            pictures. None writes nothing.
        score_threshold: minimum score of the objects in pictures, masks, crops and coco.json; results.json
            has all of them.
        color_by: colours of the pictures, as in ``draw_detections``; None is "object", and "class" in videos.
        masks: write a PNG of the objects' numbers for each image.
        crops: write a picture of each object.
        every: distance of the frames that are taken of videos.
        progress: called with the number of images done and of all images.
        report: called with a line about each image: classes and numbers of the objects above
            ``score_threshold``, and seconds.
        settings: as for ``load``, if ``detector`` is a directory.
        batch_size: as in ``Detector.stream``.
        tile: likewise.
        tile_overlap: likewise.
        store_programs: as for ``load``.
        checkpoint: likewise.

    Returns:
        The detections as entries of a COCO results file, the images, and a message for each file that cannot
        be read.

    Raises:
        InputError: there is no such file or folder, no image in them, no detector in the directory; or
            ``out`` cannot be written, or another process is writing there.
    """
    outputs = Outputs(score_threshold, color_by, masks, crops)
    files, skipped = _find(images, out, outputs, every)
    with ExitStack() as resources:
        if out:
            resources.enter_context(locked(out, "is writing predictions there"))
        earlier = earlier_files(out) if out else []
        if isinstance(detector, str | os.PathLike):
            detector = load(detector, settings, checkpoint=checkpoint, store_programs=store_programs)
        if masks and "masks" not in detector.experiment.model.tasks:
            raise InputError("the detector finds boxes without masks, which can therefore not be written")
        for file in earlier:
            file.unlink(missing_ok=True)
        writer = PredictionWriter(out and epath.Path(out), _common_folder(files), detector.info, outputs)
        run = _Run(writer, skipped, count_images(files, every), progress, report)
        run.detect(detector, read_sources(files, every, run.refuse), batch_size, tile, tile_overlap)
    return run.found


class _Run:
    """Images on their way from the detector to the files: drawn by threads, collected in their order."""

    def __init__(
        self, writer: PredictionWriter, skipped: dict[str, int], total: int,
        progress: Callable[[int, int], None] | None, report: ReportLine,
    ):  # fmt: skip
        self.found = FilePredictions(writer.results, writer.images, [], skipped)
        self._writer, self._total, self._report = writer, total, report
        self._progress = progress or (lambda done, total: None)
        self._waiting: deque[tuple[int, Source, StreamResult, Future[Rendered] | None]] = deque()
        self._autosave, self._begin = Autosave(writer.save), time.perf_counter()

    def detect(
        self, detector: Detector, sources: Iterator[tuple[Source, ImageLike]], batch_size: int, tile: int,
        tile_overlap: float,
    ) -> None:  # fmt: skip
        """Detects objects in all images; what was found so far is written if something stops it."""
        origins: deque[Source] = deque()

        def images() -> Iterator[ImageLike]:
            for source, image in sources:
                origins.append(source)
                yield image

        self._progress(0, self._total)
        options = {"batch_size": batch_size, "tile": tile, "tile_overlap": tile_overlap}
        results = enumerate(detector.stream(images(), **options), start=1)
        with ThreadPoolExecutor(_RENDERERS) as executor:
            try:
                for number, result in results:
                    given, future = (number, origins.popleft(), result), None
                    if result.error is None:
                        future = executor.submit(self._writer.render, *given)
                    self._waiting.append((*given, future))
                    while len(self._waiting) > _RENDERERS or self._waiting and self._is_first_done():
                        self._collect()
                        self._autosave()
            finally:
                try:
                    while self._waiting:
                        self._collect()
                finally:
                    self._writer.finish()

    def refuse(self, error: InputError) -> None:
        """Notes a file that cannot be read."""
        self.found.unreadable.append(str(error))
        print_warning(error)

    def _is_first_done(self) -> bool:
        future = self._waiting[0][-1]
        return future is None or future.done()

    def _collect(self) -> None:
        number, source, result, future = self._waiting.popleft()
        if future is None:
            self.refuse(result.error)
        else:
            self._writer.add(number, source, result, future.result())
            end = time.perf_counter()
            summary = summarize(result.detections, self._writer.outputs.score)
            self._report(f"{source.name}: {summary} ({end - self._begin:.2f} s)")
            self._begin = end
        self._progress(number, max(self._total, number))


def _find(
    images: str | os.PathLike | Sequence[str | os.PathLike], out: str | os.PathLike | None, outputs: Outputs,
    every: int,
) -> ImageListing:  # fmt: skip
    """Returns the files, and checks what was given before any work."""
    if not 0 <= outputs.score <= 1:
        raise InputError(f"the score of drawn detections must lie between 0 and 1, not {outputs.score:g}")
    require_whole("the distance of frames", every, 1, 1_000_000)
    found = find_image_files(images, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    if out:
        require_writable(out, LISTS)
        if "://" in str(out) and any(map(is_video, found.files)):
            raise InputError(f"videos cannot be written to {out}: it must be a path on this machine")
        place = Path(out).resolve()  # whose pictures are no input, where it lies in a folder that is given
        is_output = cache(lambda folder: folder.resolve().is_relative_to(place))
        found = found._replace(files=[file for file in found.files if not is_output(file.parent)])
        if not found.files:
            raise InputError(f"all images are in {out}, which is written to: choose another output folder")
    return found


def _common_folder(files: Sequence[Path]) -> str:
    return os.path.commonpath([file.absolute().parent for file in files])
