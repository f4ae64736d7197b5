"""The README of an exported detector: how to run it without this package."""

from mrcnn_jax.config import Experiment

_STABLEHLO = '''import json, pathlib
import jax, numpy as np

raw = pathlib.Path("model.safetensors").read_bytes()
begin = 8 + int.from_bytes(raw[:8], "little")
weights = {{
    name: np.frombuffer(raw[begin + at["data_offsets"][0] : begin + at["data_offsets"][1]], np.float32)
    .reshape(at["shape"]) for name, at in json.loads(raw[8:begin]).items() if name != "__metadata__"
}}
program = jax.export.deserialize(bytearray(pathlib.Path("{file}").read_bytes()))
found = jax.jit(program.call)(weights, images, sizes)'''
_ONNX = '''import onnxruntime

session = onnxruntime.InferenceSession("{file}")
names = [output.name for output in session.get_outputs()]
found = dict(zip(names, session.run(names, {{"images": images, "sizes": sizes}})))'''


def readme(format_: str, experiment: Experiment, file: str, batch_size: int) -> str:
    """Returns the text.

    Args:
        format_: "stablehlo" or "onnx".
        experiment: of the detector as it was exported.
        file: of a program.
        batch_size: images of a call.
    """
    code, packages = (_ONNX, "onnxruntime") if format_ == "onnx" else (_STABLEHLO, "jax flatbuffers")
    tasks = experiment.model.tasks
    results = "boxes [B, D, 4], scores and classes [B, D]"
    results += ", valid [B, D]" if format_ == "stablehlo" else ""
    results += ", masks [B, D, M, M] (probabilities inside each box)" if "masks" in tasks else ""
    results += ", keypoints [B, D, J, m, m] (logits over each box)" if "keypoints" in tasks else ""
    lines = [
        f"# {experiment.name}", "",
        'A detector exported by mrcnn_jax. With that package: `mrcnn_jax.load("this/folder")("photo.jpg")`.',
        f"Without it, `pip install {packages}`, and in this folder:", "",
        "```python", code.format(file=file), "```", "",
        f"- `images` [B, H, W, 3] and `sizes` [B, 2] (int32, height and width before padding), B = "
        f"{batch_size}, are made as `preprocessing` in export.json says: RGB, resized, padded with zeros.",
        f"- Results, in pixels of the resized image, best first: {results}.",
        "- `classes` are numbers of `classes` in export.json, counted from 0.", "",
    ]  # fmt: skip
    return "\n".join(lines)
