"""Prediction, evaluation and pictures."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image
from quirks import quirk
from stand_in_detector import StandInDetector

from mrcnn_jax.atomic_io import require_writable
from mrcnn_jax.cli.main import main
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.video_io import VideoWriter, read_frames, read_video_info
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference import predict as prediction
from mrcnn_jax.inference import result_files
from mrcnn_jax.inference.evaluate import Evaluation, evaluate, scored_kinds
from mrcnn_jax.inference.matching import match_dataset
from mrcnn_jax.inference.predict import predict_files
from mrcnn_jax.inference.result_files import Autosave
from mrcnn_jax.inference.settings import with_settings
from mrcnn_jax.run_length_masks import RunLengthMasks, encode_masks
from mrcnn_jax.structures import DatasetInfo

INFO = DatasetInfo("pets", (1, 2), ("a", "b"))


class OneObject(StandInDetector):
    """Stands in for a trained detector: an object in the corner of every image."""

    info, experiment = INFO, Experiment()

    def __call__(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        masks = np.zeros((1, height, width), bool)
        masks[0, :8, :9] = True
        codes = RunLengthMasks([encode_masks(masks)[0]["counts"]], height, width)
        names = self.info.category_names
        return Detections(np.float32([[0, 0, 9, 8]]), np.float32([0.75]), np.array([0]), codes, None, names)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        write_image(tmp_path / "images" / name)
    return tmp_path / "images"


def write_image(path: Path, size=(60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (40, 60, 80)).save(path)
    return path


def read(path: Path):
    return json.loads(path.read_text())


# ---- before the work ----


def file(place):
    place.write_text("in the way")
    return place


def below_a_file(place):
    return file(place) / "deeper" / "still"


def link_to_nothing(place):
    place.symlink_to("nothing")
    return place


def results_are_a_folder(place):
    (place / "results.json").mkdir(parents=True)
    return place


def name_too_long(place):
    return place / ("x" * 300)


def no_such_disk(place):
    return Path("/proc/no/such/disk")


@quirk("`--out` is a file, below a file, or on no such disk", "refused before weights are read")
@pytest.mark.parametrize(
    "blocked", [file, below_a_file, link_to_nothing, results_are_a_folder, name_too_long, no_such_disk]
)
def test_unwritable_output_is_refused_first(tmp_path, folder, blocked, monkeypatch, capsys):
    out = blocked(tmp_path / "out")
    for module in ("predict", "evaluate"):
        monkeypatch.setattr(f"mrcnn_jax.inference.{module}.load", None)  # must not be reached
    before = sorted(tmp_path.rglob("*"))
    for command in (["predict", "run", folder], ["evaluate", "run"]):
        assert main([*map(str, command), "--out", str(out)]) == 2
        assert "cannot write" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_writable_output_is_left_as_it_is(tmp_path):
    require_writable(tmp_path / "new" / "deeper")
    require_writable(tmp_path)
    assert not list(tmp_path.iterdir())


@quirk("`--score 5`", "refused: 0 to 1 is allowed")
@pytest.mark.parametrize("score", ["5", "-0.1", "nan"])
def test_impossible_score_is_refused(score, folder, capsys):
    assert main(["predict", "run", str(folder), "--score", score]) == 2
    assert "must lie between 0 and 1" in capsys.readouterr().err


# ---- interruptions ----


@quirk("`predict` is interrupted, crashes or fills the disk", "what was done is kept, lists and pictures")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError, MemoryError])
def test_interrupted_prediction_keeps_what_it_had(folder, tmp_path, error):
    class Fails(OneObject):
        calls = 0

        def __call__(self, image):
            Fails.calls += 1
            if Fails.calls == 3:
                raise error("stop")
            return super().__call__(image)

    with pytest.raises(error):
        predict_files(Fails(), [folder], tmp_path / "out")
    assert [image["picture"] for image in read(tmp_path / "out/images.json")] == ["0001_1.png", "0002_2.png"]
    assert [entry["image_id"] for entry in read(tmp_path / "out/results.json")] == [1, 2]
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2
    assert [image["id"] for image in read(tmp_path / "out/coco.json")["images"]] == [1, 2]


def test_interrupted_command_says_what_is_kept(folder, tmp_path, monkeypatch, capsys):
    class Fails(OneObject):
        calls = 0

        def __call__(self, image):
            Fails.calls += 1
            if Fails.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(image)

    monkeypatch.setattr(prediction, "load", lambda *_, **__: Fails())
    assert main(["predict", "run", str(folder), "--out", str(tmp_path / "out")]) == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"mrcnn: interrupted; what was found in 1 images is in {tmp_path / 'out'}"


def test_results_are_rewritten_while_images_are_detected(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "Autosave", lambda save: Autosave(save, seconds=0))
    seen = []

    class Looks(OneObject):
        def __call__(self, image):
            file = tmp_path / "out/results.json"
            seen.append(len(read(file)) if file.exists() else None)
            return super().__call__(image)

    predict_files(Looks(), sorted(folder.iterdir()) * 3, tmp_path / "out")  # two images are being drawn
    assert seen[0] is None and 1 <= seen[8] <= 8


def test_autosave_takes_a_twentieth_of_the_time(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(result_files.time, "monotonic", lambda: clock.now)
    saved = []

    def save():
        saved.append(clock.now)
        clock.now += 2

    autosave = Autosave(save, seconds=10)
    while clock.now < 120:
        autosave()
        clock.now += 1
    assert saved == [10, 52, 94]


@quirk("`evaluate` is interrupted", "the detections so far are in results.json")
def test_interrupted_evaluation_keeps_its_detections(tmp_path, monkeypatch):
    def stop(detector, split, *, save, **_):
        save([{"image_id": 1}])
        raise KeyboardInterrupt

    (tmp_path / "metrics.json").write_text("{}")  # of an earlier evaluation
    monkeypatch.setattr("mrcnn_jax.inference.evaluate._open", lambda *_: None)
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate_split", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(OneObject(), out=tmp_path)
    assert read(tmp_path / "results.json") == [{"image_id": 1}] and not (tmp_path / "metrics.json").exists()


@quirk("a picture cannot be drawn", "a warning; metrics and results are complete")
def test_undrawable_pictures_are_warnings(folder, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("no ink")

    monkeypatch.setattr("mrcnn_jax.inference.prediction_writer.draw_detections", fail)
    found = predict_files(OneObject(), [folder], tmp_path / "out")
    assert len(read(tmp_path / "out/results.json")) == 3 and found.images[0]["picture"] is None
    assert "cannot be drawn (ValueError: no ink)" in capsys.readouterr().err
    monkeypatch.setattr("mrcnn_jax.inference.evaluate._open", lambda *_: None)
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.prediction_sheet", fail)
    split = [SimpleNamespace(image_id=1)]
    evaluation = Evaluation(split, {"bbox": {"AP": 1.0}}, [], {1: None}, 0.5)
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate_split", lambda *_, **__: evaluation)
    evaluate(OneObject(), out=tmp_path / "scores")
    assert read(tmp_path / "scores/metrics.json") == {"bbox": {"AP": 1.0}}
    assert "the contact sheet cannot be drawn" in capsys.readouterr().err


# ---- files ----


@quirk("`predict` twice into one folder", "pictures of the first prediction are removed, other files stay")
def test_stale_pictures_are_removed(folder, tmp_path):
    out = tmp_path / "out"
    predict_files(OneObject(), [folder], out)
    write_image(out / "mine.png")
    write_image(out / "0009_mine.png")
    predict_files(OneObject(), [folder / "3.jpg"], out)
    expected = {"0001_3.png", "coco.json", "images.json", "results.json", "mine.png", "0009_mine.png"}
    assert {path.name for path in out.iterdir()} == expected
    assert [image["picture"] for image in read(out / "images.json")] == ["0001_3.png"]


@quirk("`--out` lies in the folder of the images, by any spelling or link", "what it holds is no input")
@pytest.mark.parametrize("given, out", [("../images", "out"), (".", "../images/out"), ("../link", "out"),
                                        ("../link/*", "out"), (".", "../link/out/deeper")])  # fmt: skip
def test_outputs_are_no_input_by_any_spelling(folder, monkeypatch, given, out):
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for _ in range(2):
        found = predict_files(OneObject(), given, out, crops=True)
        assert [Path(image["file_name"]).name for image in found.images] == ["1.jpg", "2.jpg", "3.jpg"]


@quirk("`--out` holds lists of something else than a prediction", "refused; nothing is changed")
@pytest.mark.parametrize(
    "name, content",
    [
        ("results.json", "[]"), ("images.json", '{"images": []}'), ("images.json", "no JSON"),
        ("images.json", '[{"id": 1, "file_name": "a", "picture": "../../a.png"}]'),
        ("images.json", "[" * 9999),
    ],
)  # fmt: skip
def test_foreign_lists_are_refused(folder, tmp_path, name, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(InputError, match="of something else than an earlier prediction: choose another"):
        predict_files(OneObject(), [folder], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@quirk("nested folders, equal names in them, endings such as jfif, ppm", "all taken, pictures numbered")
def test_nested_folders_and_rare_endings(tmp_path):
    names = ["a/1.jpg", "b/1.jpg", "b/c/1.PNG", "4.jfif", "5.ppm", "6.tif", "notes.txt"]
    for name in names:
        Image.new("RGB", (60, 40)).save(tmp_path / "in" / name, "JPEG") if name.endswith("jfif") else (
            write_image(tmp_path / "in" / name) if not name.endswith("txt") else file(tmp_path / "in" / name)
        )
    found = predict_files(OneObject(), [tmp_path / "in"], tmp_path / "out")
    pictures = {image["picture"] for image in found.images}
    assert len(pictures) == 6 == len(list((tmp_path / "out").glob("0*.png"))) and found.skipped == {".txt": 1}


@quirk("file names of 250 bytes, of any script or of no valid Unicode", "pictures get shortened names")
@pytest.mark.parametrize("name", ["x" * 240, "图" * 80, "line\nbreak", "[red]", os.fsdecode(b"caf\xe9")])
def test_odd_file_names(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setattr(prediction, "load", lambda *_, **__: OneObject())
    source, out = write_image(tmp_path / "in" / f"{name}.png"), tmp_path / "out"
    assert main(["predict", "run", str(tmp_path / "in"), "--out", str(out)]) == 0
    assert read(out / "images.json")[0]["file_name"] == str(source)
    assert len(list(out.glob("0001_*.png"))) == 1
    first = capsys.readouterr().out.encode(errors="strict").decode().splitlines()[0]
    assert ": 1 a (" in first and ("[red]" in first) == (name == "[red]")


def test_output_is_one_line_for_each_image(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prediction, "load", lambda *_, **__: OneObject())
    out = str(tmp_path / "out")
    assert main(["predict", "run", str(folder), "--out", out, "--score", "0.8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith(f"{folder}/1.jpg: nothing above 0.8 (")
    assert lines[3].startswith("3 detections in 3 images: ")


# ---- videos ----


def write_video(path: Path, frames: int = 3) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(frames):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    return path


@quirk("videos of uneven or extreme rates, `--every 100000`",
       "overlays at the nearest rate MPEG-4 can express")  # fmt: skip
@pytest.mark.parametrize(
    "given, written",
    [(119.873, 119.87), (90.417, 90.42), (239.913, 239.91), (999.99, 1000), (65.5355, 65.54),
     (24000 / 1001, 23.976), (59.94, 59.94), (0.00025, 0.01), (1e-9, 0.01)],
)  # fmt: skip
def test_rates_of_videos_are_rounded(tmp_path, given, written):
    writer = VideoWriter(tmp_path / "a.mp4", given)
    writer.add(np.zeros((16, 16, 3), np.uint8))
    writer.close()
    assert read_video_info(tmp_path / "a.mp4") == (1, pytest.approx(written))


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Lets files grow to a number of bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@quirk("the disk is full while a video is written",
       "an error with the reason; no video that cannot be played")  # fmt: skip
@pytest.mark.parametrize("size", [1_000, 40_000, 130_000])
def test_videos_are_whole_or_not_there(tmp_path, size):
    frames = np.random.default_rng(0).integers(0, 256, (12, 128, 160, 3), np.uint8)

    def write(path):
        writer = VideoWriter(path, 10)
        for frame in frames:
            writer.add(frame)
        writer.close()

    write(tmp_path / "whole.mp4")
    assert len(list(read_frames(tmp_path / "whole.mp4"))) == 12
    assert (tmp_path / "whole.mp4").stat().st_size > 130_000
    with limited_files(size), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path / "cut.mp4")
    assert caught.value.filename == str(tmp_path / "cut.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


@pytest.mark.parametrize("larger", [(48, 64), (49, 65), (96, 128), (48, 128), (24, 32)])
def test_pictures_of_a_video_are_fitted_whole(tmp_path, larger):
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    writer.add(np.zeros((48, 64, 3), np.uint8))
    picture = np.zeros((*larger, 3), np.uint8)
    picture[larger[0] // 2 :, larger[1] // 2 :] = 255  # a quarter of any size
    writer.add(picture)
    writer.close()
    *_, (_, frame) = read_frames(tmp_path / "a.mp4")
    assert frame.shape == (48, 64, 3) and (frame > 127).mean() == pytest.approx(0.25, abs=0.01)


def test_lists_are_kept_if_a_video_cannot_be_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(VideoWriter, "_require_all_frames", raising := Mock(side_effect=OSError(28, "full")))
    source = write_video(tmp_path / "a.avi")
    with pytest.raises(OSError, match="full"):
        predict_files(OneObject(), source, tmp_path / "out")
    assert raising.called and not list((tmp_path / "out").glob("*.mp4"))
    assert len(read(tmp_path / "out/images.json")) == 3


# ---- other data sets ----


def matched(ids, names, known=INFO):
    return match_dataset(known, DatasetInfo("other", ids, names), ("boxes",), "runs/x", "data/y")


@quirk("`evaluate` on a set with the same class names under other ids, order or spelling", "matched by name")
@pytest.mark.parametrize(
    "ids, names, expected",
    [
        ((0, 1), ("a", "b"), (0, 1)), ((2, 1), ("a", "b"), (2, 1)), ((7, 9), ("b", "a"), (9, 7)),
        ((1, 2), ("A", "B"), (1, 2)), ((5,), ("b",), (-1, 5)), ((1, 2), (" a", "b "), (1, 2)),
    ],
)  # fmt: skip
def test_classes_are_matched_by_name(ids, names, expected):
    match = matched(ids, names)
    assert match.info.category_ids == expected and not match.warnings
    assert match.category_ids == set(ids)


def test_spelling_is_second_to_equal_names_and_repeated_names_need_their_ids():
    known = DatasetInfo("pets", (1, 2, 3), ("fire hydrant", "Fire-Hydrant", "dog"))
    assert matched((4, 5), ("Fire-Hydrant", "fire_hydrant"), known).info.category_ids == (5, 4, -1)
    twice = DatasetInfo("pets", (1, 2, 3), ("a", "a", "b"))
    assert matched((1, 2, 9), ("a", "a", "b"), twice).info.category_ids == (1, 2, 9)
    assert matched((5, 6, 9), ("a", "a", "b"), twice).info.category_ids == (-1, -1, 9)


@quirk("classes that the detector does not know", "named, and their objects not scored; refused if all are")
def test_unknown_classes_are_left_out():
    match = matched((1, 2, 3), ("a", "b", "c"))
    assert match.warnings == ("runs/x does not know 'c' of data/y; their objects are not scored",)
    truth = {"images": [1], "categories": [{"id": 1}, {"id": 2}, {"id": 3}],
             "annotations": [{"category_id": 3}, {"category_id": 1}]}  # fmt: skip
    kept = match.restrict(truth)
    assert kept["annotations"] == [{"category_id": 1}] and kept["images"] == [1]
    with pytest.raises(InputError, match="data/y and runs/x have no class in common: the set has 'x', 'y'"):
        matched((1, 2), ("x", "y"))


@quirk("keypoints in another order, fewer of them, other names", "by name, then by number, then not scored")
@pytest.mark.parametrize(
    "names, expected, said",
    [
        (("nose", "tail", "ear"), (0, 1, 2), None), (("tail", "nose"), (1, 0), None),
        (("Left Ear", "nose", "tail"), (0, 1, 2), "matched by number"),
        ((), None, "keypoints are not scored"),
        (("x", "y"), None, "keypoints are not scored"), (("NOSE",), (0,), None),
    ],
)  # fmt: skip
def test_keypoints_are_matched(names, expected, said):
    known = INFO._replace(keypoint_names=("nose", "tail", "ear"))
    other = INFO._replace(keypoint_names=names)
    match = match_dataset(known, other, ("boxes", "keypoints"), "runs/x", "data/y")
    assert match.keypoints == expected
    assert [said in message for message in match.warnings] == ([True] if said else [])


@quirk("`evaluate` on a set where objects lack a mask", "masks are scored on the others, or boxes alone")
def test_sets_without_masks_are_scored_by_boxes():
    def kinds(annotations):
        split = SimpleNamespace(ground_truth=lambda: {"annotations": annotations}, directory="d", split="s")
        return scored_kinds(OneObject(), split, matched((1, 2), ("a", "b")))

    assert kinds([{}, {}]) == (["bbox"], ["no object of d (s) has a mask: boxes alone are scored"])
    partly = ["1 of 2 objects of d (s) have no mask: masks are scored on the others"]
    assert kinds([{}, {"segmentation": {}}]) == (["bbox", "segm"], partly)
    assert kinds([{"segmentation": {}}]) == (["bbox", "segm"], []) == kinds([])


# ---- settings ----


@quirk("`--model.box.max-detections 300`, thresholds, image sizes, padding", "replace those of the run")
def test_settings_replace_those_of_the_experiment(folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        prediction, "load", lambda directory, settings, **_: given.append(settings) or OneObject()
    )
    options = ["--model.box.detections", "300", "--data.padding-divisor=32", "--model.rpn.nms-iou", "0.8"]
    assert main(["predict", "run", *options, str(folder), "--out", str(tmp_path / "out")]) == 0
    assert given == [
        {"model.box.max_detections": 300, "model.rpn.nms_iou": 0.8, "data.padding_divisor": 32}
    ]
    changed = with_settings(Experiment(), given[0])
    assert (changed.model.box.max_detections, changed.data.padding_divisor) == (300, 32)
    smaller = with_settings(Experiment(), {"data.long_edge": 640, "data.short_edge_test": 480}).data
    assert (smaller.short_edge, smaller.short_edge_test, smaller.long_edge) == ((480,), 480, 640)


@quirk("settings that would need other parameters, or impossible values", "refused, with what is allowed")
def test_wrong_settings_are_refused(folder, capsys):
    for name, value in (("model.mask.layers", 3), ("model.box.score", 0.1), ("train.steps", 4)):
        with pytest.raises(InputError, match=f"{name} cannot be set for a trained detector: .*box.nms_iou"):
            with_settings(Experiment(), {name: value})
    with pytest.raises(InputError, match="box.score_threshold must lie between 0 and 1, not 5"):
        with_settings(Experiment(), {"model.box.score_threshold": 5})
    assert main(["predict", "run", str(folder), "--model.mask.layers", "3"]) == 2
    assert "mrcnn predict has no option --model.mask.layers" in capsys.readouterr().err
