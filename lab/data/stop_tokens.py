"""Where a turn ends: the tokens at which generation stops, worked out in one place.

The set of a model, its tokenizer and its chat template is the end of the model's generation config,
the tokenizer's end token, and the end that the labels teach: what the template writes behind an
answer. Labels, chat, samples, the forgetting probe, scoring and the exported script read it here,
and it is written into the generation config of every result.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object, write_json
from lab.data import rendering
from lab.errors import LabError

QUESTION, FIRST, AGAIN, LAST = (f"\ue000{index}\ue001" for index in range(4))
FILE = "generation_config.json"


def ids(tokenizer: Any, model: Any = None) -> list[int]:
    """The ids at which generation stops, in ascending order.

    `model` adds the end of its own generation config to that of its folder, which the tokenizer
    carries.
    """
    model_ids = _listed(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    known = [tokenizer.eos_token_id, *rendering.settings_of(tokenizer).stop_ids, *model_ids]
    return sorted({*taught(tokenizer), *known})


def spellings(tokenizer: Any) -> set[str]:
    """The texts of the stop tokens: those that a text can spell."""
    return set(
        rendering.cached(
            tokenizer,
            ("stops", str(tokenizer.chat_template)),
            lambda: (
                {tokenizer.convert_ids_to_tokens(i) for i in ids(tokenizer)}
                & control_tokens(tokenizer)
            ),
        )
    )


def taught(tokenizer: Any) -> list[int]:
    """The id of the token that the template writes behind an answer, if generation does not stop
    there anyway; else an empty list."""
    if not tokenizer.chat_template:
        return []
    return list(
        rendering.cached(
            tokenizer, ("taught", str(tokenizer.chat_template)), lambda: _taught(tokenizer)
        )
    )


def _taught(tokenizer: Any) -> list[int]:
    behind = _behind_an_answer(tokenizer)
    known = {tokenizer.eos_token_id, *rendering.settings_of(tokenizer).stop_ids}
    for text in behind:
        tokens = _leading(tokenizer, text)
        if any(token in known for token in tokens):
            return []
        if tokens:
            special = set(tokenizer.all_special_ids) | {
                i for i, token in tokenizer.added_tokens_decoder.items() if token.special
            }
            return ([token for token in tokens if token in special] or tokens)[-1:]
    return []


def _behind_an_answer(tokenizer: Any) -> list[str]:
    """What the template writes behind an answer wherever it stands, then behind the last one."""

    def chat(*contents: str) -> str:
        roles = ("user", "assistant")
        messages = [
            {"role": roles[i % 2], "content": content} for i, content in enumerate(contents)
        ]
        try:
            return rendering.render(tokenizer, messages)
        except rendering.TemplateUnusable:
            raise
        except LabError:
            return ""

    last = chat(QUESTION, LAST).partition(LAST)[2]
    longer = chat(QUESTION, FIRST, AGAIN, LAST).partition(FIRST)[2]
    shared = 0
    while shared < min(len(last), len(longer)) and last[shared] == longer[shared]:
        shared += 1
    return [last[:shared], last] if longer else [last]


def _leading(tokenizer: Any, text: str) -> list[int]:
    """The ids of the control tokens that `text` begins with; blanks may stand between."""
    pattern = control_pattern(tokenizer)
    tokens, offset = [], 0
    while match := pattern.match(text, offset + len(text[offset:]) - len(text[offset:].lstrip())):
        tokens.append(int(tokenizer.convert_tokens_to_ids(match[0])))
        offset = match.end()
    return tokens


def control_tokens(tokenizer: Any) -> set[str]:
    """The texts that become one token wherever they stand: special and added ones."""

    def compute() -> set[str]:
        added = tokenizer.get_added_vocab()
        return {t for t in {*tokenizer.all_special_tokens, *added} if t and not t.isspace()}

    return set(rendering.cached(tokenizer, "control", compute))


def control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches a control token; of two that begin alike, the longer one."""

    def compute() -> re.Pattern[str]:
        tokens = sorted(control_tokens(tokenizer), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    pattern: re.Pattern[str] = rendering.cached(tokenizer, "pattern", compute)
    return pattern


def of_folder(folder: Path) -> tuple[int, ...]:
    """The stop tokens that a model's folder names: as transformers reads them, from the generation
    config, or from the model's config where there is none."""
    config = read_object(folder / FILE)
    if config is None:
        config = read_object(folder / "config.json") or {}
        nested = config.get("text_config")
        if config.get("eos_token_id") is None and isinstance(nested, dict):
            config = nested
    return tuple(_listed(config.get("eos_token_id")))


def write(folder: Path, tokenizer: Any, model: Any = None) -> None:
    """Have `generate` on the model in `folder` stop where the lab stops."""
    config = read_object(folder / FILE) or {}
    stops = ids(tokenizer, model)
    config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if config.get("pad_token_id") is None:
        config["pad_token_id"] = tokenizer.pad_token_id
    write_json(folder / FILE, config)


def _listed(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if type(token) is int and token >= 0]
