"""Video files (OpenCV): frames as images, and pictures as a video."""

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.typing import UInt8

Frame = UInt8[np.ndarray, "H W 3"]
_FRAMES_PER_SECOND = 25.0  # of videos that do not say it
_MISSING = 0.02  # share of the frames by which a claimed number may be wrong
_PROBE = 1 << 20  # bytes, more than FFmpeg holds back: they fit on no disk that was too small for the video
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # failures are reported by exceptions


class VideoInfo(NamedTuple):
    """Properties that a video file claims to have."""

    frames: int  # 0 if it does not say it
    frames_per_second: float


def read_video_info(path: str | os.PathLike) -> VideoInfo:
    """Returns the properties of a video.

    Raises:
        InputError: OpenCV cannot read it.
    """
    with _opened(path) as video:
        frames, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    sound = math.isfinite(rate) and 0 < rate <= 1000
    return VideoInfo(max(0, int(frames)), rate if sound else _FRAMES_PER_SECOND)


def read_frames(path: str | os.PathLike, every: int = 1) -> Iterator[tuple[int, Frame]]:
    """Yields the number of a frame, from 0, and the frame in RGB, upright, one in memory at a time.

    Args:
        path: of the video.
        every: distance of the frames that are taken; the others are not converted to images.

    Raises:
        InputError: OpenCV cannot read the file, or it has no frames; or, after the last one, fewer than it
            claims.
    """
    number = -1
    with _opened(path) as video:
        claimed = video.get(cv2.CAP_PROP_FRAME_COUNT)
        while video.grab():
            number += 1
            if number % every == 0:
                whole, frame = video.retrieve()
                if not whole:
                    break
                yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    if number < 0:
        raise InputError(f"cannot read video {path}: it has no frames that can be decoded")
    if number + 1 < claimed * (1 - _MISSING) - 1:
        frames = f"{number + 1:,} of {claimed:,.0f} frames"
        raise InputError(f"video {path} ends after {frames}, which were read: it is cut or damaged")


class VideoWriter:
    """Writes pictures of equal size as an MP4 (MPEG-4 part 2), which is complete once it is closed.

    Until then it has a hidden name. Pictures after the first are fitted to its size, if they differ.

    Args:
        path: with the suffix .mp4, on this machine.
        frames_per_second: of the video, which are rounded to what the codec takes.
    """

    def __init__(self, path: Path, frames_per_second: float):
        self._path, self._rate = path, _rate_of_codec(frames_per_second)
        self._unfinished = path.with_name(f".{os.getpid()}.{path.name}")
        self._writer: cv2.VideoWriter | None = None
        self._size, self._frames = (0, 0), 0

    def add(self, picture: Frame) -> None:
        """Adds a picture; its last row and column are dropped where the codec needs even sides.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is None:
            height, width = picture.shape[:2]
            self._size = max(2, width // 2 * 2), max(2, height // 2 * 2)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._unfinished), code, self._rate, self._size)
            if not self._writer.isOpened():
                self._writer = None
                raise OSError(0, "the video cannot be written", str(self._path))
        width, height = self._size
        if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
            fitted = picture[:height, :width]
        else:
            fitted = cv2.resize(picture, self._size)
        self._writer.write(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))
        self._frames += 1

    def close(self) -> None:
        """Finishes the file, if there was a picture.

        Raises:
            OSError: the file does not hold all pictures, as the disk is full; it is deleted.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.release()
        try:
            self._require_all_frames()
            self._unfinished.replace(self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _require_all_frames(self) -> None:
        """Raises OSError if the file cannot be read, or lacks frames: OpenCV reports no failure to write."""
        try:
            with _opened(self._unfinished) as video:
                found = video.get(cv2.CAP_PROP_FRAME_COUNT)
        except InputError:
            found = -1
        if found == 0 or found >= self._frames:  # 0: the container does not say it
            return
        try:
            with open(self._unfinished, "ab") as file:  # finds the reason
                file.write(bytes(_PROBE))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        raise OSError(errno.EIO, "the video cannot be written", str(self._path))


def _rate_of_codec(rate: float) -> float:
    """Returns a rate that MPEG-4 part 2 can express: as a fraction with a numerator of at most 65535."""
    digits = 3 if rate <= 65 else 2 if rate <= 655 else 1
    return max(0.01, round(rate, digits))  # OpenCV takes those below 0.001 for 0


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[cv2.VideoCapture]:
    if not Path(path).is_file():
        raise InputError(f"cannot read video {path}: it is no file")
    video = cv2.VideoCapture(os.fspath(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise InputError(f"cannot read video {path}: it is damaged, or of a format that OpenCV lacks")
        yield video
    finally:
        video.release()
