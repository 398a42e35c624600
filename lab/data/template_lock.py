"""The template lock: what a result was trained with, kept beside it and held against later use.

A model answers well only in the form that it learned. The lock holds the chat template, the system
prompt, the end and pad tokens and the mask policy; chat, evaluation and merging compare and show
the first token that differs. An export, which loads no tokenizer, compares the tokenizer's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.data import chat_template, rendering, token_cache
from lab.errors import LabError
from lab.schema import quote

PROBE = [
    {"role": "user", "content": "Question one"},
    {"role": "assistant", "content": "Answer one"},
    {"role": "user", "content": "Question two"},
]
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
AROUND = 4  # tokens shown before and behind a difference


def make_lock(tokenizer: Any, system_prompt: str, loss_on: str) -> dict[str, Any]:
    """The lock of a result, as its receipt keeps it."""
    return {
        "hash": chat_template.fingerprint(tokenizer, system_prompt, loss_on),
        "template": tokenizer.chat_template,
        "system_prompt": system_prompt,
        "end_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "loss_on": loss_on,
        **rendering.settings_of(tokenizer).to_json(),
        "probe_ids": _probe_ids(tokenizer, system_prompt),
    }


def files(folder: Path) -> dict[str, str]:
    """sha256 of each file beside a result that decides how text becomes tokens."""
    return {name: token_cache.content_hash(folder / name) for name in file_names(folder)}


def file_names(folder: Path) -> list[str]:
    """The files of a tokenizer in `folder`, those of further named templates among them."""
    more = sorted(folder.glob("additional_chat_templates/*.jinja"))
    names = [*FILES, *(f"additional_chat_templates/{path.name}" for path in more)]
    return [name for name in names if (folder / name).is_file()]


def enforce_files(receipt: dict[str, Any], folder: Path) -> None:
    """Raise LabError if a file of the tokenizer in `folder` is not the one of the receipt."""
    saved = receipt.get("tokenizer_files")
    if not isinstance(saved, dict):
        return  # a result from before they were kept
    now = files(folder)
    changed = sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
    if changed:
        raise LabError(
            f"{', '.join(changed)} of this result is not the file that it was trained with.",
            f"Put it back into {folder} as it was.",
        )


def check_settings(
    lock: dict[str, Any], tokenizer: Any, system_prompt: str, loss_on: str, name: str
) -> None:
    """Raise LabError if rows made on these terms are not what the result learned from."""
    if not lock:
        return
    check_tokenizer(lock, tokenizer)  # which refuses a damaged one
    for word, now in (("system_prompt", system_prompt), ("loss_on", loss_on)):
        trained = str(lock.get(word, ""))
        if trained == now:
            continue
        shown = ""
        if word == "system_prompt":
            shown = " " + difference(tokenizer, _ids(lock), _probe_ids(tokenizer, now))
        raise LabError(
            f"{name} was trained with the {word.replace('_', ' ')} '{quote(trained)}'; these rows "
            f"have '{quote(now)}'.{shown}".rstrip(),
            "Measure it alone: then the settings of its own run are used.",
        )


def check_tokenizer(lock: dict[str, Any], tokenizer: Any) -> None:
    """Raise LabError if the tokenizer beside a result is not the one that the lock names."""
    if not lock:
        return  # a result from before there were locks
    if not isinstance(lock, dict):
        raise LabError(
            f"The receipt of this result is damaged: its lock is {quote(lock)}.",
            "Put receipt.json back as it was, or export the run again.",
        )
    now = make_lock(tokenizer, str(lock.get("system_prompt", "")), str(lock.get("loss_on", "")))
    if now["hash"] == lock.get("hash"):
        return
    changed = [
        name.replace("_", " ")
        for name in ("template", "end_token", "pad_token", "template_args", "template_date")
        if now.get(name) != lock.get(name)
    ]
    shown = difference(tokenizer, _ids(lock), now["probe_ids"])
    raise LabError(
        f"The {' and '.join(changed) or 'tokenizer'} of this result differs from the one that it "
        f"was trained with. {shown}".strip(),
        "Put tokenizer_config.json and the chat template in its folder back as they were.",
    )


def warning(lock: dict[str, Any], tokenizer: Any, system_prompt: str) -> str:
    """What to tell a person who asks under another system prompt than the one in training."""
    trained = str(lock.get("system_prompt", "")) if isinstance(lock, dict) else system_prompt
    if not lock or trained == system_prompt:
        return ""
    shown = difference(tokenizer, _ids(lock), _probe_ids(tokenizer, system_prompt))
    return f"The system prompt is not the one in training. {shown}".strip()


def difference(tokenizer: Any, before: list[int], now: list[int]) -> str:
    """The first place at which two token sequences differ, with the tokens around it."""
    index = next(
        (index for index, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]),
        min(len(before), len(now)),
    )
    if not before or (index == len(before) == len(now)):
        return ""
    start = max(0, index - 1)
    then, here = (
        " ".join(_spelled(tokenizer, token_id) for token_id in ids[start : index + AROUND])
        or "the end"
        for ids in (before, now)
    )
    return f"From token {index + 1} on: trained {then}; now {here}."


def _spelled(tokenizer: Any, token: int) -> str:
    is_known = 0 <= token < len(tokenizer)
    return "⟨" + repr(tokenizer.decode([token]) if is_known else str(token))[1:-1] + "⟩"


def _ids(lock: dict[str, Any]) -> list[int]:
    ids = lock.get("probe_ids")
    if not isinstance(ids, list):
        return []
    # a damaged receipt may hold anything
    return [token_id for token_id in ids if isinstance(token_id, int) and abs(token_id) < 2**31]


def _probe_ids(tokenizer: Any, system_prompt: str) -> list[int]:
    """A short chat as tokens; empty where the template refuses it (no system turn, say)."""
    messages = chat_template.with_system(tuple(PROBE), system_prompt)
    try:
        text = chat_template.render(tokenizer, messages, to_answer=True)
    except LabError:
        return []
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
