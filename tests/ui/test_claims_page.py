"""Claims: counts, filters, one opened by its address, and an experiment that turns a verdict."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from lab import process
from lab.advise import claims, experiment_judges, experiments, findings
from lab.advise.claims import Ruling
from lab.paths import RunDir
from lab.runs import index
from lab.ui import claim_experiment, claim_links, claims_view, links
from tests.advise.conftest import no_shipped_evidence  # noqa: F401
from tests.advise.test_claims import quick  # noqa: F401
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run


@pytest.fixture(autouse=True)
def new_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_view, "_jobs", type(claims_view._jobs)(1))


def complete(at: Any) -> Any:
    deadline = time.monotonic() + 60
    while "Computing:" in str(at.get("progress")) or not _is_complete():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    at.run()
    assert not at.exception
    return at


def _is_complete() -> bool:
    job = claims_view._jobs.get("all")
    return job is not None and job.is_complete


@pytest.mark.usefixtures("quick")
def test_an_address_opens_a_claim_with_its_sums(open_page: Page) -> None:
    at = complete(open_page("claims", id="B1"))
    text = words(at).replace("\\", "")
    assert "CLAIM B1 · MEMORY" in text and "#### :material/error: Contradicts itself" in text
    sums = list(at.table[0].value["Sum"])
    assert sums[0].replace("\\", "") == "14 × 1e9 / 2³⁰"
    rows = at.dataframe[0].value
    assert len(rows) == 62 and "…" not in set(rows["Here"])


@pytest.mark.usefixtures("quick")
def test_pills_filter_by_verdict(open_page: Page) -> None:
    at = complete(open_page("claims"))
    at.button_group(key="claims.verdict").set_value([Ruling.NEEDS.value]).run()
    assert not at.exception
    rows = at.dataframe[0].value
    assert 0 < len(rows) < 10 and all("needs" in verdict for verdict in rows["Verdict"])


@pytest.mark.usefixtures("quick")
def test_words_find_a_claim(open_page: Page) -> None:
    at = complete(open_page("claims"))
    at.text_input(key="claims.search").set_value("LoRA  TIMES").run()
    assert not at.exception
    ids = set(at.dataframe[0].value["ID"])
    assert {"D1", "D2"} <= ids and len(ids) < 10, "every word has to be there, in any case"
    at.text_input(key="claims.search").set_value("d2").run()
    assert "D2" in set(at.dataframe[0].value["ID"]), "an id is found too"
    at.text_input(key="claims.search").set_value("<b>zebra").run()
    assert "No claims match this verdict and search." in words(at)


def test_the_chosen_claim_is_known_before_the_table_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen, ids = Screen(), ["A1", "B5", "C3"]
    monkeypatch.setattr(claims_view, "st", screen)
    assert claims_view.chosen_id(ids, "C3") == "C3", "the address, until there is a table"
    key = claims_view._table_key(ids)
    for rows, chosen in (([1], "B5"), ([], ""), ([7], "")):
        screen.session_state[key] = {"selection": {"rows": rows}}
        assert claims_view.chosen_id(ids, "C3") == chosen
    assert claims_view.chosen_id(ids[:2], "C3") == "C3", "another filter is another table"


@pytest.mark.usefixtures("quick")
def test_without_a_chosen_claim_the_table_has_the_whole_width(open_page: Page) -> None:
    wide = complete(open_page("claims")).dataframe[0].proto.column_order
    narrow = complete(open_page("claims", id="B1")).dataframe[0].proto.column_order
    assert "How" in str(wide) and "How" not in str(narrow), "the panel says how"


def test_an_unknown_id_is_told(open_page: Page) -> None:
    at = open_page("claims", id="Z9")
    assert "There is no claim" in words(at)


def test_every_link_leads_to_a_claim() -> None:
    from lab.forecast import rules_of_thumb

    for rule in (*rules_of_thumb.RULES, *rules_of_thumb.GPT2_RULES):
        address = claim_links.url(rule.claim)
        claim_id = address.partition("id=")[2].partition("&")[0]
        assert claims.get(claim_id).id == claim_id


@pytest.mark.usefixtures("no_shipped_evidence")
def test_an_experiment_turns_an_open_claim(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained full and LoRA runs stand for the experiment's."""
    experiment = experiments.named("full-lora")
    assert findings.find("A10").kind is Ruling.OPEN
    full, lora = trained
    tag = f"{experiments.TAG}full-lora-20261126-080000"
    for run, spec in zip((full, lora), experiment.specs(), strict=True):
        index.update_labels(run, tags=tag, name=spec["name"])
    assert experiments.newest_pair(experiment) == [full, lora]
    finding = findings.find("A10")
    losses = [experiment_judges._final_loss(run) for run in (full, lora)]
    assert f"LoRA {losses[1]:.3f}, full {losses[0]:.3f}" in finding.value
    expected = Ruling.CONFIRMED if losses[1] < losses[0] - 0.005 else Ruling.OFF
    assert finding.kind is (Ruling.OPEN if abs(losses[0] - losses[1]) <= 0.005 else expected)
    assert finding.runs == (full.id, lora.id) and finding.date and finding.machine
    screen = Screen()
    monkeypatch.setattr(claims_view, "st", screen)
    monkeypatch.setattr(links, "page", lambda name: name)
    monkeypatch.setattr(claim_experiment, "st", screen)
    claims_view.panel(claims.get("A10"), finding)
    (link,) = [call for call in screen.named("page_link") if "runs" in call["query_params"]]
    assert link["query_params"] == {"runs": f"{full.id},{lora.id}"}
    assert ("page_link", ("compare",), link) in screen.calls
    ratio = findings.find("D1")
    assert ratio.figures[1].value == pytest.approx(
        experiment_judges._per_token(full) / experiment_judges._per_token(lora)
    )
    # no forgetting probe in these: said, not guessed
    assert "has no forgetting probe" in findings.find("C20").verdict


@pytest.mark.usefixtures("no_shipped_evidence")
def test_an_experiment_under_way_says_so(trained: list[RunDir]) -> None:
    full, lora = trained
    lora.result.unlink()
    tag = f"{experiments.TAG}full-lora-20261126-080000"
    for run in (full, lora):
        index.update_labels(run, tags=tag)
    verdict = findings.find("D4").verdict
    assert verdict.startswith("open testing …") or "did not finish" in verdict


def test_a_run_of_a_test_that_has_ended_is_a_full_bar_and_the_other_one_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen("claims.stop")
    stopped: list[str] = []
    monkeypatch.setattr(claim_experiment, "st", screen)
    monkeypatch.setattr(experiments, "stop", lambda experiment: stopped.append(experiment.name))
    ended = make_run(1, "full", result={"state": "failed"}, heartbeat={"done": 5, "total": 20})
    waits = make_run(2, "LoRA", queue={"order": 1.0})
    claim_experiment._progress(experiments.named("full-lora"), [ended, waits])
    bars = [
        (args[0], named["text"].replace("\\", ""))
        for kind, args, named in screen.calls
        if kind == "progress"
    ]
    assert bars == [(1.0, "full: failed"), (0.0, "LoRA: queued")]
    (link,) = screen.named("page_link")
    assert link["query_params"] == {"run": waits.id} and stopped == ["full-lora"]


@pytest.mark.usefixtures("quick", "no_shipped_evidence")
def test_a_verdict_turns_on_the_page_when_the_test_ends(
    open_page: Page, trained: list[RunDir]
) -> None:
    result = trained[1].result.read_text()
    trained[1].result.unlink()
    alive = json.loads(trained[1].process.read_text()) | (process.identity(os.getpid()) or {})
    trained[1].process.write_text(json.dumps(alive))
    tag = f"{experiments.TAG}full-lora-20261126-080000"
    for run, spec in zip(trained, experiments.named("full-lora").specs(), strict=True):
        index.update_labels(run, tags=tag, name=spec["name"])
    at = complete(open_page("claims", id="B12"))
    assert "Open testing … 1 of 2 runs done" in words(at)
    assert [button.label for button in at.button if "test" in button.label.lower()] == [
        "Stop the test"
    ]
    trained[1].result.write_text(result)
    at.run()
    at = complete(at)
    assert "Open" not in words(at).partition("####")[2].splitlines()[0]
    assert findings.find("B12").verdict[1:] in words(at)
    assert "Tested 20" in words(at) and "torch " in words(at)


def test_experiments_are_specs_that_parse() -> None:
    from lab.spec import RunSpec

    for experiment in experiments.EXPERIMENTS:
        first, second = (RunSpec.from_json(spec) for spec in experiment.specs())
        assert first.data == second.data and first.name != second.name
        assert set(experiment.judges) <= {claim.id for claim in claims.all_claims()}
