"""Scores of EleutherAI's lm-evaluation-harness on our sets: a second opinion on our own scorer.

The harness's own tasks, on datasets of the Hub, are in `harness_tasks`. An optional extra
(requirements-lm-eval.txt), used in a process of its own (`python -m lab.evals.lm_eval_scores`),
since it brings some thirty packages. A set becomes a task of the harness by its `custom_dataset`:
the prompts as the chat template renders them, the options, the right one. The harness does the
forward passes and the scoring. Prompt and options are made tokens apart, as in generation; its own
way moves the line end of the template into each option.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab import background_job, dataclass_json, paths
from lab.chat import models as chat_models
from lab.chat.models import LoadedModel, ModelRef
from lab.errors import LabError
from lab.evals import harness_tasks, score
from lab.evals.score import ScoreTerms
from lab.hub import credentials

INSTALL = "Run '.venv/bin/python -m pip install -r requirements-lm-eval.txt' first."
TASK = "lab_set"
KINDS = ("labels", "choices")


@dataclass(frozen=True)
class ModelScores:
    """`accuracy`: the harness's acc_norm, in `centred` with chance at 0; `log_probabilities`: in
    nats, by question and option."""

    model: str = ""
    accuracy: float = 0.0
    centred: float = 0.0
    log_probabilities: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class SetScores:
    """`version` is that of the harness."""

    set: str = ""
    rows: int = 0
    version: str = ""
    models: tuple[ModelScores, ...] = ()

    @staticmethod
    def from_json(stored: Any) -> SetScores:
        return dataclass_json.read(SetScores, stored) or SetScores()


def check(names: list[ModelRef], dataset_id: str, most: int) -> None:
    """Raise LabError for what stands against it, before anything is loaded."""
    check_installed()
    _check_kind(score.terms_of(names, dataset_id, most, ""))


def check_installed() -> None:
    """Raise LabError without the optional extra."""
    if find_spec(harness_tasks.MODULE) is None:
        raise LabError("The lm-evaluation-harness (lm-eval) is not installed.", INSTALL)


def _check_kind(terms: ScoreTerms) -> None:
    if terms.kind not in KINDS:
        raise LabError(
            f"'{terms.dataset}' has neither labels nor choices.",
            "The harness scores sets with options here; 'score' has the figures of the others.",
        )


def measure(
    names: list[ModelRef],
    dataset_id: str,
    most: int,
    tell: Callable[[str], object] = lambda phase: None,
) -> SetScores:
    """The scores of these models, the base first. Raises LabError."""
    ordered = chat_models.with_shared_template(score.with_base_first(names))
    check(ordered, dataset_id, most)
    terms = score.terms_of(ordered, dataset_id, most, "")
    chance = sum(1 / len(item.options) for item in terms.items) / len(terms.items)
    models = []
    for named in ordered:
        tell(f"scoring {named.name}")
        accuracy, log_probabilities = _of_model(chat_models.load(named), terms)
        centred = (accuracy - chance) / (1 - chance)
        models.append(ModelScores(named.name, accuracy, centred, log_probabilities))
    version = metadata.version("lm-eval")
    return SetScores(dataset_id, len(terms.items), version, tuple(models))


def _of_model(
    loaded: LoadedModel, terms: ScoreTerms
) -> tuple[float, tuple[tuple[float, ...], ...]]:
    """(acc_norm, summed log-probabilities in nats of each option of each question)."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    class ChatTokens(HFLM):  # type: ignore[misc]
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            parts = (
                self.tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (context, continuation)
            )
            return tuple(parts)  # type: ignore[return-value]

    task = ConfigurableTask(config=task_config(loaded, terms))
    model = ChatTokens(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
    results = evaluate(model, {TASK: task}, bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    sums = tuple(
        tuple(float(answer[0]) for answer in sample["filtered_resps"]) for sample in samples
    )
    return float(results["results"][TASK]["acc_norm,none"]), sums


def task_config(loaded: LoadedModel, terms: ScoreTerms) -> dict[str, Any]:
    """The set as a task of the harness, in its own words."""
    from datasets import Dataset

    from lab.chat import generate

    rows = [
        {
            "prompt": generate.render(loaded.tokenizer, list(item.messages), terms.settings),
            "options": list(item.options),
            "right": item.options.index(item.reference),
        }
        for item in terms.items
    ]
    return {
        "task": TASK,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["prompt"],
        "doc_to_choice": lambda row: row["options"],
        "doc_to_target": lambda row: row["right"],
        "target_delimiter": "",
        "metric_list": [
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    }


# -- in a process of its own ---------------------------------------------------------------------


def job_file() -> Path:
    return paths.home() / "cache" / "lm-eval" / "scores.json"


def start(names: list[str], dataset_id: str, most: int, task: str = "") -> None:
    """Begin: the set, or with `task` one of the harness's own. Raises LabError while it is at
    work, or cannot be done."""
    if not task:
        check([chat_models.parse(name) for name in names], dataset_id, most)
    request = {"models": names, "set": dataset_id, "most": most, "task": task}
    background_job.start(
        job_file(), ["lab.evals.lm_eval_scores"], request, access=credentials.access_line()
    )


def work() -> int:
    """What that process does; its exit code."""
    credentials.receive()

    def make(request: Mapping[str, Any], tell: Callable[[str], None]) -> Any:
        names = [chat_models.parse(str(name)) for name in request["models"]]
        most, task = int(request["most"]), str(request.get("task", ""))
        if task:
            return harness_tasks.measure(names, task, most, tell)
        return measure(names, str(request["set"]), most, tell)

    return background_job.work(job_file(), make)


if __name__ == "__main__":
    sys.exit(work())
