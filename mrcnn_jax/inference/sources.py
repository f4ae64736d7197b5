"""Images of files and frames of videos as one stream."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.data.image_files import VIDEO_SUFFIXES
from mrcnn_jax.data.video_io import read_frames, read_video_info
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import ImageLike


class Source(NamedTuple):
    """Origin of an image: a file, or a frame of a video."""

    file: Path
    frame: int | None = None
    frames_per_second: float = 0.0  # of the frames that are taken

    @property
    def name(self) -> str:
        """The path of the image; a frame is called as if it were a file in a folder of its video's name."""
        return str(self.file) if self.frame is None else str(self.file / f"frame_{self.frame:06}.png")


def read_sources(
    files: Sequence[Path], every: int, report_unreadable: Callable[[InputError], None]
) -> Iterator[tuple[Source, ImageLike]]:
    """Yields the images of files, as their paths, and the frames of videos, with their sources.

    Args:
        files: images and videos, distinguished by their suffixes.
        every: distance of the frames that are taken of a video.
        report_unreadable: called with the error of a video that cannot be read, or not to its end.
    """
    for file in files:
        if not is_video(file):
            yield Source(file), file
            continue
        try:
            rate = read_video_info(file).frames_per_second / every
            for number, frame in read_frames(file, every):
                yield Source(file, number, rate), frame
        except InputError as error:
            report_unreadable(error)


def count_images(files: Sequence[Path], every: int) -> int:
    """Returns the number of images that ``read_sources`` yields, as far as videos know their length."""
    return sum(_count_frames(file, every) if is_video(file) else 1 for file in files)


def is_video(file: Path) -> bool:
    """Returns whether a file is a video, by its suffix."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def _count_frames(file: Path, every: int) -> int:
    try:
        return -(-read_video_info(file).frames // every)
    except InputError:
        return 0
