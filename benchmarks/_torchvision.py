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


class TorchvisionError(RuntimeError):
    """torchvision could not do what it was called for."""


class Torchvision:
    """A process that serves the functions of a module.

    Args:
        module: which calls ``serve``.
        python: interpreter that has torch and torchvision.
    """

    def __init__(self, module: str, python: str):
        # torch's threads sleep while JAX is timed
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", module], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, function: str, arrays: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
        """Calls a function of the module by its name; arrays go through a file, whose path it gets as well.

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
        self._process.stdin.close()
        self._process.wait()


def start(module: str) -> Torchvision | None:
    """Starts the process of a module; returns None if no interpreter with torchvision is known."""
    here = sys.executable if find_spec("torchvision") else None
    python = os.environ.get("MRCNN_TORCHVISION_PYTHON") or here
    return Torchvision(module, python) if python else None


def serve(*functions: Callable[..., Any]) -> None:
    """Answers calls from standard input until it ends."""
    by_name, answers = {function.__name__: function for function in functions}, sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"result": by_name[arguments.pop("function")](**arguments)}
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0][:200]
            answer = {"error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(answer), file=answers, flush=True)
