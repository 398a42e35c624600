"""Words that people read are those of the field: what was replaced does not come back."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from lab.paths import ROOT

# was → is
REPLACED = {
    r"\bnats a (token|position)\b": "nats per token",
    r"\bUSD a (run|month|GB)\b": "USD per run",
    r"\btokens a row\b": "sequence length",
    r"^Withdraw$": "Remove from queue",
    r"^There are: ": "Available: ",
    r"\bbehind row\b": "after row",
    r"What goes together": "Compatibility",
    r"\bobject, is \b": "object, got",
    r"^Out of memory while ": "Out of memory during",
    r"\bNot equal:": "Not comparable:",
    r"^Processor$|^Product$": "CPU, CPU speed",
    r"\bnames no model\b": "is not a model",
    r"\b(hub id|Hub id|hub ID)\b": "Hub ID",
}


@functools.cache
def texts() -> list[tuple[str, str]]:
    return list(read_texts())


def read_texts() -> Iterator[tuple[str, str]]:
    """(file and line, text) of every string that is no docstring, of f-strings their words."""
    for top in (
        "pages",
        "lab/ui",
        "lab/cli",
        "lab/models",
        "lab/data",
        "lab/runs",
        "lab/train",
        "lab/advise",
    ):
        for file in sorted((ROOT / top).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    if id(node) not in docstrings:
                        yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


@pytest.mark.parametrize("pattern", REPLACED)
def test_a_word_that_was_replaced_does_not_come_back(pattern: str) -> None:
    places = [place for place, text in texts() if re.search(pattern, text)]
    assert not places, f"Say {REPLACED[pattern]!r}: {places}"
