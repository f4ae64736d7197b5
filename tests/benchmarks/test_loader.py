"""The data pipeline's benchmark on a few small images: results, files, invalid options, committed page."""

import json
import time

import pytest

from benchmarks.data import measure
from benchmarks.data._page import markdown
from benchmarks.data.measure import RESULT, growth, measure_waits
from mrcnn_jax.data import shapes
from mrcnn_jax.data.image_io import read_image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("loader") / "set"
    config = shapes.ShapesConfig(
        train_images=6, validation_images=1, image_sizes=((64, 96),), min_size=16, max_size=64
    )
    shapes.prepare(directory, config)
    return directory


@pytest.fixture
def program(capsys, tmp_path, monkeypatch):
    """``program(*arguments)`` returns exit status, stdout, stderr, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[int, str, str]:
        try:
            status = measure.main(list(map(str, arguments)))
        except SystemExit as exit:  # raised by the argument parser
            status = exit.code
        return status, *capsys.readouterr()

    return call


def test_program_writes_results_page_and_plot(program, data, tmp_path):
    short = ("--experiment", "demo", "--steps", 100, "--warmup", 5, "--threads", 3)
    short += ("--waiting-steps", 8, "--step-seconds", 0.01)
    status, out, _ = program("--dataset", data, *short, "--out", "new/speed.json")
    names = ["speed.json", "SPEED.md", "speed.png"]
    assert status == 0 and out == f"Wrote {', '.join(f'new/{name}' for name in names)}.\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*names, "new"])

    result = json.loads((tmp_path / "new/speed.json").read_text())
    assert str(data) not in json.dumps(result)
    command = "python -m benchmarks.data.measure --dataset DIR --experiment demo --steps 100 --warmup 5 "
    assert result["command"].startswith(command) and result["threads"] == 3
    assert result["data"]["images"] == 6 and result["data"]["median_size"] == [64, 96]
    throughput = result["images_per_second_per_core"] * result["busy_cores"]
    assert throughput == pytest.approx(result["images_per_second"], rel=0.05)
    memory = result["memory"]["megabytes"]
    assert [step for step, _ in memory] == list(range(0, 101, 10)) and memory[0][1] > 20
    assert set(result["stages_ms"]) == {"read", "decode", "resize and pad", "masks", "everything else"}
    waiting = result["waiting"]
    assert waiting["mean_ms"] <= waiting["percentile_99_ms"] and waiting["steps"] == 8
    share = 100 * waiting["mean_ms"] / (waiting["mean_ms"] + 10)
    assert waiting["share_percent"] == pytest.approx(share, abs=0.1)

    page = (tmp_path / "new/SPEED.md").read_text()
    assert page == markdown(result, "speed.png") and f"| {result['images_per_second']:.1f} |" in page
    assert min(read_image(tmp_path / "new/speed.png").shape[:2]) > 200


def test_measure_waits_distinguishes_slow_from_fast_pipelines():
    def batches(seconds):
        while True:
            time.sleep(seconds)
            yield

    fast, slow = (measure_waits(batches(seconds), 5, 0.01) for seconds in (0, 0.03))
    assert slow["mean_ms"] >= 30 and slow["share_percent"] >= 70 and fast["mean_ms"] < 10
    assert slow["own_work_ms"] < 10  # sleeping is not work


def test_growth_compares_the_last_tenth_with_the_first():
    assert growth([(10 * i, 100.0) for i in range(101)]) == 0
    assert growth([(10 * i, 100.0 + i) for i in range(101)]) == pytest.approx(100 * (195.5 / 104.5 - 1))
    assert growth([(0, 100.0), (10, 100.0), (20, 110.0)]) == pytest.approx(10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--steps", "99"), "--steps is 99, but must be 100 or more"),
        (("--images-per-step", "0"), "--images-per-step is 0, but must be 1 or more"),
        (("--step-seconds", "-1"), "--step-seconds is -1.0, but must be 0 or more"),
        (("--out", "speed.txt"), "--out is speed.txt, but must end in .json"),
        ((), "nowhere is not a prepared data set: prepare one there first"),
    ],
)
def test_invalid_options_are_rejected_with_a_message(program, tmp_path, arguments, message):
    status, out, err = program("--dataset", "nowhere", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("python -m benchmarks.data.measure: ") and err.endswith(f"{message}\n")
    assert not list(tmp_path.iterdir())


def test_committed_page_agrees_with_committed_results():
    result = json.loads(RESULT.read_text())
    assert (RESULT.parent / "LOADER.md").read_text() == markdown(result, "loader.png")
    assert (RESULT.parent / "loader.png").exists()
    assert result["steps"] >= 1000 and result["memory"]["growth_percent"] <= 5
