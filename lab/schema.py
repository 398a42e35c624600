"""Dataclasses that a user fills in: title, help and bounds are metadata of the field.

The command line, the form and the checks all read the same metadata:
`title`, `help`, `min`, `max`, `above` (exclusive minimum), `excluded` (numbers between them that
are not allowed), `choices`, `filled` (no empty text),
`words` (text allowed instead of a number, such as "auto"), `names` (a list of names of modules,
which may be written as one text: "q_proj, v_proj"), `members` (what such a list may hold, and
it may be empty), `formerly` (the field's name in earlier
versions, which is still read).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any

from lab.errors import Problem
from lab.formatting import quantity

Config = typing.TypeVar("Config", bound=Hashable)

MAX_ITEMS = 1000  # entries of a list or an object that a person writes
PATTERN_SIGN = "re:"  # what an entry of a list of names begins with that is a pattern over names
NAME = re.compile(r"[\w.-]+")


@functools.cache
def field_types(config: Any) -> dict[str, Any]:
    """The type of each field of a dataclass, read once from its annotations."""
    types_by_name = typing.get_type_hints(config)
    return {field.name: types_by_name[field.name] for field in dataclasses.fields(config)}


def option(default: Any, title: str, help: str, **limits: Any) -> Any:
    """A dataclass field with its title, help and bounds for people. `default` may be a list."""
    metadata = {"title": title, "help": help, **limits}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class FieldDescription:
    """One option of a config dataclass. `type` is in words; `metadata` holds title, help and
    bounds, as the top of this file lists them."""

    name: str
    type: str
    default: Any
    metadata: Mapping[str, Any]

    @property
    def title(self) -> str:
        return str(self.metadata["title"])

    @property
    def help(self) -> str:
        return str(self.metadata["help"])

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "default": self.default, **self.metadata}


def describe(config: type) -> list[FieldDescription]:
    """The options of a config dataclass, in their order."""
    hints = field_types(config)
    rows = []
    for field in dataclasses.fields(config):
        missing = field.default is dataclasses.MISSING
        default = (
            field.default_factory()
            if missing and field.default_factory is not dataclasses.MISSING
            else (None if missing else field.default)
        )
        rows.append(
            FieldDescription(field.name, type_name(hints[field.name]), default, field.metadata)
        )
    return rows


def former_names(config: Any) -> dict[str, str]:
    """The names that fields had in earlier versions, each with the field's name of today."""
    return {
        field.metadata["formerly"]: field.name
        for field in dataclasses.fields(config)
        if "formerly" in field.metadata
    }


def with_current_names(config: Any, value: dict[str, Any]) -> dict[str, Any]:
    """A stored object with the keys of today; what it has under both names keeps today's value."""
    renamed = former_names(config)
    return {renamed[key]: item for key, item in value.items() if key in renamed} | {
        key: item for key, item in value.items() if key not in renamed
    }


def type_name(hint: Any) -> str:
    """`int | None` → "int or null", for messages and listings."""
    names = {
        int: "integer",
        float: "number",
        str: "text",
        bool: "true or false",
        list: "list",
        dict: "object",
    }
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [type_name(part) for part in typing.get_args(hint) if part is not type(None)]
        nullable = type(None) in typing.get_args(hint)
        return " or ".join([*parts, *(["null"] if nullable else [])])
    if typing.get_args(hint)[:1] in ((int,), (float,)):
        return "list of numbers"
    return names.get(typing.get_origin(hint) or hint, str(hint))


def unknown_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown key '{quote(key)}'.{guess} Known keys: {', '.join(known)}."


def quote(value: Any) -> str:
    """A value as a message quotes it: printable, on one line, never longer than 80 characters."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value in itself
        text = f"{type(value).__name__} that cannot be written"
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return text if len(text) <= 80 else f"{text[:77]}…"


def parse(config: type[Config], value: Any, where: str, problems: list[Problem]) -> Config:
    """`value` (parsed JSON) as a `config`, with every problem added to `problems`.

    A field with a problem keeps its default, so that the caller can go on and find the rest.
    """
    if not isinstance(value, dict):
        problems.append(Problem(where or "spec", f"must be an object, got {quote(value)}."))
        return config()
    hints = field_types(config)
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    renamed = former_names(config)
    accepted: dict[str, Any] = {}
    for written, item in value.items():
        key: str = renamed.get(written) or written
        if key != written and key in value:
            message = f"is the former name of '{key}', which is there too. Give one of them."
            problems.append(Problem(f"{where}.{written}".lstrip("."), message))
            continue
        field_key = f"{where}.{key}" if where else key
        if key not in fields:
            problems.append(Problem(field_key, unknown_key(key, list(fields))))
            continue
        message, cleaned = validate(item, hints[key], fields[key].metadata)
        if message:
            problems.append(Problem(field_key, message))
        else:
            accepted[key] = cleaned
    return config(**accepted)


def validate(value: Any, hint: Any, limits: Any) -> tuple[str, Any]:
    """(what is wrong with `value`, "") or ("", the value in the field's type)."""
    allowed = typing.get_args(hint) if _is_union(hint) else (hint,)
    if value is None:
        return (
            ("", None) if type(None) in allowed else (f"must be {_expected(hint, limits)}.", None)
        )
    choices = limits.get("choices")
    if choices is not None:
        if isinstance(value, bool) and {"on", "off"} <= set(choices):
            value = "on" if value else "off"
        if value in choices:
            return "", value
        return f"is '{quote(value)}'. Choose one of: {', '.join(map(str, choices))}.", None
    if isinstance(value, str) and value in limits.get("words", ()):
        return "", value
    if limits.get("names") and isinstance(value, str):
        value = split_names(value)
    if "members" in limits and value == []:
        return "", []
    for kind in allowed:
        if kind is str and "words" in limits:
            continue  # only the listed words are text that this field takes
        cleaned = coerce(kind, value)
        if cleaned is not None:
            return _bounds(cleaned, limits), cleaned
    return f"must be {_expected(hint, limits)}, is {quoted(value)}.", None


def split_names(text: str) -> list[str]:
    """The names in "q_proj, v_proj". A pattern, which may hold commas, stays whole."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    is_list = all(NAME.fullmatch(part) or part.startswith(PATTERN_SIGN) for part in parts)
    return parts if is_list and not text.startswith(PATTERN_SIGN) else [text.strip()]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def coerce(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None if it is something else. A bool is not a number; 4.0 is 4."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind is int:
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            return int(value)
        return value if isinstance(value, int) else None
    if kind is float:
        try:
            return float(value) if isinstance(value, (int, float)) else None
        except OverflowError:
            return math.inf  # refused like NaN
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is dict or typing.get_origin(kind) is dict:
        return value if isinstance(value, dict) else None
    if kind is list or typing.get_origin(kind) is list:
        item_kind = (typing.get_args(kind) or (str,))[0]
        if not isinstance(value, list) or not value:
            return None
        items = [coerce(item_kind, item) for item in value]
        return None if None in items else items
    return None


def _bounds(value: Any, limits: Any) -> str:
    if isinstance(value, (list, dict)) and len(value) > limits.get("max_items", MAX_ITEMS):
        most = limits.get("max_items", MAX_ITEMS)
        return f"has {quantity(len(value), 'entry', 'entries')}; at most {most:,} are allowed."
    if isinstance(value, list):
        strange = [item for item in value if item not in limits.get("members", value)]
        if strange:
            return f"has '{quote(strange[0])}'. Choose among: {', '.join(limits['members'])}."
        messages = (_bounds(item, limits) for item in value)
        return next((message for message in messages if message), "")
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which is not a number to train with. Give a finite number."
    low, above, high = limits.get("min"), limits.get("above"), limits.get("max")
    if isinstance(value, (int, float)):
        if above is not None and not value > above:
            return f"is {number_text(value)}; it must be above {number_text(above)}{_up_to(high)}."
        if low is not None and value < low:
            return f"is {number_text(value)}; it must be at least {number_text(low)}{_up_to(high)}."
        if value in limits.get("excluded", ()):
            return f"is {number_text(value)}, which is not allowed. {limits['help']}"
        if high is not None and value > high:
            return f"is {number_text(value)}; it must be at most {number_text(high)}."
    if isinstance(value, str):
        return _text(value, limits)
    if isinstance(value, dict):
        return _entries(value, limits)
    return ""


def _entries(value: dict[str, Any], limits: Any) -> str:
    """What is wrong with an object of texts."""
    known = limits.get("keys")
    for key, item in value.items():
        if known and key not in known:
            return unknown_key(str(key), list(known))
        if limits.get("scalars") and not isinstance(item, str):
            if item is not None and not isinstance(item, (bool, int, float)):
                return f"'{quote(str(key))}' must be text, a number, true, false or null."
            wrong = _text(str(key), {}) or ("" if isinstance(item, bool) else _bounds(item, {}))
            if wrong:
                return f"'{quote(str(key))}' {wrong}"
            continue
        if not isinstance(item, str):
            return f"'{quote(str(key))}' must be text, is {quote(item)}."
        wrong = _text(str(key), {}) or _text(item, {"multiline": True})
        if wrong:
            return f"'{quote(str(key))}' {wrong}"
    return ""


def _text(value: str, limits: Any) -> str:
    longest = limits.get("max_characters", 4096)
    if len(value) > longest:
        return f"has {quantity(len(value), 'character')}; at most {longest:,} are allowed."
    if limits.get("filled") and not value.strip():
        return "is empty; name something, or leave it out."
    if not limits.get("multiline") and any(ord(char) < 32 or ord(char) == 127 for char in value):
        return f"is '{quote(value)}': control characters are not allowed."
    if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        return f"is '{quote(value)}': it holds half of a Unicode pair."
    forbidden = [char for char in limits.get("forbid", "") if char in value]
    if forbidden:
        return f"is '{quote(value)}': the characters {' '.join(forbidden)} are not allowed."
    return ""


def _up_to(high: Any) -> str:
    return "" if high is None else f" and at most {number_text(high)}"


def number_text(value: float) -> str:
    """12,000 and 0.0002, as a person writes them."""
    if isinstance(value, int) and abs(value) < 10**18:
        return f"{value:,}"
    try:
        return f"{value:g}"
    except OverflowError:  # an integer of hundreds of digits
        return f"a number of {math.floor(math.log10(abs(int(value)))) + 1} digits"


def quoted(value: Any) -> str:
    return f"'{quote(value)}'" if isinstance(value, str) else quote(value)


def _expected(hint: Any, limits: Any) -> str:
    words = [f'"{word}"' for word in limits.get("words", ())]
    names = type_name(hint).split(" or ")
    return " or ".join([name for name in names if not (words and name == "text")] + words)
