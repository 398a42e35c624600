"""What pages hand to Streamlit, Streamlit takes: a keyword that it does not know ends the page."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import streamlit as st

from lab.paths import ROOT


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """(name, call) of everything that is called like a function of Streamlit's, on `st`, a
    column, a cell or another container."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            on = ast.unparse(node.func.value)
            if on in ("st", "left", "right", "cell", "grid", "body", "foot") or "cell()" in on:
                yield node.func.attr, node


def test_streamlit_knows_every_keyword_that_it_is_given() -> None:
    files = [*sorted((ROOT / "lab" / "ui").glob("*.py")), *sorted((ROOT / "pages").glob("*.py"))]
    unknown, seen = [], 0
    for file in files:
        for name, call in calls(file):
            function = getattr(st, name, None)
            if function is None or not callable(function):
                continue
            parameters = inspect.signature(function).parameters
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                continue
            seen += 1
            unknown += [
                f"{file.relative_to(ROOT)}:{call.lineno}: {name}({keyword.arg}=…)"
                for keyword in call.keywords
                if keyword.arg is not None and keyword.arg not in parameters
            ]
    assert unknown == []
    assert seen > 150, "the calls are found"
