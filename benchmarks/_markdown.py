"""Result pages in Markdown: from templates in benchmarks/pages, result files, and figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mrcnn_jax.atomic_io import replacing, write_text
from mrcnn_jax.errors import InputError

PAGES = Path(__file__).parent / "pages"
PLATFORMS = {"cpu": "CPU", "gpu": "GPU", "tpu": "TPU"}


def fill(name: str, **values: Any) -> str:
    """Fills a template, in which {name}, {name[key]} and formats such as {name:.2f} stand for values."""
    return (PAGES / name).read_text().format(**values)


def table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Renders a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float | None, digits: int = 3, scale: float = 1.0) -> str | None:
    """Renders a number with so many significant digits, and thousands with commas."""
    if value is None:
        return None
    value *= scale
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def machine_name(machine: Mapping[str, Any]) -> str:
    """Names the machine of a result file."""
    kind = machine.get("device_kind")
    if machine["platform"] == "cpu":
        kind = f"{machine.get('processor', kind)}, {machine.get('cores')} cores"
    return f"{PLATFORMS.get(machine['platform'], machine['platform'])} ({kind})"


def read_result(path: Path, program: str, *keys: str) -> dict[str, Any]:
    """Reads a result file that has some keys, or raises InputError."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: run `{program}` first") from error
    except ValueError as error:
        raise InputError(f"{path} is not a result file of `{program}`: {error}") from error
    if missing := [key for key in keys if key not in content]:
        raise InputError(f"{path} is not a result file of `{program}`: it has no {' and no '.join(missing)}")
    return content


def read_results(folder: Path, pattern: str, program: str) -> dict[str, dict[str, Any]]:
    """Reads the result files of a folder, with machine and rows, by their stems; InputError if none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise InputError(f"{folder} contains no {pattern}: run `{program}` first")
    return {path.stem: read_result(path, program, "machine", "rows") for path in paths}


def write_page(path: Path, text: str, **figures: Figure) -> list[Path]:
    """Writes a page, and figures beside it as PNG by their names; returns all paths."""
    for name, figure in figures.items():
        with replacing(path.with_name(f"{name}.png")) as unfinished:
            figure.savefig(unfinished, dpi=110)
    write_text(path, text)
    return [path, *(path.with_name(f"{name}.png") for name in figures)]
