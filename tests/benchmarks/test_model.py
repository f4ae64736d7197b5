"""Benchmark of whole detectors: interleaved rounds that resume, results, page; torchvision's process."""

import json
import sys

import numpy as np
import pytest

from benchmarks import _torchvision
from benchmarks._program import RESULTS
from benchmarks.model import _cases, measure, report
from benchmarks.model._cases import Case, is_complete, new_row
from benchmarks.model._synthetic import make_objects, make_photos
from mrcnn_jax.data.image_io import read_image

CASE = Case(1, "float32", "mask_rcnn_r50_fpn", "inference")


class FakeProgram:
    """Has the results of a program without computing anything."""

    objects = [100]

    def __init__(self, *_):
        self.seconds = iter(range(1, 100))

    def __call__(self):
        return float(next(self.seconds))

    def facts(self):
        return {"flops": 4e12, "memory_bytes": 2_000_000_000, "compile_seconds": 12.5}

    def make_stages(self):
        return lambda: {"pyramid": 0.25, "mask head": 0.5}


class FakeTorchvision:
    """Answers like the process, with twice the seconds; the channels-last variant fails."""

    def __call__(self, function, arrays=None, **named):
        if named.get("variant") == "channels-last":
            raise _torchvision.TorchvisionError("no such kernel")
        stages = {"pyramid": 0.5, "mask head": 0.5}
        return {"prepare": {"objects": [99], "peak_bytes": None}, "run": 2.0, "stages": stages}.get(function)

    def close(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    """Replaces programs, torchvision, the matrix product and the machine."""
    monkeypatch.delenv("MRCNN_TEST_DATA", raising=False)
    monkeypatch.setattr(_cases, "_compile", FakeProgram)
    monkeypatch.setattr(_cases, "MatrixProduct", lambda dtype: type("Product", (), {
        "flops": 10**12, "__call__": lambda self: 0.5})())  # fmt: skip
    monkeypatch.setattr(_torchvision, "start", lambda module, platform: FakeTorchvision())
    monkeypatch.setattr(measure, "describe", lambda options, _: {
        "platform": "cpu", "processor": "Chip", "cores": 2, "jax": "1", "torchvision": "2", "size": [64, 96],
        "images": "noise", "objects": options.objects})  # fmt: skip
    monkeypatch.setattr(measure, "enable_compilation_cache", lambda: None)


def run(folder, *options):
    return measure.main(["--size", "64", "96", "--work", "inference", "--out", str(folder), *options])


def test_rounds_are_written_and_resumed(fake, tmp_path, capsys):
    assert run(tmp_path, "--rounds", "2", "--no-stages") == 0
    (row,) = json.loads((tmp_path / "model_cpu.json").read_text())["rows"]
    # the first run warms up
    assert row["seconds"] == {"ours": [2.0, 3.0], "matrix product": [0.5, 0.5], "eager": [2.0, 2.0]}
    assert row["torchvision"]["channels-last"] == {"unavailable": "no such kernel"} and row["stages"] == {}
    assert run(tmp_path, "--rounds", "3", "--resume") == 0
    (row,) = json.loads((tmp_path / "model_cpu.json").read_text())["rows"]
    assert row["seconds"]["ours"] == [2.0, 3.0, 2.0] and len(row["stages"]["eager"]) == 3
    assert list(row["stages"]["ours"][0]) == ["pyramid", "mask head"]
    assert run(tmp_path, "--rounds", "3", "--resume", "--objects", "9") == 2
    assert "measure without --resume" in capsys.readouterr().err


def test_page_has_speeds_and_shares(fake, tmp_path):
    assert run(tmp_path, "--rounds", "3") == 0
    page = (tmp_path / "MODEL.md").read_text()
    # 4 TFLOP in 3 s are two thirds of the 2 TFLOP/s of the matrix product; ratios are 2/2, 2/3 and 2/4
    assert "| 3 | 0.333 | 4 | 67% of 2 TFLOP/s | 2 | 12.5 | ours 100; eager 99 | eager 0.667x |" in page
    assert "torchvision, channels-last (no such kernel)." in page
    assert "| pyramid | 250 | 500 | 2x |" in page and "| sum | 750 | 1,000 | 1.33x |" in page
    assert read_image(tmp_path / "model_cpu.png").std() > 5


def test_budget_and_options(fake, tmp_path, capsys):
    assert run(tmp_path, "--budget", "-1") == 0
    (row,) = json.loads((tmp_path / "model_cpu.json").read_text())["rows"]
    assert row["seconds"] == {}
    assert run(tmp_path, "--rounds", "0") == 2
    assert "--rounds is 0, but must be 1 or more" in capsys.readouterr().err
    cases = measure.plan(measure.Options(batch=(1, 8), dtype=("bfloat16", "float32")))
    assert [(case.batch, case.dtype) for case in cases[::2]] == [
        (1, "bfloat16"), (1, "float32"), (8, "bfloat16"), (8, "float32")
    ]  # fmt: skip


def test_stages_are_measured_once_and_compiled_torchvision_on_gpus(fake, tmp_path, monkeypatch):
    assert run(tmp_path, "--rounds", "1", "--batch", "1", "2") == 0
    first, second = json.loads((tmp_path / "model_cpu.json").read_text())["rows"]
    assert first["stages"] and second["batch"] == 2 and not second["stages"]
    assert _cases.variants("bfloat16") == ["eager autocast", "channels-last autocast"]
    monkeypatch.setattr(_cases.jax, "default_backend", lambda: "gpu")
    assert _cases.variants("bfloat16")[2:] == ["channels-last compiled autocast"]
    assert _cases.variants("float32") == ["eager", "channels-last"]


def test_row_is_complete_with_all_rounds():
    row = new_row(CASE)
    assert not is_complete(row, 1, stages=False)
    row["seconds"]["ours"] = [1.0, 2.0]
    assert is_complete(row, 2, stages=False) and not is_complete(row, 2, stages=True)
    assert is_complete(row | {"unavailable": "too little memory"}, 9, stages=True)


def test_objects_lie_in_their_images(monkeypatch):
    monkeypatch.delenv("MRCNN_TEST_DATA", raising=False)
    boxes = make_objects(2, 5, 64, 96)
    assert boxes.shape == (2, 5, 4) and (boxes[..., :2] < boxes[..., 2:]).all()
    assert boxes.min() >= 0 and (boxes.max(axis=(0, 1)) <= [96, 64, 96, 64]).all()
    assert make_photos(2, 64, 96).shape == (2, 64, 96, 3)


WORKER = """
import numpy as np
from benchmarks._torchvision import serve
def total(arrays, factor):
    print("libraries print")
    return float(np.load(arrays)["x"].sum() * factor)
def leave():
    raise SystemExit(3)
def versions():
    return {"torch_device": "cpu"}
serve(versions, total, leave)
"""


def test_process_answers_and_reports_failures(tmp_path, monkeypatch):
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRCNN_TORCHVISION_PYTHON", sys.executable)
    assert _torchvision.start("worker_of_test", "gpu") is None  # it has a CPU alone
    process = _torchvision.start("worker_of_test", "cpu")
    assert process("total", {"x": np.arange(4)}, factor=0.5) == 3.0
    with pytest.raises(_torchvision.TorchvisionError, match="TypeError: .*'factor'"):
        process("total", {"x": np.arange(4)})
    with pytest.raises(_torchvision.TorchvisionError, match="ended with status 3"):
        process("leave")
    process.close()


def test_no_process_is_started_without_an_interpreter(monkeypatch):
    monkeypatch.delenv("MRCNN_TORCHVISION_PYTHON", raising=False)
    monkeypatch.setattr(_torchvision, "find_spec", lambda name: None)
    assert _torchvision.start("benchmarks.roi._torchvision", "cpu") is None


def test_published_page_is_made_from_the_results():
    assert (RESULTS / report.PAGE).read_text() == report.page(report.read())
