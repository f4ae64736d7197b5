"""`mrcnn serve` as a process: many clients, answers of the command line, memory, signals, and its page."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import cv2
import numpy as np
import pytest
import saved_runs
import tiny_run
from browser import CHROMIUM, Browser

from mrcnn_jax.cli.main import main

CLIENTS, REQUESTS = 16, 200
SIZES = [(64, 96), (96, 64), (64, 64), (300, 450)]


class Server:
    """A process that serves a detector."""

    def __init__(self, directory: Path, *options: str):
        words = ["serve", directory, "--port", "0", "--batch-size", "4", "--max-megabytes", "0.5", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mrcnn_jax", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"at http://127.0.0.1:(\d+) ", line):
                self.port = int(found[1])
                return
        raise AssertionError("".join(self.lines))

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    @property
    def megabytes(self) -> float:
        """Memory that the process occupies."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def end(self, kind: int) -> tuple[int, str]:
        """Sends a signal; returns the exit status and what was printed since."""
        self.process.send_signal(kind)
        rest = self.process.communicate(timeout=60)[0]
        return self.process.returncode, rest


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("served")
    saved_runs.saved_run(base / "run", tiny_run.dataset(base))
    return base / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def server(run) -> Iterator[Server]:
    server = Server(run)
    yield server
    server.process.kill()
    server.process.wait()


def test_answers_are_those_of_the_command_line(server, run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), *map(str, photos), "--score", "0.1"]) == 0
    expected = json.loads(Path("predictions/coco.json").read_text())
    assert len(expected["annotations"]) > len(photos)
    for image, photo in zip(expected["images"], photos, strict=True):
        status, answer = server.request("POST", "/predict?score_threshold=0.1", photo.read_bytes())
        assert status == 200 and answer["categories"] == expected["categories"]
        ours = [one | {"image_id": image["id"], "id": 0} for one in answer["annotations"]]
        theirs = [one | {"id": 0} for one in expected["annotations"] if one["image_id"] == image["id"]]
        assert ours == theirs


def test_no_request_of_many_clients_is_lost_and_memory_is_bounded(server, photos):
    contents = [photo.read_bytes() for photo in photos]

    def ask(number: int) -> tuple[int, list]:
        status, answer = server.request("POST", "/predict?score_threshold=0", contents[number % len(SIZES)])
        image = answer["images"][0]
        assert (image["height"], image["width"]) == SIZES[number % len(SIZES)]
        return status, [(one["category_id"], one["bbox"]) for one in answer["annotations"]]

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [*clients.map(ask, range(REQUESTS))]
        before = server.megabytes
        answers += clients.map(ask, range(REQUESTS))
    assert len(answers) == 2 * REQUESTS and {status for status, _ in answers} == {200}
    assert server.megabytes < before + 50
    assert server.request("GET", "/health") == (200, {"status": "ok", "requests": 0})


def test_a_client_sees_why_its_upload_is_too_large(server):
    status, answer = server.request("POST", "/predict", bytes(1_500_000))
    assert status == 413 and answer == {"error": "an upload may have 0.5 MB at most"}


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (MRCNN_CHROMIUM)")
def test_the_page_draws_what_is_found(server, photos, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.run("while (!model.categories.length) await new Promise(done => setTimeout(done, 20));")
        browser.give("#file", photos[3])
        browser.run("while (!shown) await new Promise(done => setTimeout(done, 20));")
        status, answer = server.request("POST", "/predict?score_threshold=0.05", photos[3].read_bytes())
        found = browser.run("$('threshold').value = 0.05; refresh(); return visible().map(one => one.id)")
        assert found == [one["id"] for one in answer["annotations"]] != []
        areas = browser.run("""return shown.objects.map(one => {
            const {part} = one.mask || {part: null};
            if (!part) return 0;
            const {data} = part.getContext("2d").getImageData(0, 0, part.width, part.height);
            return data.filter((value, index) => index % 4 === 3 && value).length;
        })""")
        assert areas == [one["area"] for one in answer["annotations"]]  # the masks are decoded to the pixel
        assert browser.run("$('threshold').value = 1; refresh(); return visible().length") == 0
        browser.give("#file", Path(__file__))
        error = "while ($('error').hidden) await new Promise(done => setTimeout(done, 20));"
        assert "not an image of a known format." in browser.run(f"{error} return $('error').textContent")


def test_requests_that_have_begun_are_completed_after_a_signal(server, photos):
    """This ends the server."""
    content, answers, count = photos[3].read_bytes(), [], 40

    def ask():
        answers.append(server.request("POST", "/predict", content)[0])

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while (begun := server.request("GET", "/health")[1]["requests"]) + len(answers) < count:
        assert time.monotonic() < deadline
    assert begun > 0
    status, printed = server.end(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert (status, printed) == (0, "")
    assert answers == [200] * count


def test_an_address_in_use_is_refused_before_the_model_is_loaded(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", os.devnull, "--port", str(port)]) == 2
    assert f"cannot serve at --host 127.0.0.1 --port {port}: " in capfd.readouterr().err
