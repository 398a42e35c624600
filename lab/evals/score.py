"""How well models answer a set: by what they write, and by which answer they find likeliest.

What is measured follows from the set: its card's labels, its choices, its answers. The base comes
first, asked with the chat template and system prompt of the first result. Every answer is kept in
`score_sheets`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.chat import models as chat_models
from lab.chat.models import LoadedModel, ModelRef
from lab.chat.settings import GenerationSettings
from lab.data import catalog, choices
from lab.data.formats import Example
from lab.errors import LabError
from lab.evals import score_sheets, scores
from lab.evals.score_sheets import ScoredAnswer, ScoredModel, ScoredQuestion, ScoreSheet
from lab.evals.unlearned_rows import unlearned
from lab.formatting import quantity
from lab.schema import quote

MAX_QUESTIONS = 50  # questions, unless more are wished for
MAX_PATTERN_CHARS = 500
TEXT_SCORES: dict[str, Callable[[str, str], float]] = {
    "exact_match": scores.exact_match,
    "token_f1": scores.token_f1,
}
# What a person reads of each figure, in this order.
TITLES = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "shell_match": "shell match",
    "format": "format",
    "accuracy": "accuracy (written)",
    "macro_f1": "macro-F1 (written)",
    "likely_accuracy": "accuracy (likeliest)",
    "likely_macro_f1": "macro-F1 (likeliest)",
    "centred_accuracy": "choices, centred",
}
MAIN = tuple(TITLES)  # the first of these that a set has says which answers are right


@dataclass(frozen=True)
class Item:
    """One question with its reference; `labels` or `choices` where only some answers can be."""

    row: int
    messages: tuple[dict[str, Any], ...]
    reference: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreTerms:
    """The set as it is asked. `pattern`: the form of a right answer."""

    dataset: str
    items: list[Item]
    kind: str  # "labels", "choices", "shell" or "text"
    system_prompt: str
    pattern: re.Pattern[str] | None
    settings: GenerationSettings

    @property
    def questions(self) -> list[ScoredQuestion]:
        return [
            ScoredQuestion(item.row, str(item.messages[-1].get("content", "")), item.reference)
            for item in self.items
        ]

    @property
    def file(self) -> Path:
        """Where the answers are kept: what changes an answer is in its name."""
        pattern = self.pattern.pattern if self.pattern is not None else ""
        items = [asdict(item) for item in self.items]
        return score_sheets.file_of(
            [self.dataset, self.kind, items, pattern, asdict(self.settings)]
        )


Told = Callable[[str, int, int], object]  # model, answers so far, answers in all


def score(
    names: list[ModelRef],
    dataset_id: str,
    most: int = MAX_QUESTIONS,
    pattern: str = "",
    after_answer: Told = lambda model, done, total: None,
) -> ScoreSheet:
    """The answers of these models, the base first. Raises LabError for a set without a question."""
    ordered = chat_models.with_shared_template(with_base_first(names))
    terms = terms_of(ordered, dataset_id, most, pattern)
    models = {}
    for named in ordered:
        answers = measure(named, terms, after_answer)
        models[named.name] = ScoredModel(figures(answers, terms), tuple(answers))
    main = main_figure(models[ordered[0].name].figures)
    return ScoreSheet(dataset_id, terms.kind, main, tuple(terms.questions), models)


def measure(
    named: ModelRef,
    terms: ScoreTerms,
    after_answer: Told = lambda model, done, total: None,
) -> list[ScoredAnswer]:
    """The answers of one model, which are kept."""
    loaded = chat_models.load(named)
    answers: list[ScoredAnswer] = []
    for item in terms.items:
        answers.append(_answer(loaded, named, item, terms))
        after_answer(named.name, len(answers), len(terms.items))
    result = figures(answers, terms)
    sheet = ScoreSheet(terms.dataset, terms.kind, main_figure(result), tuple(terms.questions))
    score_sheets.keep(terms.file, sheet, named, result, answers)
    return answers


def with_base_first(names: list[ModelRef]) -> list[ModelRef]:
    """The bases, then the others in their order; the base of the first is added if it lacks."""
    if not any(named.run is None for named in names):
        names = [chat_models.parse(f"base:{names[0].base}"), *names]
    return sorted(names, key=lambda named: named.run is not None)


def terms_of(names: list[ModelRef], dataset_id: str, most: int, pattern: str) -> ScoreTerms:
    """Raises LabError."""
    dataset = catalog.resolve(dataset_id)
    receipts = [named.receipt for named in names if named.run is not None]
    system = str(receipts[0].get("system_prompt", "")) if receipts else dataset.system_prompt
    card = dataset.card
    if card.get("labels"):
        kind = "labels"
    elif card.get("format") == "multiple-choice":
        kind = "choices"
    else:
        kind = "shell" if card.get("answers") == "shell" else "text"
    examples = unlearned(dataset, [named.run for named in names if named.run is not None])
    labels = tuple(str(label) for label in card.get("labels") or ())
    items = [item for example in examples if (item := _item(example, kind, labels)) is not None]
    items = items[:most]
    if not items:
        raise LabError(
            f"'{quote(dataset_id)}' has no question with an answer to score.",
            "Choose a set of chats, questions and answers, labels or choices.",
        )
    longest = max(len(item.reference) for item in items)
    return ScoreTerms(
        dataset_id,
        items,
        kind,
        system,
        _pattern(pattern or str(card.get("pattern", ""))),
        # a reference in tokens takes fewer than its characters, and a wrong answer may be longer
        GenerationSettings(max_new_tokens=min(256, 16 + longest // 2), system_prompt=system),
    )


def _pattern(text: str) -> re.Pattern[str] | None:
    if not text:
        return None
    if len(text) > MAX_PATTERN_CHARS:
        raise LabError(
            f"The pattern has {quantity(len(text), 'character')}.", f"Use {MAX_PATTERN_CHARS}."
        )
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise LabError(
            f"'{quote(text)}' is not a regular expression: {error}.", "Write a regular expression."
        ) from None


def _item(example: Example, kind: str, labels: tuple[str, ...]) -> Item | None:
    """The last answer of a chat and what stands before it; None where it has none."""
    if not example.messages or example.messages[-1]["role"] != "assistant":
        return None
    *before, last = example.messages
    reference = last.get("content")
    if not isinstance(reference, str) or not reference.strip() or not before:
        return None
    options = labels
    if kind == "choices":
        options = tuple(listed_choices(str(before[-1].get("content", ""))))
        if reference not in options:
            return None
    return Item(example.row, tuple(before), reference.strip(), options)


def listed_choices(text: str) -> list[str]:
    """The last lines of a question that begin with A., B., C. …, as the reader of choices has
    written them."""
    lines = text.split("\n")
    for start in range(len(lines)):
        listed = lines[start:]
        letters = choices.LETTERS[: len(listed)]
        if len(listed) == len(letters) > 1 and all(
            line.startswith(f"{letter}. ") for letter, line in zip(letters, listed, strict=True)
        ):
            return listed
    return []


def _answer(loaded: LoadedModel, named: ModelRef, item: Item, terms: ScoreTerms) -> ScoredAnswer:
    from lab.chat import generate

    likeliest = _likeliest(loaded, item, terms) if item.options else ""
    text = ""
    if terms.kind != "choices":
        text = generate.answer(loaded, named, list(item.messages), terms.settings).text
    label = scores.closest_label(text, item.options) if terms.kind == "labels" else ""
    return ScoredAnswer(text, likeliest, label, answer_figures(text, likeliest, item, terms))


def _likeliest(loaded: LoadedModel, item: Item, terms: ScoreTerms) -> str:
    """Over their characters, so that long options are not punished."""
    from lab.chat import generate
    from lab.train.choice_probe import continuation_log_probabilities

    prompt = generate.render(loaded.tokenizer, list(item.messages), terms.settings)
    sums = continuation_log_probabilities(loaded.model, loaded.tokenizer, prompt, item.options)
    values = [total / len(option) for total, option in zip(sums, item.options, strict=True)]
    return item.options[max(range(len(values)), key=lambda position: values[position])]


def answer_figures(text: str, likeliest: str, item: Item, terms: ScoreTerms) -> dict[str, float]:
    """What of one answer is right: 1, 0, or a share."""
    figures: dict[str, float] = {}
    if terms.kind == "text":
        figures = {name: measure(text, item.reference) for name, measure in TEXT_SCORES.items()}
    elif terms.kind == "shell":
        figures = {
            "shell_match": scores.shell_match(text, item.reference),
            "exact_match": scores.exact_match(text, item.reference),
        }
    elif terms.kind == "labels":
        figures["accuracy"] = float(scores.closest_label(text, item.options) == item.reference)
    if likeliest:
        name = "likely_accuracy" if terms.kind == "labels" else "centred_accuracy"
        figures[name] = float(likeliest == item.reference)
    if terms.pattern is not None and terms.kind != "choices":
        figures["format"] = scores.complies(text, terms.pattern)
    return figures


def figures(answers: list[ScoredAnswer], terms: ScoreTerms) -> dict[str, float]:
    """Over all answers, in the order of TITLES."""
    names = [name for name in TITLES if name in answers[0].figures]
    result = {name: sum(a.figures[name] for a in answers) / len(answers) for name in names}
    right = [item.reference for item in terms.items]
    if terms.kind == "labels":
        result["macro_f1"] = scores.macro_f1([a.label for a in answers], right)
        result["likely_macro_f1"] = scores.macro_f1([a.likeliest for a in answers], right)
    if terms.kind == "choices":
        chance = sum(1 / len(item.options) for item in terms.items) / len(terms.items)
        result["centred_accuracy"] = (result["centred_accuracy"] - chance) / (1 - chance)
    return {name: result[name] for name in TITLES if name in result}


def main_figure(figures: Mapping[str, float]) -> str:
    """The figure that says which answers are right."""
    return next(name for name in MAIN if name in figures)


def only_right(first: Sequence[bool], second: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Indices of the rows that only the first gets right, and of those that only the second does;
    whether each is right, row by row."""
    pairs = list(enumerate(zip(first, second, strict=True)))
    return (
        [index for index, (mine, theirs) in pairs if mine and not theirs],
        [index for index, (mine, theirs) in pairs if theirs and not mine],
    )


def extremes(
    figures: Sequence[Mapping[str, float]], main: str, count: int = 3
) -> tuple[list[int], list[int]]:
    """Indices of the answers with the highest and the lowest figures; none is in both."""

    def quality(index: int) -> tuple[float, float]:
        return figures[index].get(main, 0.0), figures[index].get("token_f1", 0.0)

    order = sorted(range(len(figures)), key=quality, reverse=True)
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]
