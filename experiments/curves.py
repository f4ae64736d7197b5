"""python -m experiments.curves PICTURE NAME NAME ...: draws the losses and AP of published runs over their steps, side by side."""

import json
import sys
from pathlib import Path

from experiments.export_result import RESULTS
from mrcnn_jax.errors import InputError
from mrcnn_jax.visualize.draw import plot_comparison


def histories(names: list[str], results: Path = RESULTS) -> dict[str, list[dict[str, float]]]:
    """The history of each run, from its result file; InputError where there is none."""
    found = {}
    for name in names:
        path = results / f"{name}.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        if "history" not in content:
            known = [file.stem for file in sorted(results.glob("*.json")) if "history" in json.loads(file.read_text())]
            raise InputError(f"{path} holds no history of a run; choose from {', '.join(known)}")
        found[name] = content["history"]
    return found


def main(arguments: list[str]) -> int:
    """Draws the picture; returns the exit status."""
    if len(arguments) < 3 or arguments[0].startswith("-"):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    picture, *names = arguments
    try:
        plot_comparison(histories(names), picture)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Drew {picture}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
