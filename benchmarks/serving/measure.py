"""python -m benchmarks.serving.measure: many clients of `mrcnn serve` on this machine.

The demo's model with random weights is served with each batch size, all servers idle but one. Photos are
generated JPEGs of 640 x 480 pixels, of which every third is upright.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from benchmarks._program import RESULTS, check, command_line, processor, rounded, versions, write_files
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import with_changes
from mrcnn_jax.data import shapes
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.weights.folder import Weights, write_model_folder

PROGRAM = "python -m benchmarks.serving.measure"


@dataclass(frozen=True)
class Options:
    """Measure requests per second, latency and memory of a server."""

    requests: int = 200
    """Requests of a round."""
    clients: int = 16
    """Clients that each wait for an answer before they ask again."""
    batch_sizes: tuple[int, ...] = (1, 4)
    """Batch sizes to compare."""
    rounds: int = 5
    """Rounds with each batch size in turn, of which the median counts."""
    out: Path = RESULTS / "serving.json"
    """JSON file of the results."""


class Server(NamedTuple):
    """A process that serves."""

    process: subprocess.Popen
    port: int

    def megabytes(self, kind: str) -> float:
        """Memory of the process: VmRSS now, VmHWM at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) / 1024

    def ask(self, photo: bytes) -> float | None:
        """Returns the seconds until the answer of a request, or None if it is lost."""
        begin = time.perf_counter()
        try:
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
                connection.request("POST", "/predict?score_threshold=0", photo)
                response = connection.getresponse()
                answer = json.loads(response.read())
        except (OSError, HTTPException):
            return None
        whole = response.status == 200 and len(answer["images"]) == 1
        return time.perf_counter() - begin if whole else None


@contextmanager
def serving(model: Path, batch_size: int, requests: int) -> Iterator[Server]:
    """Starts a server, which is ended after the block."""
    words = ["serve", str(model), "--port", "0", "--batch-size", str(batch_size)]
    words += ["--max-requests", str(requests)]
    command = [sys.executable, "-m", "mrcnn_jax", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ports = (re.search(r"at http://127.0.0.1:(\d+) ", line) for line in process.stdout)
            yield Server(process, int(next(filter(None, ports))[1]))
        finally:
            process.terminate()
            process.wait(60)


def write_model(folder: Path) -> None:
    """Writes the demo's model with random weights."""
    experiment = with_changes(presets.get("demo"), {"model.num_classes": len(shapes.KINDS)})
    variables = init_variables(make_model(experiment.model), jax.random.key(0))
    write_model_folder(folder, Weights(experiment, shapes.INFO, jax.device_get(variables)))


def make_photos(count: int) -> list[bytes]:
    """Returns JPEGs that compress like photos."""
    photos = []
    for number in range(count):
        size = (640, 480) if number % 3 == 2 else (480, 640)
        noise = np.random.default_rng(number).integers(0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8)
        image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
        photos.append(cv2.imencode(".jpg", image)[1].tobytes())
    return photos


def measure_round(server: Server, photos: Sequence[bytes], requests: int, clients: int) -> dict[str, Any]:
    """Sends requests from several clients at once."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as executor:
        seconds = [*executor.map(lambda number: server.ask(photos[number % len(photos)]), range(requests))]
    end, answered = time.perf_counter(), [one for one in seconds if one is not None]
    return {
        "lost": requests - len(answered), "requests_per_second": requests / (end - begin),
        "latency": np.quantile(answered, [0.5, 0.95]).tolist(), "megabytes": server.megabytes("VmRSS"),
    }  # fmt: skip


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, requests=1, clients=1, rounds=1)
    photos = make_photos(12)
    rounds: dict[int, list[dict[str, Any]]] = {size: [] for size in options.batch_sizes}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_model(Path(folder))
        servers = {
            size: stack.enter_context(serving(Path(folder), size, options.clients))
            for size in options.batch_sizes
        }
        for _ in range(options.rounds):
            for size, server in servers.items():
                rounds[size].append(measure_round(server, photos, options.requests, options.clients))
        alone = measure_round(servers[min(servers)], photos, options.requests // 4, 1)
        peaks = {size: server.megabytes("VmHWM") for size, server in servers.items()}
    result = {
        "command": command_line(PROGRAM, options), "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions("jax", "starlette", "uvicorn"),
        "requests": options.requests, "clients": options.clients, "rounds": options.rounds,
        "one client": {
            "requests_per_second": rounded(alone["requests_per_second"]),
            "latency_median_95": [*map(rounded, alone["latency"])],
        },
        "batch_sizes": {
            size: summary(made) | {"megabytes_peak": round(peaks[size])} for size, made in rounds.items()
        },
    }  # fmt: skip
    write_json(options.out, result)
    return [options.out]


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns medians of the rounds, and the memory after each."""
    return {
        "lost": sum(one["lost"] for one in rounds),
        "requests_per_second": rounded(np.median([one["requests_per_second"] for one in rounds])),
        "latency_median_95": [*map(rounded, np.median([one["latency"] for one in rounds], axis=0))],
        "megabytes_after_each_round": [round(one["megabytes"]) for one in rounds],
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
