"""Weight files of other libraries and training scripts."""

import io
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cli_inputs import call_cli
from library_models import variable_shapes
from memory import peak_bytes
from quirks import quirk
from tiny import jittered

from mrcnn_jax.config import BackboneConfig, BoxHeadConfig, ModelConfig, RPNConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import detectron2, torchvision
from mrcnn_jax.weights.identify import identify_model
from mrcnn_jax.weights.param_map import to_source
from mrcnn_jax.weights.readers import read_weights, write_tensors
from mrcnn_jax.weights.summary import describe_assumptions

FIELDS = ("--model.backbone.pyramid-channels", 8, "--model.box.channels", 8)


@cache
def state(library: str = "torchvision", anchors: int = 3) -> dict[str, np.ndarray]:
    """Returns random tensors of a narrow detector of boxes."""
    model = ModelConfig(
        num_classes=2, tasks=("boxes",),
        backbone=BackboneConfig(name="resnet18", width=8, pyramid_channels=8, stride_in_1x1=False),
        box=BoxHeadConfig(channels=8), rpn=RPNConfig(aspect_ratios=tuple(range(1, anchors + 1))),
    )  # fmt: skip
    make_param_map = (torchvision if library == "torchvision" else detectron2).make_param_map
    return to_source(jittered(variable_shapes(model)), make_param_map(model))


def run_import(*arguments: object) -> str:
    """Imports into the folder "out" and returns what is printed."""
    status, printed = call_cli("import-weights", *arguments, "--out", "out", *FIELDS)
    assert status == 0, printed
    return printed


def refusal(*arguments: object) -> str:
    """Returns the sentence that refuses an import, which leaves nothing behind."""
    status, printed = call_cli("import-weights", *arguments, "--out", "out", *FIELDS)
    assert status == 2 and printed.startswith("mrcnn: ") and len(printed.splitlines()) == 1, printed
    assert not Path("out").exists()
    return printed


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(name: str, content: object) -> str:
    Path(name).write_bytes(pickle.dumps(content))
    return name


@quirk("`.pth` of PyTorch", "read and written without PyTorch; the name's ending does not matter")
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.bin", "checkpoint", "a.pth.bak", "A.PTH"])
def test_zip_files_of_pytorch(name):
    write_tensors("written.pth", state())
    Path("written.pth").rename(name)
    read = read_weights(name).tensors
    assert all(np.array_equal(read[key], value) for key, value in state().items())


@quirk("the library is not named", "recognised; a name that does not fit the file is refused")
@pytest.mark.parametrize("library, other", [("torchvision", "detectron2"), ("detectron2", "torchvision")])
def test_recognised_library(library, other):
    write_tensors("weights.npz", state(library))
    assert f"has the names of {library}, not of {other}" in refusal(other, "weights.npz")
    name = {"torchvision": "fasterrcnn_resnet18_fpn", "detectron2": "faster_rcnn_R_18_FPN"}[library]
    printed = run_import("weights.npz")
    assert f"weights.npz is {name}: " in printed
    assert printed.splitlines()[-1] == "  mrcnn train out --data.dataset data/mine --directory runs/mine"


class Weird:
    """A class that no reader knows."""

    def __init__(self):
        self.inner = {1: Path("x"), (2, 3): {4}}


@quirk("checkpoint of a training script: optimizer, scheduler, `args` beside the weights",
       "the weights are read; other objects are neither made nor run")  # fmt: skip
@pytest.mark.parametrize(
    "extra",
    [{"args": Namespace(lr=0.02, path=Path("coco"))}, {"config": Weird(), "epoch": 3, "loss": np.float64(1)},
     {"optimizer": {"state": {0: {"buffer": np.ones(9)}}, "param_groups": [{"lr": 1}]}, "best": None}],
)  # fmt: skip
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "weights", "net", "blobs"])
def test_training_checkpoint(key, extra):
    weights, notes = read_weights(save("checkpoint", {key: OrderedDict(state()), **extra}))
    assert weights.keys() == state().keys() and not notes


@quirk("a prefix that all names share: `model.`, `module.`, `_orig_mod.`, nested or any other", "taken off")
@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "module._orig_mod.", "net.detector."])
@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
def test_shared_prefix(library, prefix):
    tensors = {prefix + name: value for name, value in state(library).items()}
    tensors |= {"n_averaged": np.int64(3)} if prefix == "module." else {}
    assert identify_model(None, tensors, "file").tensors.keys() == state(library).keys()


@quirk("averaged weights (EMA, SWA) beside the model's",
       "the model's are imported, and `--key` for the others is named; those alone are imported")  # fmt: skip
@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "swa.state_dict"])
def test_averaged_weights(key):
    outer, _, inner = key.partition(".")
    averaged = {name: value + 1 for name, value in state().items()}
    content = {"model": state(), outer: {inner: averaged} if inner else averaged}
    weights, (note,) = read_weights(save("checkpoint.pth", content))
    assert np.array_equal(weights["rpn.head.cls_logits.bias"], state()["rpn.head.cls_logits.bias"])
    assert f"--key {key} " in note and note[:1].upper() + note[1:] in run_import("checkpoint.pth")
    chosen = read_weights("checkpoint.pth", key).tensors["rpn.head.cls_logits.bias"]
    assert np.array_equal(chosen, averaged["rpn.head.cls_logits.bias"])
    assert read_weights(save("only.pth", {outer: content[outer]})).tensors.keys() == state().keys()
    with pytest.raises(InputError, match="no tensors under the key 'nothing', but under model, "):
        read_weights("checkpoint.pth", "nothing")


@quirk("several sets of weights without a known name", "refused; `--key` chooses one")
def test_ambiguous_checkpoint():
    save("gan.pth", {"teacher": state(), "student": dict(state())})
    assert "holds several sets of tensors: choose one with --key, of teacher, student" in refusal("gan.pth")
    run_import("gan.pth", "--key", "student")


@quirk("anchors and image sizes, which no file tells", "named as assumed, with the options for others")
def test_assumed_anchors():
    write_tensors("weights.npz", state())
    printed = run_import("weights.npz", "--model.rpn.aspect-ratios", 1, 2, 4)
    anchors = "anchors of 32 64 128 256 512 pixels, norm with epsilon 0"
    assert f"Assumed, as the file does not specify: {anchors}" in printed
    assert "give --model.rpn.anchor-sizes, --model.backbone.norm-epsilon, --data.short-edge-test." in printed


@quirk("anchors that a file of Detectron2 stores", "used; a configuration file takes precedence")
@pytest.mark.parametrize("count", [3, 6])
def test_stored_anchors(count):
    ratios, sizes = [0.25, 0.5, 1, 2, 3, 4][:count], (16, 32, 64, 128, 256)
    tensors = state("detectron2", count)
    for level, size in enumerate(sizes):
        sides = np.array([(size / ratio**0.5, size * ratio**0.5) for ratio in ratios], "f4")
        tensors = tensors | {
            f"proposal_generator.anchor_generator.cell_anchors.{level}": np.hstack([-sides / 2, sides / 2])
        }
    source = identify_model(None, tensors, "file")
    rpn = source.experiment.model.rpn
    assert rpn.anchor_sizes == sizes and rpn.aspect_ratios == tuple(ratios)
    assert "anchors" not in describe_assumptions(source, source.experiment)


@quirk("more anchors a cell than three", "refused unless `--model.rpn.aspect-ratios` gives theirs")
@pytest.mark.parametrize("library, count", [("torchvision", 6), ("detectron2", 1)])
def test_other_number_of_anchors(library, count):
    write_tensors("weights.npz", state(library, count))
    message = f"its RPN has {count} anchors per cell, not 3: give --model.rpn.aspect-ratios"
    assert message in refusal("weights.npz")
    ratios = range(1, count + 1)
    run_import("weights.npz", "--model.rpn.aspect-ratios", *ratios)


FOREIGN = {
    "mmdetection": ["backbone.conv1.weight", "neck.lateral_convs.0.conv.weight", "rpn_head.rpn_conv.weight"],
    "YOLO": ["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"],
    "DETR": ["transformer.encoder.layers.0.linear1.weight", "class_embed.weight"],
    "SSD": ["backbone.features.0.weight", "head.classification_head.module_list.0.weight"],
    "RetinaNet": ["backbone.body.conv1.weight", "head.classification_head.conv.0.0.weight"],
    "MobileNet": ["backbone.body.0.0.weight", "rpn.head.cls_logits.weight"],
    "Cascade R-CNN": ["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.0.fc1.weight"],
    "transformer": ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"],
    "EfficientNet": ["conv_stem.weight", "blocks.0.0.conv_pw.weight"],
    "Hugging Face": ["resnet.embedder.embedder.convolution.weight", "resnet.encoder.stages.0.weight"],
    "maskrcnn-benchmark": ["module.backbone.body.stem.conv1.weight", "module.rpn.head.conv.weight"],
}  # fmt: skip


@quirk("another library's model: mmdetection, YOLO, DETR, SSD, RetinaNet, MobileNet, timm, Hugging Face, ...",
       "named as what it is, with what is supported")  # fmt: skip
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models(kind):
    write_tensors("weights.npz", dict.fromkeys(FOREIGN[kind], np.ones((2, 2), "f4")))
    message = refusal("weights.npz")
    assert kind in message and "Faster, Mask and Keypoint R-CNN of torchvision, Detectron2" in message


def zipped(*names: str) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


OTHER_FILES = {
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 177\n", "git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html>\n<html></html>", "is a web page, not weights: the download has failed"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, of Keras"),
    "misnamed.pth": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, of Keras"),
    "model.keras": (zipped("config.json", "model.weights.h5"), "is a model of Keras"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", "is an ONNX model"),
    "m.ckpt.data-00000-of-00001": (bytes(range(128, 256)), "is a file of TensorFlow"),
    "graph.pb": (b"\x0a\x10" + bytes(90), "is a file of TensorFlow"),
    "m.tflite": (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model"),
    "yolov3.weights": (bytes(100), "is a file of Darknet (YOLO)"),
    "weights.pth.gz": (b"\x1f\x8b\x08" + bytes(90), "is a compressed file: unpack it"),
    "runs.zip": (zipped("runs/last.pth"), "is a zip archive of runs/last.pth, not of tensors: unpack it"),
    "script.pt": (zipped("a/data.pkl", "a/code/x.py", "a/constants.pkl"), "is a compiled model of PyTorch"),
    "old.pth": (bytes(257) + b"ustar" + bytes(200), "is a tar archive, perhaps of PyTorch before 0.2"),
    "photo.pth": (b"\xff\xd8\xff\xe0" + bytes(90), "is an image"),
    "array.npy": (b"\x93NUMPY\x01\0" + bytes(90), "is a single array of NumPy without a name"),
    "config.yaml": (b"MODEL:\n  MASK_ON: true\n", "is a configuration, not weights: give it with --config"),
    "log.pth": (b"epoch 1 loss 2\n", "is text that starts with 'epoch 1 loss 2"),
    "empty.pth": (b"", "is empty"),
    "zeros.pth": (bytes(1000), "is damaged, or of an unknown format"),
}  # fmt: skip


@quirk("a Git LFS pointer, web page, archive, text, image, or a file of Keras, ONNX, TensorFlow or Darknet",
       "named as what it is, with what helps")  # fmt: skip
@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files(name):
    content, reason = OTHER_FILES[name]
    Path(name).write_bytes(content)
    assert reason in refusal(name)


@quirk("a folder in place of a file", "named as a TensorFlow model, a run, or with the file of weights in it")
@pytest.mark.parametrize(
    "files, reason",
    [(["saved_model.pb"], "is a model of TensorFlow"), (["b.txt", "a.safetensors"], "such as a.safetensors"),
     (["experiment.json", "checkpoints/0/x"], "a run or imported weights already"), (["x"], "is a folder")],
)  # fmt: skip
def test_folders(files, reason):
    for file in files:
        Path("folder", file).parent.mkdir(parents=True, exist_ok=True)
        Path("folder", file).touch()
    assert reason in refusal("folder")


@quirk("an output folder that cannot be written, or that holds weights", "refused before the file is read")
def test_output_folder_is_checked_first():
    Path("file").touch()
    for out, reason in (("file", "is not a folder"), ("file/below", "is not a folder")):
        status, printed = call_cli("import-weights", "missing.pth", "--out", out)
        assert status == 2 and reason in printed and "missing.pth" not in printed


@quirk("integers in place of weights, quantised models", "refused by name")
def test_integer_weights():
    write_tensors("weights.npz", state() | {"rpn.head.cls_logits.bias": np.ones(3, np.int8)})
    message = "1 of integers, as of a quantised model: rpn.head.cls_logits.bias"
    assert message in refusal("weights.npz")


def storage_bomb(size: int, stored: int = 4) -> bytes:
    """Returns a file of PyTorch whose tensor claims more numbers than its storage holds."""
    number = b"\x8a\x08" + size.to_bytes(8, "little")
    program = (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\0" + b"0X\x03\0\0\0cpu" + number + b"tQK\0" + number + b"\x85K\x01\x85\x89}tRs."
    )
    with zipfile.ZipFile(stream := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", bytes(stored))
    return stream.getvalue()


@quirk("a file that claims sizes beyond its bytes, or nests values endlessly", "refused, in bounded memory")
@pytest.mark.parametrize(
    "content",
    [storage_bomb(10**12), storage_bomb(2), storage_bomb(10**8, 4 * 10**8),
     b"\x80\x02)" + b"\x85" * 100_000 + b".", b"\x80\x02}q\0" + b"(h\0h\0tq\0" * 30_000 + b".",
     b"\x80\x02" + b"(" * 100_000],
    ids=["terabyte", "truncated", "zip bomb", "nested tuples", "memo bomb", "marks"],
)  # fmt: skip
def test_bombs(content):
    Path("bomb.pth").write_bytes(content)

    def read():
        with pytest.raises(InputError):
            read_weights("bomb.pth")

    assert peak_bytes(read) < 150_000_000
