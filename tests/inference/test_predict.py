"""Detection in image and video files: pictures, lists, masks, crops, videos and the order of files."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from stand_in_detector import StandInDetector

from mrcnn_jax.config import Experiment
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.data.video_io import read_frames, read_video_info
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import list_images
from mrcnn_jax.inference.predict import predict_files
from mrcnn_jax.inference.prediction_writer import instance_ids
from mrcnn_jax.structures import DatasetInfo


class CatDetector(StandInDetector):
    """Stands in for a trained detector: finds two cats, in the corners of every image."""

    info = DatasetInfo("pets", (3, 90), ("cat", "dog"))
    experiment = Experiment()

    def __call__(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        masks = np.zeros((2, height, width), bool)
        masks[0, 2:12, 3:13] = masks[1, height - 12 : height - 2, width - 13 : width - 3] = True
        boxes = np.float32([[3, 2, 13, 12], [width - 13, height - 12, width - 3, height - 2]])
        names = self.info.category_names
        return Detections(boxes, np.float32([0.75, 0.25]), np.array([0, 0]), masks, class_names=names)


def write_image(path: Path, height: int = 40, width: int = 60) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = np.full((height, width, 3), 40, np.uint8)
    cv2.imwrite(str(path), cv2.circle(image, (width // 2, height // 2), 15, (60, 60, 230), -1))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two images, one of them higher than wide, and of another file."""
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images/b.jpg", 75, 45)
    (tmp_path / "images/notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_predict_files_writes_pictures_and_coco_results(folder, tmp_path):
    detector, out, advanced = CatDetector(), tmp_path / "out", []
    found = predict_files(detector, [folder], out, progress=lambda *counts: advanced.append(counts))
    names = {"0001_a.png", "0002_b.png", "contact_sheet.png", "coco.json", "results.json", "images.json"}
    assert {path.name for path in out.iterdir()} == names
    assert advanced == [(0, 2), (1, 2), (2, 2)] and found.unreadable == []
    images = [
        {"id": 1, "file_name": str(folder / "a.png"), "height": 40, "width": 60,
         "picture": "0001_a.png"},
        {"id": 2, "file_name": str(folder / "b.jpg"), "height": 75, "width": 45,
         "picture": "0002_b.png"},
    ]  # fmt: skip
    assert json.loads((out / "images.json").read_text()) == found.images == images
    assert json.loads((out / "results.json").read_text()) == found.results
    detected = [detector(read_image(image["file_name"])) for image in images]
    expected = [one.to_coco(id_, detector.info) for id_, one in enumerate(detected, start=1)]
    assert found.results == expected[0] + expected[1]
    coco = COCO()
    categories = [{"id": id_} for id_ in detector.info.category_ids]
    coco.dataset = {"images": images, "annotations": [], "categories": categories}
    coco.createIndex()
    loaded = coco.loadRes(str(out / "results.json"))
    shapes = [loaded.annToMask(entry).shape for entry in loaded.anns.values()]
    assert shapes == [(40, 60)] * 2 + [(75, 45)] * 2


def test_score_threshold_concerns_pictures_alone(folder, tmp_path):
    files = [folder / "b.jpg", folder / "a.png"]
    found = {
        score: predict_files(CatDetector(), files, tmp_path / str(score), score_threshold=score)
        for score in (0, 0.5, 1)
    }
    assert found[0].results == found[0.5].results == found[1].results
    assert [image["file_name"] for image in found[0].images] == list(map(str, files))  # in the order given
    for name in ("0001_b.png", "0002_a.png"):
        everything, one, nothing = (read_image(tmp_path / str(score) / name) for score in (0, 0.5, 1))
        assert (everything != one).any() and (one != nothing).any()
    reduced = cv2.resize(nothing, (60, 40), interpolation=cv2.INTER_AREA)  # small images are drawn enlarged
    assert np.abs(reduced.astype(float) - read_image(folder / "a.png")).mean() < 1


def test_nothing_is_written_without_out(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert len(predict_files(CatDetector(), [folder]).results) == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (image,) = predict_files(CatDetector(), [tmp_path / "a.jpg"]).images
    assert (image["height"], image["width"]) == (60, 40)


def test_unreadable_files_do_not_stop_the_others(folder, tmp_path):
    files = [folder / "a.png", folder / "notes.txt", folder / "b.jpg"]
    found = predict_files(CatDetector(), files, tmp_path / "out")
    assert [image["id"] for image in found.images] == [1, 3]
    assert {entry["image_id"] for entry in found.results} == {1, 3}
    with pytest.raises(InputError, match=r"^cannot read image .*notes\.txt"):
        found.raise_unreadable()
    message = r"^2 of 4 images cannot be read; the first: cannot read image .*notes\.txt"
    with pytest.raises(InputError, match=message):
        replace(found, unreadable=found.unreadable * 2).raise_unreadable()
    replace(found, unreadable=[]).raise_unreadable()


def test_missing_and_empty_paths_are_refused(folder, tmp_path):
    expected = [folder / name for name in ("a.png", "b.jpg", "notes.txt")]
    assert find_image_files([folder, folder / "notes.txt"]).files == expected
    with pytest.raises(InputError, match="there is no image file or folder .*no.png"):
        find_image_files([folder, tmp_path / "no.png"])
    (tmp_path / "empty").mkdir()
    message = "no image files in .*empty: give image files, or folders that hold .*.jpg"
    with pytest.raises(InputError, match=message):
        find_image_files([tmp_path / "empty"])


def test_pictures_of_an_earlier_prediction_are_no_input(folder):
    for _ in range(2):
        found = predict_files(CatDetector(), folder, folder / "out", crops=True)
        assert [Path(image["file_name"]).name for image in found.images] == ["a.png", "b.jpg"]
    with pytest.raises(InputError, match="all images are in .*out, which is written to: choose another"):
        predict_files(CatDetector(), folder / "out/0001_a.png", folder / "out")


# ---- COCO files, masks and crops ----


def test_coco_json_is_a_data_set_of_the_objects_above_the_score(folder, tmp_path):
    """pycocotools and the reader of data sets take it; objects are those of the results."""
    write_image(folder / "deep/c.png")
    detector, out = CatDetector(), tmp_path / "out"
    found = predict_files(detector, [folder], out, score_threshold=0.5)
    content = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.jpg", "deep/c.png"]
    assert content["info"]["image_folder"] == str(folder)
    coco = COCO(str(out / "coco.json"))
    assert [coco.annToMask(one).sum() for one in coco.anns.values()] == [100] * 3
    results = [entry for entry in found.results if entry["score"] >= 0.5]
    for annotation, result in zip(content["annotations"], results, strict=True):
        assert {key: annotation[key] for key in result} == result
        assert annotation["area"] == 100 and annotation["iscrowd"] == 0
    source = CocoFile(folder, out / "coco.json")
    assert source.info.category_names == ("cat", "dog") and source.info.category_ids == (3, 90)
    assert [record.objects.boxes.tolist() for record in source] == [[[3, 2, 13, 12]]] * 3
    assert [record.objects.rles for record in source] == [[one["segmentation"]["counts"]] for one in results]


def test_keypoints_of_coco_json_have_visibilities(folder, tmp_path):
    class Pose(CatDetector):
        info = DatasetInfo("pets", (3, 90), ("cat", "dog"), ("nose", "tail"), (0, 1), ((0, 1),), (0,))

        def __call__(self, image):
            return replace(super().__call__(image), keypoints=np.float32([[[4, 3, 0.9], [12, 11, 0]]] * 2))

    predict_files(Pose(), folder / "a.png", tmp_path / "out")
    content = json.loads((tmp_path / "out/coco.json").read_text())
    assert content["annotations"][0]["keypoints"] == [4, 3, 2, 12, 11, 0]
    assert content["annotations"][0]["num_keypoints"] == 1
    assert content["categories"][0]["skeleton"] == [[1, 2]] and "keypoints" not in content["categories"][1]
    source = CocoFile(folder, tmp_path / "out/coco.json")
    assert [record.objects.keypoints.tolist() for record in source] == [[[[4, 3, 2], [12, 11, 0]]]]


def test_masks_are_numbers_of_objects_and_crops_their_boxes(folder, tmp_path):
    out = tmp_path / "out"
    found = predict_files(CatDetector(), [folder], out, score_threshold=0.2, masks=True, crops=True)
    ids = cv2.imread(str(out / "masks/0002_b.png"), cv2.IMREAD_UNCHANGED)
    assert ids.shape == (75, 45) and ids.dtype == np.uint8
    assert (ids[2:12, 3:13] == 1).all() and (ids[63:73, 32:42] == 2).all() and (ids > 0).sum() == 200
    legend = json.loads((out / "masks/legend.json").read_text())
    annotations = json.loads((out / "coco.json").read_text())["annotations"]
    assert [one["file"] for one in legend] == ["masks/0001_a.png", "masks/0002_b.png"]
    assert [(one["value"], one["category"]) for one in legend[1]["objects"]] == [(1, "cat"), (2, "cat")]
    assert [one["annotation_id"] for each in legend for one in each["objects"]] == [1, 2, 3, 4]
    assert [one["id"] for one in annotations] == [1, 2, 3, 4]
    crops = found.images[0]["crops"]
    assert crops == ["crops/0001_a_001.png", "crops/0001_a_002.png"]
    np.testing.assert_array_equal(read_image(out / crops[0]), read_image(folder / "a.png")[2:12, 3:13])
    predict_files(CatDetector(), folder / "a.png", out)  # without them
    assert sorted(path.name for path in out.rglob("*.*")) == [
        "0001_a.png", "coco.json", "images.json", "results.json"
    ]  # fmt: skip


def test_many_objects_need_16_bits_and_the_best_is_on_top():
    count = 300
    masks = np.zeros((count, 4, count), bool)
    masks[np.arange(count), :, np.arange(count)] = True
    masks[7] = masks[8]
    boxes = np.zeros((count, 4), np.float32)
    ids = instance_ids(Detections(boxes, np.linspace(1, 0, count), np.zeros(count, int), masks))
    assert ids.dtype == np.uint16 and ids[0, 299] == 300 and ids[0, 8] == 8 and ids[0, 7] == 0


def test_masks_of_a_detector_without_them_are_refused(folder, tmp_path):
    class Boxes(CatDetector):
        experiment = SimpleNamespace(model=SimpleNamespace(tasks=("boxes",)))

    with pytest.raises(InputError, match="the detector finds boxes without masks"):
        predict_files(Boxes(), folder, tmp_path / "out", masks=True)
    assert not (tmp_path / "out").exists()


# ---- patterns ----


def test_patterns_stand_for_files(tmp_path):
    names = ["a.jpg", "b.png", "x/c.jpg", "x/y/d.jpg", "x/notes.txt", ".hidden/e.jpg", "[1].jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def found(pattern):
        return [file.relative_to(tmp_path).as_posix() for file in find_image_files(tmp_path / pattern).files]

    assert found("*.jpg") == ["[1].jpg", "a.jpg"]
    assert found("**/*.jpg") == ["[1].jpg", "a.jpg", "x/c.jpg", "x/y/d.jpg"]
    assert found("x/**") == found("x*") == ["x/c.jpg", "x/y/d.jpg"]
    assert found("[1].jpg") == ["[1].jpg"] and found("[ab].*") == ["a.jpg", "b.png"]
    assert find_image_files(tmp_path / "**").skipped == {".txt": 1}
    assert len(list(list_images(str(tmp_path / "**/*.jpg")))) == 4
    with pytest.raises(InputError, match=r"no image files in .*\*\.tif"):
        found("*.tif")


# ---- videos ----


def write_video(path: Path, frames: int = 12, suffix: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*suffix), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), min(20 * number, 255), np.uint8))
    writer.release()
    return path


def test_videos_are_detected_frame_by_frame(folder, tmp_path):
    video, out, advanced = write_video(tmp_path / "images/clip.avi"), tmp_path / "out", []
    progress = lambda *counts: advanced.append(counts)  # noqa: E731
    found = predict_files(CatDetector(), [folder], out, every=5, batch_size=2, progress=progress)
    assert [image.get("video") for image in found.images] == [None, None, *["0003_clip.mp4"] * 3]
    frames = [f"{video}/frame_{number:06}.png" for number in (0, 5, 10)]
    assert [image["file_name"] for image in found.images[2:]] == frames
    assert advanced == [(done, 5) for done in range(6)]
    drawn = [frame for _, frame in read_frames(out / "0003_clip.mp4")]
    assert len(drawn) == 3 and [frame.shape for frame in drawn] == [(528, 704, 3)] * 3  # enlarged
    assert read_video_info(out / "0003_clip.mp4").frames_per_second == pytest.approx(2)
    levels = [frame[300, 350].mean() for frame in drawn]
    np.testing.assert_allclose(levels, [0, 100, 200], atol=6)
    assert len(found.results) == 10
    predict_files(CatDetector(), folder / "a.png", out)
    assert not (out / "0003_clip.mp4").exists()


def test_cut_and_unreadable_videos_are_reported(folder, tmp_path, capfd):
    data = write_video(tmp_path / "whole.avi", 40).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_bytes(b"no video")
    files = [tmp_path / "cut.avi", tmp_path / "text.mp4", folder / "a.png"]
    found = predict_files(CatDetector(), files, tmp_path / "out")
    read = len(found.images) - 1
    assert 0 < read < 40 and found.images[-1]["file_name"] == str(files[2])
    assert found.unreadable == [
        f"video {files[0]} ends after {read} of 40 frames, which were read: it is cut or damaged",
        f"cannot read video {files[1]}: it is damaged, or of a format that OpenCV lacks",
    ]
    warnings = [f"Warning: {message}" for message in found.unreadable]
    assert capfd.readouterr().err.splitlines() == warnings  # and nothing of FFmpeg
    assert len(list(read_frames(tmp_path / "out/0001_cut.mp4"))) == read


def test_an_interrupted_video_is_complete_as_far_as_it_goes(tmp_path):
    class Stops(CatDetector):
        calls = 0

        def __call__(self, image):
            Stops.calls += 1
            if Stops.calls == 5:
                raise KeyboardInterrupt
            return super().__call__(image)

    video = write_video(tmp_path / "clip.avi")
    with pytest.raises(KeyboardInterrupt):
        predict_files(Stops(), video, tmp_path / "out")
    assert len(list(read_frames(tmp_path / "out/0001_clip.mp4"))) == 4
    assert len(json.loads((tmp_path / "out/coco.json").read_text())["images"]) == 4


# ---- two at once ----


def test_a_second_prediction_into_a_folder_is_refused(folder, tmp_path):
    class Nested(CatDetector):
        def __call__(self, image):
            with pytest.raises(InputError, match=r"out is in use by process \d+ on .* writing predictions"):
                predict_files(CatDetector(), folder, tmp_path / "out")
            return super().__call__(image)

    found = predict_files(Nested(), folder, tmp_path / "out")
    assert len(found.images) == 2 and not (tmp_path / "out/.lock").exists()
