"""The settings in which runs differ, under their titles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab import methods
from lab.atomic_files import part
from lab.compare.contestants import Contestant
from lab.formatting import rate
from lab.spec import SECTIONS, RunSpec

TOP_LEVEL = ("model", "init_from_run")
UNCOMPARED = ("name",)


@dataclass(frozen=True)
class SettingRow:
    """One setting: its key ("train.learning_rate"), its title, a text for each contestant."""

    key: str
    title: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def setting_rows(contestants: Sequence[Contestant]) -> list[SettingRow]:
    """Every setting of at least one contestant, those of the method first. A contestant whose
    method has no such option has "–"; several seeds stand beside each other."""
    flat = [_flat(each) for each in contestants]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    titles = _titles([each.first.entry.method for each in contestants])
    return [
        SettingRow(key, titles.get(key, key), tuple(settings.get(key, "–") for settings in flat))
        for key in keys
    ]


def _flat(contestant: Contestant) -> dict[str, str]:
    spec = contestant.first.spec
    values: dict[str, Any] = {}
    method = part(spec, "method")
    name = str(method.get("name", ""))
    values["method.name"] = methods.get(name).title if name in methods.names() else name
    for key, value in method.items():
        if key != "name":
            values[f"method.{key}"] = value
    for key in TOP_LEVEL:
        values[key] = spec.get(key, "")
    for section in SECTIONS:
        for key, value in part(spec, section).items():
            values[f"{section}.{key}"] = value
    if len(contestant.runs) > 1:
        values["train.seed"] = ", ".join(map(str, contestant.seeds))
    return {key: setting_text(value) for key, value in values.items() if key not in UNCOMPARED}


def setting_text(value: Any) -> str:
    """A setting as a person reads it: "on", "none", "2e-4", "a, b"."""
    if value is None or value == "" or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return rate(value) if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)


def _titles(names: Sequence[str]) -> dict[str, str]:
    titles = {"method.name": "Method"}
    configs: list[tuple[str, Any]] = [("", RunSpec)]
    configs += [(f"{section}.", kind) for section, kind in SECTIONS.items()]
    configs += [("method.", methods.get(name).config) for name in names if name in methods.names()]
    for prefix, kind in configs:
        for field in dataclasses.fields(kind):
            titles.setdefault(f"{prefix}{field.name}", field.metadata.get("title", field.name))
    return titles
