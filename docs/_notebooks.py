"""Notebooks: executed without Jupyter, and shown as pages of the site.

    python docs/_notebooks.py docs/notebooks/own_data.ipynb    executes it and stores its outputs
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

Notebook = dict[str, Any]


def execute(notebook: Notebook) -> None:
    """Runs the code cells in one namespace and the current directory, and stores their outputs.

    The value of a last expression is shown: a Pillow image as a JPEG, anything else as its text.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        tree, printed, value = ast.parse("".join(cell["source"])), io.StringIO(), None
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        cell["execution_count"], cell["outputs"] = number, []
        if text := printed.getvalue():
            stream = {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
            cell["outputs"].append(stream)
        if value is not None:
            result = {"output_type": "execute_result", "execution_count": number, "metadata": {}}
            cell["outputs"].append(result | {"data": _data(value)})


def _data(value: Any) -> dict[str, Any]:
    """Returns a value in the formats of notebooks."""
    if not isinstance(value, Image.Image):
        return {"text/plain": repr(value).splitlines(keepends=True)}
    encoded = io.BytesIO()
    value.convert("RGB").save(encoded, "JPEG", quality=80)
    return {"image/jpeg": base64.b64encode(encoded.getvalue()).decode(), "text/plain": ["<picture>"]}


def to_markdown(notebook: Notebook) -> str:
    """Returns a notebook with its outputs as a page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/jpeg" in data:
                parts.append(f"![](data:image/jpeg;base64,{data['image/jpeg']})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def main(file: str) -> None:
    """Executes a notebook in a temporary directory and writes it back."""
    path = Path(file).absolute()
    notebook = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        execute(notebook)
        os.chdir(path.parent)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
