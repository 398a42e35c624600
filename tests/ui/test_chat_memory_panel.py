"""One click gives the chat's memory to a run that waits for it."""

from __future__ import annotations

import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.chat import client
from lab.paths import RunDir
from lab.runs import actions, chat_memory, index
from lab.ui import cards, chat_memory_panel, chat_view
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run

WAITS = (
    f"Waiting for memory: about 3.0 GB are needed, 2.0 GB are free, and {chat_memory.HOLDS} 2 GB."
)


def test_the_monitor_of_a_waiting_run_says_why_and_frees_it(
    open_page: Page, trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained[1]
    run.result.unlink()
    run.process.unlink()
    write_json(run.queue, {"v": 1, "priority": 0, "order": 1.0})
    state = paths.make_folder(paths.home() / "queue") / "state.json"
    write_json(state, {"waiting": {run.id: WAITS}})
    monkeypatch.setattr("lab.runs.supervisor_start.ensure", lambda: None)
    monkeypatch.setattr("lab.runs.supervisor_start.ensure_if_waiting", lambda: None)
    ended: list[bool] = []
    busy = [True]
    monkeypatch.setattr(
        client, "health", lambda: client.ChatHealth(is_busy=busy[0], ends_in_s=600.0)
    )
    monkeypatch.setattr(client, "end", lambda: ended.append(True))
    at = open_page("monitor", run=run.id)
    assert chat_memory.HOLDS in words(at).replace("\\", "")
    button = at.button(key="monitor.free")
    assert "Unused, it ends in 10 min" in button.proto.help
    button.click().run()
    assert ended == [] and "An answer is being generated" in words(at), "It is not cut off."
    busy[0] = False
    at.button(key="monitor.free").click().run()
    assert ended == [True]
    write_json(state, {"waiting": {run.id: "Waiting for another run to end."}})
    at = open_page("monitor", run=run.id)
    assert not [each for each in at.button if each.key == "monitor.free"]
    actions.delete(run)


def test_chat_says_which_run_uses_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    for module in (chat_view, chat_memory_panel):
        monkeypatch.setattr(module, "st", screen)
    chat_view.memory_note()
    assert screen.calls == [], "Nothing trains."
    run = make_run(1, "my *run*")
    write_json(run.estimate, {"peak_bytes": 2_160_000_000})
    monkeypatch.setattr(index, "active_runs", lambda: [run])
    monkeypatch.setattr(cards, "free_memory", lambda: "3.00 GB")
    chat_view.memory_note()
    (line,) = screen.texts("caption")
    assert "**my *run*** is training" in line and "takes up to 2.16 GB; 3.00 GB are free" in line
    assert screen.named("page_link")[0]["query_params"] == {"run": run.id}
