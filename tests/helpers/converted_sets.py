"""Small sets in COCO format, changed and converted."""

from pathlib import Path

from small_sets import write_set

from mrcnn_jax.data.dataset import Record, open_dataset
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.conversion_report import ConversionReport


def convert(tmp_path: Path, change=None, **options) -> tuple[list[Record], ConversionReport]:
    """Returns the records and the report of a set of four images, one object each, changed."""
    folder = write_set(tmp_path / "set", change)
    reports = coco.prepare(folder, tmp_path / "out", overwrite=True, **options)
    return list(open_dataset(tmp_path / "out", "train")), reports["train"]


def change_first(**fields):
    """Returns a change of the first annotation."""
    return lambda content: content["annotations"][0].update(fields)


def kinds(*found: dict) -> str:
    """Returns the kinds of flaws of a report."""
    return "; ".join(kind for kinds in found for kind in kinds)
