"""Exported detectors: the live one's detections through the same interface, and plain errors for what is
damaged or cannot be changed."""

import errno
import json
import re
import shutil
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import tiny
from cli_inputs import call_cli
from variants import ALL_TASKS, BASE, VARIANTS

import mrcnn_jax
from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data import shapes
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference import benchmark
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.inference.export import export as export_module
from mrcnn_jax.inference.export import onnx
from mrcnn_jax.inference.export.detector import ExportedDetector
from mrcnn_jax.weights.folder import Weights, write_model_folder

FORMATS = ("stablehlo", "onnx")
INFO = shapes.INFO._replace(
    keypoint_names=tuple(f"point {number}" for number in range(7)), keypoint_classes=(6,)
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [noise(64, 64), noise(48, 80, 1), noise(131, 20, 2)]


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    config = replace(BASE, num_classes=len(shapes.KINDS), tasks=ALL_TASKS)
    keypoint = replace(config.keypoint, classes=tuple(range(len(shapes.KINDS))))
    return replace(config, keypoint=keypoint, box=replace(config.box, score_threshold=0.1))


@pytest.fixture(scope="module")
def folder(model, validation, tmp_path_factory) -> Path:
    """The detector that is exported; its images are padded to squares, so that there is one program."""
    experiment = tiny.experiment(model, {"long_edge": 64, "dataset": str(validation.directory)})
    out = tmp_path_factory.mktemp("models") / "live"
    write_model_folder(out, Weights(experiment, INFO, tiny.variables(model)))
    return out


@pytest.fixture(scope="module")
def live(folder) -> Detector:
    return load(folder)


@pytest.fixture(scope="module")
def exported(folder) -> dict[str, Path]:
    """A folder for each format; StableHLO takes two images at once."""
    outs = {name: folder.with_name(name) for name in FORMATS}
    mrcnn_jax.export(folder, outs["stablehlo"], batch_size=2)
    status, printed = call_cli("export", folder, "--format", "onnx", "--out", outs["onnx"])
    assert status == 0 and printed.startswith(f"The detector is in {outs['onnx']} (")
    return outs


@pytest.fixture(scope="module")
def detectors(exported) -> dict[str, ExportedDetector]:
    return {name: load(folder) for name, folder in exported.items()}


def assert_equal(found, expected, pixels: float = 1e-3):
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels, rtol=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert np.mean(np.asarray(found.masks) != np.asarray(expected.masks)) <= 1e-4
    np.testing.assert_allclose(found.keypoints[..., :2], expected.keypoints[..., :2], atol=1e-2, rtol=0)
    np.testing.assert_allclose(found.keypoints[..., 2], expected.keypoints[..., 2], atol=1e-3, rtol=0)


@pytest.fixture
def written(monkeypatch):
    """Replaces what an export computes: it writes one file, after a function that is put into the list."""
    before: list = []

    def write(folder, *_):
        for function in before:
            function()
        (folder / "file").write_text("")

    detector = SimpleNamespace(experiment=Experiment(), info=INFO, variables={})
    monkeypatch.setattr(export_module, "load", lambda *_, **__: detector)
    monkeypatch.setattr(export_module, "_write", write)
    return before


@pytest.mark.parametrize("out", [".", "link", "new", "deeper/new", "../cwd/empty"])
def test_an_export_goes_to_any_new_or_empty_folder(written, tmp_path, monkeypatch, out):
    for name in ("cwd/empty", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    if out == ".":
        Path("empty").rmdir()
    if out == "link":
        Path("link").symlink_to(tmp_path / "elsewhere")
    assert mrcnn_jax.export("run", out) == Path(out)
    assert [file.name for file in Path(out).iterdir()] == ["file"]
    assert Path("link").is_symlink() == (out == "link")
    assert not list(tmp_path.rglob(".*.part"))


def test_an_empty_folder_may_be_another_disk_and_hold_what_a_killed_export_has_left(written, tmp_path):
    out = tmp_path / "volume"
    (out / ".folder.part/old").mkdir(parents=True)
    written.append(lambda: outside.append([path.name for path in tmp_path.iterdir()]))
    outside: list[list[str]] = []
    mrcnn_jax.export("run", out)
    assert outside == [["volume"]]  # nothing has to be moved from disk to disk
    assert [file.name for file in out.iterdir()] == ["file"]


def test_a_folder_that_is_no_longer_empty_is_not_overwritten(written, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for make in (lambda: out.mkdir() or (out / "mine").mkdir(), lambda: out.write_text("mine")):
        written[:] = [make]
        with pytest.raises(InputError, match="out is not an empty folder any more: choose another one$"):
            mrcnn_jax.export("run", out)
        shutil.rmtree(out, ignore_errors=True)
    out.unlink()
    written.clear()
    monkeypatch.setattr(Path, "rename", Mock(side_effect=OSError(errno.EXDEV, "Invalid cross-device link")))
    with pytest.raises(InputError, match="cannot write to .*out: Invalid cross-device link$"):
        mrcnn_jax.export("run", out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_detects_what_the_live_detector_does(live, detectors, format_):
    found = list(detectors[format_](PICTURES, batch_size=3))
    expected = list(live(PICTURES, batch_size=2))  # as the program: others round differently
    assert min(map(len, expected)) > 0
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, pixels=0 if format_ == "stablehlo" else 1e-3)
        assert one.class_names == INFO.category_names


def test_onnx_takes_every_size_in_one_program(exported):
    """Also an image of one pixel a side, and none found at all."""
    changes = {"data.short_edge_test": 96, "data.long_edge": 160, "data.padding_divisor": 32}
    changed = load(exported["onnx"], changes)
    assert len(changed(noise(200, 100))) > 0 and len(changed(noise(1, 1))) >= 0
    assert len(changed.with_settings(score_threshold=1.0)(noise(64, 64))) == 0


@pytest.mark.parametrize("format_", FORMATS)
def test_settings_outside_of_the_program_can_be_changed(live, detectors, format_):
    stricter = {"score_threshold": 0.3, "max_detections": 2}
    found, expected = (each.with_settings(**stricter) for each in (detectors[format_], live))
    whole = detectors[format_](PICTURES[0])
    assert 0 < len(found(PICTURES[0])) <= 2 < len(whole)
    np.testing.assert_array_equal(found(PICTURES[0]).boxes, whole.boxes[:2])
    assert expected.experiment.model == found.experiment.model
    assert len(found.with_settings(max_detections=6)(PICTURES[0])) == sum(whole.scores > 0.3)  # as exported
    for settings, fault in (
        ({"score_threshold": 0.05}, "model.box.score_threshold below 0.1 is part of an exported program"),
        ({"max_detections": 99}, "model.box.max_detections beyond 6 is part of an exported program"),
        ({"nms_iou": 0.3}, "model.box.nms_iou is part of an exported program: give it to `mrcnn export`"),
        ({"tta_flip": True}, "evaluation.tta_flip is part of an exported program"),
    ):
        with pytest.raises(InputError, match=fault):
            detectors[format_].with_settings(**settings)
    if format_ == "stablehlo":
        with pytest.raises(InputError, match="data.short_edge_test is part of an exported program"):
            detectors[format_].with_settings(short_edge=32)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_readme_runs_without_this_package(exported, detectors, monkeypatch, format_):
    monkeypatch.chdir(exported[format_])
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert "mrcnn_jax" not in code and len(code.splitlines()) <= 11
    batch_size = json.loads(Path("export.json").read_text())["batch_size"]
    names = {"images": np.stack([PICTURES[0]] * batch_size), "sizes": np.int32([[64, 64]] * batch_size)}
    exec(code, names)
    expected = detectors[format_](PICTURES[0])
    np.testing.assert_array_equal(np.asarray(names["found"]["boxes"])[0, : len(expected)], expected.boxes)


def test_an_export_is_described_in_json(exported):
    for folder in exported.values():
        about = json.loads((folder / "export.json").read_text())
        assert about["classes"] == list(INFO.category_names)
        preprocessing = about["preprocessing"]
        assert (preprocessing["short_edge"], preprocessing["interpolation"]) == (64, "area")


def test_the_command_line_takes_an_exported_folder(exported, validation, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), PICTURES[0][..., ::-1])
    out, dataset = tmp_path / "out", ["--dataset", validation.directory]  # the path is not exported
    status, printed = call_cli("predict", exported["onnx"], tmp_path / "photo.png", "--out", out)
    assert status == 0, printed
    assert json.loads((out / "results.json").read_text())
    status, printed = call_cli("evaluate", exported["onnx"], *dataset, "--out", out, "--no-report")
    assert status == 0, printed
    assert json.loads((out / "metrics.json").read_text()).keys() >= {"bbox", "segm"}


def test_speeds_are_measured_side_by_side(exported, folder, tmp_path):
    models = [folder, exported["onnx"], folder]  # what is repeated is measured once
    options = ["--sizes", 40, 60, 64, 64, 40, 60, "--batch-sizes", 2, "--rounds", 1]
    status, printed = call_cli("benchmark", *models, *options, "--json", tmp_path / "speed.json")
    assert status == 0 and "40 x 60" in printed
    timings = json.loads((tmp_path / "speed.json").read_text())["timings"]
    assert [(each["format"], *each["size"]) for each in timings] == [
        ("live", 40, 60), ("onnx", 40, 60), ("live", 64, 64), ("onnx", 64, 64)
    ]  # fmt: skip
    assert all(0 < each["network"] and 0 < each["whole"] and each["objects"] > 0 for each in timings)
    with pytest.raises(InputError, match="name at least one detector"):
        benchmark.benchmark([])
    with pytest.raises(InputError, match="sizes are those of images of noise: leave them out, or the image"):
        benchmark.benchmark(models, images="photo.jpg", sizes=[(40, 60)])


@pytest.mark.parametrize("format_", FORMATS)
def test_a_damaged_folder_is_named(exported, format_, tmp_path):
    source = {path.name: path.read_bytes() for path in exported[format_].iterdir()}
    program = next(name for name in source if name.startswith("detector"))
    about = json.loads(source["export.json"])
    digest = about["programs"][0] | {"bytes": 4, "crc32": 0}  # of a program that nothing reads
    for file, content, fault in (
        (program, source[program][:-1], f"{program} is damaged, or not what was exported"),
        (program, None, f"is incomplete: it has no {program}"),
        ("experiment.json", None, "experiment.json"),
        ("export.json", b"{", "export.json cannot be read"),
        ("export.json", json.dumps(about | {"layout": 2}).encode(), "by another version of mrcnn_jax"),
        ("export.json", b'{"format": "stablehlo"}', "export.json"),
        (program, b"\0\0\0\0", "does not read: export the detector again|cannot read"),
    ):
        damaged = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        damaged.mkdir()
        if content == b"\0\0\0\0":
            digest["crc32"] = zlib.crc32(content)
            source["export.json"] = json.dumps(about | {"programs": [digest]}).encode()
        for name, old in ({**source, file: content}).items():
            if old is not None:
                (damaged / name).write_bytes(old)
        with pytest.raises(InputError, match=fault):
            load(damaged)


def test_what_cannot_be_exported_is_refused_before_work(folder, exported, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for out, options, fault in (
        (tmp_path / "full", {}, "is not an empty folder"),
        (tmp_path / "x", {"format": "tflite"}, "the format must be one of stablehlo, onnx, not 'tflite'"),
        (tmp_path / "x", {"format": "onnx", "batch_size": 2}, "ONNX takes one image at a time"),
        (tmp_path / "x", {"batch_size": 0}, "the batch size must be"),
    ):
        with pytest.raises(InputError, match=fault):
            mrcnn_jax.export(folder, out, **options)
    with pytest.raises(InputError, match="is exported already: export what it was made of"):
        mrcnn_jax.export(exported["onnx"], tmp_path / "x")
    with pytest.raises(InputError, match="is an exported program: give the run or weights that it is"):
        mrcnn_jax.export_weights("safetensors", exported["onnx"], tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'needs the package onnxruntime: pip install "mrcnn_jax\[onnx\]"'):
        load(exported["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_models_that_onnx_cannot_express_are_named():
    reasons = {name: onnx.unsupported(config) for name, config in VARIANTS.items()}
    assert {name for name in reasons if not reasons[name]} == {
        "fpn", "c4, softmax masks", "c4, bottlenecks, stride 1, all branches",
        "ResNeXt, batch norm over devices", "frozen stages, one level of the pyramid",
        "RoIAlign adaptive, not aligned", "class-agnostic, no layers", "boxes, convolutions in the heads",
        "keypoints", "masks and keypoints",
    }  # fmt: skip
    assert reasons["FCIS"] == ["model.system is fcis"] and reasons["mlp of two"] == ["model.mask.head is mlp"]
    with pytest.raises(InputError, match="ONNX cannot express this detector: model.system is mnc"):
        onnx.check(VARIANTS["MNC"])
