"""Options that a person fills in: their bounds to the last value, and what is said beyond them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from lab import schema
from lab.errors import Problem
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class Config:
    count: int = option(3, "Count", "A count.", min=1, max=10)
    share: float = option(0.5, "Share", "A share.", above=0.0, max=1.0)
    rate: float | str = option("auto", "Rate", "A rate.", words=("auto",), above=0.0)
    limit: int | None = option(None, "Limit", "A limit.", min=0)
    way: str = option("auto", "Way", "A way.", choices=("auto", "on", "off"))
    name: str = option("", "Name", "A name.", max_characters=5, forbid="/\\")
    text: str = option("", "Text", "A text.", multiline=True)
    ranks: list[int] | None = option(None, "Ranks", "Ranks.", min=1, max=8)
    slots: dict[str, str] = option({}, "Slots", "Slots.", keys=("a", "b"))
    flag: bool = option(False, "Flag", "A flag.")
    names: list[str] = option(["x"], "Names", "Names.")


def read(**values: Any) -> tuple[Config, dict[str, str]]:
    problems: list[Problem] = []
    parsed = schema.parse(Config, values, "part", problems)
    return parsed, {problem.field: problem.message for problem in problems}


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("count", 1, 1), ("count", 10, 10), ("count", 4.0, 4), ("share", 1.0, 1.0),
        ("share", 1, 1.0), ("share", 1e-9, 1e-9), ("rate", "auto", "auto"), ("rate", 7, 7.0),
        ("limit", 0, 0), ("limit", None, None), ("way", True, "on"), ("way", False, "off"),
        ("name", "five5", "five5"), ("text", "two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("ranks", [1, 8], [1, 8]), ("ranks", None, None), ("slots", {"a": "x\ny"}, {"a": "x\ny"}),
        ("flag", True, True), ("names", ["y"], ["y"]), ("name", "ä\U0001f600", "ä\U0001f600"),
    ],
)  # fmt: skip
def test_values_up_to_the_bounds_are_taken(key: str, value: Any, stored: Any) -> None:
    records, problems = read(**{key: value})
    assert problems == {}
    assert getattr(records, key) == stored and type(getattr(records, key)) is type(stored)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("count", 0, "is 0; it must be at least 1 and at most 10."),
        ("count", 11, "is 11; it must be at most 10."),
        ("count", 2.5, "must be integer, is 2.5."),
        ("count", True, "must be integer, is true."),
        ("count", "4", "must be integer, is '4'."),
        ("count", None, "must be integer."),
        ("count", math.inf, "must be integer"),
        ("share", 0.0, "is 0; it must be above 0 and at most 1."),
        ("share", 1.0001, "it must be at most 1."),
        ("share", math.nan, "is nan, which is not a number to train with."),
        ("share", -math.inf, "is -inf, which is not a number"),
        ("share", 10**400, "is inf, which is not a number"),
        ("share", True, "must be number, is true."),
        ("rate", "fast", "must be number or \"auto\", is 'fast'."),
        ("rate", 0, "is 0; it must be above 0."),
        ("limit", -1, "is -1; it must be at least 0."),
        ("limit", "none", "must be integer or null, is 'none'."),
        ("way", "maybe", "is 'maybe'. Choose one of: auto, on, off."),
        ("name", "sixsix", "has 6 characters; at most 5 are allowed."),
        ("name", "a/b", "the characters / are not allowed"),
        ("name", "a\nb", "control characters are not allowed"),
        ("name", "a\x7fb", "control characters are not allowed"),
        ("text", "\ud800", "half of a Unicode pair"),
        ("ranks", [], "must be list of numbers or null, is []."),
        ("ranks", [4, 9], "is 9; it must be at most 8."),
        ("ranks", [0], "is 0; it must be at least 1"),
        ("ranks", ["4"], "must be list of numbers or null"),
        ("slots", {"c": "x"}, "unknown key 'c'"),
        ("slots", {"a": 3}, "'a' must be text, is 3."),
        ("slots", [], "must be object, is []."),
        ("flag", 1, "must be true or false, is 1."),
        ("cuont", 1, "unknown key 'cuont'. Did you mean 'count'? Known keys: count, "),
    ],
)
def test_what_lies_beyond_is_refused_and_keeps_its_default(key: str, value: Any, says: str) -> None:
    records, problems = read(**{key: value, "names": ["kept"]})
    assert set(problems) == {f"part.{key}"} and says in problems[f"part.{key}"]
    assert records == Config(names=["kept"]), "The other fields are read all the same."


def test_defaults_are_not_shared() -> None:
    first = Config()
    first.names.append("y")
    first.slots["a"] = "b"
    assert Config().names == ["x"] and Config().slots == {}


def test_values_are_quoted_on_one_short_line() -> None:
    assert schema.quote("x" * 80) == "x" * 80
    long = schema.quote("x" * 81)
    assert len(long) == 78 and long.endswith("x…")
    assert schema.quote("a\nb\x1b[0m") == "a\\x0ab\\x1b[0m"
    assert schema.quote({"a": [1, None]}) == '{"a": [1, null]}'
    assert schema.number_text(12_000) == "12,000" and schema.number_text(0.0002) == "0.0002"


def test_a_form_learns_everything_of_an_option() -> None:
    rows = {field.name: field.to_json() for field in schema.describe(Config)}
    assert rows["count"] == {
        "name": "count", "type": "integer", "default": 3, "title": "Count", "help": "A count.",
        "min": 1, "max": 10,
    }  # fmt: skip
    assert rows["limit"]["type"] == "integer or null" and rows["limit"]["default"] is None
    assert rows["names"]["default"] == ["x"] and rows["flag"]["type"] == "true or false"
