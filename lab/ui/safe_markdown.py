"""A model's answer as Markdown: headings, lists, tables, emphasis and code are drawn; HTML, links,
images, icons, colours and formulas are shown as they are written, so that an answer can neither
load nor disguise anything."""

from __future__ import annotations

import re

from lab.ui.markdown_safety import APART, JOINED
from lab.visible import visible

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
# what begins a link, an image, HTML, an entity, a formula, or a directive such as :red[text]
SPECIAL = re.compile(r"[\\<\[\]$&~]|!(?=\[)|:(?=[A-Za-z/:])")


def safe_markdown(text: str) -> str:
    """Markdown for `st.markdown` in which only the harmless part of Markdown has a meaning."""
    lines: list[str] = []
    fence = ""
    for line in visible(text).split("\n"):
        mark = FENCE.match(line)
        if fence:
            lines.append(line)
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
            # the name of a language, and nothing that a library may read as more
            lines.append(fence + re.sub(r"[^\w+#-].*", "", line[mark.end() :].strip()))
        else:
            lines.append(_line(line))
    if fence:
        lines.append(fence)  # the answer is still being written
    return "\n".join(lines)


def _line(line: str) -> str:
    """One line outside fenced code; what stands in backticks stays as it is."""
    parts: list[str] = []
    end = 0
    for code in CODE.finditer(line):
        parts += [_escape(line[end : code.start()]), code[0]]
        end = code.end()
    line = "".join([*parts, _escape(line[end:])])
    # two spaces: a model's line break is meant, where Markdown would join the lines
    return line + "  " if line.strip() and not line.lstrip().startswith(("|", "#")) else line


def _escape(text: str) -> str:
    return SPECIAL.sub(r"\\\g<0>", JOINED.sub(APART, text))
