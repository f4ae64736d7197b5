"""Loggers: TensorBoard, stand-ins for Weights & Biases and MLflow with their signatures, and one's own."""

import csv
import importlib.machinery
import sys
import types

import numpy as np
import pytest
from etils import epath

from mrcnn_jax.config import Experiment, TrainConfig
from mrcnn_jax.errors import InputError, Interrupted, TrainingError
from mrcnn_jax.training import loggers
from mrcnn_jax.training.logging import MetricLogger

PICTURE = np.zeros((4, 6, 3), np.uint8)
METRICS = {"segm": {"AP": 10.0, "AP50": None, "AP75": 5.0}}


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    """Curves are not drawn, which takes a second."""
    monkeypatch.setattr(MetricLogger, "plot", lambda self: None)


def logging_to(*names: str) -> Experiment:
    return Experiment(train=TrainConfig(loggers=names))


def install(monkeypatch, name: str, **contents) -> None:
    """Installs a stand-in for a package."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


class FakeWandb:
    """Keeps rows by the id of a run, as the service does."""

    class Error(Exception):
        pass

    def __init__(self, refusal: str = ""):
        self.rows, self.refusal, self.started, self.finished = {}, refusal, [], 0

    def package(self) -> dict:
        errors = types.SimpleNamespace(Error=self.Error)
        return {"init": self.init, "Settings": self.settings, "errors": errors, "Image": self.image}

    def settings(self, *, init_timeout: float, console: str):
        return {"init_timeout": init_timeout, "console": console}

    def image(self, data_or_path, mode=None, caption=None):
        return data_or_path.shape

    def init(
        self, entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None, settings=None
    ):
        if self.refusal:
            raise self.Error(self.refusal)
        id = id or f"run{len(self.rows)}"
        rows = self.rows.setdefault(id, [])
        self.started.append({"project": project, "id": id, "name": name, "resume": resume, "dir": dir,
                             "seed": config["train"]["seed"]})  # fmt: skip

        def log(data, step=None, commit=None):
            rows.append(dict(data))

        def finish(exit_code=None):
            self.finished += 1

        summary = {name: value for row in rows for name, value in row.items()}
        return types.SimpleNamespace(
            id=id, summary=summary, log=log, finish=finish, define_metric=lambda name, step_metric=None: None
        )


class FakeMlflow:
    """Keeps metrics, parameters and pictures by the id of a run; batches have the service's limits."""

    class MlflowException(Exception):
        pass

    def __init__(self):
        self.metrics, self.params, self.images, self.status, self.experiments = {}, {}, [], {}, {}

    def package(self) -> dict:
        entities = types.SimpleNamespace(Metric=self.metric, Param=lambda key, value: (key, value))
        exceptions = types.SimpleNamespace(MlflowException=self.MlflowException)
        client = {"MlflowClient": lambda tracking_uri=None: self}
        return {"entities": entities, "exceptions": exceptions, **client}

    @staticmethod
    def metric(key, value, timestamp, step):
        return types.SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    def get_experiment_by_name(self, name):
        known = name in self.experiments
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if known else None

    def create_experiment(self, name):
        self.experiments[name] = "7"
        return "7"

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        assert experiment_id == "7"
        id_ = f"id{len(self.metrics)}"
        self.metrics[id_], self.params[id_], self.status[id_] = [], {}, "RUNNING"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=id_))

    def update_run(self, run_id, status=None, name=None):
        if run_id not in self.metrics:
            raise self.MlflowException(f"Run '{run_id}' not found\nlong text")
        self.status[run_id] = status

    def get_run(self, run_id):
        names = {metric.key: metric.value for metric in self.metrics[run_id]}
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics=names))

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.metrics[run_id] if metric.key == key]

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        assert len(params) <= 100 and all(len(value) <= 500 for _, value in params)
        self.metrics[run_id] += metrics
        self.params[run_id] |= dict(params)

    def log_image(self, run_id, image, artifact_file=None, *, key=None, step=None, timestamp=None):
        self.images.append((run_id, key, step, image.shape))

    def set_terminated(self, run_id, status=None, end_time=None):
        self.status[run_id] = status or "FINISHED"


def begin(directory, experiment: Experiment, step: int = 0, others=()) -> MetricLogger:
    place = epath.Path(directory)
    loggers.require_loggers(experiment, place)
    started = loggers.start_loggers(experiment, place, step, others)
    return MetricLogger(place, step, warn=pytest.fail, loggers=started)


def train_with_a_kill(directory, experiment: Experiment) -> None:
    """Logs to step 4 and an evaluation at 2, is killed after the checkpoint of 2, and repeats to 5."""
    history = begin(directory, experiment)
    for step in (1, 2, 3, 4):
        history.log(step, {"loss": float(step)})
        if step == 2:
            history.log_evaluation(2, METRICS)
    history = begin(directory, experiment, 2)
    for step in (3, 4, 5):
        history.log(step, {"loss": float(step)})
    history.log_image(5, lambda: PICTURE)
    history.close()


def test_csv_has_every_row_once_after_a_kill(tmp_path):
    train_with_a_kill(tmp_path, logging_to())
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,9.0")  # half a row, as a kill leaves it
    history = begin(tmp_path, logging_to(), 5)
    history.log(6, {"loss": 6.0, "loss_mask": float("inf")})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "loss", "segm/AP", "segm/AP50", "segm/AP75", "loss_mask"]
    assert rows[2] == ["2", "", "10.0", "", "5.0", ""] and rows[-1] == ["6", "6.0", "", "", "", "inf"]
    assert [(row[0], row[1]) for row in rows if row[1]] == [(str(step), f"{step}.0") for step in range(1, 7)]


def test_wandb_continues_its_run_without_repeating_rows(tmp_path, monkeypatch):
    fake = FakeWandb()
    install(monkeypatch, "wandb", **fake.package())
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    train_with_a_kill(tmp_path / "run", logging_to("wandb"))
    assert [(start["id"], start["resume"]) for start in fake.started] == [("run0", "allow")] * 2
    assert fake.started[0]["project"] == "mine" and fake.started[0]["name"] == "run"
    assert fake.started[0]["dir"] == str(tmp_path / "run") and fake.finished == 1
    losses = [row["step"] for row in fake.rows["run0"] if "loss" in row]
    assert losses == [1, 2, 3, 4, 5]
    others = [row for row in fake.rows["run0"] if "loss" not in row]
    assert others == [{"step": 2, "segm/AP": 10.0, "segm/AP75": 5.0}, {"step": 5, "predictions": (4, 6, 3)}]


def test_mlflow_continues_its_run_without_repeating_points(tmp_path, monkeypatch):
    fake = FakeMlflow()
    install(monkeypatch, "mlflow", **fake.package())
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    train_with_a_kill(tmp_path, logging_to("mlflow"))
    assert list(fake.metrics) == ["id0"] and fake.status == {"id0": "FINISHED"}
    assert fake.experiments == {"mrcnn_jax": "7"} and fake.params["id0"]["train.seed"] == "0"
    points = [(metric.key, metric.step) for metric in fake.metrics["id0"]]
    assert sorted(points) == sorted(
        [("loss", step) for step in range(1, 6)] + [("segm/AP", 2), ("segm/AP75", 2)]
    )
    assert fake.images == [("id0", "predictions", 5, (4, 6, 3))]
    (tmp_path / loggers.RUNS).write_text('{"mlflow": "other"}')
    with pytest.raises(InputError, match=r"^train.loggers mlflow: MLflow cannot use .* \(Run 'other' not"):
        begin(tmp_path, logging_to("mlflow"))


@pytest.mark.parametrize("error, status", [
    (None, "FINISHED"), (TrainingError("diverged"), "FAILED"), (Interrupted("stopped"), "KILLED"),
])  # fmt: skip
def test_services_are_told_how_a_run_ended(tmp_path, monkeypatch, error, status):
    fake, codes = FakeMlflow(), []
    install(monkeypatch, "mlflow", **fake.package())
    package = FakeWandb().package()
    start = package["init"]

    def init(**settings):
        run = start(**settings)
        run.finish = lambda exit_code=None: codes.append(exit_code)
        return run

    install(monkeypatch, "wandb", **package | {"init": init})
    begin(tmp_path, logging_to("mlflow", "wandb")).close(error)
    assert fake.status == {"id0": status} and codes == [int(error is not None)]


def test_what_is_missing_is_one_sentence_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'^train.loggers has wandb, .*`pip install "mrcnn_jax\[wandb\]"`'):
        begin(tmp_path, logging_to("tensorboard", "wandb"))
    install(monkeypatch, "wandb", **FakeWandb("No API key configured.\nmore").package())
    message = r"^train.loggers wandb: .*\(No API key configured.\): `wandb login` .* WANDB_MODE=offline"
    with pytest.raises(InputError, match=message):
        begin(tmp_path, logging_to("wandb"))
    with pytest.raises(InputError, match="train.loggers must be one of tensorboard, wandb, mlflow, not 'x'"):
        logging_to("x")


def test_own_logger_gets_everything_and_cannot_stop_a_run(tmp_path):
    class Own(loggers.Logger):
        def __init__(self):
            self.seen = []

        def start(self, directory, experiment, step):
            self.seen.append((directory.name, experiment.name, step))

        def log(self, step, metrics):
            self.seen.append((step, dict(metrics)))
            raise RuntimeError("no network")

    own, warnings = Own(), []
    started = loggers.start_loggers(logging_to(), epath.Path(tmp_path), 3, [own, loggers.Logger()])
    history = MetricLogger(epath.Path(tmp_path), 3, warn=warnings.append, loggers=started)
    history.log(4, {"loss": 1.0, "rate": None})
    history.log(5, {"loss": 2.0})
    history.close()
    assert own.seen == [(tmp_path.name, "mask_rcnn_r50_fpn", 3), (4, {"loss": 1.0}), (5, {"loss": 2.0})]
    assert warnings == ["own cannot be logged to (RuntimeError: no network)"]
