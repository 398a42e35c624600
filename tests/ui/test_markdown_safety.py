"""Stored text on pages: parsed as Markdown it is one plain text, and nothing in it acts."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from markdown_it import MarkdownIt

from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.ui import notices
from lab.ui.markdown_safety import APART, escape_lines, escape_markdown, plain
from lab.visible import on_one_line, visible
from tests.ui.conftest import Page

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# what Streamlit's pages make of text whose backslashes are gone already
ACTS = re.compile(
    r"https?://[-.\w]|www\.[-.\w]"
    r"|(?:^|[\s\W])[-.\w+]+@[-\w]+\.[-\w]+"
    r"|:[\w+-]+:|:material/\w+:"
    r"|(?:^|\s)(?:<->|->|<-|--|>=|<=|~=)(?=\s|$)",
    re.IGNORECASE,
)
KINDS = [
    "# title", "- item", "+ item", "* item", "1. item", "1) item", "> quote", "| a | b |", "---",
    "```python", "~~~", "    code", "\tcode", "===", "[x]: http://evil.example", "[^1]: note",
    "[click](javascript:alert(1))", "![x](http://evil.example/x.png)", "[x][y]", "<b>bold</b>",
    "<script>alert(1)</script>", "<http://evil.example>", "http://evil.example/path?q=1",
    "HTTPS://EVIL.example", "www.evil.example", "WWW.evil.example", "me@evil.example",
    "mailto:me@evil.example", "xmpp:me@evil.example", "ftp://evil.example", ":red[text]",
    ":red-background[text]", ":blue-badge[x]", ":material/delete:", ":smile:", ":+1:", ":-1:",
    ":streamlit:", ":small[x]", "$x^2$", "$$x$$", "\\(x\\)", "**bold**", "__bold__", "*it*", "_it_",
    "~~gone~~", "`code`", "``co`de``", "&lt;b&gt;", "&#60;", "a -> b", "<-> x", "a -- b",
    "a >= b ~= c <= d", "->", "a\\", "\\", "\\\\", "line  \nbreak", "a\n===", "a\n---\nb", "a\n\nb",
    "| a |\n|---|\n| b |", "- [ ] task", "[x](<y>)", "\x1b[31mred", "\u202egnp.exe",
    "a\u2066b\u2069",
    "\u200eleft\u200f", "\u061c", "zero\u200bwidth\u2060\ufeff", "\x00\x07\x9b", "\r\nx\ry",
    "\u2028x\u2029", "\ue000icon", "\ud800half", "e\u0301", "日本語　空白", "می‌خواهم", "👩‍🚀", "",
    " ",
    "train.learning_rate: is 5; it must be at most 1.",
]  # fmt: skip


def inline(text: str) -> list[Any]:
    """The tokens inside the paragraphs of a Markdown text; nothing else may stand in it."""
    tokens = MARKDOWN.parse(text)
    kinds = {token.type for token in tokens} - {"paragraph_open", "inline", "paragraph_close"}
    assert not kinds, f"{text!r} makes {kinds}"
    return [child for token in tokens for child in token.children or []]


def check_one_text(hostile: str) -> None:
    words = on_one_line(hostile)
    children = inline(escape_markdown(hostile))
    assert [child.type for child in children] == (["text"] if words else []), hostile
    shown = "".join(child.content for child in children)
    assert shown.replace(APART, "") == words, "what is shown is what stands there"
    assert not ACTS.search(shown), f"{hostile!r} acts on the page as {ACTS.search(shown)}"
    assert not hidden(shown.replace(APART, "")), f"{hostile!r} hides something"


def hidden(text: str) -> str:
    """What a person does not see of a text, but a browser or a terminal obeys."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    odd = [char for char in text if unicodedata.category(char) in kinds and char not in "\n\t"]
    return "".join(char for char in odd if char not in "\u200c\u200d" or text.isascii())


@pytest.mark.parametrize("hostile", KINDS)
def test_one_paragraph_with_one_text(hostile: str) -> None:
    check_one_text(hostile)
    check_one_text(f"name {hostile} end")


@pytest.mark.parametrize("hostile", KINDS)
def test_it_cannot_leave_what_it_stands_in(hostile: str) -> None:
    """Pages put it into colours, bold type and labels, which a bracket or a star would end."""
    bare = re.sub(r"\\.", "", escape_markdown(hostile))
    assert not set(bare) & set("[](){}*_`$<>|#~:"), f"{hostile!r} leaves {bare!r} unescaped"


def test_any_mixture_of_them() -> None:
    chance = random.Random(0)
    for _ in range(3000):
        parts = chance.choices(KINDS, k=chance.randint(2, 5))
        check_one_text(chance.choice(["", " ", "\n", "x"]).join(parts))


@pytest.mark.parametrize("hostile", KINDS)
def test_a_block_keeps_its_lines_and_nothing_acts(hostile: str) -> None:
    text = f"first\n{hostile}\n    last"
    children = inline(escape_lines(text))
    assert {child.type for child in children} <= {"text", "hardbreak"}
    shown = "\n".join(
        "".join(child.content if child.type == "text" else "\n" for child in token.children or [])
        for token in MARKDOWN.parse(escape_lines(text))
        if token.type == "inline"
    )
    assert not ACTS.search(shown)
    lines = [line.expandtabs(4) for line in visible(text).split("\n")]
    expected = [on_one_line(line) for line in lines if line.strip()]
    joins = [" ".join(line.replace(APART, "").split()) for line in shown.split("\n")]
    assert [line for line in joins if line] == expected
    if hostile.strip():  # this parser takes it off behind a blank line
        assert shown.endswith("\u00a0" * 4 + "last"), "indentation stays"


def test_what_shows_text_as_it_is_gets_nothing_invisible() -> None:
    stored = {"a\u202eb": ["\x1b[1m", {"n": 5, "x": None}], "ok": "héllo → *x* http://a.b\n\t1"}
    assert plain(stored) == {
        "a⟨202e⟩b": ["⟨001b⟩[1m", {"n": 5, "x": None}],
        "ok": "héllo → *x* http://a.b\n\t1",
    }


HOSTILE = (
    "[x](javascript:1) http://evil.example :material/delete: :red[x] <b>y</b> \u202eoops\u2066 "
    "\x1b[31m **bold** me@evil.example"
)


def test_a_notice_shows_a_hostile_name_as_text(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained[0]
    run.labels.unlink(missing_ok=True)
    stored = read_object(run.spec) or {}
    run.spec.write_text(json.dumps(stored | {"name": HOSTILE[:100]}))
    messages: list[str] = []
    monkeypatch.setattr(notices.st, "toast", lambda body, **_: messages.append(body))
    notices._tell(run.id)
    assert len(messages) == 1
    children = inline(messages[0])
    assert [child.type for child in children] == ["text"], "a name is a text, not a link"
    assert not ACTS.search(children[0].content)
    assert children[0].content.replace(APART, "") == f"{on_one_line(HOSTILE[:100])}: done"


def strings(message: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(field, text) of everything in a protobuf message."""
    for field, value in message.ListFields():
        name = f"{path}.{field.name}"
        is_one = isinstance(value, (str, bytes, int, float)) or hasattr(value, "ListFields")
        for item in [value] if is_one else value:
            if hasattr(item, "ListFields"):
                yield from strings(item, name)
            elif isinstance(item, str):
                yield name, item


# what a page itself writes before a person's text: the run's colour, a coloured icon
HEADING = re.compile(r"(?:### )?:\w+\[(?:●\] |:material/\w+: )")
# widgets hold what a person edits, and keys are never shown
RAW = (".value", ".default", ".id", ".set_value", "raw_values", ".spec", ".url", ".query_string")


def test_a_hostile_run_on_every_page(open_page: Page, trained: list[RunDir]) -> None:
    """Its name, notes, tags, model, messages, samples, warnings, log, phase and settings."""
    run = trained[1]
    stored = read_object(run.spec) or {}
    stored["name"] = HOSTILE[:100]
    stored["data"]["dataset"] = f"/tmp/{HOSTILE}.jsonl"
    stored["method"]["name"] = HOSTILE
    stored[HOSTILE] = HOSTILE
    run.spec.write_text(json.dumps(stored))
    run.labels.write_text(json.dumps({"notes": HOSTILE, "tags": HOSTILE.replace("\x1b", "")}))
    events = [
        {"kind": "sample", "step": HOSTILE, "prompt": HOSTILE, "text": f"{HOSTILE}\n# {HOSTILE}"},
        {"kind": "warning", "message": HOSTILE},
    ]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    run.log.write_text(f"{HOSTILE}\r\n{HOSTILE}\n")
    run.result.write_text(json.dumps({"state": "failed", "message": HOSTILE, "hint": HOSTILE}))
    seen = charts = 0
    for page in ("monitor", "runs", "home", "chat", "compare"):
        at = open_page(page, run=run.id, runs=",".join(each.id for each in trained))
        if page == "runs":
            at.session_state[at.dataframe[0].key] = {"selection": {"rows": [0], "columns": []}}
        for element in [*at.main, *at.sidebar]:
            for name, text in strings(getattr(element, "proto", None) or Nothing()):
                if "evil" in text and name.endswith(".spec"):  # Plotly takes tags for markup
                    charts += 1
                    drawn = json.dumps(json.loads(text), ensure_ascii=False)
                    assert "<b>y" not in drawn and "\u202e" not in drawn, f"{page}: {drawn[:500]}"
                if "evil" not in text or any(part in name for part in RAW):
                    continue
                seen += 1
                kind = type(element).__name__
                where = f"{page}: {kind}{name}"
                if kind == "Json":
                    text = json.dumps(json.loads(text), ensure_ascii=False)
                if kind == "Markdown" and (own := HEADING.match(text)):
                    text = text[own.end() :]
                assert not hidden(text.replace(APART, "")), f"{where} hides something: {text!r}"
                if kind not in ("Json", "Code") and any(
                    name.endswith(part) for part in (".body", ".label", ".text", ".help")
                ):
                    kinds = {child.type for child in inline(text.replace("\n\n", " "))}
                    kinds -= {"strong_open", "strong_close", "hardbreak", "softbreak"}
                    assert kinds <= {"text"}, f"{where} makes {kinds} of {text!r}"
                    shown = "".join(child.content for child in inline(text.replace("\n\n", " ")))
                    assert not ACTS.search(shown), f"{where}: {ACTS.search(shown)}"
    assert charts, "no chart named the hostile run"
    assert seen >= 8, f"only {seen} texts of the hostile run were met"


class Nothing:
    def ListFields(self) -> list[Any]:
        return []
