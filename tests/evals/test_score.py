"""What is measured of models on a set, with answers that are known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.chat import models as chat_models
from lab.chat.answers import ModelAnswer
from lab.chat.models import LoadedModel, ModelRef
from lab.chat.settings import GenerationSettings
from lab.data import catalog
from lab.errors import LabError
from lab.evals import score
from lab.paths import RunDir


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Models that say what a dict by prompt holds; the likeliest option is the one that it names
    first. `parrot(base={...}, run={...})`."""
    answers: dict[str, dict[str, str]] = {}

    def answer(loaded: Any, named: ModelRef, messages: list[Any], settings: Any) -> ModelAnswer:
        text = answers[named.name].get(messages[-1]["content"], "")
        return ModelAnswer(model=named.name, text=text)

    monkeypatch.setattr("lab.chat.generate.answer", answer)
    monkeypatch.setattr(chat_models, "load", lambda named: LoadedModel(None, named.name))
    monkeypatch.setattr(
        score, "_likeliest",
        lambda loaded, item, terms: next(
            (
                option
                for option in item.options
                if option in answers[loaded.tokenizer][item.messages[-1]["content"]]
            ),
            item.options[0],
        ),
    )  # fmt: skip

    def speak(**by_model: dict[str, str]) -> dict[str, str]:
        answers.update({f"{kind}:x": texts for kind, texts in by_model.items()})
        return {}

    return speak


BASE = ModelRef("base:x", "x")
RUN = ModelRef("run:x", "x", RunDir(Path("/nowhere/x")))


def dataset_of(monkeypatch: pytest.MonkeyPatch, file: Path, rows: list[Any], **card: Any) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        catalog, "resolve", lambda name: catalog.Dataset(name, file, {"format": "auto", **card})
    )


def test_labels_by_likelihood_and_by_generation(
    parrot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = ["late", "broken", "praise"]
    rows = [{"text": f"m{n}", "label": labels[n % 3]} for n in range(6)]
    dataset_of(monkeypatch, tmp_path / "t.jsonl", rows, labels=labels)
    right = {row["text"]: row["label"] for row in rows}
    parrot(
        base={text: f"I think {label}" for text, label in right.items()},
        run=right | {"m0": "broken", "m1": "praise."},
    )
    sheet = score.score([RUN, BASE], "t")
    assert list(sheet.models) == ["base:x", "run:x"], "The base comes first."
    base, run = sheet.models.values()
    assert base.figures["accuracy"] == 0, "A sentence is not a label."
    assert base.figures["likely_accuracy"] == 1
    assert run.figures["accuracy"] == pytest.approx(4 / 6)
    # right, guessed and true: late 1, 1, 2; broken 1, 2, 2; praise 2, 3, 2
    assert run.figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 4 / 5) / 3)
    assert run.figures["likely_macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 4 / 5) / 3)
    right = [[sheet.is_right(name, index) for index in range(6)] for name in ("run:x", "base:x")]
    assert score.only_right(*right) == ([2, 3, 4, 5], [])
    assert score.only_right(*right[::-1]) == ([], [2, 3, 4, 5])


def test_questions_commands_and_forms(
    parrot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"question": f"q{n}", "answer": f"the answer {n}"} for n in range(4)]
    dataset_of(monkeypatch, tmp_path / "q.jsonl", rows, eval_fraction=0.5)
    parrot(base={}, run={"q0": "Answer 0.", "q1": "no", "q2": "answer 2", "q3": "answer"})
    sheet = score.score([BASE, RUN], "q", pattern="[A-Z].*")
    prompts = [question.prompt for question in sheet.questions]
    assert len(prompts) == 2, "Only the held-out half is prompts."
    expected = {"q0": (1.0, 1.0, 1.0), "q1": (0, 0, 0), "q2": (1, 1, 0), "q3": (0, 2 / 3, 0)}
    figures = sheet.models["run:x"].figures
    for index, name in enumerate(("exact_match", "token_f1", "format")):
        mean = sum(expected[prompt][index] for prompt in prompts) / 2
        assert figures[name] == pytest.approx(mean), name
    assert sheet.models["base:x"].figures["exact_match"] == 0
    dataset_of(
        monkeypatch, tmp_path / "s.jsonl", [{"prompt": "p", "completion": "ls  -a"}],
        answers="shell",
    )  # fmt: skip
    parrot(run={"p": "ls '-a'"})
    figures = score.score([BASE, RUN], "s").models["run:x"].figures
    assert figures["shell_match"] == 1 and score.main_figure({"shell_match": 1.0}) == "shell_match"


def test_a_set_is_asked_with_the_system_prompt_of_the_first_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"prompt": "p", "completion": "c"}]
    dataset_of(monkeypatch, tmp_path / "t.jsonl", rows, system_prompt="Of the set.")
    run = RunDir(tmp_path / "run")
    run.artifact.mkdir(parents=True)
    write_json(run.artifact / "receipt.json", {"system_prompt": "Of the result."})
    for names, prompt in (
        ([BASE, ModelRef("run:x", "x", run)], "Of the result."),
        ([BASE], "Of the set."),
    ):
        terms = score.terms_of(names, "t", 5, "")
        assert terms.system_prompt == terms.settings.system_prompt == prompt


def test_answers_are_kept_apart_by_all_that_changes_them() -> None:
    """What is asked in another way is asked again, not read from the file of the first."""
    item = score.Item(1, ({"role": "user", "content": "Which?"},), "A. x", ("A. x", "B. y"))
    settings = GenerationSettings(max_new_tokens=16, system_prompt="")
    terms = score.ScoreTerms("c", [item], "choices", "", None, settings)
    others = [
        {"dataset": "d"},
        {"kind": "text"},
        {"items": [item, item]},
        {"items": [replace(item, reference="B. y")]},
        {"items": [replace(item, messages=({"role": "user", "content": "What?"},))]},
        {"pattern": re.compile("A.*")},
        {"settings": replace(settings, system_prompt="Be brief.")},
        {"settings": replace(settings, max_new_tokens=17)},
    ]
    files = {replace(terms, **changes).file for changes in ({}, *others)}
    assert len(files) == 1 + len(others) and replace(terms).file in files


@pytest.mark.parametrize(("length", "tokens"), [(10, 21), (200, 116), (2000, 256)])
def test_answers_may_be_somewhat_longer_than_the_longest_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int, tokens: int
) -> None:
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "q", "completion": "x" * length}]
    dataset_of(monkeypatch, tmp_path / "t.jsonl", rows)
    terms = score.terms_of([BASE], "t", 5, "")
    assert terms.settings.max_new_tokens == tokens
    assert len(score.terms_of([BASE], "t", 1, "").items) == 1, "no more than asked for"


def test_choices_are_shown_centred(
    parrot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        {"question": f"q{n}", "choices": ["one", "two", "three", "four"], "answer": n % 4}
        for n in range(8)
    ]
    dataset_of(monkeypatch, tmp_path / "c.jsonl", rows, format="multiple-choice")
    terms = score.terms_of([BASE], "c", 50, "")
    assert terms.items[1].options == ("A. one", "B. two", "C. three", "D. four")
    assert terms.items[1].reference == "B. two"
    prompts = {item.messages[-1]["content"]: item.reference for item in terms.items}
    parrot(base=dict.fromkeys(prompts, "A. one"), run=prompts)
    base, run = score.score([BASE, RUN], "c").models.values()
    assert base.figures["centred_accuracy"] == pytest.approx(0), "One of four is chance."
    assert run.figures["centred_accuracy"] == pytest.approx(1)
    assert score.listed_choices("Which?\n\nA. x\nB. y") == ["A. x", "B. y"]
    assert score.listed_choices("A. x\nand then") == [] == score.listed_choices("none")


def test_long_options_are_not_punished(monkeypatch: pytest.MonkeyPatch) -> None:
    """-6 over twelve characters is likelier a character than -2 over two."""
    monkeypatch.setattr("lab.chat.generate.render", lambda *_: "Which?")
    monkeypatch.setattr(
        "lab.train.choice_probe.continuation_log_probabilities", lambda *_: [-2.0, -6.0]
    )
    item = score.Item(1, ({"role": "user", "content": "Which?"},), "no", ("no", "certainly so"))
    terms = score.ScoreTerms("c", [item], "choices", "", None, GenerationSettings())
    assert score._likeliest(LoadedModel(None, None), item, terms) == "certainly so"


def test_best_and_worst_answers() -> None:
    figures = [
        {"exact_match": e, "token_f1": f}
        for e, f in ((0.0, 0.4), (1.0, 1.0), (0.0, 0.0), (0.0, 0.9))
    ]
    assert score.extremes(figures, "exact_match", 2) == ([1, 3], [2, 0])
    assert score.extremes(figures, "exact_match") == ([1, 3], [2, 0]), "None is in both."


def test_what_cannot_be_scored_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset_of(monkeypatch, tmp_path / "t.jsonl", [{"text": "only text"}])
    with pytest.raises(LabError, match="no question with an answer"):
        score.terms_of([BASE], "t", 5, "")
    dataset_of(monkeypatch, tmp_path / "q.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(LabError, match="is not a regular expression"):
        score.terms_of([BASE], "q", 5, "(")


def test_likelihoods_of_continuations_are_the_models_own(tiny_model: Path, tokenizer: Any) -> None:
    """Held against one plain forward pass for each, without padding."""
    import torch
    from transformers import AutoModelForCausalLM

    from lab.train.choice_probe import centred, continuation_log_probabilities

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompt, options = "Which planet is nearest?\n", ["Mercury", "A long answer, Venus", "Mars"]
    expected = []
    for option in options:
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        behind = tokenizer(option, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([before + behind])
        with torch.no_grad():
            log = torch.log_softmax(model(ids).logits[0].double(), -1)
        places = range(len(before) - 1, len(before) + len(behind) - 1)
        expected.append(
            sum(float(log[index, token]) for index, token in zip(places, behind, strict=True))
        )
    measured = continuation_log_probabilities(model, tokenizer, prompt, options)
    assert measured == pytest.approx(expected, rel=1e-5)
    assert centred([True, False, False, False], [4] * 4) == 0
    assert centred([True, True], [4, 2]) == 1
