"""The command line"""

import io
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jax
import pytest
from paths import REPOSITORY
from quirks import quirk
from rich.console import Console

from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli import main as cli_main
from mrcnn_jax.cli.main import Interruption, main
from mrcnn_jax.cli.terminal import TolerantStream
from mrcnn_jax.cli.train import Options, _resolve
from mrcnn_jax.config import to_dict
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.runtime import check_xla_flags
from mrcnn_jax.training.progress import ProgressDisplay, SaveTimer, warn

LOSSES = dict.fromkeys(("loss", "loss_box", "loss_class", "loss_mask", "loss_rpn_box"), 1.5)


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """``refused(*words)``: the sentence with which a command ends."""

    def call(*words: str) -> str:
        assert main(list(words)) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("mrcnn: ") and err.count("\n") == 1
        return err.removeprefix("mrcnn: ").rstrip("\n")

    return call


# ---- options ----


@quirk("`--batch-size`, `--lr`, `--epochs`, `--conf`, `--device` and other options of other programs",
       "answered with the option that does the same here")  # fmt: skip
@pytest.mark.parametrize(
    "words, ours",
    [
        ("train demo --batch-size 8", "--train.images-per-device"),
        ("train demo --batch_size=8", "--train.images-per-device"),
        ("train demo -b 8", "--train.images-per-device"),
        ("train demo --lr 0.01", "--train.learning-rate"),
        ("train demo --epochs 12", "--train.epochs"),
        ("train demo --max-iter 90000", "--train.steps"),
        ("train demo --imgsz 640", "--data.short-edge"),
        ("train demo --workers 8", "--data.threads"),
        ("train demo --weights model.pth", "`mrcnn train DIR`"),
        ("train demo --resume", "the same command again"),
        ("train demo --output-dir x", "--directory"),
        ("train demo --project x --name y", "--directory"),
        ("train demo --config x.yaml", "`mrcnn train --help`"),
        ("train demo --num-classes 3", "those of the data set"),
        ("train demo --device cuda:0", "CUDA_VISIBLE_DEVICES"),
        ("train demo --gpus 2", "CUDA_VISIBLE_DEVICES"),
        ("train demo --amp", "--train.dtype bfloat16"),
        ("train demo --patience 20", "--train.patience"),
        ("predict run a.jpg --conf 0.25", "--score"),
        ("predict --conf 0.25", "--score"),
        ("predict run a.jpg --source x", "follow the directory"),
        ("predict run a.jpg --save-dir x", "--out"),
        ("predict --weights run a.jpg", "comes first"),
        ("evaluate run --device 0", "CUDA_VISIBLE_DEVICES"),
        ("evaluate run --data data/mine", "--dataset"),
        ("dataset folder --val-split 0.2", "--validation-images"),
        ("dataset folder --output x", "--out"),
    ],
)
def test_options_of_other_programs_are_answered_with_ours(refused, words, ours):
    command, option = words.split()[0], next(word for word in words.split() if word.startswith("-"))
    message = refused(*words.split())
    assert message.startswith(f"mrcnn {command} has no option {option.partition('=')[0]}; use ")
    assert ours in message


@quirk("an option that is misspelled or lacks its group", "named, with those that come close")
@pytest.mark.parametrize(
    "words, close",
    [
        ("train demo --train.stepz 5", "did you mean --train.steps?"),
        ("train demo --train.warmup_step 5", "did you mean --train.warmup-steps"),
        ("train demo --max-objects 5", "did you mean --data.max-objects?"),
        ("train demo --anchor-sizes 5", "did you mean --model.rpn.anchor-sizes?"),
        ("predict run a.jpg --scor 0.5", "did you mean --score?"),
        ("train demo --bananas", "`mrcnn train EXPERIMENT --help-all` lists the options"),
        ("dataset x --bananas", "`mrcnn dataset --help` lists the options"),
    ],
)
def test_misspelled_options(refused, words, close):
    assert refused(*words.split()).partition("; ")[2].startswith(close)


@quirk("values that are no number, too large, infinite or not allowed", "one sentence with option and value")
@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--train.steps", "ten", "--train.steps must be a whole number, not 'ten'"),
        ("--train.steps", "1e3", "--train.steps must be a whole number, not '1e3'"),
        ("--train.steps", "-1", "train.steps must be greater than 0, not -1"),
        ("--train.steps", "1" + "0" * 400, "train.steps must fit into 32 bits"),
        ("--train.learning-rate", "0,01", "--train.learning-rate must be a number, not '0,01'"),
        ("--train.learning-rate", "1e400", "train.learning_rate must be a finite number"),
        ("--train.learning-rate", "nan", "train.learning_rate must be greater than 0, not nan"),
        ("--train.seed", "[bold]7[/bold]", "--train.seed must be a whole number, not '[bold]7[/bold]'"),
        ("--train.seed", "\udce9", r"--train.seed must be a whole number, not '\udce9'"),
        ("--train.dtype", "fp16", "--train.dtype must be one of 'float32', 'bfloat16', not 'fp16'"),
        ("--data.augment.no-quarter-turns", "yes",
         "mrcnn train demo does not take 'yes': an option's name, --NAME, precedes its value"),
    ],
)  # fmt: skip
def test_wrong_values(refused, option, value, message):
    assert refused("train", "demo", option, value) == message
    assert "9" * 20 not in refused("train", "demo", "--train.steps", "9" * 5000)


@quirk("`mrcnn train EXPERIMENT --help`", "the dozen options that are needed first; `--help-all` lists all")
def test_help_shows_the_first_options_first(capsys):
    with pytest.raises(SystemExit):
        main(["train", "small", "--help"])
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 60 and "--data.dataset data/mine" in short
    with pytest.raises(SystemExit):
        main(["train", "small", "--help-all"])
    everything = capsys.readouterr().out
    names = set(re.findall(r"--[a-z.-]+(?= )", short)) - {"--help-all"}
    assert names <= set(re.findall(r"--[a-z.-]+", everything))
    assert len(everything.splitlines()) > 300


# ---- directories ----


@quirk("a data set, a file or another folder where a run or an experiment is expected", "named as what it is")
@pytest.mark.parametrize(
    "words, message",
    [
        ("train set", "set is a data set, not an experiment"),
        ("train demo --directory set", "set is a data set: choose another --directory for the run"),
        ("train weights.pth", "weights.pth is a file; `mrcnn import-weights` makes weights to train from"),
        ("train folder", "folder holds neither a training run nor imported weights"),
        ("train demoo", "there is no experiment 'demoo'; choose from demo"),
        ("train --lr 3", "an experiment or a directory precedes the options"),
    ],
)
def test_directories_of_the_wrong_kind(refused, monkeypatch, words, message):
    monkeypatch.setattr("mrcnn_jax.data.dataset.is_prepared", lambda directory: Path(directory).name == "set")
    for name in ("set", "folder"):
        Path(name).mkdir()
    Path("set/metadata.json").write_text("{}")
    Path("weights.pth").write_bytes(b"")
    assert refused(*words.split()).startswith(message)


@pytest.fixture(autouse=True)
def imported_weights(monkeypatch):
    """Takes whatever lies in weights/ for imported weights, whose only checkpoint is that of step 0."""

    def newest_description(directory):
        return (0, None) if "weights" in str(directory) else None

    monkeypatch.setattr("mrcnn_jax.run_description.newest_description", newest_description)


def write_run(directory: str, **train) -> None:
    """Writes the experiment of a run or of imported weights."""
    experiment = presets.get("demo")
    experiment = replace(experiment, train=replace(experiment.train, **train))
    write_json(f"{directory}/experiment.json", to_dict(experiment))


def resolve(name: str, *words: str) -> tuple[Options, bool]:
    return _resolve(name, words, {word[2:].replace("-", "_") for word in words if word.startswith("--")})


@quirk("`mrcnn train DIR` with the directory of an unfinished run", "continues it with its own settings")
@pytest.mark.parametrize("name", ["runs/x", "runs/x/", "./runs/x"])
def test_a_run_is_continued_by_its_directory(name):
    write_run("runs/x", steps=70, seed=5)
    options, adapts = resolve(name)
    assert not adapts and Path(options.directory) == Path("runs/x")
    assert (options.experiment.train.steps, options.experiment.train.seed) == (70, 5)
    assert resolve(name, "--train.steps", "140")[0].experiment.train.steps == 140


@quirk("`mrcnn train DIR --data.dataset OTHER`, with a run or imported weights",
       "fine-tunes them: steps, image sizes and schedule fit the images and the machine")  # fmt: skip
def test_weights_are_fine_tuned_with_settings_for_the_data_set():
    write_run("runs/x")
    write_run("weights/tv")
    for name in ("runs/x", "weights/tv"):
        options, adapts = resolve(name, "--data.dataset", "data/mine")
        assert adapts and options.experiment.train.init_from == name
        assert options.directory == f"runs/{Path(name).name}_tuned"
    write_run("runs/tv_tuned", init_from="weights/tv", steps=33)
    options, adapts = resolve("weights/tv")
    assert not adapts and options.experiment.train.steps == 33  # the same command resumes


def test_fine_tuning_needs_a_data_set(refused):
    write_run("weights/tv")
    message = "name the data set to fine-tune on: `mrcnn train weights/tv --data.dataset DIR`"
    assert refused("train", "weights/tv") == message


@quirk("a smaller or larger `--train.steps`", "decays and warm-up follow, unless they are given too")
def test_the_schedule_follows_the_number_of_steps():
    train = resolve("demo", "--train.steps", "90")[0].experiment.train
    assert (train.decay_steps, train.warmup_steps) == ((67, 82), 18)
    train = resolve("demo", "--train.steps", "90", "--train.decay-steps", "80")[0].experiment.train
    assert (train.decay_steps, train.warmup_steps) == ((80,), 18)


# ---- platforms ----


@quirk("`XLA_FLAGS` with an unknown flag, a value of the wrong kind or something else",
       "one sentence, where XLA would end the process")  # fmt: skip
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--xla_force_host_platform_device_count=2 --xla_unknown=1", "XLA_FLAGS has --xla_unknown, which"),
        ("nonsense", "XLA_FLAGS must be flags, --xla_..., or a file of them, not 'nonsense'"),
        ("--xla_force_host_platform_device_count=two", "XLA cannot use XLA_FLAGS: one of the values in"),
    ],
)
def test_wrong_flags_of_xla(monkeypatch, flags, message):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(InputError, match=re.escape(message)):
        check_xla_flags()
    for good in ("", "--xla_force_host_platform_device_count=2 --xla_cpu_enable_fast_math=false"):
        monkeypatch.setenv("XLA_FLAGS", good)
        check_xla_flags()


@quirk("`JAX_PLATFORMS=cuda` without a GPU, an unknown platform, a damaged TPU library", "one sentence")
@pytest.mark.parametrize(
    "failure", [RuntimeError("Unable to initialize backend 'cuda': no plugin (set x)"), AssertionError()]
)
def test_platforms_that_are_not_there(refused, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr("mrcnn_jax.cli.train.main", fail)
    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    message = refused("train", "demo")
    assert message.startswith("JAX cannot compute with JAX_PLATFORMS=cuda: ") and "mrcnn_jax[cuda]" in message


# ---- output ----


@quirk("control characters, undecodable bytes and brackets in names",
       "escaped in messages; never read as styles")  # fmt: skip
@pytest.mark.parametrize(
    "name, shown",
    [
        ("caf\udce9", r"caf\udce9"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines", r"two\nlines"),
        ("\u202egnp", r"\u202egnp"),
        ("[bold]x[/nope]", "[bold]x[/nope]"),
        ("日本 é", "日本 é"),
    ],
)
def test_names_in_messages(refused, name, shown):
    assert printable(name) == shown
    assert f"there is no experiment '{shown}'" in refused("train", name).replace("\\\\", "\\")
    console = Console(file=io.StringIO(), width=80)
    warn(console, name)
    assert console.file.getvalue() == f"Warning: {shown}\n"


@quirk("a terminal of 80 columns", "step, number of steps, elapsed and remaining time precede the losses")
@pytest.mark.parametrize("width", [80, 60])
def test_progress_in_a_narrow_terminal(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with ProgressDisplay(console, 160_000, 0) as display:
        display.step(20, LOSSES | {"images_per_second": 3.0})
    last = re.sub(r"\x1b\[[0-9;?]*\w", "", console.file.getvalue()).rstrip().splitlines()[-1].strip("\r")
    assert re.match(r"training +(\S+ +)?20/160000 0:00:0\d ", last) and len(last) <= width


@quirk("output into a file or a pipe", "one line a log entry, and a word while a program is compiled")
def test_progress_in_a_file():
    console = Console(file=io.StringIO(), width=80)
    with ProgressDisplay(console, 100, 0) as display:
        for step in (1, 20, 40):
            display.step(step, LOSSES | {"images_per_second": 3.0})
        with display.evaluation(50) as update:
            update(50)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("compiling the training step") and len(lines) == 5
    assert [line.split()[1] for line in lines[1:4]] == ["1/100", "20/100", "40/100"]
    assert "left) loss 1.500" in lines[2] and lines[4] == "evaluating 50 images"


@quirk("a full disk or a closed pipe behind the output of a run", "the run continues without output")
def test_output_that_cannot_be_written(capfd):
    with open("/dev/full", "w") as full:
        stream = TolerantStream(full)
        stream.write("x" * 100)
        stream.flush()
        stream.write("more")
        stream.flush()
    assert "the run continues without output" in capfd.readouterr().err


# ---- signals ----


@quirk("Ctrl-C, SIGTERM or a closed terminal while `predict`, `evaluate` or `dataset` work",
       "they end at once; what is finished stays; a second one needs no patience")  # fmt: skip
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_ends_the_process(monkeypatch, kind):
    ended = []
    monkeypatch.setattr("mrcnn_jax.signals.detach_terminal", lambda: None)
    monkeypatch.setattr("mrcnn_jax.signals.end_process", lambda kind, message: ended.append((kind, message)))
    monkeypatch.setattr(Interruption, "PATIENCE", 0.05)
    interruption = Interruption(ends_at_once=False)
    with pytest.raises(KeyboardInterrupt):
        interruption.in_main_thread(kind, None)
    interruption.receive(kind)
    assert not ended
    time.sleep(0.2)  # compiled code does not return
    assert len(ended) == 1
    interruption.receive(kind)
    assert len(ended) == 2 and ended[1][0] == kind


@quirk("Ctrl-C while a library is imported, which then raises an error of its own",
       "the command ends as interrupted; without a signal the error is to be reported")  # fmt: skip
def test_an_error_that_comes_of_a_signal(monkeypatch, capsys):
    monkeypatch.setattr(cli_main, "main", Mock(side_effect=ImportError("while initializing the extension")))
    interruption = Interruption(ends_at_once=False)
    assert cli_main._run(interruption) == 1
    assert capsys.readouterr().err.startswith("mrcnn: unexpected error, please report it: ImportError: while")
    interruption.received = signal.SIGINT
    assert cli_main._run(interruption) == 130
    assert capsys.readouterr().err == "mrcnn: interrupted\n"


@quirk("a run of slow steps",
       "its first checkpoint after two minutes, then one every `train.checkpoint_minutes`")  # fmt: skip
def test_checkpoints_by_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timer = SaveTimer(10)
    assert not timer.is_due()
    timer.reset(first=True)
    due = []
    for now[0] in range(0, 3000, 10):
        if timer.is_due():
            due.append(now[0])
            timer.reset()
    assert due == [120, 720, 1320, 1920, 2520]
    never = SaveTimer(0)
    never.reset(first=True)
    now[0] = 1e9
    assert not never.is_due()


# ---- the checkout ----


@quirk("`make install` with Python 3.10 or older", "refused in one sentence, before anything is installed")
def test_make_install_refuses_old_pythons(tmp_path):
    if not shutil.which("make"):
        pytest.skip("needs make")
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\ncase \"$2\" in *exit*) exit 1;; *) echo 3.9;; esac\n")
    old.chmod(0o755)
    shown = subprocess.run(["make", "install", f"PYTHON={old}"], capture_output=True, text=True, check=False)
    assert shown.returncode == 2 and not (tmp_path / ".venv").exists()
    assert shown.stderr.startswith("mrcnn_jax needs Python 3.11 or newer, not 3.9: ")


@quirk("what the commands of README and guides write", "ignored by git")
def test_outputs_are_ignored_by_git():
    if not shutil.which("git") or not (REPOSITORY / ".git").exists():
        pytest.skip("needs a checkout")
    paths = ["data/mine", "runs/mine", "weights/tv", "predictions/a.png", "pets.png", "mine.pth"]
    command = ["git", "check-ignore", "--no-index", *paths]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert shown.stdout.split() == paths
