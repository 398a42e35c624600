"""From messages to text, by the tokenizer's chat template and the settings that it is used with.

`configure` gives a tokenizer what a template may read beyond the messages: arguments such as
`enable_thinking`, the date, and the tokens at which the model itself stops. All that renders a chat
(labels, chat, samples, probes, scoring) reads them here, so that training and asking agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lab.data import formats, sandbox, template_input
from lab.data.template_input import Message
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote, quoted

ATTRIBUTE = "_lab_template_settings"
RESERVED = {
    "messages", "conversation", "tools", "documents", "add_generation_prompt", "bos_token",
    "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens", "strftime_now", "raise_exception", "namespace", "dict", "range",
}  # fmt: skip
PROBE = "\ue000"  # private use: no template trims or rewrites it


@dataclass(frozen=True)
class TemplateSettings:
    """`args` are variables of the template; `date` (ISO) is what it takes for now, "" for the
    clock; `stop_ids` are the tokens at which the model stops by its own generation config."""

    args: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    stop_ids: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What is not as by default, of what decides the text."""
        values = {"template_args": self.args, "template_date": self.date}
        return {name: value for name, value in values.items() if value}


class TemplateUnusable(LabError):
    """The chat template cannot render any chat: no row of a file can be better than the others."""


def settings_of(tokenizer: Any) -> TemplateSettings:
    """The settings that `configure` gave the tokenizer, or the defaults."""
    settings = getattr(tokenizer, ATTRIBUTE, None)
    return settings if isinstance(settings, TemplateSettings) else TemplateSettings()


def configure(
    tokenizer: Any,
    *,
    args: dict[str, Any] | None = None,
    date: str | None = None,
    stop_ids: tuple[int, ...] | None = None,
) -> None:
    """Set what is named of the tokenizer's template settings; the rest stays. Raises LabError."""
    before = settings_of(tokenizer)
    if args is not None:
        check_args(args)
    if date:
        _parsed(date)
    after = TemplateSettings(
        before.args if args is None else dict(args),
        before.date if date is None else date,
        before.stop_ids if stop_ids is None else tuple(stop_ids),
    )
    setattr(tokenizer, ATTRIBUTE, after)


def check_date(date: str | None) -> None:
    """Raise LabError for what is not a date."""
    if date:
        _parsed(date)


def check_args(args: dict[str, Any]) -> None:
    """Raise LabError for template arguments that the lab itself sets."""
    for name in args:
        if name in RESERVED or not name.isidentifier():
            raise LabError(
                f"data.template_args: '{quote(name)}' cannot be set.",
                "Name a variable that the chat template reads, such as enable_thinking.",
            )


def _parsed(date: str) -> datetime:
    try:
        return datetime.fromisoformat(date)
    except ValueError:
        raise LabError(
            f"'{quote(date)}' is not a date.", "Write data.template_date as 2026-01-31."
        ) from None


def reads_date(tokenizer: Any) -> bool:
    """Whether the chat template asks for the time."""
    template = getattr(tokenizer, "chat_template", None)
    sources = template.values() if isinstance(template, dict) else [template]
    return any("strftime_now" in str(source) for source in sources)


def source_of(tokenizer: Any, tools: list[Any] | None = None) -> str:
    """The text of the tokenizer's chat template: of several, the one called `default`, or
    `tool_use` for a chat with tools, as transformers chooses. Raises TemplateUnusable."""
    template = tokenizer.chat_template
    if isinstance(template, dict) and not {"default"} & template.keys():
        raise TemplateUnusable(
            f"The tokenizer has {quantity(len(template), 'chat template')} and no default: "
            f"{', '.join(quote(str(name)) for name in sorted(template)[:12])}.",
            "Name the one to use 'default' in tokenizer_config.json, or choose another in "
            "data.template.",
        )
    try:
        source = tokenizer.get_chat_template(tools=tools or None)
    except (ValueError, AttributeError) as error:
        raise TemplateUnusable(
            f"The tokenizer has no chat template to use: {_first_line(error)}.",
            "Choose one in data.template.",
        ) from None
    if not isinstance(source, str):
        raise TemplateUnusable(
            f"The chat template of the tokenizer is {quoted(source)}, not text.",
            "Choose one in data.template, or correct tokenizer_config.json.",
        )
    return source


def render(
    tokenizer: Any,
    messages: list[Message],
    *,
    to_answer: bool = False,
    tools: list[Any] | None = None,
) -> str:
    """The exact text of a chat; with `to_answer`, up to where the assistant begins to speak.

    The same as `tokenizer.apply_chat_template`, within the bounds of `lab.data.sandbox`. Raises
    LabError where the template refuses the chat or fails on it.
    """
    source = source_of(tokenizer, tools)
    if wants_parts(tokenizer, source):
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
    return _render(tokenizer, source, messages, to_answer, list(tools) if tools else None)


def _render(
    tokenizer: Any,
    source: str,
    messages: list[Message],
    to_answer: bool,
    tools: list[Any] | None,
) -> str:
    from jinja2 import TemplateError

    settings = settings_of(tokenizer)
    try:
        sandbox.compiled(source)
    except Exception as error:  # whatever a parser can raise at nonsense
        raise _unusable(error) from None
    variables = {
        "documents": None,
        "add_generation_prompt": to_answer,
        "additional_special_tokens": list(getattr(tokenizer, "extra_special_tokens", [])),
        **tokenizer.special_tokens_map,
        **settings.args,
    }
    now = _parsed(settings.date) if settings.date else None

    def written(shown: list[Message], given: list[Any] | None) -> str:
        return sandbox.render(source, shown, now=now, tools=given, **variables)

    try:
        text = template_input.text_of(written, source, messages, tools)
    except sandbox.TooMuch as error:
        raise _unusable(error) from None
    except TemplateError as error:
        raise LabError(
            f"The chat template refuses this conversation: {_first_line(error)}.",
            "Check the order of the roles, and whether the template takes a system turn.",
        ) from None
    except Exception as error:  # a template is a stranger's program: it can fail in any way
        raise LabError(
            f"The chat template fails on this conversation: {type(error).__name__}, "
            f"{_first_line(error)}.",
            "Choose another in data.template, or correct it in the model's folder.",
        ) from None
    if not text.isascii() and formats.SURROGATE.search(text):
        raise LabError(
            "The chat template writes half of a Unicode pair.",
            "Choose another in data.template, or correct it in the model's folder.",
        )
    return text


def wants_parts(tokenizer: Any, source: str) -> bool:
    """Whether the template reads contents as lists of parts only, as those of image models do."""
    return bool(cached(tokenizer, ("parts", source), lambda: _wants_parts(tokenizer, source)))


def _wants_parts(tokenizer: Any, source: str) -> bool:
    def is_written(content: Any) -> bool:
        message = {"role": "user", "content": content}
        try:
            return PROBE in _render(tokenizer, source, [message], False, None)
        except TemplateUnusable:
            raise
        except LabError:
            return False

    return not is_written(PROBE) and is_written([{"type": "text", "text": PROBE}])


CACHE = "_lab_template_cache"


def cached(tokenizer: Any, key: Any, compute: Any) -> Any:
    """What `compute` gives for this tokenizer as it is now. The values lie on the tokenizer, so
    that no cache keeps one in memory."""
    values = getattr(tokenizer, CACHE, None)
    if values is None:
        values = {}
        setattr(tokenizer, CACHE, values)
    settings = settings_of(tokenizer)
    whole = (
        key,
        tokenizer.eos_token,
        len(tokenizer),
        len(tokenizer.all_special_tokens),
        json.dumps([settings.args, settings.date, settings.stop_ids], sort_keys=True),
    )
    if whole not in values:
        if len(values) > 64:
            values.clear()
        values[whole] = compute()
    return values[whole]


def _unusable(error: Exception) -> TemplateUnusable:
    return TemplateUnusable(
        f"The chat template cannot be used: {_first_line(error)}.",
        "Choose another in data.template, or correct it in the model's folder.",
    )


def _first_line(error: Exception) -> str:
    """What an error of a template says, on one line."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text[:301])
    return text if len(text) <= 300 else f"{text[:299]}…"
