"""python -m benchmarks.model.start PHOTO --work DIR [--cases NAME ...]: times starts, as a user sees them.

Each start is a process of its own, from its command to its result; a photo is detected by `mrcnn predict` and
by a short torchvision script (MRCNN_TORCHVISION_PYTHON names an interpreter that has it) in turn. First
starts have an empty cache of compiled programs in DIR, which is kept: later calls measure later starts and
add to the result file.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks._markdown import table
from benchmarks._program import RESULTS, check, processor, rounded, versions, write_files

MAKE_WEIGHTS = """
import sys, torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
torch.manual_seed(0)
torch.save(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), sys.argv[1])
"""
TORCHVISION = """
import sys, torch
from PIL import Image
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import draw_segmentation_masks
model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
image = to_tensor(Image.open(sys.argv[2]).convert("RGB"))
with torch.inference_mode():
    found = model.eval()([image])[0]
best = found["scores"] >= 0.5
print(len(best), found["labels"][best], found["scores"][best], found["boxes"][best])
to_pil_image(draw_segmentation_masks(image, found["masks"][best, 0] > 0.5)).save(sys.argv[3])
"""
LOWER = """
import jax, time
from benchmarks.model._synthetic import make_step, standalone, synthetic_batch
from dataclasses import replace
from mrcnn_jax import presets
experiment = standalone(presets.get("mask_rcnn_r50_fpn"), classes=80)
experiment = replace(experiment, train=replace(experiment.train, images_per_device=1))
step, make_state = make_step(experiment)
state, batch = jax.eval_shape(make_state), synthetic_batch(experiment, 1, 8)
begin = time.perf_counter()
step.lower(state, batch)
print(time.perf_counter() - begin)
"""
MRCNN = (sys.executable, "-m", "mrcnn_jax")
ROWS = {
    "import": "`import mrcnn_jax`",
    "help": "`mrcnn --help`",
    "predict": "`mrcnn predict`, one photo, R50-FPN at 800 pixels",
    "torchvision": "the same by a torchvision script",
    "demo": "`mrcnn train demo`, to the first training step",
    "lower": "tracing and lowering of the R50-FPN training step",
}
CASES = {
    "import": ("import", "help"),
    "predict": ("torchvision", "predict"),
    "demo": ("demo",),
    "lower": ("lower",),
}
_SECONDS = "first_seconds", "seconds"


@dataclass(frozen=True)
class Options:
    """Time starts: imports, one photo beside torchvision, and the first step of the demo."""

    photo: tyro.conf.Positional[Path]
    """Photo to detect objects in."""
    work: Path
    """Folder of weights, data and compiled programs, kept for later calls."""
    cases: tuple[str, ...] = tuple(CASES)
    """Cases to time: import, predict, demo, lower."""
    repeats: int = 5
    """Later starts of each case."""
    out: Path = RESULTS / "start.json"
    """Result file, to which the cases are added."""


def measure(options: Options) -> list[Path]:
    """Times the cases, adds them to the result file and returns it."""
    check(options, repeats=1)
    options.work.mkdir(parents=True, exist_ok=True)
    starts = _starts(options.photo.absolute(), options.work.absolute())
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    for case in options.cases:
        if _prepare(case, options.work.absolute()):
            for name in CASES[case]:
                result.setdefault(name, {})["first_seconds"] = rounded(starts[name]())
        seconds = {name: [] for name in CASES[case]}
        for _ in range(options.repeats):  # in turn, so that whatever slows the machine slows all
            for name in CASES[case]:
                seconds[name].append(starts[name]())
        for name, each in seconds.items():
            later = {"seconds": rounded(np.median(each)), "all_seconds": [rounded(one) for one in each]}
            result[name] = result.get(name, {}) | later
    result["machine"] = {"processor": processor(), "cores": len(os.sched_getaffinity(0))}
    result["versions"] = versions("jax", "flax", "orbax-checkpoint")
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return [options.out]


def _prepare(case: str, work: Path) -> bool:
    """Makes weights and data of a case; returns whether its next start is a first one."""
    done = work / f"{case}.done"
    if case not in ("predict", "demo") or done.exists():
        return False
    if case == "predict":
        subprocess.run([_torchvision(), "-c", MAKE_WEIGHTS, work / "weights.pth"], check=True)
        command = [*MRCNN, "import-weights", work / "weights.pth", "--out", work / "imported"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    else:
        draw = "from mrcnn_jax.data.catalog import *; open_split(DataConfig(), 'train')"
        subprocess.run([sys.executable, "-c", draw], cwd=work, check=True, env=_environment(work))
    done.touch()
    return True


def _starts(photo: Path, work: Path) -> dict[str, Callable[[], float]]:
    """Returns functions that start a process and return the seconds until its result."""

    def timed(*command) -> Callable[[], float]:
        def start() -> float:
            begin = time.perf_counter()
            subprocess.run(command, check=True, cwd=work, env=_environment(work), stdout=subprocess.DEVNULL)
            return time.perf_counter() - begin

        return start

    return {
        "import": timed(sys.executable, "-c", "import mrcnn_jax"),
        "help": timed(*MRCNN, "--help"),
        "predict": timed(*MRCNN, "predict", work / "imported", photo, "--out", work / "predictions"),
        "torchvision": timed(_torchvision(), "-c", TORCHVISION, work / "weights.pth", photo, work / "tv.png"),
        "demo": lambda: _first_step(work),
        "lower": lambda: float(_output([sys.executable, "-c", LOWER], work)),
    }


def _first_step(work: Path) -> float:
    """Starts the training of the demo and ends it after its first step."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    begin, environment = time.perf_counter(), _environment(work)
    with subprocess.Popen(
        [*MRCNN, "train", "demo"], cwd=work, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        next(line for line in run.stdout if line.startswith("step "))
        seconds = time.perf_counter() - begin
        run.kill()
    return seconds


def _output(command: list[str], work: Path) -> str:
    environment = _environment(work)
    return subprocess.run(command, check=True, cwd=work, env=environment, stdout=subprocess.PIPE).stdout


def _environment(work: Path) -> dict[str, str]:
    """Returns an environment whose home, and so the cache of compiled programs, is in the folder."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    return {name: value for name, value in os.environ.items() if "CACHE" not in name} | {
        "HOME": str(work), "PYTHONPATH": path,
    }  # fmt: skip


def _torchvision() -> str:
    return os.environ.get("MRCNN_TORCHVISION_PYTHON", sys.executable)


def page(result: dict) -> str:
    """Renders the table of docs/guides/cpu.md."""
    rows = [
        (text, *(f"{result[name][key]:.2g} s" if key in result[name] else "" for key in _SECONDS))
        for name, text in ROWS.items()
    ]
    return table(("from the command to the result", "first start", "later starts, median"), rows)


if __name__ == "__main__":
    sys.exit(write_files("python -m benchmarks.model.start", Options, measure))
