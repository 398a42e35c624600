"""Repeat an answer from its receipt: the same tokens again, or what has changed since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.atomic_files import load_json, part
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.answers import ModelAnswer
from lab.chat.requests import Refused, read_request
from lab.chat.settings import GenerationSettings
from lab.errors import LabError
from lab.schema import quote

MAX_RECEIPT_BYTES = 20_000_000
COMPARED = {
    "base": "the base model",
    "base_weights": "the weights of the base",
    "weights": "the weights of the result",
    "template_hash": "the chat template",
    "prompt_hash": "the tokens of the prompt",
    "dtype": "the precision",
    "versions": "the versions of the libraries",
}


@dataclass(frozen=True)
class Repetition:
    """`differences` are in words; empty where all that the receipt keeps is as it was."""

    is_same: bool  # the tokens
    differences: list[str]
    answer: ModelAnswer
    first_difference: int | None  # place of the first other token

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"answer": self.answer.to_json()}


def repeat(
    path: Path, fetch: Callable[[list[chat_models.ModelRef]], object] = lambda names: None
) -> Repetition:
    """Answer again as the receipt in `path` says; `fetch` is given the models first. Raises
    LabError for what is not a receipt."""
    try:
        record = load_json(path, MAX_RECEIPT_BYTES)
    except (OSError, ValueError) as error:
        raise LabError(f"{quote(str(path))} cannot be read: {error}.", "Give a receipt.") from None
    receipt = part(record, "receipt")
    token_ids: Any = record.get("token_ids") if isinstance(record, dict) else None
    is_list = isinstance(token_ids, list) and all(type(token) is int for token in token_ids)
    if not is_list or not isinstance(receipt.get("model"), str):
        raise LabError(
            f"{quote(str(path))} is not a receipt.",
            "Download one on the Chat page, in the details of an answer.",
        )
    try:
        body = read_request(
            {"model": receipt["model"], "messages": record.get("messages")}
            | part(record, "settings")
        )
    except Refused as refused:
        raise LabError(f"{quote(str(path))} is not a receipt: {refused}.") from None
    named = chat_models.parse(body["model"])
    if isinstance(receipt.get("template_of"), str) and receipt["template_of"]:
        result = chat_models.parse(receipt["template_of"])
        named = replace(named, template_of=result)
    settings = GenerationSettings.of_request(body)
    fetch([named, *filter(None, [named.template_of])])
    answer = _answer(named, body["messages"], settings)
    again = answer.receipt.to_json()
    # of what it keeps: an older receipt does not name the weights of its base
    differences = [
        words for key, words in COMPARED.items() if key in receipt and again[key] != receipt[key]
    ]
    pairs = zip(answer.token_ids, token_ids, strict=False)
    first = next((index for index, (new, old) in enumerate(pairs) if new != old), None)
    is_same = answer.token_ids == token_ids
    if first is None and not is_same:
        first = min(len(answer.token_ids), len(token_ids))
    return Repetition(is_same, differences, answer, first)


def _answer(
    named: chat_models.ModelRef, messages: list[dict[str, str]], settings: GenerationSettings
) -> ModelAnswer:
    from lab.chat.engine import together
    from lab.chat.engine.loaded_models import LoadedModels

    pending = generate.prepare(LoadedModels().get(named), named, messages, settings)
    together.run_together([pending.decoding.run])
    return pending.outcome()
