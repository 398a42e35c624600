"""The Data page: every source, what it shows, and what it cannot use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from lab.data import catalog
from lab.data import dataset_preview as planner_look
from lab.data.preview_types import BatchRow, DatasetPreview, Token
from lab.preflight.client import planner
from lab.ui import charts, data_source, data_view, theme_watch, typed_examples
from lab.ui.charts import View
from tests.conftest import write_rows
from tests.ui.conftest import Page, words

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(autouse=True)
def look_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner's answer from this process, which has the libraries in memory already."""

    def answer(spec: object, most: int) -> object:
        return DatasetPreview.from_json(
            json.loads(json.dumps(planner_look.look(spec, most).to_json()))
        )

    monkeypatch.setattr(planner, "look", answer)
    monkeypatch.setattr(planner, "warm", lambda: None)


def test_a_built_in_set_is_shown_as_the_model_sees_it(open_page: Page) -> None:
    at = open_page("data", dataset="builtin:support-tickets")
    figures = {metric.label: metric.value for metric in at.metric}
    assert figures["Examples"] == "360" and figures["Invalid rows"] == "0"
    text = words(at)
    assert "Padding" in text and "end-of-turn token **<|im_end|>**" in text.replace("\\", "")
    assert at.selectbox(key="data.format.builtin:support-tickets").value == "auto"
    at.button(key="data.train").click().run()
    assert not at.exception
    assert at.session_state["new.data.dataset"] == "builtin:support-tickets"


def test_a_file_with_odd_rows(open_page: Page, tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    long = "The clock on the harbour wall told the water, not the time of day. " * 5
    write_rows(
        path,
        [
            {"prompt": EVIL, "completion": f"{EVIL} \u202e שלום \x07"},
            *({"prompt": long, "completion": f"yes{end}"} for end in ("", "", ".")),
            {"prompt": "x", "completion": None},
        ],
    )
    at = open_page("data", dataset=str(path))
    figures = {metric.label: metric.value for metric in at.metric}
    assert (figures["Examples"], figures["Invalid rows"]) == ("4", "1")
    assert (figures["Duplicates"], figures["Near-duplicates"]) == ("1", "1")
    bodies = [str(part.proto.body) for part in at.get("html")]
    drawn = "".join(body for body in bodies if body != theme_watch.SCRIPT)
    text = re.sub("<[^>]*>|[\u200b\u2060]", "", drawn)  # a token may be a part of a word
    assert "alert(1)" in text and "script" in text
    assert "<script" not in drawn and "<img" not in drawn and "⟨0007⟩" in drawn


def two_files(folder: Path, shared: int) -> tuple[Path, Path, list[dict[str, str]]]:
    """(four rows to train on, an evaluation dataset that has the last `shared` of them and two of
    its own, all six rows)."""
    rows = [{"prompt": f"Question {number}?", "completion": "yes"} for number in range(6)]
    training, evaluation = folder / "training.jsonl", folder / "evaluation.jsonl"
    write_rows(training, rows[:4])
    write_rows(evaluation, rows[4 - shared :])
    return training, evaluation, rows


def test_rows_of_an_evaluation_dataset_that_also_train_are_counted(
    open_page: Page, tmp_path: Path
) -> None:
    training, evaluation, rows = two_files(tmp_path, shared=2)
    at = open_page("data", dataset=str(training))
    at.text_input(key="data.held_out").set_value(str(evaluation)).run()
    assert {metric.label: metric.value for metric in at.metric}["Leakage"] == "2"
    write_rows(evaluation, rows[4:])
    at.session_state["data.tab"] = "Leakage"
    at.run()
    figures = {metric.label: metric.value for metric in at.metric}
    assert figures["Leakage"] == "0", "The file was changed."
    assert [box.value for box in at.success] == [
        "No held-out example resembles a training example."
    ]
    at.button(key="data.train").click().run()
    assert not at.exception
    assert at.session_state["new.data.eval_dataset"] == str(evaluation)


def test_a_link_of_the_form_shows_its_dataset_whatever_was_open_before(
    open_page: Page, tmp_path: Path
) -> None:
    training, evaluation, _ = two_files(tmp_path, shared=1)
    at = open_page("data", dataset="builtin:support-tickets")
    at.text_input(key="data.held_out").set_value("of another visit").run()
    settings = {"eval_dataset": str(evaluation), "max_length": 64}
    link = data_source.link_to(str(training), "builtin:none", settings)
    for name, value in link.items():
        at.query_params[name] = value
    at.run()
    assert at.text_input(key="data.path").value == str(training)
    assert at.text_input(key="data.held_out").value == str(evaluation)
    assert at.text_input(key="data.model").value == "builtin:none"
    assert at.number_input(key="data.length").value == 64
    assert dict(at.query_params) == {"dataset": str(training)}, "The fields hold the rest."
    at.text_input(key="data.model").set_value("builtin:smollm2-135m-instruct").run()
    figures = {metric.label: metric.value for metric in at.metric}
    assert (figures["Examples"], figures["Leakage"]) == ("4", "1")
    for name, value in data_source.link_to(str(training), "x", {"max_length": "auto"}).items():
        at.query_params[name] = value
    at.run()
    assert at.text_input(key="data.held_out").value == "", "The form has none."
    assert at.number_input(key="data.length").value == 64, "auto is no number: it stays."


def test_a_link_is_followed_once(open_page: Page) -> None:
    """To what is not there, too: another source can be chosen then."""
    at = open_page("data", dataset="upload:gone.jsonl")
    assert "No uploads yet" in words(at)
    at.button_group(key="data.source").set_value("builtin").run()
    assert not at.exception
    assert at.session_state["data.source"] == "builtin"
    assert {metric.label: metric.value for metric in at.metric}["Examples"] == "108"


def test_a_link_to_what_the_url_names_already_leaves_another_source(open_page: Page) -> None:
    at = open_page("data", dataset="builtin:support-tickets")
    at.button_group(key="data.source").set_value("typed").run()
    assert not at.metric, "Nothing was typed yet."
    for name, value in data_source.link_to("builtin:support-tickets", "", {}).items():
        at.query_params[name] = value
    at.run()
    assert {metric.label: metric.value for metric in at.metric}["Examples"] == "360"
    assert at.text_input(key="data.model").value == "builtin:smollm2-135m-instruct"


def test_the_url_of_a_slow_browser_undoes_no_choice(open_page: Page) -> None:
    """It still names what was shown before, when the next click comes."""
    at = open_page("data", dataset="builtin:support-tickets")
    at.selectbox(key="data.builtin").set_value("builtin:persona-chats").run()
    at.query_params["dataset"] = "builtin:support-tickets"
    at.run()
    assert at.selectbox(key="data.builtin").value == "builtin:persona-chats"


@pytest.mark.parametrize(
    "length", ["7", "1048577", "-64", "64.0", "sixty", "\u0666\u0664", "9" * 5000, ""]
)
def test_a_length_that_no_field_takes_is_left_alone(open_page: Page, length: str) -> None:
    at = open_page("data", dataset="builtin:support-tickets", max_length=length)
    assert at.number_input(key="data.length").value == 512
    assert "max_length" not in at.query_params


FORM = {
    "eval_fraction": 0.25,
    "format": "prompt-completion",
    "loss_on": "all",
    "max_length": 96,
    "on_invalid_row": "skip",
    "template": "chatml",
    "truncation": "left",
}


@pytest.mark.parametrize("written", ["", "~/", "folder/../", "link-to-"])
def test_a_link_of_the_form_brings_all_that_the_page_can_show(
    written: str, open_page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever way the form writes the path."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "link-to-rows.jsonl").symlink_to(tmp_path / "rows.jsonl")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    place = "" if written.startswith("~") else f"{tmp_path}/"
    dataset_id = f"{place}{written}rows.jsonl"
    at = open_page("data", **data_source.link_to(dataset_id, "", FORM))
    helps = {metric.label: metric.help for metric in at.metric}
    assert helps["Leakage"].endswith(", of 5."), "A quarter of the rows is held out."
    assert at.selectbox(key=f"data.format.{dataset_id}").value == "prompt-completion"
    shown = {key.rpartition(".")[2]: at.session_state[f"data.{key}"] for key in
             ("loss", "length", "bad", "template", "side")}  # fmt: skip
    assert list(shown.values()) == ["all", 96, "skip", "chatml", "left"]


@pytest.mark.parametrize("fraction", [0.0, 0.9, 0.00001, 1 / 3])
def test_every_fraction_of_a_form_is_read_again(open_page: Page, fraction: float) -> None:
    link = data_source.link_to("builtin:support-tickets", "", {"eval_fraction": fraction})
    at = open_page("data", **link)
    assert at.session_state["data.fraction.builtin:support-tickets"] == fraction


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("eval_fraction", "0.91"), ("eval_fraction", "nan"), ("eval_fraction", "1e5"),
        ("format", "pickle"), ("loss_on", ""), ("on_invalid_row", "Skip"), ("template", "<b>"),
        ("truncation", "both"),
    ],
)  # fmt: skip
def test_a_setting_that_no_field_takes_is_left_alone(open_page: Page, name: str, text: str) -> None:
    plain = open_page("data", dataset="builtin:support-tickets")
    at = open_page("data", **{"dataset": "builtin:support-tickets", name: text})
    assert not at.exception and name not in at.query_params
    assert [metric.value for metric in at.metric] == [metric.value for metric in plain.metric]
    for widget in data_source.WIDGETS.values():
        key = widget.format("builtin:support-tickets")
        assert at.session_state[key] == plain.session_state[key], key


def test_the_form_links_to_what_it_would_train_on(open_page: Page) -> None:
    at = open_page("new_run")
    at.session_state["new.data.dataset"] = "builtin:support-tickets"
    at.session_state["new.data.eval_dataset"] = "builtin:made-up-facts"
    for name, value in FORM.items():
        at.session_state[f"new.data.{name}"] = value
    at.run()
    (link,) = [link.proto for link in at.get("page_link") if "Preview examples" in link.proto.label]
    assert dict(parse_qsl(link.query_string, keep_blank_values=True)) == {
        "dataset": "builtin:support-tickets",
        "eval_dataset": "builtin:made-up-facts",
        "model": at.session_state["new.model"],
        **{name: str(value) for name, value in FORM.items()},
    }


def test_text_is_escaped_token_by_token() -> None:
    shown = data_view.coloured([Token(1, "<script>&\"'", True)], [1])
    assert "&lt;script&gt;&amp;&quot;&#x27;" in shown and "<script" not in shown


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("/no/file.jsonl", "does not exist"),
        ("upload:none.jsonl", "No uploads yet"),
        ("hello", "Unknown dataset"),
        ("org/name", "Choose a dataset"),
    ],
)
def test_what_is_not_there(open_page: Page, dataset: str, says: str) -> None:
    assert says in words(open_page("data", dataset=dataset)).replace("\\", "")


def test_a_hub_set_without_a_network_says_so(open_page: Page) -> None:
    at = open_page("data", dataset="tatsu-lab/alpaca")
    at.button(key="data.fetch").click().run()
    assert not at.exception
    assert "the Hub cannot be reached" in words(at).replace("\\", "")


def test_an_upload_and_its_removal(open_page: Page, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("topic,said\na,b\nc,d\n")
    added = catalog.add_file(path)
    at = open_page("data", dataset=added.id)
    assert "topic, said" not in words(at) and "Unknown example format" in words(at)
    assert at.button(key="data.train").disabled, "there is nothing to train on yet"
    at.selectbox(key=f"data.column.{added.id}..prompt").select("topic").run()
    at.selectbox(key=f"data.column.{added.id}..completion").select("said").run()
    assert {metric.label: metric.value for metric in at.metric}["Examples"] == "2"
    assert "Unknown example format" not in words(at), "the columns that were chosen mend it"
    assert not at.button(key="data.train").disabled
    at.button(key="data.remove").click().run()
    assert not at.exception and catalog.uploads() == []


def test_what_is_not_used_and_what_cannot_be_used_is_said_once(
    open_page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("Prompt,completion,mood\n" + "a,b,sad\n" * 5)
    message = words(open_page("data", dataset=str(path))).replace("\\", "")
    assert message.count("'mood' is not used (5 rows, the first is row 2)") == 1
    assert message.count("Column 'Prompt' is read as 'prompt'") == 1
    path.write_text("prompt,completion\n" + "a,b,c\n" * 30)
    message = words(open_page("data", dataset=str(path))).replace("\\", "")
    assert message.count("has 3 fields") == 1 and "row 2 and 29 more" in message
    assert "data.columns" in message
    path.write_text("prompt,chosen,rejected\na,b,c\n")
    at = open_page("data", dataset=str(path))
    assert words(at).replace("\\", "").count("is a preference") == 1
    at.selectbox(key=f"data.format.{path}").select("preference").run()
    assert {metric.label: metric.value for metric in at.metric}["Examples"] == "1"


def test_the_data_page_shows_nothing_of_what_a_link_hides(open_page: Page, tmp_path: Path) -> None:
    secret, link = tmp_path / "id_key", tmp_path / "x.txt"
    secret.write_text("the-secret-of-another\n")
    link.symlink_to(secret)
    page = open_page("data", dataset=str(link))
    event = words(page).replace("\\", "")
    assert "is not a data file" in event, event
    assert "the-secret" not in event


def test_a_teacher_types_chats_and_trains_on_them(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [
        {"Question": " Who are you? ", "Answer": "I am Wren."},
        {"Question": None, "Answer": float("nan")},
        {"Question": "2 + 2?", "Answer": "4"},
    ]
    rows, problems = typed_examples.examples(table, "Be kind.")
    assert problems == [] and [len(row["messages"]) for row in rows] == [3, 3]
    assert rows[0]["messages"][1:] == [
        {"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Wren."},
    ]  # fmt: skip
    _, problems = typed_examples.examples([{"Question": "Why?", "Answer": " "}], "")
    assert problems == ["Row 1 has no answer. Fill it in, or empty the row."]
    at = open_page("data", session={"data.source": "typed"})
    assert at.button(key="data.typed.save").disabled, "ten empty rows are nothing to save"
    monkeypatch.setattr(typed_examples, "examples", lambda *_: (rows * 4, []))
    at.run()
    at.button(key="data.typed.save").click().run()
    assert not at.exception
    (upload,) = catalog.uploads()
    assert upload.id == "upload:my-chats.jsonl"
    assert {metric.label: metric.value for metric in at.metric}["Examples"] == "8"
    assert not at.button(key="data.train").disabled


def test_a_packed_sequence_says_which_rows_it_holds() -> None:
    rows = [BatchRow(lengths=(37, 36), sources=(2, 3)), BatchRow(lengths=(50,), sources=(4,))]
    chart = charts.packed(rows, 128, View())
    assert [list(trace.text) for trace in chart.data] == [["2", "4"], ["3", ""]]
