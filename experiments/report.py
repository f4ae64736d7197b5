"""python -m experiments.report: renders the result files as the table in README.md, and as RESULTS.md with its plots. Nothing in them is written by hand."""

import json
import sys
from pathlib import Path

from experiments.publish import RESULTS
from experiments.tables import page
from mrcnn_jax.files import write_text

README = Path(__file__).parent.parent / "README.md"
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


def main() -> int:
    """Rewrites README.md, RESULTS.md and the plots."""
    write_text(README, rendered(README.read_text()))
    write_text(page.PAGE, page.page())
    plots = page.draw()
    print(f"Renewed the table in {README}, {page.PAGE} and {len(plots)} plots.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
