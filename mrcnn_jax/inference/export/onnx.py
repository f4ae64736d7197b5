"""ONNX: the detector as a graph of standard operators that takes images of any size, for onnxruntime."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.data.transforms import image_type
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.inference.export.onnx_detection import Detection
from mrcnn_jax.inference.export.onnx_graph import OPSET, Graph

FILE = "detector.onnx"
IR_VERSION = 8
"""Version of the file's layout, that of the operators' release."""


def require_package(name: str) -> Any:
    """Returns the module "onnx" or "onnxruntime"; InputError if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f'ONNX needs the package {name}: pip install "mrcnn_jax[onnx]"') from error


def unsupported(model: ModelConfig) -> list[str]:
    """Returns what of a model the graph cannot express; nothing for most."""
    mask, pools = model.mask, [model.pool_of(branch) for branch in ("box", "mask", "keypoint")]
    conventions = model.conventions
    reasons = {
        f"model.system is {model.system}": model.system != "mask_rcnn",
        "model.tasks is empty": not model.tasks,
        "model.rpn.proposals_from is given": bool(model.rpn.proposals_from),
        "model.backbone.non_local": model.backbone.non_local,
        "RoIs are not pooled by roi_align": any(
            (pool.operation, pool.reduction) != ("align", "average") for pool in pools
        ),
        "model.mask.head is mlp": "masks" in model.tasks and mask.head == "mlp",
        f"model.box.soft_nms is {model.box.soft_nms}": model.box.soft_nms != "none",
        "anchors have rounded sides and strides of the grid":
            (conventions.anchor_rounding, conventions.anchor_strides) == ("sides", "grid"),
    }  # fmt: skip
    return [reason for reason, applies in reasons.items() if applies]


def check(model: ModelConfig) -> None:
    """Raises InputError if a model cannot be exported, or the package is missing."""
    require_package("onnx")
    if reasons := unsupported(model):
        raise InputError(f"ONNX cannot express this detector: {', '.join(reasons)}; StableHLO can")


def write(folder: Path, model: ModelConfig, variables: dict[str, Any]) -> str:
    """Writes the graph of a model, with its weights; returns the name of the file."""
    onnx = require_package("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    arrays = flatten_dict(variables, sep="/")
    graph = Graph()
    arrays = {path.partition("/")[2]: np.asarray(array) for path, array in arrays.items()}
    outputs = Detection(graph, model, arrays).add()
    image = types.UINT8 if image_type(model.conventions) is np.uint8 else types.FLOAT
    shapes = {
        "boxes": [4], "masks": [model.mask_size] * 2,
        "keypoints": [model.keypoint.num_keypoints, *[model.keypoint_size] * 2],
    }  # fmt: skip
    described = helper.make_graph(
        graph.nodes, "detector",
        [helper.make_tensor_value_info("images", image, [1, "height", "width", 3]),
         helper.make_tensor_value_info("sizes", types.INT32, [1, 2])],
        [helper.make_tensor_value_info(name, types.INT32 if name == "classes" else types.FLOAT,
                                       [1, "detections", *shapes.get(name, [])]) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )  # fmt: skip
    whole = helper.make_model(
        described, producer_name="mrcnn_jax", ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip
    onnx.save(whole, folder / FILE)
    return FILE


def read(file: Path, slots: int) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """Returns the program of a file as a function of one image [1, H, W, 3] and its size [1, 2].

    Args:
        file: that ``write`` has written.
        slots: detections in the results, those beyond the ones that were found not valid.

    Raises:
        InputError: the package is missing, or cannot read the file.
    """
    runtime = require_package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    available = runtime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    try:
        session = runtime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # of a class for each reason
        reason = f"onnxruntime {runtime.__version__} cannot read {file}: {printable(error)}"
        raise InputError(reason) from error
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        found = dict(zip(names, session.run(names, {"images": images, "sizes": sizes}), strict=True))
        count = found["scores"].shape[1]
        found["valid"] = np.ones((1, count), bool)
        return {name: np.pad(array, [(0, 0), (0, slots - count), *[(0, 0)] * (array.ndim - 2)])
                for name, array in found.items()}  # fmt: skip

    return run

