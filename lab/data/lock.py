"""The template lock: what a result was trained with, kept beside it and held against later use.

A model answers well only in the form that it learned. The lock holds the chat template, the system
prompt, the end and pad tokens and the mask policy; chat compares and shows the first token that
differs.
"""

from __future__ import annotations

from typing import Any

from lab.data import template
from lab.errors import LabError

PROBE = [
    {"role": "user", "content": "Question one"},
    {"role": "assistant", "content": "Answer one"},
    {"role": "user", "content": "Question two"},
]
AROUND = 4  # tokens shown before and behind a difference


def make(tokenizer: Any, system_prompt: str, loss_on: str) -> dict[str, Any]:
    """The lock of a result, as its receipt keeps it."""
    return {
        "hash": template.fingerprint(tokenizer, system_prompt, loss_on),
        "template": tokenizer.chat_template,
        "system_prompt": system_prompt,
        "end_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "loss_on": loss_on,
        "probe_ids": _probe_ids(tokenizer, system_prompt),
    }


def enforce(lock: dict[str, Any], tokenizer: Any) -> None:
    """Raise LabError if the tokenizer beside a result is not the one that the lock names."""
    if not lock:
        return  # a result from before there were locks
    now = make(tokenizer, str(lock.get("system_prompt", "")), str(lock.get("loss_on", "")))
    if now["hash"] == lock.get("hash"):
        return
    changed = [
        name.replace("_", " ")
        for name in ("template", "end_token", "pad_token")
        if now[name] != lock.get(name)
    ]
    shown = difference(tokenizer, _ids(lock), now["probe_ids"])
    raise LabError(
        f"The {' and '.join(changed) or 'tokenizer'} of this result differs from the one that it "
        f"was trained with. {shown}".strip(),
        "Put tokenizer_config.json and the chat template in its folder back as they were.",
    )


def warning(lock: dict[str, Any], tokenizer: Any, system_prompt: str) -> str:
    """What to tell a person who asks under another system prompt than the one in training."""
    trained = str(lock.get("system_prompt", ""))
    if not lock or trained == system_prompt:
        return ""
    shown = difference(tokenizer, _ids(lock), _probe_ids(tokenizer, system_prompt))
    return f"The system prompt is not the one in training. {shown}".strip()


def difference(tokenizer: Any, before: list[int], now: list[int]) -> str:
    """The first place at which two token sequences differ, with the tokens around it."""
    place = next(
        (place for place, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]),
        min(len(before), len(now)),
    )
    if not before or (place == len(before) == len(now)):
        return ""
    start = max(0, place - 1)
    then, here = (
        " ".join(_spelled(tokenizer, one) for one in ids[start : place + AROUND]) or "the end"
        for ids in (before, now)
    )
    return f"From token {place + 1} on: trained {then}; now {here}."


def _spelled(tokenizer: Any, token: int) -> str:
    return "⟨" + repr(tokenizer.decode([token]))[1:-1] + "⟩"


def _ids(lock: dict[str, Any]) -> list[int]:
    ids = lock.get("probe_ids")
    return [one for one in ids if isinstance(one, int)] if isinstance(ids, list) else []


def _probe_ids(tokenizer: Any, system_prompt: str) -> list[int]:
    """A short chat as tokens; empty where the template refuses it (no system turn, say)."""
    messages = template.with_system(tuple(PROBE), system_prompt)
    try:
        text = template.render(tokenizer, messages, to_answer=True)
    except LabError:
        return []
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
