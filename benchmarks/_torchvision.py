"""torchvision in a process of its own, which answers lines of JSON: this project does not need torch.

The process's Python is MRCNN_TORCHVISION_PYTHON, or this one if it has torchvision. Only the standard library
and NumPy are imported here, as that Python need not have JAX.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
"""torch's device for each platform of JAX."""


class TorchvisionError(RuntimeError):
    """torchvision could not do what it was called for."""


class Torchvision:
    """A process that serves the functions of a module.

    Args:
        module: which calls ``serve``.
        python: interpreter that has torch and torchvision.

    Attributes:
        versions: of both, the device, and the number of threads.
    """

    def __init__(self, module: str, python: str):
        # torch's threads sleep while JAX is timed
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", module], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self("versions")

    def __call__(self, function: str, arrays: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
        """Calls a function of the module by its name; it gets the path of a file of the arrays, too.

        Raises:
            TorchvisionError: the function or the process failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            if arrays is not None:
                arguments["arrays"] = str(Path(folder, "arrays.npz"))
                np.savez(arguments["arrays"], **arrays)
            try:
                print(json.dumps({"function": function, **arguments}), file=self._process.stdin, flush=True)
                answer = self._process.stdout.readline()
            except BrokenPipeError:
                answer = ""
        if not answer:
            raise TorchvisionError(f"torchvision's process ended with status {self._process.wait()}")
        answer = json.loads(answer)
        if "error" in answer:
            raise TorchvisionError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def start(module: str, platform: str) -> Torchvision | None:
    """Starts the process of a module; returns None if no torchvision for JAX's platform is known."""
    here = sys.executable if find_spec("torchvision") else None
    python = os.environ.get("MRCNN_TORCHVISION_PYTHON") or here
    if not python or platform not in DEVICES:
        return None
    process = Torchvision(module, python)
    if process.versions["torch_device"] == DEVICES[platform]:
        return process
    process.close()
    return None


def versions() -> dict[str, Any]:
    """Returns versions, the device and the number of threads, in torch's process."""
    import torch
    import torchvision

    found = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return found | {"torch_device": device, "torch_threads": torch.get_num_threads()}


def serve(*functions: Callable[..., Any]) -> None:
    """Answers calls of ``versions`` and of these functions, from standard input until it ends."""
    by_name, answers = {function.__name__: function for function in (versions, *functions)}, sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"result": by_name[arguments.pop("function")](**arguments)}
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0][:200]
            answer = {"error": f"{type(error).__name__}: {reason}"}
        try:
            print(json.dumps(answer), file=answers, flush=True)
        except BrokenPipeError:  # the caller was killed
            os._exit(1)
