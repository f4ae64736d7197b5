"""Headless Chromium, spoken to over pipes by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("MRCNN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """A page of a browser; a context manager.

    Args:
        profile: an empty folder.
        size: width and height of the window.
        options: further words of the command line.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 800), *options: str):
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        words = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}",
            *options, "about:blank",
        ]  # fmt: skip

        def inherit() -> None:  # the browser reads commands from 3, and writes to 4
            os.dup2(commands, 13), os.dup2(answers, 14)
            os.dup2(13, 3), os.dup2(14, 4)

        self._process = subprocess.Popen(
            words, preexec_fn=inherit, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands), os.close(answers)
        self._number, self._rest, self._session = 0, b"", None
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in pages if one["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.send("Page.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read), os.close(self._write)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str) -> None:
        """Opens an address and waits until its scripts have run."""
        self.send("Page.navigate", url=url)
        while self.run("return location.href + document.readyState") != f"{url}complete":
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Evaluates a script, which may await, and returns its value."""
        expression = f"(async () => {{ {script} }})()"
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def give(self, selector: str, file: Path) -> None:
        """Chooses a file in an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screenshot(self, file: Path, **parameters: Any) -> None:
        """Writes a picture of the page."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **parameters)["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._read, 2**16)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
