"""The section of RESULTS.md on recipes after the paper: published figures (recipes.json) beside the cost of
training them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import _markdown
from experiments._results import RECIPE_COSTS
from experiments._tables_page import PEAK_SHARE
from mrcnn_jax import presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.weights import zoo

FACTS: Mapping[str, Mapping[str, str]] = json.loads(Path(__file__).with_name("recipes.json").read_text())
"""Published weights of each recipe, by preset, and addresses of its settings and figures."""
TEXT = """\
Presets that follow Detectron2's model zoo and torchvision, with the AP that these publish for COCO's
validation images; none was trained here. Those of 1x and 3x start from an ImageNet backbone
(`--train.init-from`), those of 100 epochs and more from scratch. The latter are trained on squares of 1024
pixels and were evaluated on images of 800 x 1333, as
`mrcnn evaluate RUN --data.short-edge-test 800 --data.long-edge 1333` does. Costs are estimated as those
[at full size](#cost-at-full-size), for as many chips as the libraries had GPUs."""


def compiled_recipes() -> dict[str, Experiment]:
    """Returns the recipes whose training step is compiled: the shortest one of each model."""
    steps: dict[Experiment, str] = {}
    for name in sorted(FACTS, key=lambda name: presets.get(name).train.steps):
        steps.setdefault(_step(presets.get(name)), name)
    return {name: presets.get(name) for name in FACTS if name in steps.values()}


def _step(recipe: Experiment) -> Experiment:
    """Returns what is the same for recipes that differ in their schedule alone."""
    train = replace(recipe.train, steps=1, decay_steps=(), warmup_steps=0)
    return replace(recipe, name="", train=train)


def recipes_section(costs: Path = RECIPE_COSTS) -> Iterator[str]:
    """Yields the paragraphs of the section."""
    yield "## Recipes after the paper"
    yield TEXT
    rows = json.loads(costs.read_text())["rows"] if costs.exists() else []
    found = {_step(presets.get(row["system"])): row for row in rows}
    heads = ["preset", "box AP", "mask AP", "published", "steps x images", "chips", "GiB used",
             "step at least, ms", "chip-hours at least", "chip-hours expected"]  # fmt: skip
    lines = []
    for name, facts in FACTS.items():
        entry, recipe = zoo.ENTRIES[facts["weights"]], presets.get(name)
        figures, settings = (f"[{text}]({facts[text]})" for text in ("figures", "settings"))
        steps, images = recipe.train.steps, recipe.train.reference_batch
        lines.append([
            f"`{name}`", f"{entry.box_ap:.1f}", f"{entry.mask_ap:.1f}",
            f"{entry.library}: {figures}, {settings}", f"{steps:,} x {images}",
            *_cost(found.get(_step(recipe)), steps),
        ])  # fmt: skip
    yield _markdown.table(heads, lines)


def _cost(row: Mapping[str, Any] | None, steps: int) -> list[str]:
    if row is None:
        return ["not compiled yet", *["-"] * 4]
    if "unavailable" in row:
        return [f"{row['chips']}", row["unavailable"], *["-"] * 3]
    hours = row["least_ms"] * steps * row["chips"] / 3.6e6
    return [f"{row['chips']}", f"{row['used_bytes'] / 2**30:.1f}", f"{row['least_ms']:.1f}", f"{hours:,.0f}",
            f"{hours / PEAK_SHARE:,.0f}"]  # fmt: skip
