"""Specs and settings: every field out of its bounds, files that hold no spec."""

from __future__ import annotations

import dataclasses
import json
import random
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hostile.case import ODD, Case, damaged, filled, garbled, nested
from lab import methods, spec
from lab.errors import Problem, SpecError

SHARE = 0.3
GOOD: dict[str, Any] = {
    "name": "good",
    "model": "builtin:smollm2-135m-instruct",
    "method": {"name": "lora", "rank": 8},
    "data": {
        "dataset": "builtin:persona-chats",
        "columns": {"prompt": "q"},
        "placeholders": {"a": "b"},
    },
    "train": {"batch_size": 2, "max_steps": 5, "learning_rate": 1e-3},
}
TEXTS: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b"5", b'"spec"', b"\x00", b"\xff\xfe{}", b'{"name": "\xe9"}',
    b'{"name": 1,}', b"{'name': 'x'}", b'{"name": "a", "name": "b"}',
    b'{"train": {"seed": 1, "seed": 2}}', b'{"train": {"seed": ' + b"9" * 5000 + b"}}",
    b'{"name": "\\ud800"}', b'{"name": "a\\u0000b"}', b'{"": 1}', b'{"data": null}',
    *(b'{"method": ' + b"[" * depth + b"]" * depth + b"}" for depth in (80, 500, 990, 3000)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (80, 500, 990, 3000)),
    b"[" * 100_000, b"{}" * 2, b" " * 6_000_000,
)  # fmt: skip
SETTINGS: tuple[str, ...] = (
    "", "=", "x", "=5", "train", "train.max_steps", "train.max_steps=", "train.max_steps=x",
    "train.max_steps=0", "train.max_steps=1e3x", "train.max_steps=NaN", "train.max_steps=true",
    "train.max_steps=" + "9" * 5000, "train.max_tokens=" + "9" * 400, "train..max_steps=5",
    "train.max_steps.x=5", "name.x=5", "a.b.c.d.e=5", ".".join("a" * 3000) + "=1", "nothing=5",
    "train.learning_rate=-1", "train.learning_rate=Infinity", "train.seed=1.5", "train.seed=-1",
    "train.max_seconds=1e300", "train.max_flops=1e999", "train.max_grad_norm=1e100",
    "data.columns=[]", 'data.columns={"prompt": {}}', 'data.placeholders={"a": 5}',
    "data.placeholders=x", 'data.placeholders={"\\ud800": "x"}', "method=[]", "method=5",
    "method.name=", "method.name=[]",
    "method.rank=99999999", "method.target_modules=[]", "method.target_modules=[[]]",
    "method.target_modules=[5]", 'train={"seed": 1, "seed": 2}',
    "data=" + "[" * 700 + "]" * 700, "name=" + "x" * 200,
    "name=a\x1bb", "name=a/b", "hardware.devices=2", "hardware.strategy=fsdp", "model=5",
    "model=[]",
    "data.system_prompt=" + "x" * 30_000, "train.eval_steps=-1", "train.save_steps=" + "9" * 30,
)  # fmt: skip
BEYOND: tuple[Any, ...] = (float("nan"), float("-inf"), "many", [], {}, True, -(10**400))


@contextmanager
def prepared(folder: Path, chance: random.Random, count: int) -> Iterator[list[Case]]:
    file = folder / "spec.json"

    def read(content: bytes, *settings: str) -> None:
        file.write_bytes(content)
        value = spec.override(spec.load(file), list(settings))
        if not value:
            raise SpecError([Problem("spec", "is empty")])
        spec.RunSpec.from_json(value)

    def text(content: bytes, expected: str = "refused") -> Case:
        return Case("spec file", repr(content[:60]), lambda: read(content), expected)

    def value(changed: Any, name: str, expected: str = "refused") -> Case:
        return Case("spec", name, lambda: read(json.dumps(changed).encode()), expected)

    def setting(words: str, expected: str = "refused") -> Case:
        good = json.dumps(GOOD).encode()
        return Case("--set", words[:60], lambda: read(good, words), expected)

    written = [
        value(GOOD, "a good one", "accepted"),
        value({"name": "x"}, "a short one", "accepted"),
    ]
    written += [setting("train.max_steps=7", "accepted"), setting("name=8 bits", "accepted")]
    written += [text(content) for content in TEXTS] + [setting(words) for words in SETTINGS]
    written += [value(changed, name) for name, changed in beyond_bounds()]

    def more(i: int) -> Case:
        if i % 3 == 0:
            return text(damaged(chance, json.dumps(GOOD).encode()), "either")
        if i % 3 == 1:
            odd = json.dumps(chance.choice(ODD))
            keys = [f"{part}.{key}" for part in ("data", "train", "method") for key in GOOD[part]]
            return setting(f"{chance.choice(keys)}={odd}", "either")
        return value(garbled(chance, GOOD), f"garbled {i}", "either")

    yield filled(chance, written, count, more)


def beyond_bounds() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, spec) with one number of a section or a method out of its bounds, or no number."""
    sections: list[tuple[str, type, dict[str, Any]]] = [
        (name, kind, {}) for name, kind in spec.SECTIONS.items()
    ]
    sections += [
        ("method", method.config, {"name": method.name}) for method in methods.all_methods()
    ]
    for section, kind, start in sections:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            allowed = typing.get_args(hints[field.name]) or (hints[field.name],)
            if not {int, float} & set(allowed) or "choices" in field.metadata:
                continue
            limits = field.metadata
            high, low = limits.get("max"), limits.get("min", limits.get("above"))
            odd = [*BEYOND, 10**400 if high is None else high * 2 + 1]
            odd += [low - 1] if low is not None else []
            for item in odd:
                changed = GOOD | {section: {**start, field.name: item}}
                yield f"{start.get('name', section)}.{field.name}={str(item)[:20]}", changed
    for depth in (70, 600):
        yield (
            f"targets {depth} deep",
            GOOD | {"method": {"name": "lora", "target_modules": nested(depth)}},
        )
