"""Tasks of EleutherAI's lm-evaluation-harness, on data that the lab has downloaded from the Hub.

The harness says what a task is: its prompts, its splits, its metrics. It gets the rows through its
`custom_dataset`: the lab downloads and verifies them as it does any dataset of the Hub, and the
task itself has no network, so that nothing else is contacted. Prompts are those of the harness,
without the chat template, as its published scores have them.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.chat import models as chat_models
from lab.chat.models import LoadedModel, ModelRef
from lab.data import catalog, hub, hub_fetch
from lab.data.hub import HubId
from lab.errors import LabError, first_line
from lab.evals import score
from lab.formatting import quantity
from lab.schema import quote

MODULE = "lm_eval"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)  # no Hub ID, and nothing with a colon
NAME_LINE = re.compile(rb"^(?:task|group):[ \t]*[\"']?([\w.-]+)[\"']?[ \t]*$", re.MULTILINE)
TAG_LINES = re.compile(rb"^tag:((?:[ \t]*[\w.-]+|\n[ \t]*-[ \t]*[\w.-]+)+)", re.MULTILINE)
BOOTSTRAP_SAMPLES = 1000  # for the standard errors that have no closed form
MAX_LISTED = 8  # tasks of a group that a message lists
MEDIA = ("doc_to_image", "doc_to_audio")
DOWNLOADED = "code that would be downloaded"


@dataclass(frozen=True)
class HarnessTask:
    """One task as its file says it. `split` is the one that is scored; `examples`, with `shots`
    examples for each prompt, another one, or None."""

    name: str
    file: Path
    dataset: HubId
    split: str
    examples: str | None = None
    shots: int = 0

    @property
    def datasets(self) -> dict[str, HubId]:
        """The sets that hold its splits."""
        splits = [self.split] + ([self.examples] if self.examples else [])
        name, config = self.dataset.name, self.dataset.config
        return {split: HubId(name, config, None if split == "train" else split) for split in splits}


@dataclass(frozen=True)
class TaskFigures:
    """What one model reaches: each metric by its name, and its standard error where there is one.
    A metric behind a filter of the task has the filter in brackets."""

    model: str
    figures: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScores:
    """`dataset` has the commit of the rows; `version` is that of the harness."""

    task: str
    dataset: str
    rows: int
    shots: int
    version: str
    models: list[TaskFigures]

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> TaskScores:
        """What this version has written; a standard error may be NaN."""
        models = [TaskFigures(**each) for each in stored["models"]]
        return TaskScores(**{**stored, "models": models})


def is_name(text: str) -> bool:
    """Whether `text` may name a task: no file of data, no dataset of the lab or the Hub does."""
    return NAME.fullmatch(text) is not None and not catalog.suffix_of(Path(text))


def read(name: str) -> HarnessTask:
    """The task of the installed harness. Raises LabError for a name that it does not have, or a
    task that cannot be run here."""
    task_names: list[str] = []
    for file, text in _files():
        names = [match.decode() for match in NAME_LINE.findall(text)]
        if name in names:
            return _from_config(name, file, _config(file, resolve=False))
        task_names += names
    if members := _tagged(name):
        raise _several(name, members)
    close = difflib.get_close_matches(name, task_names, n=3)
    hint = f"Close to it: {', '.join(close)}." if close else "'lm_eval ls tasks' lists them."
    raise LabError(f"'{quote(name)}' is neither a dataset nor a task of the harness.", hint)


def _files() -> Iterator[tuple[Path, bytes]]:
    """The task files of the installed harness, as text: to parse all 13,000 takes a minute."""
    package = find_spec(MODULE)
    if package is None or not package.submodule_search_locations:
        return
    for file in sorted(Path(package.submodule_search_locations[0]).glob("tasks/**/*.yaml")):
        yield file, file.read_bytes()


def _tagged(tag: str) -> list[str]:
    """The tasks that bear a tag, such as ai2_arc."""
    names = []
    for _, text in _files():
        lines = TAG_LINES.search(text)
        if lines is not None and tag.encode() in re.findall(rb"[\w.][\w.-]*", lines[1]):
            names += [match.decode() for match in NAME_LINE.findall(text)]
    return names


def _config(file: Path, *, resolve: bool) -> dict[str, Any]:
    """What a task's file holds; with `resolve` the functions that it names, of the harness's own
    package, rather than their names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(file, resolve_func=resolve))
    except ImportError as error:
        raise LabError(
            f"The task in '{file.name}' needs a package that is missing: {first_line(error)}.",
            "Install it with '.venv/bin/python -m pip install', or choose another task.",
        ) from None


def _several(name: str, members: list[str]) -> LabError:
    listed = ", ".join(quote(member) for member in members[:MAX_LISTED])
    more = f" and {len(members) - MAX_LISTED} more" if len(members) > MAX_LISTED else ""
    return LabError(
        f"'{quote(name)}' is a group of {quantity(len(members), 'task')} of the harness.",
        f"Name one of them: {listed}{more}.",
    )


def _from_config(name: str, file: Path, config: dict[str, Any]) -> HarnessTask:
    """Raises LabError for a task that would need more than rows of the Hub."""
    if "group" in config:
        entries = config.get("task")
        entries = entries if isinstance(entries, list) else [entries]
        members = [
            str(entry.get("task", entry.get("group")) if isinstance(entry, dict) else entry)
            for entry in entries
        ]
        raise _several(name, members)
    dataset = str(config.get("dataset_path"))
    if config.get("dataset_name"):
        dataset += f":{config['dataset_name']}"
    options = set(config.get("dataset_kwargs") or {}) - {"trust_remote_code"}
    metrics = config.get("metric_list") or []
    against = ""
    if "class" in config or config.get("custom_dataset"):
        against = "it makes its data by code of its own"
    elif config.get("unsafe_code"):
        against = "it runs the code that a model writes"
    elif any(config.get(key) for key in MEDIA):
        against = "it shows images or sounds"
    elif any(isinstance(metric, dict) and metric.get("hf_evaluate") for metric in metrics):
        against = f"its metric is {DOWNLOADED}"
    elif not hub.is_id(dataset):
        against = f"its data ('{quote(dataset)}') is not a dataset of the Hub"
    elif options:
        listed = ", ".join(quote(option) for option in sorted(options))
        against = f"it reads its data with options of its own ({listed})"
    split = config.get("test_split") or config.get("validation_split")
    if not against and not isinstance(split, str):
        against = "it names no split to score"
    if against:
        raise _refusal(name, against)
    shots = int(config.get("num_fewshot") or 0)
    examples = None
    has_samples = bool((config.get("fewshot_config") or {}).get("samples"))
    if shots and not has_samples:
        keys = ("fewshot_split", "training_split", "validation_split", "test_split")
        examples = next(str(config[key]) for key in keys if config.get(key))
    return HarnessTask(name, file, hub.parse(dataset), str(split), examples, shots)


def _refusal(name: str, against: str) -> LabError:
    return LabError(
        f"The task '{quote(name)}' cannot be run here: {against}.",
        "Choose another task, or run it with lm_eval itself.",
    )


def fetch(task: HarnessTask, tell: Callable[[str], object]) -> dict[str, Path]:
    """The file with the rows of each split that the task reads, downloaded if it is not here.
    Raises LabError."""
    files = {}
    for split, wanted in task.datasets.items():
        if not wanted.file.is_file():
            tell(f"downloading {wanted}")

            def say(wanted: HubId = wanted) -> None:
                tell(f"downloading {wanted}: {hub.state_of(wanted).progress}")

            hub_fetch.fetch(wanted, say)
        if hub.split_note(wanted):
            raise LabError(
                f"'{wanted.name}' has no split '{quote(split)}', which the task reads.",
                "The dataset has changed since this version of the harness; choose another task.",
            )
        files[split] = wanted.file
    return files


def build(task: HarnessTask, files: dict[str, Path]) -> Any:
    """The task as the harness runs it, on the rows of `files`. Raises LabError for a metric that
    the harness would download."""
    from datasets import Dataset
    from lm_eval.api import metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import metric_registry
    from lm_eval.api.task import ConfigurableTask

    config = _config(task.file, resolve=True)
    names = [metric.get("metric") for metric in config.get("metric_list") or []]
    unknown = [name for name in names if isinstance(name, str) and name not in metric_registry]
    if unknown and not config.get("process_results"):
        raise _refusal(task.name, f"its metric '{quote(unknown[0])}' is {DOWNLOADED}")
    for key in ("tag", "group", "task_list", "dataset_kwargs", "training_split"):
        config.pop(key, None)
    config["test_split"], config["validation_split"] = task.split, None
    config["fewshot_split"] = task.examples or task.split
    if not task.shots:
        config["fewshot_config"] = None  # its examples may be of a split that is not needed
    rows = {split: [json.loads(line) for line in _lines(file)] for split, file in files.items()}
    config["custom_dataset"] = lambda **_: {
        split: Dataset.from_list(entries) for split, entries in rows.items()
    }
    return ConfigurableTask(config=config)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def measure(
    names: list[ModelRef], name: str, most: int, tell: Callable[[str], object]
) -> TaskScores:
    """The figures of each model, the base first, on the first `most` rows. Raises LabError."""
    tell(f"reading the task {name}")
    task = read(name)
    files = fetch(task, tell)
    models = []
    rows = 0
    for named in score.with_base_first(names):
        tell(f"scoring {named.name}")
        rows, figures, errors = _of_model(chat_models.load(named), task, files, most)
        models.append(TaskFigures(named.name, figures, errors))
    dataset = str(hub.pinned(task.datasets[task.split]))
    return TaskScores(name, dataset, rows, task.shots, metadata.version("lm-eval"), models)


@contextlib.contextmanager
def _without_network() -> Iterator[None]:
    """No host is looked up in this process: some tasks would download word lists or a dataset."""
    look_up = socket.getaddrinfo

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        raise OSError(f"a task of the harness asks for '{host}', and has no network")

    socket.getaddrinfo = refuse
    try:
        yield
    finally:
        socket.getaddrinfo = look_up


def _of_model(
    loaded: LoadedModel, task: HarnessTask, files: dict[str, Path], most: int
) -> tuple[int, dict[str, float], dict[str, float]]:
    """(rows that were scored, figures and standard errors by metric)."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
    try:
        with _without_network():
            answer = evaluate(
                model,
                {task.name: build(task, files)},
                limit=most,
                bootstrap_iters=BOOTSTRAP_SAMPLES,
            )
    # rows or packages that are not as the task expects them
    except (ImportError, LookupError, OSError, TypeError, ValueError) as error:
        raise LabError(
            f"The harness cannot run '{task.name}': {type(error).__name__}: {first_line(error)}.",
            "The dataset may have changed since this version of the harness.",
        ) from error
    figures: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in answer["results"][task.name].items():
        metric, _, step = key.partition(",")
        if step and isinstance(value, (int, float)):
            suffix = "" if step == "none" else f" ({step})"
            target = errors if metric.endswith("_stderr") else figures
            target[metric.removesuffix("_stderr") + suffix] = float(value)
    return int(answer["n-samples"][task.name]["effective"]), figures, errors
