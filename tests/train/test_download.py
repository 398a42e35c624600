"""What a run fetches before it loads: told while it comes, kept where it is ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.data import hub as dataset_hub
from lab.errors import Cancelled, LabError
from lab.hub.branches import BranchWatch
from lab.hub.progress import DownloadProgress
from lab.models.catalog import ModelSource
from lab.paths import RunDir
from lab.spec import RunSpec
from lab.train import download

REMOTE = ModelSource("org/base", "org/base", local_only=False)
LOCAL = ModelSource("base", "/models/base", local_only=True)


class Records:
    """A telemetry that remembers what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.reports: list[tuple[Any, ...]] = []
        self.events: list[dict[str, Any]] = []

    def enter_phase(self, phase: str) -> None:
        self.phases.append(phase)

    def progress(self, *report: Any, **more: Any) -> None:
        self.reports.append((*report, more))

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})


@pytest.fixture
def come(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a download come so far, as the library tells it."""

    def set_to(**figures: int) -> None:
        def local_folder(source: ModelSource, *, with_weights: bool, tell: Any) -> None:
            assert with_weights, "the run needs the weights, too"
            tell(DownloadProgress(9_000_000, 3, **figures))

        monkeypatch.setattr(download.hub, "local_folder", local_folder)

    return set_to


def test_what_came_is_told_and_recorded(come: Callable[..., None]) -> None:
    come(done=9_000_000, files_done=3, received=2_000_000)
    telemetry: Any = Records()
    checks: list[int] = []
    download.fetch_base(REMOTE, telemetry, lambda: checks.append(1))
    assert telemetry.phases == ["downloading"] and checks == [1], "a person may end it"
    ((done, total, unit, _, more),) = telemetry.reports
    assert (done, total, unit) == (9_000_000, 9_000_000, "byte")
    assert (more["files"], more["files_done"]) == (3, 3) and "9.00 MB of 9.00 MB" in more["note"]
    (event,) = telemetry.events
    assert (event["kind"], event["model"], event["files"]) == ("download", "org/base", 3)
    assert event["bytes"] == 2_000_000, "what came over the network, not what was there"
    come(done=9_000_000, files_done=3)
    untouched: Any = Records()
    download.fetch_base(REMOTE, untouched, lambda: None)
    download.fetch_base(LOCAL, untouched, lambda: None)
    assert untouched.events == [], "nothing came"
    assert len(untouched.reports) == 1, "a folder of this machine is not looked for"


@pytest.mark.parametrize(
    ("done", "left"), [(3_000_000, "3.00 MB of 9.00 MB of 'org/base'"), (9_000_000, "")]
)
def test_what_an_ended_download_keeps_is_said(
    come: Callable[..., None], done: int, left: str
) -> None:
    come(done=done)

    def stop() -> None:
        raise Cancelled("stop")

    telemetry: Any = Records()
    with pytest.raises(Cancelled) as ended:
        download.fetch_base(REMOTE, telemetry, stop)
    assert (ended.value.kept_download, ended.value.command) == (left, "stop")
    assert telemetry.events == []


def test_every_set_of_the_hub_that_is_gone_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(download.hub_fetch, "fetch", lambda wanted, look: fetched.append(wanted))
    present = dataset_hub.parse("org/here").file
    present.parent.mkdir(parents=True)
    present.touch()
    telemetry: Any = Records()
    for general, expected in (("org/c", ["org/a", "org/b", "org/c"]), ("base", ["org/a", "org/b"])):
        fetched.clear()
        names = {"dataset": "org/a", "eval_dataset": "org/b", "general_dataset": general}
        spec = RunSpec.from_json({"data": names | {"general_fraction": 0.1}})
        download.fetch_data(spec, telemetry, lambda: None)
        assert [str(wanted) for wanted in fetched] == expected
    fetched.clear()
    spec = RunSpec.from_json({"data": {"dataset": "org/here", "eval_dataset": "rows.jsonl"}})
    download.fetch_data(spec, telemetry, lambda: None)
    assert fetched == [], "what is here is not fetched"


def test_each_branch_is_asked_for_what_was_written_before_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check wrote commits in place of what a person had written."""
    model, data = (f"org/{name}#{'a' * 40}" for name in ("base", "rows"))
    run = RunDir(tmp_path)
    own = {"model": "org/base", "data": {"dataset": "org/rows"}}
    write_json(run.spec, {"model": model, "data": {"dataset": data}, "requested": own})
    monkeypatch.setattr(download, "BranchWatch", lambda *questions: questions)
    monkeypatch.setattr(download.hub, "moved_on", lambda source, name: f"{source.id} {name}")
    monkeypatch.setattr(dataset_hub, "moved_on", lambda wanted, name: f"{wanted} {name}")
    for dataset, answer in ((data, f"{data} org/rows"), ("upload:rows", "")):
        spec = RunSpec.from_json({"model": model, "data": {"dataset": dataset}})
        of_base, of_data = download.watch_branches(run, spec, REMOTE)  # type: ignore[misc]
        assert (of_base(), of_data()) == ("org/base org/base", answer)


def test_a_branch_that_cannot_be_asked_for_hides_no_other() -> None:
    def fail() -> str:
        raise LabError("The Hub is gone.")

    watch = BranchWatch(lambda: "", fail, lambda: "It has moved on.")
    assert watch.notes(within_s=5) == ["It has moved on."]


def test_branches_are_waited_for_no_longer_than_is_allowed() -> None:
    answered = Event()
    watch = BranchWatch(lambda: "It has moved on." * answered.wait(5))
    assert watch.notes(within_s=0.01) == []
    answered.set()
    assert watch.notes(within_s=5) == ["It has moved on."]
