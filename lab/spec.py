"""RunSpec: everything that defines a run, checked as far as it can be without loading anything.

`RunSpec.from_json` raises SpecError with all problems at once. What needs a model or data
(do the targets exist, is there a row with text) is checked by the planner process.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import json_text, methods, schema
from lab.atomic_files import load_json, read_object
from lab.errors import LabError, Problem, SpecError
from lab.paths import RunDir
from lab.schema import option, quote
from lab.spec_sections import DataSpec, HardwareSpec, TrainSpec

VERSION = 1
MAX_SPEC_BYTES = 5_000_000  # bytes of its file
MAX_SECTIONS = 3  # in front of a key: data.columns.prompt has two


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    name: str = option(
        "", "Run name", "A name of your choice, on one line.", max_characters=120, forbid="/\\"
    )
    model: str = option(
        "builtin:smollm2-135m-instruct",
        "Base model",
        "A built-in model (builtin:NAME), a Hugging Face Hub ID (org/name, or org/name#revision "
        "for a branch, tag or commit) or a local folder with config.json and safetensors weights.",
        max_characters=4096,
    )
    init_from_run: str = option(
        "",
        "Initial weights",
        "run:ID continues from the trained weights of that run (same model and method). Empty: "
        "the base model.",
        max_characters=200,
        formerly="start_from",
    )
    method: dict[str, Any] = option(
        {"name": methods.DEFAULT}, "Method", "The fine-tuning method and its options."
    )
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    hardware: HardwareSpec = field(default_factory=HardwareSpec)

    @property
    def method_config(self) -> Any:
        """The method's own frozen config dataclass, filled from `method`."""
        options = {key: value for key, value in self.method.items() if key != "name"}
        return methods.get(self.method["name"]).config(**options)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Any) -> RunSpec:
        """A complete spec from parsed JSON. Raises SpecError with every problem found."""
        problems: list[Problem] = []
        spec = RunSpec.parse(value, problems)
        if problems:
            raise SpecError(problems)
        return spec

    @staticmethod
    def parse(value: Any, problems: list[Problem]) -> RunSpec:
        """As `from_json`, but problems are added to the list and their fields keep defaults."""
        return _read(value, problems)

    @staticmethod
    def from_stored(value: dict[str, Any]) -> RunSpec:
        """A spec as a run directory keeps it: keys of later versions are ignored."""
        return _read(_known(value), [])

    @staticmethod
    def requested(stored: dict[str, Any]) -> dict[str, Any] | None:
        """What the user gave, from the contents of spec.json, before any auto was resolved."""
        value = stored.get("requested", stored.get("asked"))  # its key in earlier versions
        return value if isinstance(value, dict) else None

    @staticmethod
    def of_run(run: RunDir) -> RunSpec:
        """The spec that `run` was made with. Raises LabError if spec.json is missing or damaged:
        with defaults for what is lost it would be another run."""
        stored = read_object(run.spec)
        if stored is None:
            raise LabError(
                f"spec.json of {run.id} is missing or damaged.",
                "Put it back as it was, or start a new run.",
            )
        for name in ("method", "data", "train"):
            if not isinstance(stored.get(name), dict):
                raise _damaged(run, f"is {quote(stored.get(name))}", name)
        if not isinstance(stored.get("model"), str):
            raise _damaged(run, f"is {quote(stored.get('model'))}", "model")
        if stored["method"].get("name") not in methods.names():
            raise _damaged(run, f"is {quote(stored['method'].get('name'))}", "method.name")
        problems: list[Problem] = []
        spec = _read(_known(stored), problems)
        if problems:
            raise _damaged(run, problems[0].message.rstrip("."), problems[0].field)
        return spec


def _damaged(run: RunDir, why: str, field: str) -> LabError:
    return LabError(
        f"spec.json of {run.id} is damaged: '{field}' {why}.",
        "Put it back as it was, or start a new run.",
    )


def without_packing(spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, data=dataclasses.replace(spec.data, packing="off"))


TOP_LEVEL_KEYS = ("name", "model", "init_from_run")
SECTIONS: dict[str, type] = {"data": DataSpec, "train": TrainSpec, "hardware": HardwareSpec}


def _read(value: Any, problems: list[Problem]) -> RunSpec:
    if not isinstance(value, dict):
        problems.append(Problem("spec", f"must be a JSON object, got {quote(value)}."))
        return RunSpec()
    known = [entry.name for entry in dataclasses.fields(RunSpec)]
    renamed = schema.former_names(RunSpec)
    problems += [
        Problem(quote(key), schema.unknown_key(key, known))
        for key in value
        if key not in known and key not in renamed
    ]
    top = {key: value[key] for key in (*TOP_LEVEL_KEYS, *renamed) if key in value}
    plain = schema.parse(RunSpec, top, "", problems)
    parts: dict[str, Any] = {
        name: schema.parse(kind, value[name], name, problems)
        for name, kind in SECTIONS.items()
        if name in value
    }
    spec = dataclasses.replace(plain, **parts)
    if "method" in value:
        spec = dataclasses.replace(spec, method=_read_method(value["method"], problems))
    else:
        spec = dataclasses.replace(spec, method=_read_method({"name": methods.DEFAULT}, problems))
    return spec


def _read_method(value: Any, problems: list[Problem]) -> dict[str, Any]:
    fallback = {"name": methods.DEFAULT}
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        problems.append(
            Problem("method", f'must be an object such as {{"name": "lora"}}, is {quote(value)}.')
        )
        return fallback
    try:
        method = methods.get(value["name"])
    except LabError as error:
        problems.append(Problem("method.name", str(error)))
        return fallback
    options = {key: item for key, item in value.items() if key != "name"}
    config: Any = schema.parse(method.config, options, "method", problems)
    return {"name": method.name, **dataclasses.asdict(config)}


def _known(value: dict[str, Any]) -> dict[str, Any]:
    top = schema.with_current_names(RunSpec, value)
    known: dict[str, Any] = {key: top[key] for key in TOP_LEVEL_KEYS if key in top}
    for name, kind in SECTIONS.items():
        if isinstance(value.get(name), dict):
            known[name] = _known_fields(kind, value[name])
    part = value.get("method")
    if isinstance(part, dict) and part.get("name") in methods.names():
        options = _known_fields(methods.get(part["name"]).config, part)
        known["method"] = {"name": part["name"], **options}
    return known


def _known_fields(config: Any, value: dict[str, Any]) -> dict[str, Any]:
    fields = {entry.name for entry in dataclasses.fields(config)}
    named = schema.with_current_names(config, value)
    return {key: item for key, item in named.items() if key in fields}


def _same_field(sections: list[str], key: str) -> set[str]:
    """Every name that the field `key` of a section has or had."""
    if sections == ["method"]:
        configs: list[Any] = [method.config for method in methods.all_methods()]
    else:
        configs = [SECTIONS.get(sections[0]) if sections else RunSpec]
    pairs = [set(pair) for kind in configs if kind for pair in schema.former_names(kind).items()]
    return {key}.union(*(pair for pair in pairs if key in pair))


def load(path: Path) -> dict[str, Any]:
    """The JSON of a spec file. Raises LabError that says where it stops being JSON."""
    value = load_json(path, MAX_SPEC_BYTES)
    if not isinstance(value, dict):
        raise LabError(f"'{quote(str(path))}' holds {quote(value)}.", "A spec is a JSON object.")
    return value


def override(value: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """A copy of `value` with `section.key=value` settings applied; values are JSON or text."""
    changed = copy.deepcopy(value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise LabError(f"--set '{quote(setting)}' is not of the form section.key=value.")
        *sections, last = key.strip().split(".")
        if len(sections) > MAX_SECTIONS:
            raise LabError(f"--set '{quote(setting)}' is not of the form section.key=value.")
        try:
            parsed = json_text.value_or_text(text)
        except json_text.BadJson as error:
            raise LabError(f"--set '{quote(setting)}': {error}.", "Give a plain value.") from None
        target = changed
        for section in sections:
            inner = target.setdefault(section, {})
            if isinstance(inner, str) and section == "method":
                inner = target[section] = {"name": inner}
            if not isinstance(inner, dict):
                raise LabError(f"--set '{quote(setting)}': '{quote(section)}' is not a section.")
            target = inner
        for name in _same_field(sections, last):
            target.pop(name, None)
        target[last] = parsed
    return changed
