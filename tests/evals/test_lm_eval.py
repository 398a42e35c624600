"""The lm-evaluation-harness scores as we do; without it, a message says how to get it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.chat import models as chat_models
from lab.chat.answers import ModelAnswer
from lab.data import catalog
from lab.evals import harness_tasks, lm_eval_scores, score
from lab.paths import RunDir

needs_harness = pytest.mark.skipif(
    find_spec(harness_tasks.MODULE) is None,
    reason="lm-eval is not installed: pip install -r requirements-lm-eval.txt",
)


def options_set(file: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> str:
    """Twelve questions with options of different lengths, as a set of choices or of labels."""
    options = ["Mercury", "the planet Venus, which is bright", "Mars", "a"]
    card: dict[str, Any] = {"format": "multiple-choice"}
    rows: list[dict[str, Any]] = [
        {"question": f"Which one is number {n}?", "choices": options[: 2 + n % 3], "answer": n % 2}
        for n in range(12)
    ]
    if kind == "labels":
        card = {"format": "auto", "labels": options}
        rows = [{"text": f"Number {n}", "label": options[n % 4]} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    resolve = catalog.resolve
    monkeypatch.setattr(
        catalog, "resolve",
        lambda name: catalog.Dataset(name, file, card) if name == "a set" else resolve(name),
    )  # fmt: skip
    return "a set"


@needs_harness
@pytest.mark.parametrize("kind", ["choices", "labels"])
def test_the_harness_and_our_scorer_say_the_same(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    from lab.chat import generate
    from lab.train.choice_probe import continuation_log_probabilities

    name = options_set(tmp_path / "set.jsonl", monkeypatch, kind)
    names = [chat_models.parse(f"run:{run.id}") for run in trained]
    theirs = lm_eval_scores.measure(names, name, 50)
    # what is written is ours
    monkeypatch.setattr(generate, "answer", lambda *rest: ModelAnswer(model=""))
    ours = score.score(names, name)
    key = {"choices": "centred_accuracy", "labels": "likely_accuracy"}[kind]
    field = {"choices": "centred", "labels": "accuracy"}[kind]
    assert [each.model for each in theirs.models] == list(ours.models)
    for other in theirs.models:
        expected = ours.models[other.model].figures[key]
        assert getattr(other, field) == pytest.approx(expected, abs=1e-9), other.model
    assert theirs.rows == 12 and theirs.version
    written = json.loads(json.dumps(asdict(theirs)))
    assert list(written) == ["set", "rows", "version", "models"], "The keys of --json."
    assert lm_eval_scores.SetScores.from_json(written) == theirs, "What was written is read."
    loaded = chat_models.load(names[0])
    terms = score.terms_of(names, name, 50, "")
    position = next(i for i, each in enumerate(theirs.models) if each.model == names[0].name)
    for item, sums in zip(terms.items, theirs.models[position].log_probabilities, strict=True):
        prompt = generate.render(loaded.tokenizer, list(item.messages), terms.settings)
        ours_of_item = continuation_log_probabilities(
            loaded.model, loaded.tokenizer, prompt, item.options
        )
        assert sums == pytest.approx(ours_of_item, rel=1e-5), "The very same tokens are scored."


@needs_harness
def test_the_verb_asks_a_process_of_its_own(
    trained: list[RunDir], lab_json: Callable[..., Any]
) -> None:
    answer = lab_json(
        "harness", f"run:{trained[1].id}", "--set", "builtin:common-knowledge", "--most", "4"
    )
    assert [each["model"].partition(":")[0] for each in answer["models"]] == ["base", "run"]
    assert answer["rows"] == 4 and -1 <= answer["models"][0]["centred"] <= 1


def test_without_the_extra_it_says_how_to_get_it(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lm_eval_scores, "find_spec", lambda name: None)
    run = f"run:{trained[1].id}"
    assert cli.main(["harness", run, "--set", "builtin:common-knowledge"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "(lm-eval) is not installed" in message and "-r requirements-lm-eval.txt" in message
    assert not lm_eval_scores.job_file().exists(), "Nothing is started."


def test_a_set_without_options_is_refused_before_anything_starts(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lm_eval_scores, "find_spec", lambda name: object())
    run = f"run:{trained[1].id}"
    assert cli.main(["harness", run, "--set", "builtin:persona-chats"]) == 2
    assert "neither labels nor choices" in capsys.readouterr().err
    assert cli.main(["harness", run, "--set", "builtin:persona-chats", "--most", "0"]) == 2
    assert "--most is 0" in capsys.readouterr().err


def test_the_file_of_the_extra_names_one_pinned_version() -> None:
    from lab.paths import ROOT

    lines = (ROOT / "requirements-lm-eval.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines if not line.startswith("#")] == ["lm-eval"]
