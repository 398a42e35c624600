"""Small panels: what they say, and what their buttons do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.runtime.fragment import MemoryFragmentStorage

from lab import host, paths, process
from lab.atomic_files import write_json
from lab.devices import HostGpu
from lab.errors import Problem, SpecError
from lab.fit_answers import Saving
from lab.forecasts import Candidate, SettingsSearch
from lab.host import HostFacts
from lab.paths import RunDir
from lab.runs import index, queue, resume_settings
from lab.spec import RunSpec
from lab.ui import (
    cards,
    form_problems,
    links,
    memory_changes,
    memory_settings,
    notices,
    out_of_memory_panel,
    queue_panel,
    resume_panel,
    settings_search_panel,
)
from tests.ui.screen import Screen

GB = 10**9


def make_run(number: int, name: str = "tiny", **files: Any) -> RunDir:
    """A run directory: `make_run(1, result={"state": "done"})`."""
    run = RunDir(paths.runs() / f"20261122-10153{number}-lora-k3f9")
    run.commands.mkdir(parents=True)
    train = {"eval_steps": 5, "max_steps": 20, "precision": "float32", "learning_rate": 1e-3}
    spec = RunSpec.from_json({"name": name, "train": train})
    write_json(run.spec, {"v": 1, **spec.to_json()})
    for file, value in files.items():
        write_json(getattr(run, file), value)
    return run


def test_the_machine_is_told_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(cards, "st", screen)
    facts = HostFacts(
        system="Linux", python="3.11.7", processor="Chip", cores=4, home="/lab",
        memory_bytes=16 * 10**9, memory_free_bytes=5 * 10**9, disk_free_bytes=70 * 10**9,
        gpus=(HostGpu(0, "GPU-1", "Card", 24 * 10**9, 20 * 10**9),),
    )  # fmt: skip
    monkeypatch.setattr(cards, "_machine", lambda: facts)
    write_json(host.machine_file(), {"cpu_peak_flops": 123e9})
    cards.machine()
    text = "\n".join(screen.texts("markdown"))
    for words in (
        "Chip, 4 cores",
        "16.00 GB, 5.00 GB free",
        "70.00 GB free",
        "123 GFLOP/s",
        "Card: 24.00 GB, 20.00 GB free",
    ):
        assert words in text, text


def test_who_else_gets_in_is_said_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(cards, "st", screen)
    monkeypatch.setattr(cards.access, "warnings", lambda: ["open to [all](x)"])
    monkeypatch.setattr(cards.doctor, "problems", lambda facts: [])
    cards.warnings()
    (warning,) = [args[0] for kind, args, _ in screen.calls if kind == "warning"]
    assert warning == "open to \\[all\\]\\(x\\)"


@pytest.fixture
def sidebar(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(notices, "st", screen)
    monkeypatch.setattr(notices.supervisor_start, "ensure_if_waiting", lambda: None)
    return screen


def test_a_notice_comes_once_for_each_run_that_has_ended(sidebar: Screen) -> None:
    failed = make_run(1, "broken", result={"state": "failed"})
    done = make_run(2, "fine", result={"state": "done"})
    waits = make_run(3, queue={"order": 1.0})
    sidebar.session_state["notices.seen"] = [failed.id, done.id, waits.id]
    notices._list()
    assert sidebar.texts("toast") == ["broken: failed", "fine: done"], "nothing of what waits"
    icons = [named["icon"] for named in sidebar.named("toast")]
    assert icons == [":material/error:", ":material/check_circle:"]
    assert sidebar.session_state["notices.seen"] == [waits.id]
    notices._list()
    assert len(sidebar.texts("toast")) == 2, "it is said once"


def test_running_work_leads_to_its_monitor(sidebar: Screen) -> None:
    run = make_run(1, "busy", heartbeat={"phase": "training", "done": 5, "total": 20})
    process.register(run, os.getpid())
    sidebar.session_state["notices.seen"] = []
    notices._list()
    (link,) = sidebar.named("page_link")
    colour = index.entry(run).colour
    assert link["label"] == f":{colour}[●] busy · 0 %", "of the whole run, which has just begun"
    assert link["query_params"] == {"run": run.id}
    assert sidebar.session_state["notices.seen"] == [run.id], "its end will be told"
    sidebar.query_params["run"] = run.id
    notices._list()
    marks = [named["key"] for named in sidebar.named("container")]
    assert marks == [f"elsewhere-{run.id}", f"shown-{run.id}"], "Monitor marks the run it shows."


def test_the_queue_says_why_and_its_buttons_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (make_run(number, queue={"order": float(number)}) for number in (1, 2))
    paths.make_folder(queue.folder())
    write_json(queue.folder() / "state.json", {"waiting": {first.id: "Waiting for memory."}})
    monkeypatch.setattr(queue_panel, "run_action", lambda action: action())
    screen = Screen(f"up.{second.id}", **{"queue.after": False})
    monkeypatch.setattr(queue_panel, "st", screen)
    queue_panel.show()
    assert "Waiting for memory." in screen.texts("caption")
    assert "Queue**, 2 waiting" in screen.texts("markdown")[0]
    assert queue.waiting_runs() == [second, first], "'Move to front' puts it in front"
    rules = queue.settings()
    assert (rules.continue_after_failure, rules.at_once, rules.spare) == (False, 1, True)


def test_what_is_taken_out_of_the_queue_is_cancelled_even_if_it_has_begun_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(1, queue={"order": 1.0})
    commands: list[tuple[str, str]] = []
    monkeypatch.setattr(
        queue_panel.actions, "command", lambda run, name: commands.append((run.id, name))
    )
    monkeypatch.setattr(queue_panel, "run_action", lambda action: action())
    monkeypatch.setattr(queue_panel, "st", Screen(f"out.{run.id}"))
    queue_panel._line(0, run)
    assert commands == [(run.id, "cancel")]


def test_a_paused_queue_can_be_resumed_while_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("queue.continue")
    monkeypatch.setattr(queue_panel, "st", screen)
    monkeypatch.setattr(queue_panel, "run_action", lambda action: action())
    monkeypatch.setattr("lab.runs.supervisor_start.ensure", lambda: None)
    queue_panel.show()
    assert screen.calls == [], "nothing waits"
    queue.change(paused=True)
    queue_panel.show()
    assert screen.texts("markdown")[0] == "**Queue**, 0 waiting, paused"
    assert not queue.settings().paused


def test_what_is_emptied_on_resuming_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(1, result={"state": "stopped"})
    calls: list[Any] = []
    monkeypatch.setattr(
        resume_panel.actions,
        "resume",
        lambda run, settings, incomplete: calls.append((settings, incomplete)),
    )
    monkeypatch.setattr(resume_panel, "run_action", lambda action: action())
    name = f"resume.{run.id}"
    emptied = {f"{name}.eval_steps": " ", f"{name}.max_steps": "30", f"{name}.incomplete": True}
    screen = Screen(f"{name}.go", **emptied)
    monkeypatch.setattr(resume_panel, "st", screen)
    resume_panel._form(run)
    assert calls == [(["train.max_steps=30", "train.eval_steps=null"], True)]
    assert resume_settings.merged_changes(run, calls[0][0])["eval_steps"] is None


def test_a_run_is_made_longer_from_its_newest_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    run, screen = make_run(1, result={"state": "done"}), Screen()
    monkeypatch.setattr(resume_panel, "st", screen)
    resume_panel.longer(run)
    assert "No checkpoint is left to continue from" in screen.texts("caption")[0]
    assert screen.named("text_input") == [], "there is nothing to go on with"
    screen.calls.clear()
    for step in (8, 1200):
        (run.checkpoints / f"step-{step}").mkdir(parents=True)
    resume_panel.longer(run)
    assert "continues from the checkpoint of step 1,200 and" in screen.texts("caption")[0]
    assert len(screen.named("text_input")) == len(resume_settings.CHANGEABLE)


def test_a_change_that_would_fit_says_what_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(out_of_memory_panel, "st", screen)
    saving = Saving("Fuse [it]", {}, True, peak_bytes=7 * GB, saves_bytes=2 * GB)
    out_of_memory_panel._line(RunDir(Path("x")), 0, saving)
    out_of_memory_panel._line(RunDir(Path("x")), 1, replace(saving, keeps_effective_batch=False))
    assert screen.texts("markdown") == [
        "Fuse [it] · saves **2.00 GB** · peak 7.00 GB · same effective batch",
        "Fuse [it] · saves **2.00 GB** · peak 7.00 GB · changes the training",
    ]


def test_a_run_that_ran_out_of_memory_is_started_again_with_the_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(1, result={"state": "failed", "out_of_memory": {"phase": "backward"}})
    started: list[dict[str, Any]] = []
    opened: list[str] = []
    monkeypatch.setattr(
        out_of_memory_panel, "start_run", lambda spec: started.append(spec) or make_run(2)
    )
    monkeypatch.setattr(links, "open_run", opened.append)
    screen = Screen(f"fix.{run.id}.1")
    monkeypatch.setattr(out_of_memory_panel, "st", screen)
    screen.session_state[f"autopsy.{run.id}"] = [
        Saving("shorter", {"data.max_length": 64}, False, GB, GB),
        Saving("half", {"train.batch_size": 1}, True, GB, GB),
    ]
    out_of_memory_panel.show(run)
    (spec,) = started
    assert (spec["train"]["batch_size"], spec["train"]["max_steps"]) == (1, 20)
    assert spec["data"]["max_length"] != 64, "this change, and the rest as it was"
    assert opened == ["20261122-101532-lora-k3f9"]
    screen.calls.clear()
    out_of_memory_panel.show(make_run(3, result={"state": "failed"}))
    assert screen.calls == [], "it ended for another reason"


def choices(fits: bool) -> SettingsSearch:
    candidate = Candidate(
        batch_size=4, gradient_accumulation_steps=2, tokens_per_s=1234.0, peak_bytes=3_210_000_000,
        activation_checkpointing="on", checkpointed_layers=7, loss_implementation="fused",
        optimizer="adamw", why="best", fits=fits,
    )  # fmt: skip
    return SettingsSearch(
        (candidate,), reached=0.35, reserve=0.04, device_bytes=24 * GB, compile="pays"
    )


@pytest.mark.parametrize(("fits", "form", "taken"), [(True, 1, 1), (False, 1, 0), (True, 2, 0)])
def test_only_what_fits_this_very_form_can_be_taken_over(
    monkeypatch: pytest.MonkeyPatch, fits: bool, form: int, taken: int
) -> None:
    screen = Screen()
    monkeypatch.setattr(settings_search_panel, "st", screen)
    monkeypatch.setattr(settings_search_panel, "form", SimpleNamespace(value=lambda: {"a": form}))
    screen.session_state["new.choices"] = {"a": 1}, choices(fits)
    settings_search_panel.for_form()
    assert sum(named["key"] == "plan.take" for named in screen.named("button")) == taken
    text = "\n".join(screen.texts("markdown"))
    assert (
        "batch size 4 × accumulation 2, checkpointed layers: 7, fused loss, adamw; best" in text
    ) == (form == 1)


def test_a_timer_of_the_old_page_asks_in_vain_for_its_fragment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streamlit answers requests for stored fragments with the page that they come from, for which
    the browser would clear the new one."""
    storage = MemoryFragmentStorage()
    storage.register("a fragment of the old page", lambda: None)
    screen = Screen()
    monkeypatch.setattr(links, "st", screen)
    monkeypatch.setattr(
        links, "get_script_run_ctx", lambda: SimpleNamespace(fragment_storage=storage)
    )
    links.open_run("20261122-101531-lora-k3f9")
    assert not storage.contains("a fragment of the old page")
    (query,) = screen.named("switch_page")
    assert query["query_params"] == {"run": "20261122-101531-lora-k3f9"}


def test_choices_are_shown_in_gb_of_powers_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(settings_search_panel, "st", screen)
    settings_search_panel.show(choices(True))
    ((table,),) = [args for kind, args, _ in screen.calls if kind == "dataframe"]
    assert table[0]["peak memory (GB)"] == 3.21
    assert table[0]["batch × accumulation"] == "4 × 2"
    assert table[0]["checkpointed layers"] == "7" and table[0]["tokens/s"] == 1234.0
    (caption,) = screen.texts("caption")
    assert (
        "35 % of the device's peak FLOP/s" in caption and "4.0 % of 24.00 GB stays free" in caption
    )


def test_a_card_is_told_by_what_a_run_can_have_of_it() -> None:
    title = memory_settings.device_title("RTX 4090 24GB")
    assert title == "24.89 GB usable memory · 1,008 GB/s · 165 TFLOP/s · 450 W"


def test_a_problem_is_kept_until_its_field_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(form_problems, "st", screen)
    spec = {"name": "long", "train": {"seed": -1}}
    monkeypatch.setattr(form_problems.form, "value", lambda: spec)
    found = SpecError([Problem("train.seed", "is -1."), Problem("name", "is long.")])
    form_problems.keep(found, spec)
    assert form_problems.of_fields() == {"train.seed": "is -1.", "name": "is long."}
    assert form_problems.blocking() == {}, "Start says again whether they are still there"
    monkeypatch.setattr(form_problems.form, "value", lambda: spec | {"name": "short"})
    assert form_problems.of_fields() == {"train.seed": "is -1."}
    form_problems.forget()
    assert form_problems.of_fields() == {}


def saving(title: str, peak: int, *, keeps_effective_batch: bool = True) -> Saving:
    return Saving(
        title, {"train.batch_size": 1}, keeps_effective_batch, peak * GB, (12 - peak) * GB
    )


@pytest.mark.parametrize(("is_pair", "name"), [(False, "qlora"), (True, "lora")])
def test_a_change_of_the_method_is_not_for_both_sides_of_a_pair(
    monkeypatch: pytest.MonkeyPatch, is_pair: bool, name: str
) -> None:
    loaded: list[RunSpec] = []
    spec = {"method": {"name": "lora"}, "train": {"batch_size": 4}}
    monkeypatch.setattr(memory_changes.form, "value", lambda: spec)
    monkeypatch.setattr(memory_changes.form, "load", loaded.append)
    monkeypatch.setattr(memory_changes.method_card, "is_pair", lambda: is_pair)
    memory_changes._apply({"method": {"name": "qlora"}, "train.batch_size": 1})
    assert (loaded[0].method["name"], loaded[0].train.batch_size) == (name, 1)


def test_the_smallest_change_that_fits_comes_first() -> None:
    savings = [
        saving("SGD", 2, keeps_effective_batch=False), saving("half", 9),
        saving("checkpointing", 6), saving("fused", 11),
        saving("shorter", 8, keeps_effective_batch=False),
    ]  # fmt: skip
    ranked = [saving.title for saving in memory_changes.smallest_first(savings, 10 * GB)]
    assert ranked == ["half", "checkpointing", "shorter", "SGD", "fused"]
    nothing = memory_changes.smallest_first(savings, GB)
    assert [saving.title for saving in nothing] == [
        "checkpointing", "half", "fused", "SGD", "shorter",
    ], "where nothing fits, what saves most"  # fmt: skip
    words = memory_changes.in_words(savings[1], 10 * GB)
    assert words == "half · saves **3.00 GB** · peak 9.00 GB, :green[fits] · same effective batch"
    assert ":red[still too large]" in memory_changes.in_words(savings[3], 10 * GB)
