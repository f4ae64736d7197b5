"""The guides: every command in them is one that the programs take, every name exists, every sentence they quote is in the program."""

import dataclasses
import importlib
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
from paths import REPOSITORY

import mrcnn_jax
from mrcnn_jax import presets
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.cli import main as cli
from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import InputError, Interrupted, TrainingError

GUIDES = sorted((REPOSITORY / "docs" / "guides").glob("*.md"))
TEXTS = {guide.name: guide.read_text() for guide in GUIDES}
BLOCKS = [(name, block) for name, text in TEXTS.items() for block in re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]
INLINE = [code for text in TEXTS.values() for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
FILES = {"sh", "sbatch", "log"}  # endings of files that are called train, and no fields


def commands() -> list[tuple[str, ...]]:
    """The words of every call of ours, in blocks and in the text, without the shell around them. Variables and placeholders have become values."""
    lines = [line for _, block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *(code for code in INLINE if code.startswith(("mrcnn ", "python -m ")))]:
        words = shlex.split(re.sub(r"\$\{?\w+\}?", "1", line).replace("EXPERIMENT", "demo"), comments=True)
        starts = [
            i for i, word in enumerate(words) if Path(word).name == "mrcnn" or words[i : i + 1] and word.startswith(("benchmarks.", "experiments."))
        ]
        for start in starts:
            ends = [i for i, word in enumerate(words) if i > start and (word in ("&", "&&", "||", "|", "do") or word.endswith(";"))]
            end = min(ends, default=len(words))
            last = [words[end].removesuffix(";")] if end < len(words) and words[end].endswith(";") else []
            found.append((Path(words[start]).name, *words[start + 1 : end], *last))
    return sorted(set(found))


COMMANDS = commands()


@pytest.fixture
def helped(capsys, monkeypatch):
    """``helped(main, *words)``: what a program prints when it is asked for help."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(main, *words) -> str:
        try:
            main([*words, "--help"])
        except SystemExit as exit:
            assert exit.code in (0, None)
        return capsys.readouterr().out

    return call


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))


def test_the_guides_are_there_and_have_commands():
    assert set(TEXTS) == {"cpu.md", "gpu.md", "running.md", "slurm.md", "tpu_pod.md"}
    assert {words[:2] for words in COMMANDS} >= {("mrcnn", command) for command in ("train", "dataset", "predict", "import-weights")}
    assert sum(words[:2] == ("mrcnn", "train") for words in COMMANDS) > 8 and any(words[0] == "benchmarks.data.loader" for words in COMMANDS)
    assert all("&" not in words and "do" not in words for words in COMMANDS)


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[:2] == ("mrcnn", "train")], ids=" ".join)
def test_a_training_is_taken_as_it_stands(words, monkeypatch, tmp_path):
    """All but the training itself happens: names, options and values, and how they go together."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mrcnn_jax.training.loop.train", lambda experiment, directory, console: asked.append((experiment, directory)))
    monkeypatch.setattr("mrcnn_jax.distributed.start", lambda *processes: asked.append(processes))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        status = cli.main(list(words[1:]))
    except SystemExit as exit:
        status = exit.code
    assert status == 0
    (_, processes, process), (experiment, _) = asked
    assert isinstance(experiment, Experiment) and experiment.name == words[2]
    assert (processes is None) == ("--processes" not in words) and (process is None) == ("--process" not in words)


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[:2] != ("mrcnn", "train")], ids=" ".join)
def test_every_other_command_and_its_options_exist(words, helped):
    if words[0] == "mrcnn":
        assert words[1] in cli.COMMANDS
        main, command = cli.main, words[1:2]
    else:
        main, command = importlib.import_module(words[0]).main, ()
    assert options_in(" ".join(words)) <= options_in(helped(main, *command))


def test_options_and_fields_in_the_text_exist(helped):
    named = {
        option
        for code in INLINE
        for option in options_in(code)
        if re.match(r"--((train|data|model|evaluation)\.|coordinator|process|directory)", option)
    }
    assert len(named) > 10 and named <= options_in(helped(cli.main, "train", "demo"))
    parts = {
        field.name: {f.name for f in dataclasses.fields(field.default_factory)} for field in dataclasses.fields(Experiment) if field.name != "name"
    }
    fields = {
        field for code in INLINE for field in re.findall(r"(?<![\w.-])(train|data|model|evaluation)\.(\w+)(?![\w-])", code) if field[1] not in FILES
    }
    assert len(fields) > 5 and all(name in parts[part] for part, name in fields)
    assert set(re.findall(r"mask_rcnn_\w+", "".join(TEXTS.values()))) <= set(presets.PRESETS)


def test_extras_exist():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    named = {extra for text in TEXTS.values() for extras in re.findall(r'-e "[^"\s]*\[([\w,]+)\]"', text) for extra in extras.split(",")}
    assert named >= {"cuda", "tpu", "gcs"} and named <= set(project["optional-dependencies"])


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize("name, block", BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)])
def test_shell_blocks_are_valid(name, block):
    checked = subprocess.run(["bash", "-n"], check=False, input=block, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_block_is_shell():
    fences = [line for text in TEXTS.values() for line in text.splitlines() if line.startswith("```")]
    assert fences[::2] == ["```bash"] * len(BLOCKS) and fences[1::2] == ["```"] * len(BLOCKS)


def test_what_the_program_says_is_what_it_says():
    source = "\n".join(path.read_text() for path in Path(mrcnn_jax.__file__).parent.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # one sentence on several lines
    table = TEXTS["running.md"].split("## When something goes wrong")[1].split("\n## ")[0]
    quoted = [sentence for row in table.splitlines()[4:] if row for sentence in re.findall(r"\*([^*]+)\*", row.split("|")[1])]
    assert len(quoted) >= 12
    assert [sentence for sentence in quoted if sentence not in source] == []


def test_exit_statuses():
    table = TEXTS["running.md"].split("## How it ends")[1].split("\n## ")[0]
    aborted = 128 + signal.SIGABRT  # as a shell tells it
    statuses = [0, exit_codes.FAILED, exit_codes.INVALID_INPUT, exit_codes.RETRY, aborted, 130]
    assert [int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == statuses
    for status in (exit_codes.RETRY, aborted):
        assert f'"$status" -eq {status} ]' in TEXTS["slurm.md"] and f'"$status" -eq {status} ]' in TEXTS["tpu_pod.md"]


def test_links_lead_somewhere():
    def anchors(path):
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}

    for guide in GUIDES:
        links = re.findall(r"\]\(([^)]+)\)", guide.read_text())
        assert links
        for link in links:
            file, _, anchor = link.partition("#")
            assert (guide.parent / file).exists(), link
            assert not anchor or anchor in anchors(guide.parent / file), link
