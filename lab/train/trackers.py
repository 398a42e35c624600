"""A run's metrics in TensorBoard, Weights & Biases, MLflow and Trackio, beside `metrics.jsonl`.

Each tracker that `train.report_to` names gets the records of training, evaluation and probe under
their own keys (docs/metrics.md) and the settings of the run, from a thread of its own: one that
fails or hangs costs a warning and never the run. All write into LAB_HOME/trackers and reach no
network, unless the tracker's own environment variables say otherwise (WANDB_MODE,
MLFLOW_TRACKING_URI, TRACKIO_SERVER_URL ...). A resumed run goes on with what it began.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from lab import paths
from lab.errors import Problem
from lab.formatting import quantity
from lab.spec import RunSpec

PROJECT = "finetune-lab"
PACKAGES = {  # what to install, by the module that it brings
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "trackio": "trackio",
}
MAX_WAITING = 20_000  # records that a tracker which hangs may keep in memory
FINISH_S = 30.0  # that the end of a run waits for a tracker
NOT_REPORTED = ("v", "kind", "attempt", "time", "step", "of")
TOLD_ONCE = ("tensorboard", "mlflow")  # the settings; the others lose them when they go on
AMOUNTS = ("tokens", "seconds", "flops")  # of the same step: the training's record has them
SECRET = re.compile("KEY|TOKEN|PASSWORD|SECRET")  # in the name of a variable that holds one
LOGIN = re.compile(r"(?<=//)[^/@\s]+(?=@)")  # in an address
# No service hears of a run, or of the library's use, because somebody forgot a variable.
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def problems(spec: RunSpec) -> list[Problem]:
    """A problem for each tracker whose package is not installed here."""
    return [
        Problem("train.report_to", _not_installed(name))
        for name in spec.train.report_to
        if find_spec(name) is None
    ]


def _not_installed(name: str) -> str:
    package = PACKAGES[name]
    return f"{name} is not installed. Run '.venv/bin/python -m pip install {package}' first."


class Trackers:
    """Every tracker of an attempt; `put` is called with each record of `metrics.jsonl`."""

    def __init__(self, run_id: str, spec: RunSpec, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._all = [_Tracker(name, run_id, spec, warn) for name in spec.train.report_to]

    def put(self, record: dict[str, Any]) -> None:
        """Hand a record of training, evaluation or probe on; others have no step."""
        if "step" in record:
            for tracker in self._all:
                tracker.put(record)

    def finish(self) -> None:
        """Wait until all have what there was, or for FINISH_S."""
        for tracker in self._all:
            tracker.finish()


class _Tracker:
    """One tracker, and the thread in which it is started, fed and finished."""

    def __init__(self, name: str, run_id: str, spec: RunSpec, warn: Callable[[str], None]) -> None:
        self.name, self.run_id, self.spec, self._warn = name, run_id, spec, warn
        self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, record: dict[str, Any]) -> None:
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def finish(self) -> None:
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=FINISH_S)
            self._thread.join(FINISH_S)
        waiting = sum(record is not None for record in list(self._records.queue))
        self._lost += waiting + self._thread.is_alive()  # it hangs with one in its hands
        if self._lost:
            self._warn(
                f"{self.name} did not get {quantity(self._lost, 'record')}; metrics.jsonl has all."
            )

    def _work(self) -> None:
        tracker = None
        while (record := self._records.get()) is not None:
            try:
                if tracker is None:
                    tracker = _start(self.name, self.run_id, record["step"])
                    if record["step"] <= 1 or self.name not in TOLD_ONCE:
                        tracker.store_init_configuration(_settings(self.spec))
                _log(tracker, record)
            except Exception as error:  # whatever a service does, the run goes on
                self._fail(error)
                if tracker is None:
                    break
        if tracker is not None:
            try:
                tracker.finish()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._lost:
            self._warn(f"{self.name} failed ({_in_words(error)}); training continues.")
        self._lost += 1


def _start(name: str, run_id: str, step: int) -> Any:
    """The tracker of accelerate, started; what it held from `step` on, a resumed run replaces."""
    from accelerate import tracking

    for variable, value in OFFLINE.items():
        os.environ.setdefault(variable, value)
    folder = paths.home() / "trackers" / name
    paths.make_folder(folder)
    tracker: Any
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker(run_id, folder, purge_step=step or None)
    elif name == "wandb":
        tracker = tracking.WandBTracker(
            PROJECT, name=run_id, id=run_id, resume="allow", dir=str(folder)
        )
    elif name == "mlflow":
        os.environ.setdefault("MLFLOW_TRACKING_URI", folder.as_uri())
        tracker = tracking.MLflowTracker(PROJECT, run_name=run_id, run_id=_mlflow_run(run_id))
    else:
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        tracker = tracking.TrackioTracker(
            PROJECT,
            name=run_id,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
    tracker.start()
    return tracker


def _mlflow_run(name: str) -> str | None:
    """MLflow's own id of the run that an earlier attempt began; None if there is none."""
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(PROJECT)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return runs[0].info.run_id if runs else None


def _log(tracker: Any, record: dict[str, Any]) -> None:
    left_out = NOT_REPORTED if record["kind"] == "train" else NOT_REPORTED + AMOUNTS
    values = {key: value for key, value in record.items() if key not in left_out}
    if tracker.name == "wandb":  # its own steps only rise; a resumed run goes back
        tracker.log(values | {"step": record["step"]})
    else:
        tracker.log(values, step=record["step"])


def _settings(spec: RunSpec) -> dict[str, Any]:
    """The spec as one flat dict of numbers and texts: "train.learning_rate"."""
    flat: dict[str, Any] = {}
    for key, value in spec.to_json().items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return {
        key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for key, value in flat.items()
    }


def _in_words(error: Exception) -> str:
    """The error on one line, without the tokens of the environment and logins in addresses."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    for name, value in os.environ.items():
        if SECRET.search(name) and value:
            text = text.replace(value, "***")
    return LOGIN.sub("***", text)[:300]
