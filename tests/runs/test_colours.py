"""A run's colour: the least used one at its start, then its own for good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.errors import SpecError
from lab.runs import colours, index


def a_run(number: int, colour: str = "") -> paths.RunDir:
    run = paths.RunDir(paths.runs() / f"20260101-1200{number:02d}-lora-aaaa")
    paths.make_folder(run.path)
    if colour:
        write_json(run.labels, {"v": 1, "colour": colour})
    return run


def test_the_next_run_gets_the_colour_that_is_used_least(lab_home: Path) -> None:
    assert colours.next_colour() == "blue"
    for number, colour in enumerate(("blue", "blue", "orange", "green", "red", "yellow")):
        a_run(number, colour)
    assert colours.next_colour() == "violet"
    a_run(10, "violet")
    assert colours.next_colour() == "orange", "the first of those that are used once"
    for number in range(20, 32):
        a_run(number, "orange")
    assert colours.next_colour() == "blue", "only the newest twelve count"
    assert colours.next_colours(2) == ["blue", "violet"], "two at once are two colours"


def test_a_run_keeps_its_colour_whatever_else_is_written_on_it(lab_home: Path) -> None:
    run = a_run(1, "green")
    index.update_labels(run, tags="good")
    assert colours.colour_of(run) == index.entry(run).colour == "green"
    index.update_labels(run, colour="red")
    assert index.entry(run).colour == "red"
    with pytest.raises(SpecError):
        index.update_labels(run, colour="mauve")


@pytest.mark.parametrize("label", [None, 3, "mauve", ["red"]])
def test_a_run_without_a_label_has_a_colour_all_the_same(lab_home: Path, label: Any) -> None:
    run = a_run(2)
    write_json(run.labels, {"colour": label})
    assert colours.colour_of(run) in colours.NAMES
    assert colours.colour_of(run) == colours.colour_of(run)


def test_a_new_run_is_written_with_its_colour(
    work_here: Callable[..., paths.RunDir], lab_home: Path
) -> None:
    a_run(1, "blue")
    assert colours.colour_of(work_here(train={"max_steps": 1, "sample_steps": 0})) == "orange"
