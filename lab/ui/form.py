"""The values of the form: from a spec, and as a spec.

A field's value lives in the session under `PREFIX.section.key`.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import streamlit as st

from lab import formatting, methods, schema
from lab.spec import SECTIONS, TOP_LEVEL_KEYS, RunSpec

PREFIX = "new"


def key(section: str, name: str) -> str:
    return f"{PREFIX}.{section}.{name}" if section else f"{PREFIX}.{name}"


def set_value(section: str, name: str, value: Any, hint: Any, metadata: Any) -> None:
    """Put a spec's value into the widget's form: numbers that may be a word are text."""
    literals = metadata.get("words")
    if "members" in metadata:
        value = list(value)
    elif isinstance(value, list):
        value = ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    elif isinstance(value, dict):
        value = "; ".join(
            f"{name}={entry if isinstance(entry, str) else json.dumps(entry)}"
            for name, entry in value.items()
        )
    elif literals and not isinstance(value, str):
        value = formatting.rate(value)
    elif float in union_members(hint) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    st.session_state[key(section, name)] = value


def load(spec: RunSpec) -> None:
    """Fill the whole form from a spec."""
    st.session_state[f"{PREFIX}.problems"] = {}
    for name in TOP_LEVEL_KEYS:
        st.session_state[key("", name)] = getattr(spec, name)
    for section, config in SECTIONS.items():
        _load_section(section, config, dataclasses.asdict(getattr(spec, section)))
    for method in methods.all_methods():
        values = {field.name: field.default for field in schema.describe(method.config)}
        if method.name == spec.method["name"]:
            values |= {name: value for name, value in spec.method.items() if name != "name"}
        _load_section(f"method.{method.name}", method.config, values)
    st.session_state[key("method", "name")] = spec.method["name"]


def _load_section(section: str, config: type, values: dict[str, Any]) -> None:
    hints = schema.field_types(config)
    for field in dataclasses.fields(config):
        set_value(section, field.name, values[field.name], hints[field.name], field.metadata)


def value(method: str = "") -> dict[str, Any]:
    """The spec that the form holds, as JSON to be checked; with another method's options if one is
    named."""
    chosen = method or st.session_state[key("method", "name")]
    config = methods.get(chosen).config
    return {
        "name": st.session_state[key("", "name")] or "",
        "model": (st.session_state[key("", "model")] or "").strip(),
        "init_from_run": (st.session_state.get(key("", "init_from_run")) or "").strip(),
        "method": {"name": chosen, **_section(f"method.{chosen}", config)},
        **{section: _section(section, config) for section, config in SECTIONS.items()},
    }


def _section(section: str, config: type) -> dict[str, Any]:
    hints = schema.field_types(config)
    return {
        field.name: parse_input(
            st.session_state.get(key(section, field.name)), hints[field.name], field.metadata
        )
        for field in dataclasses.fields(config)
    }


def parse_input(user_input: Any, hint: Any, metadata: Any) -> Any:
    """What a person typed, as the spec means it."""
    if metadata.get("names") and isinstance(user_input, str) and user_input.strip():
        return user_input.strip()  # one text of names: the spec takes it apart
    if isinstance(user_input, str) and metadata.get("words"):
        text = user_input.strip()
        try:
            return text if text in metadata["words"] else float(text)
        except ValueError:
            return text
    if typing.get_origin(hint) is dict:
        entries = _entries(user_input or "")
        if metadata.get("scalars") and isinstance(entries, dict):
            return {name: _scalar(entry) for name, entry in entries.items()}
        return entries
    if user_input == "" and type(None) in union_members(hint):
        return None
    item = item_kind(hint)
    if isinstance(user_input, str) and item is not None:
        parts = [part.strip() for part in user_input.split(",") if part.strip()]
        if item is not str:
            return [_number(part) for part in parts]
        return parts
    return user_input


def _number(text: str) -> Any:
    """A number as typed, or the text itself for the checks to refuse."""
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        return text


def _entries(text: str) -> dict[str, str] | str:
    """ "prompt=question; completion=answer" as an object; other text is returned unchanged."""
    parts = [part.partition("=") for part in text.split(";") if part.strip()]
    if any(not equals or not name.strip() for name, equals, _ in parts):
        return text
    return {name.strip(): entry.strip() for name, _, entry in parts}


def _scalar(text: str) -> Any:
    """`false`, `3` or `null` as JSON means them; other text as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (dict, list)) else value


def union_members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) or (hint,)


def item_kind(hint: Any) -> Any:
    """The type of an item where the field takes a list, else None."""
    for kind in (hint, *union_members(hint)):
        if typing.get_origin(kind) is list:
            return typing.get_args(kind)[0]
    return None
