"""python -m experiments.compare_runs PICTURE NAME NAME ...: plots the loss and AP of published runs over
their steps."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments._results import RESULTS, load_runs
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.errors import InputError
from mrcnn_jax.visualize.plots import plot_comparison

PROGRAM = "python -m experiments.compare_runs"


@dataclass(frozen=True)
class Options:
    """Plot the loss and AP of published runs over their steps, side by side."""

    picture: tyro.conf.Positional[Path]
    """PNG file to write."""
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Names of result files in experiments/results, without .json."""


def load_histories(names: tuple[str, ...], results: Path = RESULTS) -> dict[str, list[dict[str, float]]]:
    """Loads the histories of runs, by name; InputError for a run without one."""
    known = {name: run["history"] for name, run in load_runs(results).items() if "history" in run}
    for name in names:
        if name not in known:
            choices = ", ".join(known)
            raise InputError(f"{results / name}.json holds no history of a run; choose from {choices}")
    return {name: known[name] for name in names}


def main(arguments: list[str] | None = None) -> int:
    """Draws the picture; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    try:
        plot_comparison(load_histories(options.runs), options.picture)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    print(f"Wrote {options.picture}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
