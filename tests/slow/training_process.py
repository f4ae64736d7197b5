"""Training runs as processes of their own: started as from a shell, watched from outside, and what they left behind read back."""

import atexit
import json
import os
import re
import shlex
import signal
import socket
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
from paths import REPOSITORY

from mrcnn_jax.data import shapes
from mrcnn_jax.training.logging import SPEED_METRICS

PHASES = ("start-up", "compiling", "steps", "checkpoint", "evaluation")
FINISHED, FAILED, BAD_INPUT, AGAIN = 0, 1, 2, 75  # exit status of `mrcnn train`
DAMAGES = ("bytes flipped", "cut short", "deleted")
POLL = 0.005  # seconds between two looks at a process
PATIENCE = 900.0  # seconds after which a process that should have ended counts as hanging
CLOSE_TO_NOTHING = shlex.split("""
    --data.short-edge 64 --data.short-edge-test 64 --data.long-edge 96 --data.max-objects 4 --data.mask-size 28
    --model.backbone.width 8 --model.backbone.features c5 --model.roi.levels 5 5
    --model.rpn.anchor-sizes 8 16 32 64 128 --model.rpn.samples-per-image 32
    --model.rpn.pre-nms-train 16 --model.rpn.post-nms-train 24 --model.rpn.pre-nms-test 16 --model.rpn.post-nms-test 16
    --model.roi.samples-per-image 12 --model.roi.positive-fraction 0.5
    --model.box.channels 32 --model.box.candidates 24 --model.box.detections 6
    --model.mask.pool.size 7 --model.mask.layers 1 --model.mask.channels 16
    --train.log-every 1 --train.warmup-steps 5 --train.keep-checkpoints 4 --evaluation.images-per-device 2 --evaluation.pictures 2
""")
"""What makes `demo` so small that a step takes a fraction of a second on two cores. Every step is logged."""


@dataclass(frozen=True)
class Task:
    """What is trained, and on what.

    Attributes:
        data: the data set, made by ``prepare``.
        cache: folder of compiled programs, which all starts share, so that only the first one compiles.
        steps: of the whole run.
        checkpoint_every: steps.
        evaluate_every: steps.
        devices: virtual CPU devices.
        images_per_device: of a step.
        portrait: whether the set holds portrait images too, so that there are two padded sizes and two programs.
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
        """Makes the data set: the embedded one, fewer and smaller images."""
        sizes = ((64, 64), (64, 96), *([(96, 64)] if self.portrait else []))
        shapes.prepare(self.data, shapes.ShapesConfig(train_images=48, validation_images=8, image_sizes=sizes, min_size=16, max_size=64))

    def command(self, directory: Path, options: Sequence[str] = ()) -> list[str]:
        """The command that trains it in a run directory; ``options`` come last and so win."""
        settings = {
            "--directory": directory, "--data.dataset": self.data, "--train.images-per-device": self.images_per_device, "--train.steps": self.steps,
            "--train.decay-steps": self.steps * 3 // 4, "--train.checkpoint-every": self.checkpoint_every,
            "--train.evaluate-every": self.evaluate_every,
        }  # fmt: skip
        given = [str(word) for setting in settings.items() for word in setting]
        return [sys.executable, "-m", "mrcnn_jax", "train", "demo", *CLOSE_TO_NOTHING, *given, *options]

    def environment(self) -> dict[str, str]:
        """Virtual devices, and where compiled programs are kept."""
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={self.devices} --xla_cpu_experimental_ynn_fusion_type="
        root = REPOSITORY
        paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        wide = {"COLUMNS": "1000"}  # no sentence is wrapped
        return {**os.environ, **cache, **wide, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


class Training:
    """One start of the command, from its first instruction to its exit."""

    def __init__(self, task: Task, directory: Path, options: Sequence[str] = (), log: Path | None = None, **settings: Any):
        """``log``: where stdout and stderr go, with endings of their own; by default beside the directory. ``settings``: of subprocess.Popen."""
        self.directory, self.since = directory, _stamp(directory / "history.jsonl")
        log = log or directory.with_name(f"{directory.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        self.files = [log.with_suffix(ending) for ending in (".out", ".err")]
        self.begin = time.monotonic()
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            self.process = subprocess.Popen(
                task.command(directory, options), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=task.environment(), **settings
            )
        atexit.register(self.process.kill)  # which does nothing to a process that has ended

    # ---- while it runs ----

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stdout(self) -> str:
        return self.files[0].read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.files[1].read_text(errors="replace")

    @property
    def resumed_at(self) -> int | None:
        """The step of the checkpoint that it goes on from; None without one, or as long as it has not said so."""
        found = re.search(r"^Resumed .* at step ([\d,]+) of", self.stdout, re.MULTILINE)
        return int(found[1].replace(",", "")) if found else None

    @property
    def last_step(self) -> int | None:
        """The last step that this start has made and logged; None before its first."""
        file = self.directory / "history.jsonl"
        if _stamp(file) in (None, self.since):
            return None
        lines = _last_lines(file)
        return lines[-1]["step"] if lines and lines[-1]["step"] > (self.resumed_at or 0) else None

    @property
    def steps_made(self) -> int:
        """By this start."""
        return (self.last_step or (self.resumed_at or 0)) - (self.resumed_at or 0)

    def phase(self, task: Task) -> str:
        """What it is at, as far as can be told from outside: by its first words, its history, and checkpoints that are not complete."""
        if "learning rate" not in self.stdout:
            return "start-up"
        folder = self.directory / "checkpoints"
        if folder.exists() and not all(name.isdigit() for name in os.listdir(folder)):
            return "checkpoint"
        step = self.last_step
        if step is None:
            return "evaluation" if self.resumed_at == task.steps else "compiling"
        evaluated = "loss" not in _last_lines(self.directory / "history.jsonl")[-1]
        ended = step == task.steps  # the last evaluation, and what is drawn after it
        return "evaluation" if ended or (step % task.evaluate_every == 0 and not evaluated) else "steps"

    # ---- its end ----

    def send(self, kind: signal.Signals) -> None:
        self.process.send_signal(kind)

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit status; TimeoutError, and the end of the process, if it has not ended by then."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise TimeoutError(
                f"a training process did not end within {patience:g} seconds; it had printed: {self.stdout[-2000:]}{self.stderr[-2000:]}"
            ) from None

    @property
    def sentences(self) -> list[str]:
        """What it said on stderr in its own name."""
        return [line.removeprefix("mrcnn: ") for line in self.stderr.splitlines() if line.startswith("mrcnn: ")]

    @property
    def traceback(self) -> bool:
        """Whether a user would have seen one."""
        return "Traceback (most recent call last)" in self.stderr + self.stdout


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


# ---------------------------------------------------------------- what runs leave behind


def checkpoints(directory: Path) -> list[int]:
    """The steps of its complete checkpoints, in order."""
    folder = directory / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def saved_arrays(directory: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint under its path: parameters, model state, optimiser state and the rest. Read by Orbax alone."""
    place, handler = epath.Path(directory).absolute() / "checkpoints" / str(step) / "state", ocp.StandardCheckpointHandler()
    # on the host, whatever devices and processes it was saved from
    template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), handler.metadata(place).tree)
    tree = handler.restore(place, args=ocp.args.StandardRestore(template))
    handler.close()
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def logged(directory: Path) -> tuple[list[dict[str, float]], dict[int, dict[str, float]]]:
    """What was logged of every step of the training, and of the evaluations by their steps; without the times that it took."""
    lines = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    training = [{name: value for name, value in line.items() if name not in SPEED_METRICS} for line in lines if "loss" in line]
    return training, {line["step"]: line for line in lines if "loss" not in line}


def comparison(directory: Path, other: Path) -> dict[str, Any]:
    """Where the last checkpoint and the history of a run, with its evaluations, are not those of another one, to the last bit."""
    step = checkpoints(other)[-1]
    if checkpoints(directory)[-1:] != [step]:
        return {"failures": [f"the run did not come to its end, step {step}"]}
    ours, theirs = (saved_arrays(each, step) for each in (directory, other))
    names = differing(ours, theirs)
    (training, evaluations), (expected, expected_evaluations) = (logged(each) for each in (directory, other))
    failures = [f"{len(names)} arrays are not those of the undisturbed run, the first is {names[0]}"] if names else []
    failures += [] if training == expected else ["the logged losses are not those of the undisturbed run"]
    unlike = [step for step in evaluations.keys() | expected_evaluations.keys() if evaluations.get(step) != expected_evaluations.get(step)]
    failures += [f"the evaluations of steps {sorted(unlike)} are not those of the undisturbed run"] if unlike else []
    parts = dict(Counter(name.split(".")[0] for name in ours))
    return {"arrays": parts, "losses": len(training), "evaluations": len(evaluations), "failures": failures}


def differing(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> list[str]:
    """The names of the arrays that are not the same to the last bit, or not in both."""
    same = lambda name: name in arrays and name in others and arrays[name].tobytes() == others[name].tobytes()
    return sorted(name for name in arrays.keys() | others.keys() if not same(name))


def files_by_size(checkpoint: Path) -> list[Path]:
    """All files of a checkpoint that are not empty, the largest first."""
    return sorted(
        (path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size), key=lambda path: (-path.stat().st_size, str(path))
    )


def damage(file: Path, how: str) -> None:
    """Flips bytes of a file, cuts it short, or deletes it."""
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
    """Tells whether a file has been written to."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_size


def _last_lines(file: Path, length: int = 4000) -> list[dict[str, float]]:
    """The last complete lines of a file that someone may be writing to."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - length))
        lines = opened.read().splitlines(keepends=True)[1 if size > length else 0 :]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
