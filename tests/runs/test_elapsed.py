"""How long a run took, over all of its attempts, and what is expected of it."""

from __future__ import annotations

import time

import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.paths import RunDir
from lab.runs.elapsed import elapsed_s, expected, in_words


@pytest.fixture
def run() -> RunDir:
    run_dir = RunDir(paths.runs() / "20260101-120000-lora-aaaa")
    paths.make_folder(run_dir.path)
    write_json(run_dir.spec, {"train": {"max_seconds": None}})
    pace = {"seconds": 60.0, "evaluating_s": 12.0, "steps": 30, "tokens_per_s": 400.0}
    pace |= {"sampling_s": 3.0, "probing_s": 5.0, "loading_s": 7.0}
    write_json(run_dir.estimate, {"pace": pace})
    return run_dir


def test_earlier_attempts_count_and_the_one_at_work_goes_on_counting(run: RunDir) -> None:
    assert elapsed_s(run) is None, "It has not begun."
    write_json(run.process, {"pid": 1, "time": time.time() - 50})
    assert elapsed_s(run) == pytest.approx(50, abs=5), "From the start of the worker to now."
    for number, seconds in ((1, 100), (2, 20)):
        ended = {"state": "stopped", "started": 1000.0, "ended": 1000.0 + seconds}
        paths.make_folder(run.attempts / str(number))
        write_json(run.attempts / str(number) / "result.json", ended)
    assert elapsed_s(run) == pytest.approx(170, abs=5)
    write_json(run.result, {"state": "done", "started": 5000.0, "ended": 5007.0})
    assert elapsed_s(run) == 127.0, "What has ended counts by its own times."
    assert in_words(run).startswith("2 min 07 s, ") and in_words(run).endswith(" predicted")


def test_what_is_left_goes_as_the_steps_that_are_done(run: RunDir) -> None:
    """Ten steps took forty seconds, twice as long as predicted."""
    before, after = expected(run, None, None), expected(run, 10, 40.0)
    assert before is not None and after is not None
    assert (before.seconds, before.evaluating_s, before.tokens_per_s) == (60.0, 12.0, 400.0)
    assert (after.seconds, after.evaluating_s, after.tokens_per_s) == (120.0, 24.0, 200.0)
    assert (after.sampling_s, after.probing_s) == (6.0, 10.0), "They compute with it, too."
    assert (after.loading_s, after.whole_s) == (7.0, 167.0), "Loading does not."
    write_json(run.spec, {"train": {"max_seconds": 90}})
    limited = expected(run, 10, 40.0)
    assert limited is not None and limited.seconds == 90.0, "Its own limit ends it."
