"""Near duplicates are such: measured against the exact share of what two texts have in common."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lab.data import dataset_preview
from lab.data.duplicates import find_duplicates
from tests.conftest import write_rows


def sentence(words: list[str]) -> str:
    return " ".join(words)


def vocabulary(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abcdefghijklmnop", k=7)) for _ in range(count)]


def in_common(one: str, other: str, width: int = 8) -> float:
    """Jaccard similarity of all runs of eight letters."""
    sets = [{text[at : at + width] for at in range(len(text) - width + 1)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize(
    ("changed", "is_near"), [(2, True), (5, True), (60, False), (100, False), (160, False)]
)
def test_what_is_near_has_most_in_common(changed: int, is_near: bool) -> None:
    """Two hundred words, of which the last ones are others."""
    first, rest = vocabulary(1, 200), vocabulary(2, 200)
    one, other = sentence(first), sentence(first[: 200 - changed] + rest[:changed])
    share = in_common(one, other)
    assert (share > 0.9) if is_near else (share < 0.6), "the case is clear"
    near = find_duplicates([one, other]).near
    assert len(near) == is_near
    if is_near:
        assert near[0][:2] == (0, 1) and near[0][2] == pytest.approx(share, abs=0.15)


def test_rows_that_share_their_frame_are_no_twins() -> None:
    """A prompt that stands in every row, and a fifth or a half of the row with it."""
    frame = sentence(vocabulary(1, 20))
    rows = [f"{frame} {sentence(vocabulary(10 + n, 20))}" for n in range(20)]
    twins = find_duplicates(rows)
    assert twins.near == twins.exact == []


def test_case_and_white_space_make_no_difference() -> None:
    twins = find_duplicates(["Who are you?", "who  ARE\n you?", "Who are you!"])
    assert twins.exact == [(0, 1, 1.0)]


def test_each_row_is_paired_with_the_first_that_it_resembles() -> None:
    """Places are those of the file, also behind rows that stand there twice."""
    long = sentence(vocabulary(1, 200))
    rows = ["short", "short", "other", "short", long, "x" * 40, long + " almost"]
    twins = find_duplicates(rows)
    assert twins.exact == [(0, 1, 1.0), (0, 3, 1.0)]
    assert [pair[:2] for pair in twins.near] == [(4, 6)]


def test_a_leak_has_one_side_held_out() -> None:
    long = [sentence([*vocabulary(seed, 200)[:-1], last]) for seed in (1, 2) for last in "xyz"]
    rows = ["a", "a", "b", "b", *long]
    twins = find_duplicates(rows, {1, 2, 3, 5, 7, 8, 9})
    assert twins.exact_leaks == [(0, 1, 1.0)], "Twins that are both held out leak nothing."
    assert [pair[:2] for pair in twins.near_leaks] == [(4, 5)]
    assert find_duplicates(rows).exact_leaks == find_duplicates(rows).near_leaks == []


def test_each_held_out_row_leaks_once_however_often_it_is_trained_on() -> None:
    """The first of the twins may be held out itself, and a near one stand twice."""
    first, last = sentence(vocabulary(1, 200)), sentence([*vocabulary(1, 200)[:-1], "x"])
    twins = find_duplicates(["a", "a", "a", "a"], {0, 3})
    assert twins.exact_leaks == [(1, 0, 1.0), (1, 3, 1.0)], "Not one for each pair."
    twins = find_duplicates([last, last, first, first], {0, 1})
    assert [pair[:2] for pair in twins.near_leaks] == [(2, 0), (2, 1)]


def test_difference_behind_a_long_beginning_is_seen() -> None:
    """Thousands of characters in common and as many that are not."""
    frame = sentence(vocabulary(1, 400))
    rows = [f"{frame} {sentence(vocabulary(seed, 400))}" for seed in (2, 3)]
    assert find_duplicates(rows).near == []


def test_short_and_empty_texts_are_compared_too() -> None:
    twins = find_duplicates(["a", "", "b", "", "ab", "🙂"])
    assert twins.exact == [(1, 3, 1.0)] and twins.near == []


def test_small_changes_are_found_wherever_they_stand() -> None:
    """Forty texts of 150 words, each with one word of its own in another place."""
    words = vocabulary(5, 150)
    rows = []
    for place in range(0, 120, 3):
        rows.append(sentence([*words[:place], f"unlike{place}", *words[place + 1 :]]))
    assert {pair[1] for pair in find_duplicates(rows).near} == set(range(1, 40))


def test_rows_leak_only_where_a_part_of_them_is_held_out(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": name, "completion": 40 * name} for name in vocabulary(3, 10)]
    write_rows(tmp_path / "rows.jsonl", 2 * rows)
    write_rows(tmp_path / "others.jsonl", [{"prompt": "What is new?", "completion": "Nothing."}])
    data = {"dataset": str(tmp_path / "rows.jsonl"), "eval_fraction": 0.2}
    spec = {"model": str(tiny_model), "data": data}
    assert dataset_preview.look(spec).counts.leaks > 0
    spec["data"] = data | {"eval_dataset": str(tmp_path / "others.jsonl")}
    page = dataset_preview.look(spec)
    assert (page.counts.duplicates, page.counts.leaks, page.leaks) == (10, 0, ())
