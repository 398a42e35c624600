"""Other trackers get the numbers that `metrics.jsonl` has, and never end a run."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lab import formatting
from lab.errors import SpecError
from lab.paths import RunDir
from lab.runs import actions, record_reader, resume_settings
from lab.spec import RunSpec
from lab.train import trackers
from tests.answers import checked
from tests.conftest import attempt_again

KEYS = {"train": ("train/loss", "tokens", "perf/step_s"), "eval": ("eval/loss",)}
Series = list[tuple[int, float]]  # (step, value)


@pytest.fixture(autouse=True)
def own_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a tracker sets for its process ends with the test, and none may reach an address."""
    for name in (*trackers.OFFLINE, "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    contacted: list[Any] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        contacted.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert contacted == [], "nobody is contacted unasked"


def of_tensorboard(folder: Path, run: RunDir) -> tuple[Callable[[str], Series], Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from yaml import safe_load

    events = EventAccumulator(str(folder / run.id)).Reload()
    (settings,) = folder.glob(f"{run.id}/*/hparams.yml")
    return (
        lambda key: [(event.step, event.value) for event in events.Scalars(key)],
        safe_load(settings.read_text()),
    )


def of_mlflow(folder: Path, run: RunDir) -> tuple[Callable[[str], Series], Any]:
    import mlflow

    client = mlflow.MlflowClient(folder.as_uri())
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (entry,) = client.search_runs([experiment.experiment_id])
    assert entry.info.run_name == run.id

    def series(key: str) -> Series:
        history = client.get_metric_history(entry.info.run_id, key)
        newest = {metric.step: metric.value for metric in history}  # MLflow keeps both
        return sorted(newest.items())

    return series, entry.data.params


def of_trackio(folder: Path, run: RunDir) -> tuple[Callable[[str], Series], Any]:
    from trackio.sqlite_storage import SQLiteStorage

    (record,) = SQLiteStorage.get_run_records(trackers.PROJECT)
    assert record["name"] == run.id and list(folder.glob("*.db"))
    rows = SQLiteStorage.get_logs(trackers.PROJECT, run.id, run_id=record["id"])

    def series(key: str) -> Series:
        return sorted({row["step"]: row[key] for row in rows if key in row}.items())

    return series, SQLiteStorage.get_run_config(trackers.PROJECT, run.id, run_id=record["id"])


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "trackio": of_trackio}


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_gets_what_the_run_has_and_goes_on_with_it_after_a_resume(
    name: str, small_run: Callable[..., RunDir], lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = lab_home / "trackers" / name
    if name == "trackio":  # it reads its variable when it is imported, once for all tests
        from trackio import sqlite_storage, utils

        monkeypatch.setattr(utils, "TRACKIO_DIR", folder)
        monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", folder)
    run = small_run(train={"report_to": [name], "eval_steps": 2, "save_steps": 2})
    assert attempt_again(run) == 0
    assert record_reader.last_event(run, "plan")["resumed_at"] == 4
    series, settings = READERS[name](folder, run)
    for kind, keys in KEYS.items():
        newest = {record["step"]: record for record in record_reader.metrics(run, kind)}
        assert list(newest) == {"train": [1, 2, 3, 4, 5, 6], "eval": [0, 2, 4, 6]}[kind]
        for key in keys:
            expected = [(step, pytest.approx(record[key])) for step, record in newest.items()]
            assert series(key) == expected, key
    assert str(settings["train.learning_rate"]) == "0.001"
    assert settings["method.name"] == "lora" and settings["model"] == RunSpec.of_run(run).model
    assert not any(b"hf_secret" in file.read_bytes() for file in run.path.parent.rglob("*.*"))
    warnings = [event["message"] for event in record_reader.events(run, "warning")]
    assert not [text for text in warnings if name in text]
    # what is deleted here is gone there; another run's records stay
    other = small_run(train={"report_to": [name], "eval_steps": 0})
    assert actions.delete(run) == []
    left = names_in(name, folder)
    assert left == [other.id], f"{name} holds {left}"
    assert actions.delete(other) == [] and names_in(name, folder) == []


def names_in(name: str, folder: Path) -> list[str]:
    """The runs that a tracker knows of."""
    if name == "tensorboard":
        return [path.name for path in folder.iterdir()]
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(folder.as_uri())
        experiment = client.get_experiment_by_name(trackers.PROJECT)
        return [entry.info.run_name for entry in client.search_runs([experiment.experiment_id])]
    from trackio.sqlite_storage import SQLiteStorage

    return [record["name"] for record in SQLiteStorage.get_run_records(trackers.PROJECT)]


class Failing:
    """A tracker whose service is gone."""

    def __init__(self, name: str, fails: str) -> None:
        self.name, self.fails, self.steps = name, fails, list[int]()

    def _maybe(self, part: str) -> None:
        if part == self.fails:
            raise ConnectionError("https://me:mine@host refused s3cret-1\nmore")

    def store_init_configuration(self, values: Any) -> None:
        self._maybe("settings")

    def log(self, values: Any, step: int | None = None) -> None:
        self._maybe("log")
        self.steps.append(step if step is not None else values["step"])

    def finish(self) -> None:
        self._maybe("finish")


@pytest.mark.parametrize("fails", ["start", "settings", "log", "finish"])
def test_a_tracker_that_fails_costs_a_warning_and_never_the_run(
    fails: str, small_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Failing] = {}

    def start(name: str, run_id: str, step: int) -> Failing:
        started[name] = Failing(name, fails if name == "mlflow" else "")
        if fails == "start" and name == "mlflow":
            started[name].fails = "start"
            started[name]._maybe("start")
        return started[name]

    monkeypatch.setattr(trackers, "_start", start)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret-1")
    plain = small_run(train={"eval_steps": 3})
    run = small_run(train={"eval_steps": 3, "report_to": ["mlflow", "wandb"]})
    losses = [
        [record["train/loss"] for record in record_reader.metrics(each, "train")]
        for each in (plain, run)
    ]
    assert losses[0] == losses[1], "to the bit"
    assert started["wandb"].steps == [0, 1, 2, 3, 3, 4, 5, 6, 6], "one does not hold up another"
    warnings = [event["message"] for event in record_reader.events(run, "warning")]
    about = [text for text in warnings if text.startswith("mlflow")]
    assert about[0].startswith("mlflow failed (ConnectionError: https://***@host refused ***)")
    missing = {"start": 9, "settings": 1, "log": 9, "finish": 1}[fails]
    lost = formatting.quantity(missing, "record")
    assert about[1].startswith(f"mlflow did not get {lost}; ") and len(about) == 2


def test_a_tracker_that_hangs_ends_with_the_run(
    small_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(trackers, "FINISH_S", 0.05)
    monkeypatch.setattr(trackers, "_start", lambda *arguments: never.wait(20))
    run = small_run(train={"report_to": ["mlflow"], "eval_steps": 0})
    never.set()
    (warning,) = [
        event["message"]
        for event in record_reader.events(run, "warning")
        if event["message"].startswith("mlflow")
    ]
    assert "did not get 8 records" in warning, "two evaluations and six steps"


def test_a_tracker_that_hangs_holds_nobody_up_and_what_it_lacks_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One record is in its hands, two wait, three find no room."""
    never, begun, warnings = threading.Event(), threading.Event(), list[str]()
    monkeypatch.setattr(trackers, "FINISH_S", 0.02)
    monkeypatch.setattr(trackers, "MAX_WAITING", 2)
    monkeypatch.setattr(trackers, "_start", lambda *arguments: begun.set() or never.wait(20))
    tracker = trackers._Tracker("mlflow", "run-1", RunSpec(), warnings.append)
    tracker.put({"kind": "train", "step": 1})
    assert begun.wait(10)
    start = time.monotonic()
    for step in range(2, 7):
        tracker.put({"kind": "train", "step": step})
    assert time.monotonic() - start < 0.5, "The training does not wait for a full queue."
    tracker.finish()
    assert warnings == ["mlflow did not get 6 records; metrics.jsonl has all."]
    never.set()


@pytest.mark.parametrize(
    ("name", "step", "times"),
    [("tensorboard", 1, 1), ("mlflow", 0, 1), ("mlflow", 5, 0), ("wandb", 5, 1)],
)
def test_settings_are_told_at_the_start_and_again_where_a_resume_would_lose_them(
    name: str, step: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is not evaluated before it begins has its first record at step 1."""
    stub, told_settings = Failing(name, ""), list[Any]()
    stub.store_init_configuration = told_settings.append  # type: ignore[method-assign]
    monkeypatch.setattr(trackers, "_start", lambda *arguments: stub)
    tracker = trackers._Tracker(name, "run-1", RunSpec(), pytest.fail)
    for each in (step, step + 1):
        tracker.put({"kind": "train", "step": each})
    tracker.finish()
    assert len(told_settings) == times and stub.steps == [step, step + 1]


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS"]
)
def test_no_secret_of_the_environment_is_in_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "hush-17")
    assert trackers._in_words(OSError("refused hush-17")) == "OSError: refused ***", name


def test_weights_and_biases_hears_nothing_unless_a_variable_says_so(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking

    calls: list[Any] = []

    class Stub:
        name = "wandb"

        def __init__(self, project: str, **options: Any) -> None:
            calls.append((project, options))

        def start(self) -> None:
            calls.append(os.environ["WANDB_MODE"])

        def log(self, *values: Any, **more: Any) -> None:
            calls.append((*values, more))

    monkeypatch.setattr(tracking, "WandBTracker", Stub)
    tracker = trackers._start("wandb", "run-1", 5)
    folder = str(lab_home / "trackers" / "wandb")
    assert calls == [
        ("finetune-lab", {"name": "run-1", "id": "run-1", "resume": "allow", "dir": folder}),
        "offline",
    ], "a resumed run goes on with its own, on this machine"
    promised = {
        "WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true", "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true", "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip
    assert {name: os.environ.get(name) for name in promised} == promised
    trackers._log(tracker, {"v": 1, "kind": "train", "step": 6, "train/loss": 2.0, "tokens": 9})
    trackers._log(tracker, {"v": 1, "kind": "eval", "step": 6, "eval/loss": 1.0, "tokens": 9})
    assert calls[2:] == [
        ({"train/loss": 2.0, "tokens": 9, "step": 6}, {}), ({"eval/loss": 1.0, "step": 6}, {}),
    ], "its own steps only rise; a resumed run goes back"  # fmt: skip
    monkeypatch.setenv("WANDB_MODE", "online")
    trackers._start("wandb", "run-1", 0)
    assert calls[-1] == "online", "what a person has set holds"


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    small_spec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "mlflow" else name)
    with pytest.raises(SpecError) as refused:
        checked(small_spec(train={"report_to": ["tensorboard", "mlflow"]}))
    (problem,) = refused.value.problems
    assert problem.field == "train.report_to"
    assert "mlflow is not installed" in problem.message
    assert "pip install mlflow-skinny" in problem.message
    assert checked(small_spec(train={"report_to": "tensorboard"})).spec.train.report_to == [
        "tensorboard"
    ]


def test_report_to_takes_known_trackers_and_none() -> None:
    assert RunSpec.from_json({"train": {"report_to": []}}).train.report_to == []
    with pytest.raises(SpecError, match="Choose among: tensorboard, wandb, mlflow, trackio"):
        RunSpec.from_json({"train": {"report_to": ["tensorboard", "comet"]}})
    assert "report_to" in resume_settings.CHANGEABLE
