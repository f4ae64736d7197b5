"""Training runs as processes: started like from a shell, observed from outside, their files compared."""

import atexit
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from benchmarks.scaling._processes import TINY_MODEL, device_environment
from mrcnn_jax.data import shapes
from mrcnn_jax.training.logging import SPEED_METRICS

DAMAGES = ("bytes flipped", "cut short", "deleted")
POLL = 0.005  # seconds between two looks at a process
TIMEOUT = 900.0  # seconds after which a process counts as hanging
WATCHED = shlex.split("""
    --train.ema-decay 0.9 --train.keep-best --train.validation-loss-images 3
    --train.monitor validation_loss
""")
"""Options of what a run keeps and compares besides."""


@dataclass(frozen=True)
class Task:
    """A training run.

    Attributes:
        data: data set, made by ``prepare``.
        cache: compiled programs, shared by all starts.
        steps, checkpoint_every, evaluate_every, images_per_device: of ``TrainConfig``.
        devices: virtual CPU devices.
        portrait: whether there are portrait images too, which need a second program.
    """

    data: Path
    cache: Path
    steps: int
    checkpoint_every: int
    evaluate_every: int
    devices: int = 2
    images_per_device: int = 2
    portrait: bool = True

    def prepare(self) -> None:
        """Makes the data set: few, small images of the embedded shapes."""
        sizes = ((64, 64), (64, 96), *([(96, 64)] if self.portrait else []))
        numbers = {"train_images": 48, "validation_images": 8, "min_size": 16, "max_size": 64}
        shapes.prepare(self.data, shapes.ShapesConfig(image_sizes=sizes, **numbers))

    def command(self, directory: Path, options: Sequence[str] = ()) -> list[str]:
        """Returns the command that trains in a run directory; ``options`` override."""
        train = {"images-per-device": self.images_per_device, "steps": self.steps,
                 "decay-steps": self.steps * 3 // 4, "checkpoint-every": self.checkpoint_every,
                 "evaluate-every": self.evaluate_every}  # fmt: skip
        words = [str(word) for name, value in train.items() for word in (f"--train.{name}", value)]
        words += ["--directory", str(directory), "--data.dataset", str(self.data)]
        words += ["--train.compilation-cache", str(self.cache)]
        command = [sys.executable, "-m", "mrcnn_jax", "train", "demo", *TINY_MODEL, *WATCHED]
        return [*command, *words, *options]

    def environment(self) -> dict[str, str]:
        """Returns the environment of the command."""
        return device_environment(self.devices) | {"JAX_COMPILATION_CACHE_DIR": ""}


class Training:
    """One start of the command.

    Args:
        task: what is trained.
        directory: of the run.
        options: more options of the command.
        log: path, without suffix, of stdout and stderr; by default beside the directory.
        settings: of subprocess.Popen.
    """

    def __init__(
        self, task: Task, directory: Path, options: Sequence[str] = (), log: Path | None = None,
        **settings: Any,
    ):  # fmt: skip
        self.task, self.directory, self._history = task, directory, directory / "history.jsonl"
        self._stamp_before = _stamp(self._history)
        log = log or directory.with_name(f"{directory.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        self.begin, command = time.monotonic(), task.command(directory, options)
        settings |= {"stdin": subprocess.DEVNULL, "env": task.environment()}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, **settings)
        atexit.register(self.process.kill)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def resumed_at(self) -> int | None:
        """Step of the checkpoint that was restored; None without one, or before it is reported."""
        match = re.search(r"^Resumed .* at step ([\d,]+) of", self.stdout, re.MULTILINE)
        return int(match[1].replace(",", "")) if match else None

    @property
    def last_step(self) -> int | None:
        """Last step that this start has logged; None before its first."""
        if _stamp(self._history) in (None, self._stamp_before):
            return None
        lines = _last_lines(self._history)
        return lines[-1]["step"] if lines and lines[-1]["step"] > (self.resumed_at or 0) else None

    @property
    def steps_made(self) -> int:
        start = self.resumed_at or 0
        return (self.last_step or start) - start

    @property
    def phase(self) -> str:
        """Current phase, as far as output, history and temporary checkpoints show it."""
        if "learning rate" not in self.stdout:
            return "start-up"
        folder = self.directory / "checkpoints"
        if folder.exists() and not all(name.isdigit() for name in os.listdir(folder)):
            return "checkpoint"
        step = self.last_step
        if step is None:
            return "evaluation" if self.resumed_at == self.task.steps else "compiling"
        evaluated = "loss" not in _last_lines(self._history)[-1]
        due = step % self.task.evaluate_every == 0 and not evaluated
        return "evaluation" if step == self.task.steps or due else "steps"

    @property
    def at_end(self) -> bool:
        """Returns whether all steps are done."""
        return self.task.steps in (self.last_step, self.resumed_at)

    def send(self, kind: signal.Signals) -> None:
        self.process.send_signal(kind)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Returns the exit status; kills the process and raises TimeoutError if it does not end in time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            output = f"{self.stdout[-2000:]}{self.stderr[-2000:]}"
            raise TimeoutError(f"a process did not end within {timeout:g} seconds: {output}") from None

    def wait_for_step(self, step: int) -> None:
        """Waits until a step is logged, or the process has ended."""
        deadline = time.monotonic() + TIMEOUT
        while self.running and (self.last_step or 0) < step and time.monotonic() < deadline:
            time.sleep(POLL)

    @property
    def messages(self) -> list[str]:
        """Error messages of the command."""
        lines = self.stderr.splitlines()
        return [line.removeprefix("mrcnn: ") for line in lines if line.startswith("mrcnn: ")]

    @property
    def traceback(self) -> bool:
        """Returns whether a traceback was printed."""
        return "Traceback (most recent call last)" in self.stderr + self.stdout


def checkpoints(directory: Path) -> list[int]:
    """Returns the steps of the complete checkpoints, ascending."""
    return sorted(int(path.name) for path in directory.glob("checkpoints/*") if path.name.isdigit())


def saved_arrays(directory: Path, step: int, folder: str = "checkpoints") -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint by its path, read by Orbax alone."""
    path, handler = epath.Path(directory.absolute()), ocp.StandardCheckpointHandler()
    path = path / folder / str(step) / "state"
    template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), handler.metadata(path).tree)
    tree = handler.restore(path, args=ocp.args.StandardRestore(template))
    handler.close()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def logged(directory: Path) -> tuple[list[dict[str, float]], dict[int, dict[str, float]]]:
    """Returns the reproducible entries of each training line of the history, and its evaluations by step."""
    lines = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line for line in lines if "loss" not in line}
    lines = [line for line in lines if "loss" in line]
    return [{name: line[name] for name in line if name not in SPEED_METRICS} for line in lines], evaluations


def table(directory: Path) -> list[dict[str, str]]:
    """Returns the reproducible cells of each row of metrics.csv."""
    with (directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: cell for name, cell in row.items() if name not in SPEED_METRICS} for row in rows]


def best_checkpoint(directory: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the best checkpoint, with its step."""
    (step,) = os.listdir(directory / "best")
    return saved_arrays(directory, int(step), "best")


def compare_runs(directory: Path, other: Path) -> dict[str, Any]:
    """Compares the last and the best checkpoint, the history and metrics.csv with those of an undisturbed
    run, bit for bit."""
    step = checkpoints(other)[-1]
    if checkpoints(directory)[-1:] != [step]:
        return {"failures": [f"the run did not reach its end, step {step}"]}
    ours, theirs = (saved_arrays(each, step) for each in (directory, other))
    names = differing(ours, theirs)
    (training, evaluations), (expected, expected_evaluations) = logged(directory), logged(other)
    unequal = {
        f"{len(names)} arrays, among them {names[:1]},": bool(names),
        "the logged losses": training != expected,
        "the evaluations": evaluations != expected_evaluations,
        "the rows of metrics.csv": table(directory) != table(other),
        "the best checkpoints": bool(differing(best_checkpoint(directory), best_checkpoint(other))),
    }
    failures = [f"{what} differ from the undisturbed run" for what, differ in unequal.items() if differ]
    parts = dict(Counter(name.split(".")[0] for name in ours))
    sizes = {"losses": len(training), "evaluations": len(evaluations)}
    return {"arrays": parts, **sizes, "failures": failures}


def differing(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> list[str]:
    """Returns the names of arrays that differ in a bit or are missing on one side."""
    ours, theirs = ({name: array.tobytes() for name, array in each.items()} for each in (arrays, others))
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def files_by_size(folder: Path) -> list[Path]:
    """Returns all files that are not empty, the largest first."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return sorted(files, key=lambda path: (-path.stat().st_size, str(path)))


def damage(file: Path, how: str) -> None:
    """Flips eight bytes in the middle of a file, truncates or deletes it."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if how == "deleted":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(content[:middle])
    else:
        content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
        file.write_bytes(content)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Returns a value that changes when a file is written."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


def _last_lines(file: Path, length: int = 4000) -> list[dict[str, float]]:
    """Returns the last complete lines of a file that may be being written."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - length))
        lines = opened.read().splitlines(keepends=True)[1 if size > length else 0 :]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
