"""`mrcnn compare`: compares two evaluations on the same images."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import parse
from mrcnn_jax.config.validation import require_whole
from mrcnn_jax.errors import InputError, printable


@dataclass(frozen=True)
class Options:
    """Compare two evaluations on the same images, with intervals that say whether they really differ."""

    first: tyro.conf.Positional[Path]
    """Directory of a run that was evaluated, of an evaluation, or a COCO results file."""
    second: tyro.conf.Positional[Path]
    """The same of the other."""
    truth: Path | None = None
    """Prepared data set, or annotation file in COCO format; by default the set both were evaluated on."""
    split: str | None = None
    """Split of the data set; by default that of the evaluations."""
    out: Path | None = None
    """Directory that gets comparison.json and comparison.html, with all classes."""
    resamples: int = 1000
    """Number of times that images are drawn with replacement, 100 to 100,000."""
    seed: int = 0
    """Seed of the draws."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn compare`; returns the exit status."""
    options = parse(Options, "compare", arguments)
    require_whole("--resamples", options.resamples, 100, 100_000)
    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, not {options.seed}")
    from mrcnn_jax.atomic_io import require_writable
    from mrcnn_jax.evaluation.report.compare import compare_results
    from mrcnn_jax.evaluation.report.comparison_page import (
        COMPARISON_FILES,
        comparison_table,
        verdict,
        write_comparison,
    )

    if options.out:
        require_writable(options.out, COMPARISON_FILES)
    names = str(options.first), str(options.second)
    found = compare_results(
        options.first, options.second, options.truth, options.split, resamples=options.resamples,
        seed=options.seed,
    )  # fmt: skip
    console = Console()
    for kind, comparison in found.items():
        console.print(comparison_table(kind, comparison, names))
        print(verdict(kind, comparison))
    if options.out:
        write_comparison(options.out, found, names)
        print(f"The comparison of all classes is in {printable(options.out / COMPARISON_FILES[1])}.")
    return OK
