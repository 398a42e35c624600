"""Experiments: started once, judged by what their runs hold, and their outcome kept."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab import process
from lab.advise import claims, experiment_judges, experiments, findings
from lab.advise.claims import Basis, Ruling
from lab.atomic_files import read_object
from lab.checked_run import CheckedRun
from lab.compare import ready_races
from lab.errors import LabError
from lab.forecasts import Forecast, MemoryForecast, RuntimeForecast
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.runs import actions, index
from lab.runs.status import status
from tests.advise.test_claims import quick  # noqa: F401
from tests.compare.recorded import record


def as_experiment(runs: list[RunDir], name: str, time: str = "20261126-080000") -> None:
    experiment = experiments.named(name)
    for run, spec in zip(runs, experiment.specs(), strict=True):
        index.update_labels(run, tags=f"{experiments.TAG}{name}-{time}", name=spec["name"])


def test_its_outcome_outlives_its_runs(trained: list[RunDir]) -> None:
    as_experiment(trained, "full-lora")
    finding = findings.find("B12")
    full, lora = (experiment_judges._final_loss(run) for run in trained)
    assert finding.value == f"LoRA {lora:.3f}, full {full:.3f} ({claims.percent(lora / full - 1)})"
    outcome = experiments.stored(experiments.named("full-lora"))
    assert outcome is not None and outcome.machine and outcome.findings["B12"] == finding
    assert outcome.versions["torch"] == (read_object(trained[0].environment) or {})["packages"][
        "torch"
    ]  # fmt: skip
    for run in trained:
        shutil.rmtree(run.path)
    assert findings.find("B12") == finding
    assert finding.kind is not Ruling.OPEN and finding.how is Basis.MEASURED


def test_a_newer_test_replaces_the_outcome_and_one_that_failed_does_not(
    trained: list[RunDir],
) -> None:
    as_experiment(trained, "full-lora")
    first = findings.find("B12")
    as_experiment(trained[::-1], "full-lora", "20261126-090000")  # the other way round
    second = findings.find("B12")
    assert second.runs == first.runs[::-1] and second.value != first.value
    for run in trained:
        run.result.write_text('{"state": "failed"}')
    as_experiment(trained, "full-lora", "20261126-100000")
    assert findings.find("B12") == second


def test_a_damaged_outcome_is_none(trained: list[RunDir]) -> None:
    as_experiment(trained, "full-lora")
    findings.find("B12")
    file = experiments._file(experiments.named("full-lora"))
    file.write_text('{"tag": 3, "findings": {"B12": []}}')
    assert experiments.stored(experiments.named("full-lora")) is None


def test_clicks_at_once_start_it_once(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.answers import checked

    own = make_spec("lora")

    def check(spec: dict[str, Any], first: CheckedRun | None) -> CheckedRun:
        return checked(own | {"name": spec["name"]})

    monkeypatch.setattr(same_commits, "check", check)
    monkeypatch.setattr("lab.runs.supervisor_start.ensure", lambda: None)
    experiment = experiments.named("targets")
    pairs: list[list[RunDir]] = []
    clicks = [
        threading.Thread(target=lambda: pairs.append(experiments.start(experiment)))
        for _ in range(3)
    ]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(index.entries()) == 2 and pairs == [pairs[0]] * 3
    assert findings.find("C11").verdict == "open testing … 0 of 2 runs done"
    experiments.stop(experiment)
    assert [status(run).state for run in pairs[0]] == ["cancelled", "cancelled"]
    assert findings.find("C11").verdict == "open the test did not finish: cancelled, cancelled"
    again = experiments.start(experiment)
    assert len(index.entries()) == 4 and again != pairs[0], "what was stopped can be begun again"


def test_a_run_that_cannot_be_set_up_leaves_no_half_of_a_pair(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.answers import checked

    answer, create = checked(make_spec("lora")), actions.create_run_dir

    def create_one(each: CheckedRun) -> RunDir:
        if index.entries():
            raise LabError("The disk is full.", "Delete something.")
        return create(each)

    monkeypatch.setattr(same_commits, "check", lambda spec, first: answer)
    monkeypatch.setattr(actions, "create_run_dir", create_one)
    with pytest.raises(LabError, match="The disk is full"):
        experiments.start(experiments.named("targets"))
    assert index.entries() == []


def test_a_stopped_test_saves_nothing_of_the_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [record("aaaa"), record("bbbb", state=None)]
    as_experiment(runs, "targets")
    process.register(runs[1], os.getpid())
    commands: list[tuple[str, str]] = []
    monkeypatch.setattr(actions, "command", lambda run, name: commands.append((run.id, name)))
    experiments.stop(experiments.named("targets"))
    assert commands == [(runs[1].id, "cancel")]


def test_the_forecast_is_of_both_runs_and_none_where_one_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment, left = experiments.named("targets"), [60.0, 90.0]

    def estimate(spec: dict[str, Any], **options: Any) -> Forecast:
        runtime = RuntimeForecast(seconds=left.pop()) if left else None
        return Forecast(MemoryForecast(), runtime=runtime)

    monkeypatch.setattr(experiments.planner, "estimate", estimate)
    assert experiments.forecast_s(experiment) == 150.0
    left.append(60.0)
    assert experiments.forecast_s(experiment) is None, "half of a forecast is none"


def test_targets_by_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, runs = claims.get("C11"), [RunDir(Path("a")), RunDir(Path("b"))]
    for losses, kind in (
        ((2.0, 2.1), Ruling.CONFIRMED), ((2.1, 2.0), Ruling.OFF), ((2.0, 2.004), Ruling.OPEN),
    ):  # fmt: skip
        given = dict(zip("ab", losses, strict=True))
        monkeypatch.setattr(experiment_judges, "_final_loss", lambda run, g=given: g[run.id])
        finding = experiment_judges.targets(claim, *runs)
        assert finding.kind is kind
        assert f"linear layers {losses[0]:.3f}" in finding.value


@pytest.mark.parametrize(
    ("losses", "needed", "kind"),
    [
        ((2.0, 2.0), 6, Ruling.CONFIRMED),  # 6 of 64 are needed, and rank 8 does as well
        ((2.1, 2.0), 6, Ruling.OFF),
        ((2.1, 2.0), 40, Ruling.CONFIRMED),  # 40 are needed, and rank 8 is worse
        ((2.0, 2.0), 40, Ruling.OFF),
    ],
)
def test_the_spectrum_predicts_whether_the_low_rank_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: tuple[float, float], needed: int,
    kind: Ruling,
) -> None:  # fmt: skip
    from safetensors.numpy import save_file

    runs = [RunDir(tmp_path / name) for name in "ab"]
    for run, rank in zip(runs, (8, 64), strict=True):
        run.artifact.mkdir(parents=True)
        # B A is diagonal: `needed` equal singular values and nothing else
        b_OR = np.eye(100, rank, dtype=np.float32)
        a_RI = np.eye(rank, 80, dtype=np.float32) * (np.arange(rank) < needed)[:, None]
        name = "model.layers.{}.q_proj.lora_{}.weight"
        unit_RI = np.eye(rank, 80, dtype=np.float32) * (np.arange(rank) < 1)[:, None]
        matrices = {name.format(0, "A"): unit_RI, name.format(0, "B"): b_OR * 1e-3}
        matrices |= {name.format(1, "A"): a_RI, name.format(1, "B"): b_OR}
        save_file(matrices, run.artifact / "adapter_model.safetensors")
    given = dict(zip("ab", losses, strict=True))
    monkeypatch.setattr(experiment_judges, "_final_loss", lambda run: given[run.id])
    finding = experiment_judges.spectra(claims.get("C12"), *runs)
    count = int(np.ceil(0.95 * needed))
    assert finding.value.startswith(f"{count} of 64 singular values hold 95% of the update; rank 8")
    assert finding.kind is kind


@pytest.mark.parametrize(
    ("early", "late", "verdict"),
    [
        ((2.6, 2.5), (2.2, 2.4), "confirmed with one seed"),  # LoRA leads first, then full
        ((2.5, 2.6), (2.4, 2.2), "off with one seed: the same one leads at both"),
        ((2.6, 2.5), (2.4, 2.2), "off with one seed: the same one leads at both"),
        ((2.5, 2.5), (2.2, 2.4), "open no difference shown"),
        ((2.6, 2.5), (2.2, 2.203), "open no difference shown"),
    ],
)
def test_who_leads_early_and_late(
    early: tuple[float, float], late: tuple[float, float], verdict: str
) -> None:
    full, lora = (
        record(name, losses=[3.0] * 29 + [first, last])
        for name, first, last in zip(("full", "lora"), early, late, strict=True)
    )
    finding = experiment_judges.early_and_late(claims.get("D4"), full, lora)
    assert finding.verdict == verdict
    assert finding.value == (
        f"step 30: full {early[0]:.3f}, LoRA {early[1]:.3f}; "
        f"step 31: full {late[0]:.3f}, LoRA {late[1]:.3f}"
    )


@pytest.mark.parametrize(
    ("lora", "kind"), [(2.05, Ruling.CONFIRMED), (2.08, Ruling.OFF), (1.5, Ruling.CONFIRMED)]
)
def test_lora_may_be_worse_by_three_per_cent_and_better_by_any(lora: float, kind: Ruling) -> None:
    runs = record("full", losses=[2.0]), record("lora", losses=[lora])
    finding = experiment_judges.within_percents(claims.get("B12"), *runs)
    assert finding.kind is kind and finding.how is Basis.MEASURED


@pytest.mark.parametrize(
    ("claim_id", "full", "lora", "verdict"),
    [
        ("A10", {"losses": [2.1]}, {"losses": [2.0]}, "confirmed with one seed"),
        ("A10", {"losses": [2.0]}, {"losses": [2.1]}, "off with one seed"),
        ("A5", {"rise": 0.3}, {"rise": 0.1}, "confirmed with one seed"),
        ("C20", {"rise": 0.1}, {"rise": 0.3}, "off with one seed"),
        ("A5", {"rise": 0.1}, {"rise": 0.104}, "open no difference shown"),
    ],
)
def test_the_lower_of_two_figures_decides(
    claim_id: str, full: dict[str, Any], lora: dict[str, Any], verdict: str
) -> None:
    judge = experiments.named("full-lora").judges[claim_id]
    finding = judge(claims.get(claim_id), record("full", **full), record("lora", **lora))
    assert finding.verdict == verdict


def test_time_and_memory_are_ratios_of_the_first_run_to_the_second() -> None:
    full = record("full", seconds=240.0, tokens=2000, peak=6e9)
    lora = record("lora", seconds=100.0, tokens=2000, peak=3e9)
    memory, time = experiment_judges.ratio_of_full(claims.get("D1"), full, lora).figures
    assert (memory.value, time.value) == pytest.approx((2.0, 2.4))
    off, on = record("off", seconds=100.0), record("on", seconds=130.0)
    finding = experiment_judges.slower(claims.get("C5"), off, on)
    assert finding.figures[0].value == pytest.approx(30.0), "per cent more time a token"
    assert finding.kind is Ruling.CONFIRMED, "20 to 40 % are printed"


def test_a_run_without_the_figure_is_told_and_judged_by_nothing() -> None:
    run = record("lora")
    with pytest.raises(LabError, match="has no forgetting probe"):
        experiment_judges.forgetting(claims.get("A5"), run, run)
    with pytest.raises(LabError, match="was not evaluated twice"):
        experiment_judges.early_and_late(claims.get("D4"), run, run)
    with pytest.raises(LabError, match="has no adapter"):
        experiment_judges.spectra(claims.get("C12"), run, run)


@pytest.mark.usefixtures("quick")
def test_every_open_claim_can_be_tested_here() -> None:
    for claim in claims.all_claims():
        if findings.find(claim.id).kind is Ruling.OPEN:
            tests = [experiments.of_claim(claim.id), *ready_races.of_claim(claim.id)]
            assert any(tests), claim.id
