"""Files of an evaluation beside its metrics: results, the contact sheet and the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from etils import epath

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.distributed import is_primary
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco import KindEvaluation
from mrcnn_jax.evaluation.report.files import REPORT_FILES
from mrcnn_jax.inference.detector import print_warning
from mrcnn_jax.visualize.draw import ColorBy
from mrcnn_jax.visualize.files import save_picture

if TYPE_CHECKING:
    from mrcnn_jax.inference.evaluate import Evaluation

FILES = "results.json", "metrics.json", "predictions.png", "predictions.jpg", *REPORT_FILES
"""Files that an evaluation writes; of the contact sheets one."""


def write_results(out: epath.Path, results: list[dict[str, Any]]) -> None:
    """Writes results.json, and removes the other files of an earlier evaluation."""
    for name in FILES[1:]:
        (out / name).unlink(missing_ok=True)
    write_json(out / FILES[0], results, indent=None)


def add_analysis(analyses: dict[str, dict[str, Any]], kind: str, evaluated: KindEvaluation) -> None:
    """Adds the analysis of a kind; what fails is a warning."""
    with _warning("the evaluation cannot be analysed"):
        analyses[kind] = analyze(evaluated)


def write_pictures(out: epath.Path, title: str, evaluation: "Evaluation", color_by: ColorBy) -> None:
    """Writes the contact sheet, and the report if there are analyses; what fails is a warning, as the metrics
    are complete."""
    if evaluation.examples:
        with _warning("the contact sheet cannot be drawn"):
            save_picture(out / "predictions.png", evaluation.sheet(color_by))
    if evaluation.analyses and is_primary():
        with _warning("the report cannot be written"):
            from mrcnn_jax.evaluation.report.write import write_report  # half a second of Matplotlib

            write_report(
                out, title, evaluation.split, evaluation.results, evaluation.metrics, evaluation.analyses
            )


@contextmanager
def _warning(message: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print_warning(f"{message} ({type(error).__name__}: {error})")
