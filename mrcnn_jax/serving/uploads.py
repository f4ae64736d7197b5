"""Uploaded images: read in memory within limits, or refused with an HTTP status and a sentence."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from mrcnn_jax.data.image_content import describe, extent, is_jpeg, is_png, other_size
from mrcnn_jax.data.image_io import decode_image
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.typing import UInt8

_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last is curl's default
_MOST_SCANS = 100  # each costs as much as a decoded image; progressive JPEGs have about ten
_DISCARDED = 4  # times the limit


class RequestError(InputError):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: a sentence.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Largest requests, and the largest number of them."""

    megabytes: float = 20
    """Size of an upload."""
    megapixels: float = 50
    """Size of an image."""
    requests: int = 64
    """Requests that are read, wait or are computed."""
    seconds: float = 30
    """Time that an upload may take."""


DEFAULT_LIMITS = Limits()


class Upload(NamedTuple):
    """An uploaded file."""

    name: str
    data: bytes


async def read_upload(request: Request, limits: Limits) -> Upload:
    """Reads the image of a request, which is the body or the one file of a form (multipart/form-data).

    Raises:
        RequestError: the body is too large or slow, of another type, or no such form.
    """
    body = await _read_body(request, limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request.headers, body)
    if kind not in _RAW and not kind.startswith("image/"):
        allowed = "image/..., application/octet-stream or multipart/form-data"
        raise RequestError(415, f"the Content-Type must be {allowed}, not {printable(kind)[:80]}")
    return Upload("the image", body)


async def _read_body(request: Request, limits: Limits) -> bytes:
    """Returns the body; the rest of one that is too large is discarded, as most clients write before reading.
    """
    most, size, chunks = int(limits.megabytes * 1e6), 0, []
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    chunks.append(chunk)
                elif size > _DISCARDED * most:
                    break
                else:
                    chunks.clear()
    except TimeoutError:
        raise RequestError(408, f"the upload has taken more than {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the upload was broken off") from None
    if size > most:
        raise RequestError(413, f"an upload may have {limits.megabytes:g} MB at most")
    return b"".join(chunks)


async def _read_form(headers: Headers, body: bytes) -> Upload:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=1, max_fields=10)
    parser.spool_max_size = len(body) + 1  # files stay in memory
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, LookupError, ValueError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise RequestError(422, f"the form cannot be read: {printable(reason)[:200]}") from None
    file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
    if file is None:
        message = "the form has no file: send the image as one, such as `curl -F image=@photo.jpg`"
        raise RequestError(422, message)
    with file.file:
        if fields := [name for name, value in form.multi_items() if not isinstance(value, UploadFile)]:
            shown = printable(fields[0])[:80]
            message = "besides its file: parameters belong to the address, /predict?score_threshold=0.5"
            raise RequestError(422, f"the form has a field {shown!r} {message}")
        return Upload(printable(file.filename or "the image")[:100], file.file.read())


def decode_upload(upload: Upload, limits: Limits) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image like ``mrcnn predict``, upright; its header is checked before.

    Raises:
        RequestError: it is no image (415), has too many pixels (413), or is damaged (422).
    """
    name, data = upload
    if not data:
        raise RequestError(422, f"{name} is empty: send the bytes of an image")
    scans = 1
    if is_jpeg(data) or is_png(data):
        _, height, width, _, scans = extent(data)
    else:
        height, width, _ = other_size(data)
        if not height * width:
            raise RequestError(415, f"cannot read {name}: {describe(data)}")
    if height * width > limits.megapixels * 1e6:
        given, allowed = f"{width}x{height} pixels (width x height)", f"{limits.megapixels:g} million"
        raise RequestError(413, f"{name} has {given}, which is more than the {allowed} that are allowed")
    if scans > _MOST_SCANS:
        raise RequestError(422, f"{name} is a JPEG of {scans} scans, and may have {_MOST_SCANS} at most")
    try:
        return decode_image(data, name, upright=True)
    except InputError as error:
        raise RequestError(422, str(error)) from error
    except MemoryError:
        raise RequestError(413, f"{name} needs more memory than there is") from None
