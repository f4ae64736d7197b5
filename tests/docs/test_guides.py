"""Guides: commands are accepted by the programs, names exist, quoted messages are in the program."""

import dataclasses
import importlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from paths import REPOSITORY
from PIL import Image
from stand_in_detector import StandInDetector

import mrcnn_jax
from mrcnn_jax import presets
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.cli import main as cli
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.detections import Detections
from mrcnn_jax.inference.predict import predict_files
from mrcnn_jax.structures import DatasetInfo

GUIDES = sorted((REPOSITORY / "docs" / "guides").glob("*.md"))
TEXTS = {guide.name: guide.read_text() for guide in GUIDES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "python", "json", "yaml", "text"}
BLOCKS = [
    (name, code)
    for name, text in TEXTS.items()
    for language, code in FENCE.findall(text)
    if language == "bash"
]
INLINE = [code for text in TEXTS.values() for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]
FILE_ENDINGS = {"sh", "sbatch", "log", "safetensors", "yaml"}  # train.sh is not a field
SEPARATORS = ("&", "&&", "||", "|", "do")


def commands() -> list[tuple[str, ...]]:
    """Returns the words of every command, in blocks and text, with values for variables and placeholders."""
    lines = [line for _, block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in INLINE if code.startswith(("mrcnn ", "python -m ")) and len(code.split()) > 2]
    found = []
    for line in lines:
        line = re.sub(r"\$\{?\w+\}?", "1", line).replace("EXPERIMENT", "demo").replace(" TABLE", " table2d")
        words = shlex.split(line, comments=True)
        starts = [i for i, word in enumerate(words) if _is_program(word)]
        for start in starts:
            found.append((Path(words[start]).name, *_until_separator(words[start + 1 :])))
    return sorted(set(found))


def _is_program(word: str) -> bool:
    return Path(word).name == "mrcnn" or word.startswith(("benchmarks.", "experiments."))


def _until_separator(words: list[str]) -> list[str]:
    kept = []
    for word in words:
        if word in SEPARATORS:
            break
        kept.append(word.removesuffix(";"))
        if word.endswith(";"):
            break
    return kept


COMMANDS = commands()


def is_training(words: tuple[str, ...]) -> bool:
    return words[:2] == ("mrcnn", "train")


@pytest.fixture
def help_text(capsys, monkeypatch):
    """``help_text(main, *words)``: what a program prints for --help."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(main, *words) -> str:
        try:
            main([*words, "--help-all" if words[:1] == ("train",) else "--help"])
        except SystemExit as exit:
            assert exit.code in (0, None)
        return capsys.readouterr().out

    return call


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))


def test_guides_have_commands():
    assert set(TEXTS) >= {"cpu.md", "gpu.md", "paper_tables.md", "running.md", "slurm.md", "tpu_pod.md"}
    subcommands = {("mrcnn", command) for command in ("train", "dataset", "predict", "import-weights")}
    assert {words[:2] for words in COMMANDS} >= subcommands
    assert sum(map(is_training, COMMANDS)) > 8
    assert {"benchmarks.data.measure", "experiments.run"} <= {words[0] for words in COMMANDS}
    assert all("&" not in words and "do" not in words for words in COMMANDS)


def test_command_that_prepares_predictions_fits_rotated_photos(tmp_path, monkeypatch):
    """Photos upside down, whose size is the same upright, with an object in the upper right corner."""

    class Finder(StandInDetector):
        info, experiment = DatasetInfo("pets", (1,), ("cat",)), Experiment()

        def __call__(self, image):
            box = np.float32([[40, 0, 60, 20]])
            assert image[:20, 40:].min() > 200 > image[:20, :40].max()
            return Detections(box, np.ones(1, np.float32), np.zeros(1, int))

    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[20:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Path("more_photos").mkdir()
    for file in ("more_photos/a.jpg", "photo.jpg"):
        Image.fromarray(pixels).save(file, exif=exif)
    predict_files(Finder(), ["photo.jpg", "more_photos"], "predictions")
    (command,) = [words for words in COMMANDS if "predictions/coco.json" in words]
    assert cli.main(list(command[1:])) == 0
    records = list(open_dataset(command[command.index("--out") + 1], "train"))
    assert [record.upright for record in records] == [True, True]
    assert [record.objects.boxes.tolist() for record in records] == [[[40, 0, 60, 20]]] * 2


@pytest.mark.parametrize("words", [words for words in COMMANDS if is_training(words)], ids=" ".join)
def test_training_command_is_accepted(words, monkeypatch, tmp_path):
    """Parses and validates the command; only the training itself is replaced."""
    initialized, trained = [], []

    def train(experiment, directory, *_, **__):
        trained.append((experiment, directory))

    monkeypatch.chdir(tmp_path)
    origin = words[words.index("--train.init-from") + 1] if words[2] == "finetune" else words[2]
    is_preset = origin in presets.PRESETS
    if not is_preset:  # a directory of weights
        Path(origin, "checkpoints").mkdir(parents=True)
        Path(origin, "experiment.json").write_text(json.dumps(to_dict(presets.get("demo"))))
    monkeypatch.setattr("mrcnn_jax.presets.fine_tuning.open_split", lambda data, split: range(100))
    monkeypatch.setattr("mrcnn_jax.presets.fine_tuning.open_training", lambda data: range(100))
    monkeypatch.setattr("mrcnn_jax.training.loop.train", train)
    monkeypatch.setattr("mrcnn_jax.distributed.initialize", lambda *processes: initialized.append(processes))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        status = cli.main(list(words[1:]))
    except SystemExit as exit:
        status = exit.code
    assert status == 0
    ((_, processes, process),), ((experiment, _),) = initialized, trained
    assert isinstance(experiment, Experiment) and experiment.name == words[2] or not is_preset
    assert (processes is None) == ("--processes" not in words)
    assert (process is None) == ("--process" not in words)


@pytest.mark.parametrize("words", [words for words in COMMANDS if not is_training(words)], ids=" ".join)
def test_other_command_and_its_options_exist(words, help_text):
    if words[0] == "mrcnn":
        assert words[1] in cli.COMMANDS
        main, command = cli.main, words[1:2]
    else:
        main, command = importlib.import_module(words[0]).main, ()
    known = options_in(help_text(main, *command))
    if words[1:2] == ("import-weights",):  # also takes the fields of an experiment
        known |= options_in(help_text(cli.main, "train", "demo"))
    assert options_in(" ".join(words)) <= known


def test_options_and_fields_in_the_text_exist(help_text):
    ours = r"--((train|data|model|evaluation)\.|coordinator|process|directory)"
    named = {option for code in INLINE for option in options_in(code) if re.match(ours, option)}
    assert len(named) > 10 and named <= options_in(help_text(cli.main, "train", "demo"))
    parts = {
        field.name: {inner.name for inner in dataclasses.fields(field.default_factory)}
        for field in dataclasses.fields(Experiment)
        if field.name != "name"
    }
    pattern = re.compile(r"(?<![\w.-])(train|data|model|evaluation)\.(\w+)(?![\w-])")
    fields = {field for code in INLINE for field in pattern.findall(code) if field[1] not in FILE_ENDINGS}
    assert len(fields) > 5 and all(name in parts[part] for part, name in fields)
    assert set(re.findall(r"mask_rcnn_[rx]\w+", "".join(TEXTS.values()))) <= set(presets.PRESETS)


def test_extras_exist():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = re.compile(r'-e "[^"\s]*\[([\w,]+)\]"')
    named = {extra for text in TEXTS.values() for found in extras.findall(text) for extra in found.split(",")}
    assert {"cuda", "tpu", "gcs"} <= named <= set(project["optional-dependencies"])


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("name", TEXTS)
def test_shell_blocks_are_valid(name):
    for guide, block in BLOCKS:
        if guide == name:
            result = subprocess.run(["bash", "-n"], check=False, input=block, capture_output=True, text=True)
            assert (result.returncode, result.stderr) == (0, ""), block


def test_every_block_names_its_language():
    for text in TEXTS.values():
        fences = [line for line in text.splitlines() if line.startswith("```")]
        assert {fence.removeprefix("```") for fence in fences[::2]} <= LANGUAGES
        assert fences[1::2] == ["```"] * (len(fences) // 2)


def test_quoted_messages_are_in_the_program():
    source = "\n".join(path.read_text() for path in Path(mrcnn_jax.__file__).parent.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # joins messages over several lines
    table = TEXTS["running.md"].split("## When something goes wrong")[1].split("\n## ")[0]
    rows = [row for row in table.splitlines()[4:] if row]
    quoted = [message for row in rows for message in re.findall(r"\*([^*]+)\*", row.split("|")[1])]
    assert len(quoted) >= 12
    assert [message for message in quoted if message not in source] == []
    quoted = [message for text in TEXTS.values() for message in re.findall(r"\*\*\*([^*]+)\*\.\*\*", text)]
    theirs = {"TPU is already in use"}  # JAX's
    assert [message for message in quoted if message not in source] == sorted(theirs & set(quoted))


def test_exit_statuses_are_those_of_the_program():
    table = TEXTS["running.md"].split("## How a run ends")[1].split("\n## ")[0]
    aborted = 128 + signal.SIGABRT  # as a shell reports it
    statuses = [exit_codes.OK, exit_codes.FAILED, exit_codes.INVALID_INPUT, exit_codes.RETRY, aborted]
    statuses.append(exit_codes.KEYBOARD_INTERRUPT)
    assert [int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == statuses
    for status in (exit_codes.RETRY, aborted):
        assert all(f'"$status" -eq {status} ]' in TEXTS[name] for name in ("slurm.md", "tpu_pod.md"))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_links_have_targets(guide):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", guide.read_text())):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            assert not file or (guide.parent / file).exists(), link
            assert not anchor or anchor in anchors(guide.parent / file if file else guide), link
