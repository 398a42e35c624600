"""Whoever types an id or looks at a page downloads nothing but configs and headers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit

from lab.compare import race_start
from lab.data import dataset_preview, hub_fetch
from lab.data import hub as dataset_hub
from lab.export.script import script
from lab.forecast import settings_search
from lab.models import catalog, hub
from lab.preflight import answers
from lab.preflight.client import planner
from lab.recent import Recent
from lab.spec import RunSpec
from lab.ui import data_view
from tests.answers import checked, estimate, limits, plan, race_specs
from tests.hub.conftest import NAME, make_micro_model
from tests.hub.stand_in import StandIn
from tests.ui.conftest import Page, open_page, words

__all__ = ["open_page"]  # a fixture
SET = "org/rows"
ROWS = b'{"prompt": "What is one?", "completion": "It is two."}\n' * 30
METADATA = {"config.json", "generation_config.json"}
DEVICE = {"memory_bytes": 8 * 10**9}


@pytest.fixture
def both(stand_in: StandIn, micro_model: Path) -> StandIn:
    """A model and a set on the Hub, neither of them here."""
    stand_in.commit(NAME, micro_model)
    stand_in.commit(SET, {"train.jsonl": ROWS}, "datasets")
    return stand_in


def bodies(stand_in: StandIn) -> set[str]:
    """Names of the files of which a body was sent, beyond the headers of weights."""
    names = set()
    for line in stand_in.requests("GET"):
        if not line.path.startswith("/api/") and line.sent:
            is_header = re.fullmatch(r"bytes=\d+-\d+", line.range) and line.sent <= 200_000
            name = line.path.split("?")[0].rpartition("/")[2]
            names.add(f"header of {name}" if is_header else name)
    return names


class Ended(Exception):
    """A question has read all that it reads."""


@pytest.mark.parametrize(
    "ask",
    [
        lambda spec: estimate(spec, how={"shadow": False, "time": True}),
        lambda spec: plan(spec, DEVICE),
        lambda spec: limits(spec, DEVICE),
    ],
    ids=["estimate", "plan", "limits"],
)
def test_questions_of_pages_read_only_configs(
    both: StandIn,
    hub_spec: Callable[..., dict[str, Any]],
    ask: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(*arguments: Any, **options: Any) -> None:
        """What follows varies settings in memory, for which a test has no time."""
        raise Ended

    monkeypatch.setattr(settings_search, "rank_settings", end)
    monkeypatch.setattr(answers, "fit_limits", end)
    with contextlib.suppress(Ended):
        answer = ask(hub_spec(data={"dataset": SET}))
        assert "problems" not in answer, answer
    assert "config.json" in bodies(both), "the stand-in was asked"
    assert bodies(both) <= METADATA


@pytest.fixture
def questions_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pages ask of the planner, answered in this process."""
    # as in tests/ui: the test harness itself keeps functions in the session
    streamlit.config.set_option("runner.enforceSerializableSessionState", False)
    monkeypatch.setattr(planner, "look", dataset_preview.look)
    monkeypatch.setattr(planner, "warm", lambda: None)
    monkeypatch.setattr(data_view, "_previews", Recent(8))


def test_the_data_page_offers_the_tokenizer_and_fetches_it_when_asked(
    both: StandIn, questions_here: None, open_page: Page
) -> None:
    hub_fetch.fetch(dataset_hub.parse(SET))
    both.clear()
    at = open_page("data", {"data.model": NAME}, dataset=SET)
    size = hub.tokenizer_download(catalog.resolve(NAME))
    assert size is not None and size.bytes > 1_000
    assert f"The tokenizer of '{NAME}' is not on this machine." in words(at).replace("\\", "")
    assert bodies(both) <= METADATA
    button = at.button(key="data.fetch_tokenizer")
    assert button.label.startswith("Download it (") and "kB" in button.label
    button.click().run()
    assert not at.exception and {metric.label for metric in at.metric} >= {"Examples", "Tokens"}
    assert "tokenizer.json" in bodies(both) and "model.safetensors" not in bodies(both)
    assert hub.tokenizer_download(catalog.resolve(NAME)) is None


def test_the_script_reads_the_commits_that_were_checked(
    both: StandIn, hub_spec: Callable[..., dict[str, Any]]
) -> None:
    hub_fetch.fetch(dataset_hub.parse(SET))
    spec = checked(hub_spec(data={"dataset": SET})).spec
    model, rows = (both.refs[key]["main"] for key in (("models", NAME), ("datasets", SET)))
    lines = script(spec, spec.model, spec.data.dataset, "")
    compile(lines, "script", "exec")
    assert f"MODEL = '{NAME}'\nREVISION = '{model}'  # of MODEL: as checked" in lines
    assert "AutoTokenizer.from_pretrained(MODEL, revision=REVISION)" in lines
    assert "    revision=REVISION,\n" in lines.partition("AutoModelForCausalLM.from_pretrained(")[2]
    assert f"DATA_REVISION = '{rows}'" in lines
    assert "load_dataset(DATA, CONFIG, revision=DATA_REVISION)" in lines
    plain = script(RunSpec.from_json(spec.to_json()), "/a/folder", "/rows.jsonl", "")
    assert "REVISION" not in plain and "load_dataset" not in plain


def test_all_runs_of_a_race_are_at_one_commit(
    both: StandIn,
    hub_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hub_fetch.fetch(dataset_hub.parse(SET))
    first = both.refs["models", NAME]["main"]
    make_micro_model(tmp_path / "moved", seed=1)

    def check_and_move(spec: dict[str, Any]) -> Any:
        run = checked(spec)
        both.commit(NAME, tmp_path / "moved")
        return run

    monkeypatch.setattr(planner, "check", check_and_move)
    specs, _ = race_specs(hub_spec(data={"dataset": SET}), ["lora", "full"], None)
    runs = race_start.check(specs, seeds=1)
    assert both.refs["models", NAME]["main"] != first, "the branch has moved on between the checks"
    assert [run.spec.model for run in runs] == [f"{NAME}#{first}"] * 2
    assert {run.spec.data.dataset for run in runs} == {checked(specs["lora"]).spec.data.dataset}
    assert [run.requested["model"] for run in runs] == [NAME] * 2, "what was asked for stays"
