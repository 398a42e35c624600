"""The parts of the Data page, figure by figure."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lab import formatting
from lab.atomic_files import write_json
from lab.data import catalog
from lab.data.hub import FetchState
from lab.data.preview_types import (
    BatchRow,
    DatasetPreview,
    ExampleCounts,
    ExampleView,
    FirstBatch,
    Padding,
    SimilarPair,
    Token,
)
from lab.ui import data_source, data_view, hub_fields, similar_rows
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run

COUNTS = ExampleCounts(
    tokens=2000, counted=500, truncated=3, without_loss=4, invalid_rows=5, duplicates=6,
    near_duplicates=7, leaks=8,
)  # fmt: skip


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    drawn = Screen()
    monkeypatch.setattr(data_view, "st", drawn)
    monkeypatch.setattr(data_source, "st", drawn)
    monkeypatch.setattr(similar_rows, "st", drawn)
    monkeypatch.setattr(hub_fields, "st", drawn)
    monkeypatch.setattr(data_view.chart_style, "is_dark", lambda: False)
    return drawn


@pytest.mark.parametrize(("is_whole", "rows"), [(True, "1,200"), (False, "1,200+")])
def test_each_count_stands_under_its_own_name(screen: Screen, is_whole: bool, rows: str) -> None:
    data_view.show_counts(DatasetPreview(counts=COUNTS, examples=1200, is_whole=is_whole))
    metrics = {args[0]: args[1] for kind, args, _ in screen.calls if kind == "metric"}
    assert metrics == {
        "Examples": rows, "Tokens": formatting.count(2000), "Trained tokens": "25 %",
        "Truncated": "3", "No trained tokens": "4", "Invalid rows": "5",
        "Duplicates": "6", "Near-duplicates": "7", "Leakage": "8",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preview", "is_usable"),
    [
        (None, False),
        (DatasetPreview(), False),
        (DatasetPreview(counts=replace(COUNTS, counted=0)), False),
        (DatasetPreview(counts=COUNTS), True),
    ],
)
def test_a_set_without_a_token_to_learn_from_is_not_trained_on(
    screen: Screen, preview: DatasetPreview | None, is_usable: bool
) -> None:
    data_view.train_on({}, preview)
    (button,) = screen.named("button")
    assert button["disabled"] != is_usable
    assert (button["help"] is None) == is_usable, "it says why"


@pytest.mark.parametrize(
    ("written", "used", "given"),
    [("hf_new", "", ["hf_new"]), ("", "hf_old", [""]), ("hf_old", "hf_old", []), ("", "", [])],
)
def test_a_token_is_given_once_and_taken_back_with_an_emptied_field(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, written: str, used: str, given: list[str]
) -> None:
    tokens: list[str] = []
    monkeypatch.setattr(hub_fields.credentials, "give", tokens.append)
    monkeypatch.setattr(hub_fields.credentials, "current", lambda: None)
    screen.answers = {"hub.token": written}
    screen.session_state["hub.token.used"] = used
    hub_fields.token_field("org/model")
    assert tokens == given and screen.session_state["hub.token.used"] == written
    (field,) = screen.named("text_input")
    assert field["type"] == "password"
    screen.calls.clear()
    hub_fields.token_field("builtin:persona-chats", "/home/me/model")
    assert screen.calls == [], "nothing of the hub is meant"


@pytest.mark.parametrize(
    ("state", "is_here", "buttons", "error"),
    [
        ("", False, 1, []),
        ("", True, 0, []),
        ("failed", False, 1, ["The Hub said no. Ask later."]),
    ],
)
def test_a_set_of_the_hub_is_fetched_by_its_button_alone(
    screen: Screen, monkeypatch: pytest.MonkeyPatch,
    state: str, is_here: bool, buttons: int, error: list[str],
) -> None:  # fmt: skip
    hub_id = hub_fields.hub.parse("org/chats")
    if is_here:
        hub_id.file.parent.mkdir(parents=True)
        hub_id.file.write_text("{}")
    begun: list[str] = []
    monkeypatch.setattr(
        hub_fields.hub, "state_of",
        lambda wanted: FetchState(state, message="The Hub said no.", hint="Ask later."),
    )  # fmt: skip
    monkeypatch.setattr(hub_fields.hub, "start_fetch", lambda wanted: begun.append(str(wanted)))
    hub_fields.fetch_panel("org/chats")
    assert (len(screen.named("button")), screen.texts("error"), begun) == (buttons, error, [])
    screen.pressed = ("data.fetch",)
    hub_fields.fetch_panel("org/chats")
    assert begun == ["org/chats"] * buttons
    screen.calls.clear()
    hub_fields.fetch_panel("builtin:persona-chats")
    assert screen.calls == [], "it comes with the lab"


def test_the_upload_that_is_shown_is_the_one_that_is_removed(screen: Screen) -> None:
    for name in ("first.jsonl", "second.jsonl", "third.jsonl"):
        catalog.add(name, iter([b'{"text": "x"}\n']))
    screen.answers = {"data.file": None}
    screen.session_state["data.upload"] = "upload:second.jsonl"
    screen.pressed = ("data.remove",)
    data_source._upload()
    assert {upload.id for upload in catalog.uploads()} == {
        "upload:first.jsonl", "upload:third.jsonl",
    }  # fmt: skip


TOKENS = (
    Token(7, "a<b>\n", False),
    Token(8, "\tx", True),
    Token(9, "y", True),
)


def test_what_the_loss_counts_is_coloured_and_packed_parts_are_apart(screen: Screen) -> None:
    first, second, third = data_view.coloured(TOKENS).split("<span")[1:]
    ground = data_view.COLOURS["light"][0]
    assert ground not in first and ground in second and ground in third
    assert "title='token 7'" in first and "a&lt;b&gt;↵<br>" in first and "→x" in second
    assert "<hr" not in data_view.coloured(TOKENS, [3])
    packed = data_view.coloured(TOKENS, [1, 2])
    assert packed.count("<hr") == 1 and packed.index("token 7") < packed.index("<hr")
    assert packed.index("<hr") < packed.index("token 8"), "between the parts"


def test_a_row_is_named_by_its_place_in_the_file(screen: Screen) -> None:
    rows = (ExampleView(3, "a", TOKENS, True, 2), ExampleView(9, "b", TOKENS[:1], False, 0))
    for number, caption in (
        (1, "Row 3 of the file: 3 tokens (truncated), 2 trained (highlighted)."),
        (2, "Row 9 of the file: 1 token, 0 trained (highlighted)."),
    ):
        screen.answers = {"data.row": number, "data.as": "text"}
        data_view.show_rows(DatasetPreview(rows=rows))
        assert screen.texts("caption")[-1] == caption
    assert screen.texts("code") == ["a", "b"]


def test_the_first_batch_is_shown_with_where_it_is_from(screen: Screen) -> None:
    run = make_run(1)
    data_view.first_batch(run)
    assert screen.calls == [], "not before it is written"
    batch = FirstBatch(rows=(BatchRow(TOKENS, (1, 2), (4, 6), 3, 2),))
    write_json(run.first_batch, asdict(batch))
    data_view.first_batch(run)
    assert screen.texts("caption") == ["Rows 4, 6 of the file: 3 tokens, 2 trained (highlighted)."]
    assert screen.texts("html")[0].count("<hr") == 1


def test_pairs_are_shown_side_by_side_or_that_there_are_none(screen: Screen) -> None:
    pair = SimilarPair((3, 8), ("one text", "another\x07"), 0.9)
    similar_rows.show_duplicates([pair])
    ((table,),) = [args for kind, args, _ in screen.calls if kind == "dataframe"]
    assert (table[0]["first row"], table[0]["second row"]) == (3, 8)
    assert table[0]["similarity"] == 0.9
    assert (table[0]["first"], table[0]["second"]) == ("one text", "another⟨0007⟩")
    similar_rows.show_duplicates([])
    assert screen.texts("success") == ["No duplicates found."]


def test_leaks_are_counted_by_kind_beside_what_was_compared(screen: Screen) -> None:
    counts = ExampleCounts(held_out=9, leaks=3, exact_leaks=2)
    pair = SimilarPair((3, 8), ("one text", "another"), 0.9)
    page = DatasetPreview(examples=40, counts=counts, leaks=(pair,), held_out_dataset="[b](x)")
    similar_rows.show_leaks(page)
    assert screen.texts("caption") == [
        "Compared: 9 held-out examples of [b](x), with 40 training examples."
    ]
    (sentence,) = screen.texts("markdown")
    assert sentence.startswith("3 held-out examples (nearly) in training: 2 exact, 1 of a Jaccard")
    ((table,),) = [args for kind, args, _ in screen.calls if kind == "dataframe"]
    assert (table[0]["training row"], table[0]["held-out row"]) == (3, 8)
    screen.calls.clear()
    similar_rows.show_leaks(DatasetPreview(examples=40, counts=ExampleCounts(held_out=1)))
    assert screen.texts("caption") == [
        "Compared: 1 held-out example of the split, with 39 training examples."
    ]
    assert screen.texts("success") == ["No held-out example resembles a training example."]
    similar_rows.show_leaks(DatasetPreview())
    assert screen.texts("info") == ["No example is held out."]


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("builtin:persona-chats", "builtin"),
        ("upload:a.jsonl", "upload"),
        ("org/name", "hub"),
        ("./org/name", "path"),
        ("/data/a.jsonl", "path"),
        ("~/a.jsonl", "path"),
    ],
)
def test_the_url_opens_the_source_that_it_names(screen: Screen, dataset: str, source: str) -> None:
    data_source._point_to(dataset)
    assert screen.session_state == {"data.source": source, f"data.{source}": dataset}


def test_a_set_that_is_being_fetched_shows_how_far_it_is(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching: Any = hub_fields._fetching.__wrapped__  # type: ignore[attr-defined]
    state = hub_fields.hub.FetchState("fetching", 0, 6000, 1_000_000, 4_000_000, 500_000.0)
    monkeypatch.setattr(hub_fields.hub, "state_of", lambda hub_id: state)
    fetching("org/name")
    state = replace(state, rows=1500)
    fetching("org/name")
    state = replace(state, total=None)
    fetching("org/name")
    bars = [(args[0], named["text"]) for kind, args, named in screen.calls if kind == "progress"]
    assert bars == [
        (0.25, "Downloading: 1.00 MB of 4.00 MB, 500.00 kB/s"),
        (0.25, "Downloading: 1,500 rows of 6,000"),
        (0.0, "Downloading: 1,500 rows"),
    ]


def test_how_a_set_is_read_is_in_the_spec(screen: Screen, lab_home: Path) -> None:
    dataset = catalog.resolve("builtin:persona-chats")
    screen.columns = lambda count: [screen] * count  # type: ignore[attr-defined]
    screen.answers = {
        "data.length": 64, "data.loss": "all", "data.side": "left", "data.bad": "skip",
        f"data.fraction.{dataset.id}": 0.2,
        f"data.placeholders.{dataset.id}": " name = Wren; odd; author=the lab ",
    }  # fmt: skip
    read = {
        "max_length": 64, "loss_on": "all", "truncation": "left", "on_invalid_row": "skip",
        "eval_fraction": 0.2, "placeholders": {"name": "Wren", "author": "the lab"},
    }  # fmt: skip
    assert data_view._more(dataset.id, dataset)["data"] == read, (
        "the system prompt stays that of the set"
    )
    screen.answers[f"data.system.{dataset.id}"] = "Be brief."
    assert data_view._more(dataset.id, dataset)["data"] == read | {"system_prompt": "Be brief."}


def test_padding_is_told_by_the_order_of_the_rows(screen: Screen) -> None:
    padding = Padding(shuffled=0.4, grouped=0.2, packed=0.1, examples=1200, sequences=300)
    data_view.show_template_notes(DatasetPreview(padding=padding))
    assert screen.texts("markdown")[-1] == (
        ":material/compress: Padding: 40 % shuffled, 20 % grouped by length, 10 % packed "
        "(1,200 examples into 300 sequences)."
    )
