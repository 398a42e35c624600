"""The Runs page: what the table says of a run, and what the bar does with the selected ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lab import paths, process
from lab.atomic_files import write_json
from lab.errors import LabError
from lab.runs import index
from lab.runs.outcomes import outcome
from lab.ui import downloads, end_card, import_panel, links, runs_bar, runs_view
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run

BASE = {"kind": "eval", "of": "base", "step": 0, "eval/loss": 3.5}


class Bar(Screen):
    """A page with a bar at its bottom; going to another page ends it as it does in Streamlit."""

    bottom = property(lambda self: self)

    def is_disabled(self, key: str) -> bool:
        (button,) = [named for named in self.named("button", "popover") if named.get("key") == key]
        return bool(button.get("disabled"))


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Bar:
    screen = Bar()
    for module in (runs_bar, links, end_card, runs_view, downloads):
        monkeypatch.setattr(module, "st", screen)
    monkeypatch.setattr("lab.ui.markdown_safety.st", screen)
    return screen


def run_with(number: int, *evaluations: dict[str, Any], **files: Any) -> paths.RunDir:
    run = make_run(number, f"run {number}", **({"result": {"state": "done"}} | files))
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in evaluations))
    return run


def evaluated(step: int, loss: Any, attempt: int = 1) -> dict[str, Any]:
    return {"kind": "eval", "attempt": attempt, "step": step, "eval/loss": loss}


def test_the_loss_is_the_newest_and_stands_beside_its_difference_to_the_base() -> None:
    run = run_with(1, BASE, evaluated(5, 3.0), evaluated(10, 2.5))
    assert outcome(run).loss == 2.5 and outcome(run).difference == -1.0
    with run.metrics.open("a") as file:
        file.write(json.dumps(evaluated(5, 2.75, attempt=2)) + "\n")
    assert outcome(run).loss == 2.75, "a later attempt takes back what it does again"


@pytest.mark.parametrize(
    ("evaluations", "loss", "difference"),
    [
        ([], None, None),
        ([BASE], None, None),
        ([evaluated(5, 2.0)], 2.0, None),
        ([BASE, evaluated(5, float("nan"))], None, None),
        ([BASE, evaluated(5, "low"), {"kind": "eval", "step": "x", "eval/loss": 1.0}], None, None),
    ],
)
def test_a_run_without_an_evaluation_has_no_loss(
    evaluations: list[dict[str, Any]], loss: float | None, difference: float | None
) -> None:
    of_run = outcome(run_with(1, *evaluations))
    assert (of_run.loss, of_run.difference) == (loss, difference)


def test_the_size_follows_what_is_on_disk() -> None:
    run = run_with(1, BASE)
    before = outcome(run).bytes
    run.artifact.mkdir()
    (run.artifact / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    assert outcome(run).bytes == before + 1000
    run.exports.mkdir()
    assert outcome(run).bytes == before + 1000
    (run.exports / "Q8_0.gguf").write_bytes(b"x" * 500)
    assert outcome(run).bytes == before + 1500


def test_the_table_has_titles_losses_and_sizes_and_the_id_last() -> None:
    run_with(1, BASE, evaluated(10, 2.5))
    run_with(2)
    entries = index.entries()
    frame = runs_view.rows(entries, [outcome(runs_view.folder(entry)) for entry in entries])
    assert list(frame.columns)[:7] == [
        " ", "Name", "State", "Eval loss", "To base", "Method", "Model",
    ]  # fmt: skip
    assert list(frame.columns)[-1] == "ID" and "Tags" not in frame.columns
    measured = frame[frame["Name"] == "run 1"].iloc[0]
    assert (measured["Eval loss"], measured["To base"]) == (2.5, -1.0)
    assert measured["Method"].startswith("LoRA r") and ":" not in measured["Model"]
    assert measured["Dataset"].startswith("Persona chats") and measured["Size (MB)"] > 0
    unmeasured = frame[frame["Name"] == "run 2"].iloc[0]
    assert unmeasured["Eval loss"] != unmeasured["Eval loss"], "nothing is NaN, which sorts last"
    figures = ["Eval loss", "To base", "Training (min)", "Peak (GB)", "Size (MB)", "Steps"]
    assert set(frame[figures].dtypes) == {np.dtype("float64")}, "a header sorts by the figure"
    assert "None" not in frame.to_string()


def test_times_are_in_minutes_and_memory_in_gigabytes() -> None:
    summary = {"step": 60, "tokens": 12_000, "seconds": 90.0, "peak_bytes": 2_500_000_000}
    run_with(1, result={"state": "done", "summary": summary})
    entries = index.entries()
    (row,) = runs_view.rows(entries, [outcome(runs_view.folder(entries[0]))]).to_dict("records")
    assert (row["Training (min)"], row["Peak (GB)"]) == (1.5, 2.5)
    assert (row["Steps"], row["Tokens"]) == (60, 12_000)


def test_one_run_is_opened_and_several_are_compared(bar: Bar) -> None:
    entries = [index.entry(run_with(number)) for number in (1, 2, 3)]
    runs_bar.show(entries[:2])
    assert not bar.is_disabled("runs.compare")
    assert "runs.open" not in [named.get("key") for named in bar.named("button")]
    bar.calls.clear()
    runs_bar.show(entries)
    assert not bar.is_disabled("runs.compare")
    bar.calls.clear()
    runs_bar.show(entries * 13)
    assert bar.is_disabled("runs.compare"), "39 are more than Compare shows"
    bar.calls.clear()
    bar.pressed = ("runs.compare",)
    runs_bar.show(entries[:2])
    assert bar.named("switch_page")[0]["query_params"] == {
        "runs": f"{entries[0].id},{entries[1].id}",
    }  # fmt: skip
    bar.calls.clear()
    runs_bar.show([])
    assert bar.calls == [], "without a selection there is no bar"


def test_the_chat_gets_the_base_and_the_selected_runs(bar: Bar) -> None:
    runs = [run_with(number) for number in (1, 2, 3, 4)]
    entries = [index.entry(run) for run in runs]
    runs_bar.show(entries[:2])
    assert bar.is_disabled("runs.chat"), "a run without a trained model has nothing to say"
    for run in runs:
        run.artifact.mkdir()
    bar.calls.clear()
    runs_bar.show(entries)
    assert bar.is_disabled("runs.chat"), "four results and their base are five models"
    bar.calls.clear()
    bar.pressed = ("runs.chat",)
    runs_bar.show(entries[:2])
    (switch,) = bar.named("switch_page")
    assert switch["query_params"]["models"].split(",") == [
        f"base:{entries[0].model}", f"run:{entries[0].id}", f"run:{entries[1].id}",
    ]  # fmt: skip


def test_why_a_button_is_off_names_the_run_as_it_is(bar: Bar) -> None:
    """A tooltip is Markdown."""
    run = run_with(1, result=None, labels={"name": "*v1*"})
    run.result.unlink()
    process.register(run, os.getpid())
    runs_bar.show([index.entry(run)])
    helps = {named.get("key"): named.get("help") for named in bar.named("button", "popover")}
    assert helps["runs.delete"] == "Stop \\*v1\\* first." and bar.is_disabled("runs.delete")
    assert helps["runs.chat"] == "\\*v1\\* has no trained model yet."


def test_several_runs_are_tagged_and_archived_at_once(bar: Bar) -> None:
    runs = [run_with(1, labels={"tags": "old, good"}), run_with(2)]
    bar.pressed, bar.answers = (
        ("runs.tags.save",),
        {"runs.tags.add": "good, small", "runs.tags.remove": ["old"]},
    )
    runs_bar.show([index.entry(run) for run in runs])
    assert [index.entry(run).tags for run in runs] == [("good", "small")] * 2
    bar.pressed, bar.answers = ("runs.archive",), {"runs.tags.remove": []}
    runs_bar.show([index.entry(run) for run in runs])
    assert all(index.entry(run).is_archived for run in runs)
    runs_bar.show([index.entry(run) for run in runs])
    assert not any(index.entry(run).is_archived for run in runs), "all archived: taken back"


def test_tags_are_added_to_those_that_a_run_has(bar: Bar) -> None:
    runs = [run_with(1, labels={"tags": "old, good"}), run_with(2, labels={"tags": "fine"})]
    bar.pressed = ("runs.tags.save",)
    bar.answers = {"runs.tags.add": " small ,, small", "runs.tags.remove": ["old"]}
    runs_bar.show([index.entry(run) for run in runs])
    assert [index.entry(run).tags for run in runs] == [("good", "small"), ("fine", "small")]


def test_of_runs_of_which_some_are_archived_all_are_archived(bar: Bar) -> None:
    runs = [run_with(1, labels={"archived": True}), run_with(2)]
    bar.pressed, bar.answers = ("runs.archive",), {"runs.tags.remove": []}
    runs_bar.show([index.entry(run) for run in runs])
    assert [index.entry(run).is_archived for run in runs] == [True, True]


@pytest.mark.parametrize(("shows_archived", "listed"), [(False, ["run 2"]), (True, ["run 1"])])
def test_archived_runs_are_listed_apart(bar: Bar, shows_archived: bool, listed: list[str]) -> None:
    run_with(1, labels={"archived": True})
    run_with(2)
    bar.answers = {"runs.search": "", "runs.archived": shows_archived}
    bar.pills = lambda *_, **named: []  # type: ignore[attr-defined]
    entries = runs_view.search(index.entries())
    assert [entry.name for entry in entries] == listed


def test_what_cannot_be_deleted_is_named_and_the_others_are_deleted(
    bar: Bar, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_with(number) for number in (1, 2, 3)]
    entries = [index.entry(run) for run in runs]
    (runs[1].path).rename(runs[1].path.with_name(".tmp-elsewhere"))  # deleted in another tab
    bar.pressed = ("runs.delete.confirm",)
    runs_bar.show(entries)
    assert not runs[0].path.exists() and not runs[2].path.exists()
    assert any("Delete 3 runs" in text for text in bar.texts("button"))
    runs_bar.outcome_of_last_action()
    assert "run 2: There is no run" in bar.texts("error")[0]
    bar.calls.clear()
    runs_bar.outcome_of_last_action()
    assert bar.calls == [], "a failure is said once"


def test_what_a_tracker_still_holds_of_a_deleted_run_is_said_once(bar: Bar) -> None:
    run = run_with(1, BASE)
    spec = json.loads(run.spec.read_text())
    spec["train"]["report_to"] = ["wandb"]
    run.spec.write_text(json.dumps(spec))
    bar.pressed = ("runs.delete.confirm",)
    runs_bar.show([index.entry(run)])
    bar.calls.clear()
    runs_bar.outcome_of_last_action()
    (note,) = bar.texts("info")
    assert "wandb has no records of" in note and "delete them there" in note
    bar.calls.clear()
    runs_bar.outcome_of_last_action()
    assert bar.calls == []


def test_a_trained_model_is_taken_away_as_the_folder_that_peft_loads(bar: Bar) -> None:
    run = run_with(1)
    run.artifact.mkdir()
    (run.artifact / "adapter_config.json").write_text("{}")
    write_json(run.artifact / "receipt.json", {})
    (run.artifact / "link").symlink_to("/etc/passwd")
    end_card.downloads(run)
    labels = bar.texts("link_button")
    assert labels[0].startswith("Trained model (") and labels[1] == "Whole run (ZIP)"
    reply = TestClient(Starlette(routes=downloads.ROUTES)).get(f"/download/{run.id}/result")
    names = zipfile.ZipFile(io.BytesIO(reply.content)).namelist()
    folder = f"{run.id}-model"
    assert names == [f"{folder}/adapter_config.json", f"{folder}/receipt.json"]


@pytest.mark.parametrize(
    ("content", "record", "status"),
    [
        ("gguf-Q8_0", {"finish": "done"}, 200),
        ("gguf-Q8_0", {"finish": "failed", "error": "It differs."}, 404),
        ("gguf-Q8_0", {"phase": "writing"}, 404),
        ("gguf-Q8_0", None, 404),
        ("gguf-F16", {"finish": "done"}, 404),
        ("gguf-..", {"finish": "done"}, 404),
    ],
)
def test_an_export_goes_out_once_it_is_finished_and_proven(
    content: str, record: dict[str, Any] | None, status: int
) -> None:
    run = run_with(1)
    run.exports.mkdir()
    (run.exports / "Q8_0.gguf").write_bytes(b"a model")
    if record is not None:
        write_json(
            run.exports / "gguf-Q8_0.json", {"process": process.identity(os.getpid()), **record}
        )
    client = TestClient(Starlette(routes=downloads.ROUTES))
    reply = client.get(f"/download/{run.id}/{content}")
    assert reply.status_code == status
    assert (reply.content == b"a model") == (status == 200)
    if status == 200:
        name = f'filename="{run.id}-Q8_0.gguf"'
        assert name in reply.headers["content-disposition"]


def test_a_whole_run_goes_out_as_a_file_of_which_nothing_is_left() -> None:
    run = run_with(1, BASE)
    client = TestClient(Starlette(routes=downloads.ROUTES))
    reply = client.get(f"/download/{run.id}/run")
    assert reply.status_code == 200 and zipfile.is_zipfile(io.BytesIO(reply.content))
    assert list(paths.home().glob(".export-*")) == []
    assert client.get("/download/20200101-000000-lora-zzzz/run").status_code == 404
    assert client.get(f"/download/{run.id}/result").status_code == 404, "it has no trained model"


@pytest.mark.parametrize("is_refused", [False, True])
def test_an_imported_file_is_whole_and_not_left_beside_the_runs(
    monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    content = b"x" * ((1 << 20) + 5)

    def import_run(file: Path) -> paths.RunDir:
        assert file.read_bytes() == content
        if is_refused:
            raise LabError("This is no run.")
        return run_with(1)

    monkeypatch.setattr(import_panel.export_import, "import_run", import_run)
    with pytest.raises(LabError) if is_refused else contextlib.nullcontext():
        assert import_panel._import(io.BytesIO(content)).result.exists()
    assert list((paths.home() / "uploads").iterdir()) == []
