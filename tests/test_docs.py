"""What the documentation names is there: links, headings, pictures, verbs, figures."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import pytest

from lab import cli
from lab.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in addresses."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {link}"


def verbs() -> set[str]:
    actions = cli.parser()._actions
    (sub,) = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    return set(sub.choices)


def test_the_page_of_the_command_line_has_every_verb() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\.venv/bin/python -m lab (.+)$", text, re.M)
    used = [re.split(r"\s{2,}", line)[0] for line in lines]  # what follows explains
    assert len(lines) > 20
    for line in used:
        assert line.split()[0] in verbs(), f"there is no {line.split()[0]}"
    words = set(re.findall(r"[a-z]+", " ".join(used)))
    assert verbs() - words == set(), "verbs that docs/command-line.md lacks"


def test_the_readme_is_a_front_page() -> None:
    assert len(README.splitlines()) <= 110, "what is longer belongs into docs/"
    pictures = re.findall(r"!\[[^\]]+\]\((docs/pictures/[\w-]+\.png)\)", README)
    assert len(pictures) == 4 and len(set(pictures)) == 4
    makes = (ROOT / "docs" / "make_pictures.py").read_text(encoding="utf-8")
    for picture in pictures:
        assert f'"{Path(picture).stem}"' in makes, "pictures are made by docs/make_pictures.py"
    assert "make run" in README and "make test" in README


def test_what_others_do_not_has_a_figure_and_a_command() -> None:
    table = README[README.index("## What it does that others do not") :]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    rows = [row for row in rows if set("".join(row)) - set("|- ")]
    assert len(rows) >= 6
    for row in rows:
        assert len(row) == 3, row
        commands = re.findall(r"`python -m lab (\w+)", row[2])
        assert commands and set(commands) <= verbs(), row[2]


def test_figures_of_the_readme_are_those_that_were_measured() -> None:
    """Factors and per cent of the front page stand in docs/measured.md with date and machine."""
    measured = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    figures = set(re.findall(r"\b\d+\.\d+(?: %)?", README.split("## Read on")[0])) - {"3.11"}
    figures |= set(re.findall(r"\b\d,\d{3}\b", README))
    assert len(figures) >= 5
    for figure in figures:
        assert figure in measured, f"{figure} is not in docs/measured.md"
    assert "Recorded on 20" in measured


def test_no_page_names_the_machine_that_it_was_written_on() -> None:
    here = {str(folder) for folder in (ROOT, ROOT.parent, Path.home()) if len(folder.parts) > 1}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in (*here, tempfile.gettempdir(), "file://"):
            assert f"{path}/" not in text, f"{page.name} names {path}"
