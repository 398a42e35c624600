"""Experiments: started once, judged by what their runs hold, and their outcome kept."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.advise import claims, experiment_judges, experiments, findings
from lab.advise.claims import Basis, Ruling
from lab.atomic_files import read_object
from lab.checked_run import CheckedRun
from lab.compare import ready_races
from lab.paths import RunDir
from lab.preflight import same_commits
from lab.runs import index
from lab.runs.status import status
from tests.advise.test_claims import quick  # noqa: F401


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
        name = "model.layers.0.q_proj.lora_{}.weight"
        save_file(
            {name.format("A"): a_RI, name.format("B"): b_OR},
            run.artifact / "adapter_model.safetensors",
        )
    given = dict(zip("ab", losses, strict=True))
    monkeypatch.setattr(experiment_judges, "_final_loss", lambda run: given[run.id])
    finding = experiment_judges.spectra(claims.get("C12"), *runs)
    count = int(np.ceil(0.95 * needed))
    assert finding.value.startswith(f"{count} of 64 singular values hold 95% of the update; rank 8")
    assert finding.kind is kind


@pytest.mark.usefixtures("quick")
def test_every_open_claim_can_be_tested_here() -> None:
    for claim in claims.all_claims():
        if findings.find(claim.id).kind is Ruling.OPEN:
            tests = [experiments.of_claim(claim.id), *ready_races.of_claim(claim.id)]
            assert any(tests), claim.id
