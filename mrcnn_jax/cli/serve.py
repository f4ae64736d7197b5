"""`mrcnn serve`: a page and an HTTP interface that detect objects in images."""

import webbrowser
from dataclasses import dataclass
from importlib.util import find_spec

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.inference_options import DetectorOptions, given_settings, parse_with_settings
from mrcnn_jax.cli.predict import SETTINGS_OF_PREDICTIONS
from mrcnn_jax.cli.terminal import TrainedDirectory, refuse_experiment
from mrcnn_jax.config.validation import LARGEST_BATCH, require_whole
from mrcnn_jax.errors import InputError, printable

_PACKAGES = ("starlette", "uvicorn", "python_multipart")


@dataclass(frozen=True)
class Options(DetectorOptions):
    """Serve a page on which images are dropped and objects seen, and an HTTP interface for programs."""

    directory: TrainedDirectory
    host: str = "127.0.0.1"
    """Address to serve at: by default this machine alone can connect, 0.0.0.0 lets its network."""
    port: int = 8000
    """Port; 0 takes a free one."""
    score_threshold: float = 0.5
    """Minimum score of objects, unless a request gives its own; where the page's slider begins."""
    batch_size: int | None = None
    """Images of concurrent requests, of equal padded size, that are computed at once. By default 1 on a CPU,
    where more gain nothing, and 4 on accelerators."""
    max_megabytes: float = 20.0
    """Size of the largest upload."""
    max_megapixels: float = 50.0
    """Size of the largest image."""
    max_requests: int = 64
    """Requests that are read, wait or are computed at once; more are refused with status 503."""
    browser: bool = False
    """Open the page in a browser."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn serve`; returns the exit status."""
    options = parse_with_settings(Options, "serve", arguments, SETTINGS_OF_PREDICTIONS)
    if not all(map(find_spec, _PACKAGES)):
        raise InputError('mrcnn serve needs packages that are missing: pip install "mrcnn_jax[serve]"')
    refuse_experiment(options.directory)
    if not 0 <= options.score_threshold <= 1:
        raise InputError(f"--score-threshold must lie between 0 and 1, not {options.score_threshold:g}")
    if options.batch_size is not None:
        require_whole("--batch-size", options.batch_size, 1, LARGEST_BATCH)
    require_whole("--port", options.port, 0, 65535)
    require_whole("--max-requests", options.max_requests, 1, 10_000)
    for name, value in (("megabytes", options.max_megabytes), ("megapixels", options.max_megapixels)):
        if not 0 < value <= 1000:
            raise InputError(f"--max-{name} must be greater than 0 and at most 1,000, not {value:g}")
    from mrcnn_jax.serving.serve import serve
    from mrcnn_jax.serving.uploads import Limits

    def started(address: str) -> None:
        print(f"{printable(options.directory)} is at {address} (Ctrl-C ends it).", flush=True)
        if options.browser:
            webbrowser.open(address)

    serve(
        options.directory, host=options.host, port=options.port, score_threshold=options.score_threshold,
        batch_size=options.batch_size, tile=options.tile, tile_overlap=options.tile_overlap,
        limits=Limits(options.max_megabytes, options.max_megapixels, options.max_requests),
        settings=given_settings(options), checkpoint=options.checkpoint,
        report=lambda line: print(line, flush=True), started=started,
    )  # fmt: skip
    return OK
