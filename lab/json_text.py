"""JSON that a person or a program gave: parsed within bounds, refused in plain words."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from typing import Any

from lab.schema import quote

MAX_DEPTH = 64  # lists and objects inside each other; Python gives up at about a thousand


class BadJson(ValueError):
    """Why a text is not JSON that the lab takes."""


class NotJson(BadJson):
    """Where it stops being JSON at all."""


def parse(text: str | bytes, *, unique: bool = True) -> Any:
    """The value of a JSON text. Raises BadJson with the reason.

    Refused besides what is not JSON: more than MAX_DEPTH levels, integers of more digits than
    Python reads, text that is not UTF-8, and with `unique` an object that names a key twice, of
    which JSON parsers keep either.
    """
    try:
        if isinstance(text, bytes):
            is_wide = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = text.decode("utf-16" if is_wide else "utf-8")
        value = json.loads(
            text.removeprefix("\ufeff"), object_pairs_hook=_object if unique else None
        )
    except UnicodeDecodeError as error:
        name = "UTF-16" if error.encoding.startswith("utf-16") else "UTF-8"
        raise BadJson(f"not {name} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise BadJson(f"nested too deeply, in more than {MAX_DEPTH} lists and objects") from None
    except BadJson:
        raise
    except ValueError:  # of integers only
        raise BadJson("an integer has thousands of digits") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value):
        raise BadJson(f"nested too deeply, in more than {MAX_DEPTH} lists and objects")
    return value


def value_or_text(text: str) -> Any:
    """As `parse`, but what is not JSON at all is the text itself: 8 is a number, 8bit a word."""
    try:
        return parse(text)
    except NotJson:
        return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise BadJson(f"'{quote(twice)}' stands twice in one object")
    return value


def _is_deeper(value: Any) -> bool:
    """Whether `value` has more than MAX_DEPTH levels; looks level by level."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        level = [
            item
            for part in level
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, (dict, list))
        ]
    return bool(level)
