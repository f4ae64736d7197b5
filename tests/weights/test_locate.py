"""Weights by name and address: downloaded, imported and found again, from a server on the loopback."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from cli_inputs import call_cli
from detectron2_zoo import zoo as narrow
from detectron2_zoo import zoo_tensors
from weight_server import serving

import mrcnn_jax
from mrcnn_jax import presets
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import read_weights
from mrcnn_jax.weights import download, locate, zoo
from mrcnn_jax.weights.readers import write_tensors

NAME, BACKBONE = "detectron2/mask_rcnn_R_18_FPN_3x", "torchvision/resnet18_imagenet1k_v1"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """A narrow detector of Detectron2 (.pkl) and a narrow backbone of torchvision (.pth)."""
    tensors = dict(zoo_tensors(narrow(depth=18)))
    scores = tensors["roi_heads.box_predictor.cls_score.bias"].copy()
    scores[2] = 9.0  # a car everywhere
    tensors["roi_heads.box_predictor.cls_score.bias"] = scores
    content = {"model": tensors, "__author__": "someone", "matching_heuristics": True}
    folder = tmp_path_factory.mktemp("files")
    write_tensors(folder / "r18.pth", _backbone_tensors(tensors))
    return {
        "/detectron2/COCO/mask_rcnn_R_18_FPN_3x/1/model_final.pkl": pickle.dumps(content),
        "/models/resnet18.pth": (folder / "r18.pth").read_bytes(),
    }


def _backbone_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the backbone's tensors under torchvision's names."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("backbone.bottom_up."):
            name = name.removeprefix("backbone.bottom_up.")
            for stage in range(2, 6):
                name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
            for index in (1, 2):
                name = name.replace(f"conv{index}.norm", f"bn{index}")
            name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
            renamed[name.removeprefix("stem.")] = tensor
    return renamed


@pytest.fixture
def server(files, monkeypatch, tmp_path):
    """The server as a mirror, an empty cache, and two entries of the catalogue."""
    entries = [
        zoo.Entry(NAME, "https://one.example" + list(files)[0], ("boxes", "masks"), 1.0),
        zoo.Entry(BACKBONE, "https://two.example" + list(files)[1], (), 1.0, trained_on="ImageNet"),
    ]
    for entry in entries:
        monkeypatch.setitem(zoo.ENTRIES, entry.name, entry)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(download.CACHE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serving(files) as server:
        monkeypatch.setenv(download.MIRROR, server.address)
        yield server


def test_a_name_becomes_a_directory_that_is_found_again(server, capsys):
    directory = locate.locate(NAME)
    weights = read_weights(NAME)
    assert weights.experiment.model == narrow(depth=18).model and weights.info.category_names[2] == "car"
    record = json.loads((directory / "import.json").read_text())
    assert record["url"] == zoo.ENTRIES[NAME].url and len(record["sha256"]) == 64 and "note" not in record
    server.files.clear()  # offline
    assert locate.locate(NAME) == directory and len(server.requests) == 1
    assert sorted(path.name for path in directory.parent.iterdir() if path.is_dir()) == [directory.name]
    assert "loading model_final.pkl" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_read(server, monkeypatch):
    directory = locate.locate(NAME)
    monkeypatch.setattr(download, "require_cache", lambda path: pytest.fail("the cache is written"))
    assert locate.locate(NAME) == directory


def test_what_another_version_has_imported_is_imported_again(server):
    directory = locate.locate(NAME)
    about = next(directory.glob("checkpoints/*/about/metadata"))
    about.write_text("{}")
    read_weights(locate.locate(NAME))
    assert len(server.requests) == 1  # the file was kept


def test_an_address_is_loaded_and_what_is_assumed_is_recorded(server, files):
    url = server.address + list(files)[0]
    directory = locate.locate(url)
    assert directory.name.startswith("model_final-") and directory.parent.name == "url"
    assert "assumed" in json.loads((directory / "import.json").read_text())["note"]
    assert locate.locate(url) == directory and len(server.requests) == 1
    assert locate.short_name(url) == directory.name


def test_an_address_of_something_else_leaves_nothing(server):
    server.files["/text.pth"] = b"no weights"
    for _ in range(2):
        with pytest.raises(InputError, match="is text that starts with 'no weights', not weights"):
            locate.locate(f"{server.address}/text.pth")
    assert len(server.requests) == 2  # it may have been replaced
    left = [path for path in download.cache_directory().rglob("*") if path.is_file()]
    assert [path.name for path in left if not path.name.endswith("lock")] == []


def test_a_misspelt_address_is_named():
    for function in (locate.locate, locate.short_name):
        with pytest.raises(InputError, match=r"^https://\[::1/x.pth is not an address: "):
            function("https://[::1/x.pth")


def test_a_path_precedes_a_name(server, capsys):
    Path(NAME).mkdir(parents=True)
    assert locate.locate(NAME) == NAME and locate.is_local(NAME) and server.requests == []
    assert capsys.readouterr().err == (
        f"Note: {NAME} is a path here, and a name of published weights: the path is used\n"
    )
    assert locate.locate("runs/mine") == "runs/mine" and locate.is_local("runs/mine")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("torchvision/maskrcnn_resnet50_fpn_v3", "torchvision/maskrcnn_resnet50_fpn_v2"),
        ("mask_rcnn_R_50_FPN_3x", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("detectron2/mask_rcnn_r50_fpn_3x", "detectron2/mask_rcnn_R_50_FPN_3x"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"no published weights '{name}': did you mean {nearest}[ ?].*zoo"):
        mrcnn_jax.load(name)
    with pytest.raises(InputError, match="no checkpoints: give .* or weights by name .`mrcnn zoo`"):
        mrcnn_jax.load("runs/nothing")


def test_python_in_three_lines(server):
    """The README's lines, with a narrow model in the place of the published one."""
    detector = mrcnn_jax.load(NAME, {"data.short_edge_test": 64, "data.long_edge": 96})
    detections = detector(np.full((64, 96, 3), 90, np.uint8))
    assert len(detections) > 0 and {each.class_name for each in detections} == {"car"}
    assert detections.masks.shape == (len(detections), 64, 96)


def test_a_name_is_fine_tuned_and_a_backbone_trained_from(server):
    experiment, run = presets.resolve(NAME)
    assert run == "mask_rcnn_R_18_FPN_3x_tuned"
    assert experiment.train.init_from == NAME and experiment.model.num_classes == 0
    assert presets.stored_run(NAME) is None
    assert read_weights(BACKBONE).experiment.model.tasks == ()  # no detector, so new heads are trained
    experiment, _ = presets.resolve(BACKBONE)
    assert experiment.train.init_from == BACKBONE and experiment.model.tasks == ("boxes", "masks")
    assert experiment.model.backbone.name == "resnet18" and experiment.train.optimizer == "adamw"
    with pytest.raises(InputError, match="there is no experiment 'smal'"):
        presets.resolve("smal")


def test_the_import_command_takes_a_name(server):
    status, printed = call_cli("import-weights", NAME, "--out", "mine", "--model.box.score-threshold", 0.3)
    assert status == 0 and f"{NAME} is mask_rcnn_R_18_FPN" in printed and "ssumed" not in printed
    assert read_weights("mine").experiment.model.box.score_threshold == 0.3


def test_the_table_lists_what_is_here(server, capsys):
    locate.locate(NAME)
    status, printed = call_cli("zoo", "R_18", "masks")
    rows = [line.split() for line in printed.splitlines() if NAME in line]
    assert status == 0 and rows == [[NAME, "boxes,", "masks", "COCO", "-", "-", "-", "1", "yes"]]
    assert "Terms of detectron2's weights: CC BY-SA 3.0." in printed
    status, printed = call_cli("zoo", "--urls", "maskrcnn_resnet50_fpn_v2")
    assert f"{os.environ[download.MIRROR]}/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth" in printed
    message = "mrcnn: no published weights match 'bananas'; `mrcnn zoo` lists all\n"
    assert call_cli("zoo", "bananas") == (2, message)
