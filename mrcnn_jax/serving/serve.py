"""Serving of a trained detector, from its name to the end of the last request."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import Any

import jax

from mrcnn_jax.inference.detector import CheckpointChoice, load
from mrcnn_jax.inference.tiles import require_tiles
from mrcnn_jax.serving import server
from mrcnn_jax.serving.app import Service, make_app
from mrcnn_jax.serving.batching import Batcher
from mrcnn_jax.serving.uploads import DEFAULT_LIMITS, Limits, decode_upload

ACCELERATOR_BATCH = 4
"""Default batch size on accelerators; on a CPU larger batches than one gain nothing."""


def serve(
    directory: str, *, host: str = "127.0.0.1", port: int = 8000, score_threshold: float = 0.5,
    batch_size: int | None = None, limits: Limits = DEFAULT_LIMITS, tile: int = 0, tile_overlap: float = 0.25,
    settings: Mapping[str, Any] = MappingProxyType({}), checkpoint: CheckpointChoice = "best",
    report: Callable[[str], None] = print, started: Callable[[str], None] = lambda address: None,
) -> None:  # fmt: skip
    """Serves a detector until a signal comes; requests that have begun are completed.

    Args:
        directory: or name of the detector, as for ``load``.
        host: as for ``server.bind``.
        port: likewise.
        score_threshold: minimum score of objects, unless a request gives its own.
        batch_size: images (or tiles) that are computed at once; None is 1 on a CPU and 4 elsewhere.
        limits: of requests.
        tile: as in ``Detector.stream``.
        tile_overlap: likewise.
        settings: as for ``load``.
        checkpoint: likewise.
        report: called with lines about the start.
        started: called with the address when the server listens.

    Raises:
        InputError: there is no such detector, or the address cannot be served at.
    """
    if tile:
        require_tiles(tile, tile_overlap)
    begin = time.perf_counter()
    with closing(server.bind(host, port)) as bound:
        detector = load(directory, settings, checkpoint=checkpoint, store_programs=True)
        batch_size = batch_size or (1 if jax.default_backend() == "cpu" else ACCELERATOR_BATCH)
        report(f"Compiling for batches of {' and '.join(map(str, sorted({1, batch_size})))} ...")
        for size in sorted({1, batch_size}):
            detector.warm_up(size)
        report(f"Ready after {time.perf_counter() - begin:.1f} s.")
        if divisor := detector.experiment.data.padding_divisor:
            report(f"data.padding_divisor is {divisor}: each new padded size compiles another program; 0 "
                   "compiles two in all.")  # fmt: skip
        batcher = Batcher(
            detector, lambda upload: decode_upload(upload, limits), batch_size, tile, tile_overlap
        )
        name = os.path.basename(os.path.normpath(directory)) if os.path.isdir(directory) else directory
        service = Service(batcher, detector.info, name, score_threshold, limits)
        address = server.url(bound)
        server.run(make_app(service), bound, batcher.close, lambda: started(address))
