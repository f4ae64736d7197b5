"""The command line as a whole: help of every command, exit statuses, and `mrcnn` as a process."""

import dataclasses
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from cli_inputs import write_coco, write_image
from paths import REPOSITORY

from mrcnn_jax import __version__, presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.cli.main import COMMANDS, main
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.dataset import open_dataset, read_metadata
from mrcnn_jax.data.formats import coco_json
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import HostLostError, InputError, Interrupted, TrainingError

POSITIONAL = set("first second directory images folder source file target model models words path".split())


def options_of(config, prefix: str) -> list[str]:
    """Returns the command-line name of every field of a configuration."""
    names = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}"
        names += options_of(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(mrcnn, flag):
    status, out, err = mrcnn(flag)
    assert status == 0 and err == ""
    assert all(f"\n  {name} " in out and summary in out for name, summary in COMMANDS.items())


def test_help_of_train_lists_every_preset(mrcnn):
    status, out, err = mrcnn("train", "--help")
    assert status == 0 and err == ""
    assert all(f"\n  {name} " in out and presets.describe(name) in out for name in presets.PRESETS)
    assert "usage: mrcnn train EXPERIMENT|DIR|NAME " in out and "--train.init-from DIR" in out


def test_help_of_every_command_lists_its_options(mrcnn, capsys):
    """Also those that the README names; each help is rendered once."""
    helps = {"train": mrcnn("train", "demo", "--help-all")}
    words = helps["train"][1].replace(",", " ").split()
    assert not set(options_of(Experiment(), "--")) - set(words) and "--directory" in words
    text = " ".join(helps["train"][1].split())
    assert f"(default: {presets.get('demo').train.steps})" in text and "(default: runs/demo)" in text
    for command in set(COMMANDS) - {"train"}:
        helps[command] = mrcnn(command, "--help")
        words = helps[command][1].replace(",", " ").split()
        options = import_module(f"mrcnn_jax.cli.{command.replace('-', '_')}").Options
        named = {field.name for field in dataclasses.fields(options)} - POSITIONAL
        assert all(f"--{name.replace('_', '-')}" in words for name in named), command
    assert all(status == 0 and err == "" for status, _, err in helps.values())
    text = " ".join(helps["import-weights"][1].split())
    assert "`mrcnn train mask_rcnn_r50_fpn --help-all` lists the fields" in text

    def options_in(text: str) -> set[str]:
        return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))

    known = options_in(" ".join(out for _, out, _ in helps.values()))
    for program in ("benchmarks.roi.measure", "benchmarks.tpu.compile_train_step", "experiments.run"):
        with pytest.raises(SystemExit):
            import_module(program).main(["--help"])
    readme = options_in((REPOSITORY / "README.md").read_text())
    assert readme <= known | options_in(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [(), ("train",)])
def test_missing_arguments_print_the_usage_and_fail(mrcnn, arguments):
    status, out, _ = mrcnn(*arguments)
    assert status == 2 and out.startswith("usage: mrcnn ")


def test_version_is_printed(mrcnn):
    assert mrcnn("--version") == (0, f"mrcnn {__version__}\n", "")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--evaluation.max-detections 1", "--evaluation.max-detections must be 3 whole numbers, not '1'"),
        ("--model.pixel-mean 1 2 x", "--model.pixel-mean must be 3 numbers, not '1' '2' 'x'"),
        ("--model.box.nms-iou x", "--model.box.nms-iou must be a number, not 'x'"),
        ("--pictures x", "--pictures must be a whole number, not 'x'"),
        ("--pictures -1", "--pictures must be a whole number from 0 to 10,000, not -1"),
        ("--model.box.soft-nms x",
         "--model.box.soft-nms must be one of 'gaussian', 'linear', 'none', not 'x'"),
    ],
)
def test_wrong_settings_are_one_plain_sentence(rejected, words, message):
    assert message in rejected("evaluate", "run", *words.split())


@pytest.mark.parametrize("size", ["0", "4097", "99999999999"])
def test_batch_sizes_are_bounded(rejected, size):
    message = f"--batch-size must be a whole number from 1 to 4,096, not {size}"
    assert message in rejected("predict", "run", "image.png", "--batch-size", size)


def test_unknown_commands_are_rejected(rejected):
    assert rejected("tarin") == f"there is no command 'tarin'; choose from {', '.join(COMMANDS)}"


@pytest.mark.parametrize("command", ["evaluate", "predict", "dataset"])
def test_wrong_arguments_are_rejected_by_the_parser(rejected, command):
    assert rejected(command).startswith(f"mrcnn {command} needs ")
    assert rejected(command, "a", "--scores", "0.5").startswith(f"mrcnn {command} has no option --scores; ")
    assert rejected(command, "a", "--out") == "--out needs a value"


# ---- exit statuses


@pytest.mark.parametrize(
    "error, status, message",
    [
        (InputError("wrong"), 2, "wrong"),
        (TrainingError("diverged"), 1, "diverged"),
        (Interrupted("stopped"), 75, "stopped"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_end_with_a_message_and_their_status(mrcnn, monkeypatch, error, status, message):
    def fail(arguments):
        raise error

    monkeypatch.setattr("mrcnn_jax.cli.train.main", fail)
    found, out, err = mrcnn("train", "demo")
    assert found == status == exit_codes.exit_status(error) and out == ""
    assert err.startswith("mrcnn: ") and message in err and err.count("\n") == 1


def test_a_lost_process_ends_this_one_at_once(monkeypatch, capsys):
    """Exit handlers would wait for the lost process."""
    statuses = []

    def fail(arguments):
        raise HostLostError("process 1 does not respond")

    monkeypatch.setattr("mrcnn_jax.cli.train.main", fail)
    monkeypatch.setattr("os._exit", statuses.append)
    main(["train", "demo"])
    assert statuses == [exit_codes.RETRY]
    assert capsys.readouterr().err == "mrcnn: process 1 does not respond\n"


# ---- as a process


def run_process(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "mrcnn_jax", *arguments]
    return subprocess.run(
        command, check=False, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


def test_process_prints_help_and_messages(tmp_path):
    shown = run_process("--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: mrcnn COMMAND") and shown.stderr == ""
    failed = run_process("train", "demoo")
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("mrcnn: there is no experiment 'demoo'")
    assert failed.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="pipes break in this way on POSIX systems")
@pytest.mark.parametrize("arguments", [("--help",), ("dataset", "--help")])
def test_a_closed_pipe_is_not_reported(arguments):
    """As in `mrcnn --help | head`: the reading end is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    shown = run_process(*arguments, stdout=writing)
    os.close(writing)
    assert shown.returncode == 1 and shown.stderr == ""


ADDRESSES = [
    ("predict", "s3://b/x", "a.jpg"), ("evaluate", "ftp://b/x"), ("push", "s3://b/x", "--out", "p"),
    ("train", "s3://b/x"), ("train", "demo", "--directory", "https://b/x"),
    ("train", "demo", "--data.dataset", "s3://b/x"), ("predict", "run", "s3://b/a.jpg"),
    ("predict", "run", ".", "--out", "s3://b/x"), ("evaluate", "run", "--out", "https://b/x"),
    ("compare", "s3://b/x", "r"), ("compare", "r", "r", "--out", "s3://b/x"), ("dataset", "https://b/x"),
    ("import-weights", "s3://b/x.pth", "--out", "o"), ("import-weights", "x.pth", "--out", "s3://b/x"),
    ("export-weights", "torchvision", "run", "s3://b/x.pth"), ("push", "run", "--out", "gs://b/x"),
]  # fmt: skip


@pytest.mark.parametrize("command", ADDRESSES, ids=" ".join)
def test_addresses_where_none_is_taken(rejected, command):
    write_image("a.jpg")
    address = next(word for word in command if "://" in word)
    message = rejected(*command)
    assert f"{address} is an address: it must be a path on this machine" in message


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "", "a.jpg"), ("predict", "run", ""), ("predict", "run", "a.jpg", "--out", ""),
        ("evaluate", "run", "--dataset", ""), ("evaluate", "run", "--dataset="), ("dataset", ""),
        ("dataset", ".", "--out", ""), ("import-weights", "", "--out", "o"), ("train", ""),
        ("train", "demo", "--directory", ""), ("push", "", "--out", "p"), ("compare", "", "r"),
        ("export-weights", "torchvision", "run", ""), ("train", "demo", "--data.dataset", ""),
    ],
    ids=" ".join,
)  # fmt: skip
def test_empty_names(rejected, command):
    write_image("a.jpg")
    assert re.search("empty (text: name something|name)", rejected(*command))


def test_pipes_are_not_read(rejected):
    os.mkfifo("pipe.jpg")
    os.mkfifo("pipe.json")
    with pytest.raises(InputError, match="cannot read pipe.json: it is a pipe or a device"):
        coco_json.load(Path("pipe.json"))
    message = rejected("dataset", "pipe.json", "--train", ".", "pipe.json")
    assert message == "the annotation file pipe.json of the split train is a pipe or a device"
    message = rejected("dataset", "pipe.json", "--train", ".", ".")
    assert message == "the annotation file . of the split train is a folder"
    rejected("dataset", "pipe.json")
    rejected("dataset", ".")
    assert "pipe or a device" in rejected("compare", "pipe.json", "pipe.json")
    assert "pipe or a device" in rejected("compare", "/dev/zero", "pipe.json")
    with pytest.raises(InputError, match="cannot read image pipe.jpg: it is a pipe or a device"):
        read_image("pipe.jpg")


def test_pipes_in_place_of_our_files_are_refused(mrcnn, rejected):
    mrcnn("dataset", write_coco(), "--out", "set")
    for name in ("dataset_info.json", "train_sizes.npy", "train_objects.npz"):
        file = Path("set", name)
        content = file.read_bytes()
        for make in (os.mkfifo, os.mkdir):
            file.unlink()
            make(file)
            kind = "a pipe or a device" if make == os.mkfifo else "a folder"
            with pytest.raises(InputError, match=f"{name} is {kind}, not a file of the data set"):
                open_dataset("set", "train")
            file.rmdir() if make == os.mkdir else file.unlink()
            file.write_bytes(content)
    assert len(open_dataset("set", "train")) == 3
    os.makedirs("model")
    for name in ("experiment.json", "dataset.json", "model.safetensors"):
        os.mkfifo(f"model/{name}")
    assert "experiment.json: it is a pipe or a device" in rejected("predict", "model", "pets")
    os.unlink("model/experiment.json")
    write_json("model/experiment.json", to_dict(Experiment()))
    assert "dataset.json cannot be read: it is a pipe or a device" in rejected("predict", "model", "pets")


def test_files_that_are_no_runs_are_named(rejected):
    write_image("a.jpg")
    message = rejected("predict", "a.jpg", "a.jpg")
    assert "a.jpg is a file" in message and "`mrcnn import-weights a.jpg --out weights/a`" in message
    for command in (("predict", "demo", "a.jpg"), ("evaluate", "demo"), ("push", "demo", "--out", "p"),
                    ("export-weights", "torchvision", "demo", "x.npz")):  # fmt: skip
        assert rejected(*command).startswith("demo is an experiment and has no weights: `mrcnn train demo`")
    os.mkdir("coco")
    with pytest.raises(InputError, match="`mrcnn dataset coco` prepares one"):
        read_metadata("coco")
