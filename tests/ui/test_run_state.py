"""How the state of a run looks."""

from __future__ import annotations

from lab.runs.status import Status
from lab.ui import run_state


def test_progress_says_how_much_of_how_much() -> None:
    now = Status("training", phase="training", done=1200, total=6000, unit="step", eta_s=80.0)
    assert run_state.progress(now) == "training · step 1,200 of 6,000 · 1 min 20 s left"
    saving = Status("saving", phase="saving", done=12, total=60, unit="step", eta_s=80.0)
    assert run_state.progress(saving) == "saving · step 12 of 60", "Only training has a time left."
    assert run_state.progress(Status("queued")) == "queued"


def test_good_and_bad_ends_look_different() -> None:
    for state in ("failed", "crashed", "stalled"):
        assert run_state.colour(state) == "red", state
    assert run_state.colour("done") == "green" and run_state.colour("training") == "blue"
    assert run_state.colour("stopped") == "orange" and run_state.colour("cancelled") == "gray"
    icons = {run_state.icon(state) for state in ("done", "failed", "stopped", "queued", "training")}
    assert len(icons) == 5
