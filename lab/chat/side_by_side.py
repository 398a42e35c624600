"""The same question to several models at once, for programs and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lab.atomic_files import part, read_object
from lab.chat import generate
from lab.chat.answers import AnswerReceipt, ModelAnswer
from lab.chat.models import ModelRef, with_shared_template
from lab.chat.settings import GenerationSettings

if TYPE_CHECKING:
    from lab.chat.engine.loaded_models import LoadedModels


def answer_all(
    names: list[ModelRef], conversation: list[dict[str, str]], settings: GenerationSettings
) -> list[ModelAnswer]:
    """An answer of each model to the same conversation, decoded together. Raises LabError, also
    where the conversation is too long for one of them, before any answers."""
    from lab.chat.engine.loaded_models import LoadedModels

    settings = replace(settings, system_prompt=shared_system_prompt(names, settings))
    return answer_together(LoadedModels(), names, conversation, settings)


def shared_system_prompt(names: list[ModelRef], settings: GenerationSettings) -> str:
    """The one given, else the one that the first result was trained with: the same for all."""
    if settings.system_prompt is not None:
        return settings.system_prompt
    for named in names:
        if named.run is not None:
            stored = read_object(named.run.spec) or {}
            return str(part(stored, "data").get("system_prompt") or "")
    return ""


def prompt_warning(receipts: Mapping[str, AnswerReceipt]) -> str:
    """A sentence where the models of one question did not read the same prompt; else empty.

    `receipts` are those of the answers by the name of their model. What is compared is the last
    question under each chat template, since the answers before it are each model's own.
    """
    readers: dict[str, list[str]] = {}
    for name, receipt in receipts.items():
        if receipt.question_hash:
            readers.setdefault(receipt.question_hash, []).append(name)
    if len(readers) < 2:
        return ""
    templates = {receipts[names[0]].template_hash for names in readers.values()}
    reason = (
        "their chat templates differ"
        if len(templates) > 1
        else "their chat templates have other arguments, or another date"
    )
    groups = " | ".join(", ".join(names) for names in readers.values())
    return (
        f"These models do not read the same prompt, since {reason}: {groups}. Answers may differ "
        "for that reason, too."
    )


def answer_together(
    models: LoadedModels,
    names: list[ModelRef],
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
    on_text: Callable[[str, str], None] = lambda name, text: None,
) -> list[ModelAnswer]:
    """An answer of each model to the same conversation, decoded together. Raises LabError, also
    where the conversation is too long for a model, before any answers."""
    from lab.chat.engine import together

    names = with_shared_template(names)
    for named in names:
        models.check_length(named, conversation, settings)
    in_use = frozenset(named.name for named in names)
    with models.turn:
        pending = [
            generate.prepare(
                models.get(named, in_use),
                named,
                conversation,
                settings,
                partial(on_text, named.name),
            )
            for named in names
        ]
        together.run_together([answer.decoding.run for answer in pending])
    return [answer.outcome() for answer in pending]
