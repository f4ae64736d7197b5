"""`mrcnn benchmark`: measures the speed of detectors, live and exported, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import parse, progress_bar, refuse_experiment, wide_console
from mrcnn_jax.errors import printable


@dataclass(frozen=True)
class Options:
    """Measure seconds per image of detectors in turn: directories of runs or of weights, published weights by
    name, exported folders."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR|NAME")]
    """Detectors, as for `predict`."""
    images: Path | None = None
    """Image, or folder whose first image is taken; by default images of noise."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Heights and widths of images of noise; by default that which the first detector pads to."""
    batch_sizes: tuple[int, ...] = (1,)
    """Images that are computed at once."""
    rounds: int = 5
    """Measurements of each, whose median counts, after one that compiles."""
    json: Path | None = None
    """File of all numbers as JSON."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn benchmark`; returns the exit status."""
    options = parse(Options, "benchmark", arguments)
    for model in options.models:
        refuse_experiment(model)
    from mrcnn_jax.atomic_io import require_writable, write_json
    from mrcnn_jax.inference.benchmark import benchmark, timing_table
    from mrcnn_jax.run_description import current_versions

    if options.json:
        require_writable(options.json.absolute().parent, [options.json.name])
    with progress_bar("measuring") as progress:
        timings = benchmark(
            options.models, images=options.images, sizes=options.sizes, batch_sizes=options.batch_sizes,
            rounds=options.rounds, progress=progress,
        )  # fmt: skip
    wide_console().print(timing_table(timings))
    if options.json:
        numbers = [timing._asdict() for timing in timings]
        write_json(options.json, {"timings": numbers, "versions": current_versions()})
        print(f"The numbers are in {printable(options.json)}.")
    return OK
