"""python -m experiments.report: renders the result files as the table in README.md, and as RESULTS.md with its plots. Nothing in them is written by hand."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import page
from experiments.export_result import RESULTS
from experiments.results_io import FOLDER
from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.errors import InputError

README = Path(__file__).parent.parent / "README.md"
PROGRAM = "python -m experiments.report"
BEGIN, END = "<!-- results: made by python -m experiments.report -->", "<!-- end of results -->"


def table(results: Path = RESULTS) -> str:
    """A Markdown table with a row for each result file."""
    lines = [
        "| result | mask AP | AP50 | AP75 | box AP | AP50 | AP75 | keypoint AP | AP50 | AP75 | steps x images | training | made by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        metrics = result["metrics"]
        figures = [metrics[kind][name] if kind in metrics else None for kind in ("segm", "bbox", "keypoints") for name in ("AP", "AP50", "AP75")]
        lines.append(
            f"| [{path.stem}](experiments/results/{path.name}) | {' | '.join('-' if value is None else f'{value:.1f}' for value in figures)} | "
            f"{result['steps']} x {result['images_per_step']} | {result['training_seconds'] / 60:.0f} min, {result['hardware']} | `{result['command']}` |"
        )
    return "\n".join(lines)


def rendered(readme: str, results: Path = RESULTS) -> str:
    """The README with its table renewed."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


@dataclass(frozen=True)
class Options:
    """Make pages of the results of experiments: of the published ones README's table and experiments/RESULTS.md."""

    results: Path = FOLDER
    """Of one's own runs of tables, as given to experiments.run: the page is written there, with plots, and nothing else."""


def main(arguments: list[str] | None = None) -> int:
    """Rewrites the pages and plots; returns the exit status."""
    folder = tyro.cli(Options, prog=PROGRAM, args=arguments).results
    try:
        plots = page.draw(folder)
        if not plots:
            raise InputError(f"{folder} has no results of tables; python -m experiments.run with --results {folder} makes some")
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    write_text(page.place(folder), page.page(folder))
    print(f"Made {page.place(folder)} and {len(plots)} plots.")
    if folder == FOLDER:
        write_text(README, rendered(README.read_text()))
        print(f"Renewed the table in {README}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
