"""Published weights by name: torchvision's rows as torchvision has them, a command, and processes at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_inputs import call_cli, write_image
from library_models import check_complete, zero_tensors
from paths import REPOSITORY
from test_torchvision_live import torchvision  # noqa: F401 - a fixture
from weight_server import serving

from mrcnn_jax.config import TORCHVISION, BackboneConfig, ModelConfig
from mrcnn_jax.inference.detector import load
from mrcnn_jax.weights import download, zoo
from mrcnn_jax.weights import torchvision as names
from mrcnn_jax.weights.identify import identify_model
from mrcnn_jax.weights.readers import write_tensors

ROWS = [entry for entry in zoo.ENTRIES.values() if entry.library == "torchvision"]
MASKS = "torchvision/maskrcnn_resnet50_fpn"


def test_torchvision_has_these_weights_and_all_can_be_imported(torchvision, tmp_path):  # noqa: F811
    """Tensors have torchvision's own names and shapes, and no memory."""
    torchvision("list_weights", file=tmp_path / "weights.json")
    listed = {one["url"]: one for one in json.loads((tmp_path / "weights.json").read_text())}
    supported = {url for url, one in listed.items() if not any(kind in one["model"] for kind in (
        "mobilenet", "retinanet", "fcos", "ssd"))}  # fmt: skip
    assert {entry.url for entry in ROWS} == supported
    for entry in ROWS:
        one = listed[entry.url]
        keys = ("box_map", "mask_map", "kp_map")
        figures = tuple(one["figures"].get(key) for key in keys)
        assert (entry.box_ap, entry.mask_ap, entry.keypoint_ap, entry.megabytes) == (*figures, one["size"])
        assert entry.name.removeprefix("torchvision/").startswith(one["model"])
        tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in one["shapes"].items()}
        model = identify_model(None, tensors, entry.name)
        config = model.experiment.model
        assert config.tasks == entry.tasks
        assert (config.backbone.groups > 1) == ("resnext" in entry.name)
        check_complete(model, entry.name)


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(download.CACHE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        monkeypatch.setenv(download.MIRROR, server.address)
        yield server


@pytest.fixture
def state_dict(tmp_path) -> bytes:
    """A maskrcnn_resnet50_fpn of torchvision on a ResNet-18 of 8 channels, which sees people everywhere."""
    backbone = BackboneConfig(name="resnet18", width=8)
    model = ModelConfig(num_classes=90, backbone=backbone, conventions=TORCHVISION)
    tensors = zero_tensors(model, names.make_param_map)
    tensors |= {name: np.ones_like(array) for name, array in tensors.items() if name.endswith("running_var")}
    scores = np.zeros(91, np.float32)
    scores[1] = 9  # after the background
    tensors["roi_heads.box_predictor.cls_score.bias"] = scores
    write_tensors(tmp_path / "narrow.pth", tensors)
    return (tmp_path / "narrow.pth").read_bytes()


def test_one_command_detects_in_a_photo(server, state_dict, monkeypatch):
    """`mrcnn predict torchvision/maskrcnn_resnet50_fpn photo.png`, with a narrow model on the mirror."""
    entry = zoo.ENTRIES[MASKS]
    path = "/models/narrow.pth"
    monkeypatch.setitem(zoo.ENTRIES, MASKS, zoo.Entry(MASKS, f"https://host.example{path}", entry.tasks, 1.0))
    server.files[path] = state_dict
    write_image("photo.png", 64, 96)
    small = ("--data.short-edge-test", 64, "--data.long-edge", 96)
    status, printed = call_cli("predict", MASKS, "photo.png", *small)
    assert status == 0 and "person" in printed, printed
    results = json.loads(Path("predictions/results.json").read_text())
    assert results and {each["category_id"] for each in results} == {1}
    assert json.loads(Path("predictions/images.json").read_text())[0]["picture"]


def test_the_lines_of_the_readme_detect_in_a_photo(server, state_dict, monkeypatch, capsys):
    readme = (REPOSITORY / "README.md").read_text()
    code = readme.split("## Detections on a photo")[1].split("```python\n")[1].split("```")[0]
    name, path = "torchvision/maskrcnn_resnet50_fpn_v2", "/models/narrow.pth"
    assert name in code
    entry = zoo.Entry(name, f"https://host.example{path}", ("boxes", "masks"), 1.0)
    monkeypatch.setitem(zoo.ENTRIES, name, entry)
    server.files[path] = state_dict
    write_image("photo.jpg", 64, 96)
    small = {"data.short_edge_test": 64, "data.long_edge": 96}
    monkeypatch.setattr("mrcnn_jax.load", lambda name: load(name, small), raising=False)
    exec(code, {})
    printed = capsys.readouterr().out
    assert server.requests and "Detection(person 0.99" in printed and "64, 96)" in printed


def test_processes_at_once_load_once(server, state_dict):
    url = f"{server.address}/narrow.pth"
    code = "import sys; from mrcnn_jax.weights import locate; locate.locate(sys.argv[1])"
    server.files["/narrow.pth"], server.stall = state_dict, 2.0

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True)

    both = [start(), start()]
    outputs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(server.requests) == 1
    directory = next((download.cache_directory() / "weights" / "url").glob("narrow-*"))
    assert (directory / "import.json").exists()
