"""Frozen dataclasses out of stored JSON, which may be older, newer or damaged."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin

from lab import schema
from lab.atomic_files import finite_number

Kind = TypeVar("Kind")


class _Unreadable(Exception):
    """A value is of another type than its field."""


def read(kind: type[Kind], stored: Any, damaged: list[str] | None = None) -> Kind | None:
    """A `kind` with what `stored` holds of its fields; None if that is no JSON object.

    Never raises. Unknown keys are passed over. A field that is missing, or holds another type,
    keeps its default; the name of the second goes into `damaged`.
    """
    if not isinstance(stored, Mapping):
        return None
    values: dict[str, Any] = {}
    hashable: Any = kind
    for name, hint in schema.field_types(hashable).items():
        if name not in stored:
            continue
        try:
            values[name] = _value(hint, stored[name], damaged)
        except _Unreadable:
            if damaged is not None:
                damaged.append(name)
    return kind(**values)


def _value(hint: Any, value: Any, damaged: list[str] | None) -> Any:
    """`value` as a field of type `hint` holds it. Raises _Unreadable."""
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _value(arguments[0], value, damaged)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, damaged) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {name: _value(arguments[1], item, damaged) for name, item in value.items()}
    if isinstance(hint, type):
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return read(hint, value, damaged)
        if (
            issubclass(hint, Enum)
            and isinstance(value, str)
            and value in [item.value for item in hint]
        ):
            return hint(value)
        if hint in (int, float):
            finite = finite_number(value)
            if finite is not None and (hint is float or finite == int(finite)):
                return finite if hint is float else int(finite)
        elif hint in (str, bool) and isinstance(value, hint):
            return value
    raise _Unreadable
