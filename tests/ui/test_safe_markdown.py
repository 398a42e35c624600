"""What a model writes can be Markdown, and can do no harm."""

from __future__ import annotations

import pytest

from lab.ui.safe_markdown import safe_markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Title", "# Title"),
        ("**bold** and *soft*", "**bold** and *soft*  "),
        ("- item", "- item  "),
        ("1. item", "1. item  "),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("`a < b` and a < b", "`a < b` and a \\< b  "),
        ("one\ntwo", "one  \ntwo  "),
        ("```python\nprint('<b>')\n```", "```python\nprint('<b>')\n```"),
        ("```\nstill writing [x](y)", "```\nstill writing [x](y)\n```"),
        ("````\n```\n<b>\n````\n<b>", "````\n```\n<b>\n````\n\\<b>  "),
    ],
)
def test_what_is_harmless_is_drawn(text: str, shown: str) -> None:
    assert safe_markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("<script>alert(1)</script>", "<script"),
        ("![x](https://evil.example/x.png)", "![x]"),
        ("[click](https://evil.example)", "[click]"),
        ("see https://evil.example now", "https://"),
        ("www.evil.example", "www.e"),
        ("a@evil.example", "a@e"),
        (":red[alarm]", ":red["),
        (":material/warning: careful", ":material/"),
        (":smile:", ":smile:"),
        ("$x^2$", "$x"),
        ("&lt;b&gt;", "&lt;"),
        ("`code` <img src=x>", "<img"),
        ("``a`` ![x](y)", "![x]"),
        ("~~gone~~", "~~gone"),
        ("```py <img src=x>\ncode\n```", "<img"),
        ("\u202eevil", "\u202e"),
        ("a\x1b[31mred", "\x1b"),
    ],
)
def test_what_could_load_or_disguise_is_shown_as_it_is_written(text: str, live: str) -> None:
    shown = safe_markdown(text)
    at = shown.find(live)
    while at >= 0:
        assert at and shown[at - 1] == "\\", f"{live} has a meaning in {shown!r}"
        at = shown.find(live, at + 1)
