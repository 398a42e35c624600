"""What a race says of the claims that it tests, from runs whose figures are known."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.compare import evidence, race_file, race_outcome, race_scores
from lab.compare.claim_verdicts import verdict_of_test
from lab.compare.finishers import finishers
from lab.compare.race import Budget, RaceContestant
from lab.compare.race_file import ClaimTest, Race, RaceRun
from lab.compare.race_scores import RaceScores
from lab.errors import LabError
from lab.evals.score_sheets import ScoredModel, ScoredQuestion, ScoreSheet
from lab.paths import RunDir, run_dir
from lab.runs import ladder
from lab.runs.ladder import Ladder, LadderChoice
from tests.compare.recorded import record


def race_of(*runs: tuple[RunDir, str, int, str], **more: Any) -> Race:
    names = list(dict.fromkeys(name for _, name, _, _ in runs))
    race = Race(
        id="race-20261122-101530-abcd",
        title="t",
        budget=Budget("tokens", 1000.0),
        contestants=tuple(RaceContestant(name, "lora", {}) for name in names),
        runs=tuple(RaceRun(run.id, name, seed, role) for run, name, seed, role in runs),
        code="0123456789abcdef",
        **more,
    )
    race_file.write(race)
    return race


@pytest.fixture
def forgetful() -> Race:
    """Two seeds of two contestants: a forgets 0.5, b 0.1; a's loss is lower."""
    runs = []
    for name, loss, rise, peak, rank in (("a", 2.0, 0.5, 6e9, 4), ("b", 2.5, 0.1, 2e9, 8)):
        for seed in (0, 1):
            run = record(
                f"{name}{seed}xy",
                method={"name": "lora", "rank": rank},
                losses=(3.0, loss + 0.01 * seed),
                seed=seed,
                rise=rise + 0.02 * seed,
                peak=peak,
            )
            runs.append((run, name, seed, "default"))
    return race_of(*runs, question="Which?", machine="mine", versions={"torch": "2"})


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (ClaimTest("C20", "forgetting", "a", "b", "higher"), "confirmed"),
        (ClaimTest("C20", "forgetting", "a", "b", "lower"), "off"),
        (ClaimTest("C20", "forgetting", "b", "a", "lower"), "confirmed"),
        (ClaimTest("A8", "loss", "a", "b", "lower"), "confirmed"),
        (ClaimTest("A8", "tokens", "a", "b", "lower"), "open"),
        (ClaimTest("A8", "kl", "a", "b", "lower"), "open"),
        (ClaimTest("A8", "loss", "a", "c", "lower"), "open"),
        (ClaimTest("D2", "peak_bytes", "a", "b", ratio=(2.5, 3.5)), "confirmed"),
        (ClaimTest("D2", "peak_bytes", "a", "b", ratio=(5.0, 10.0)), "off"),
        (ClaimTest("D2", "peak_bytes", "a", "b", ratio=(1.0, 2.5)), "off"),
        (ClaimTest("A8", "token_f1", "a", "b", "lower"), "open"),
    ],
)
def test_a_claim_is_held_against_a_difference_that_is_shown(
    forgetful: Race, test: ClaimTest, verdict: str
) -> None:
    ruling = verdict_of_test(test, finishers(forgetful))
    assert ruling.verdict == verdict, ruling.sentence
    if test.figure == "forgetting":
        assert abs(ruling.value or 0) == pytest.approx(0.4)
    if test.ratio:
        assert ruling.value == pytest.approx(3.0)


def test_scores_decide_where_a_claim_names_one(forgetful: Race) -> None:
    test = ClaimTest("C21", "token_f1", "a", "b", "higher")
    values = dict(zip((each.run for each in forgetful.runs), (0.8, 0.82, 0.4, 0.41), strict=True))
    models = {run: {"token_f1": value} for run, value in values.items()}
    racing = finishers(forgetful)
    ruling = verdict_of_test(test, racing, RaceScores("s", 9, models))
    assert ruling.verdict == "confirmed" and ruling.value == pytest.approx(0.405)
    unsure = {
        run: {"token_f1": value} for run, value in zip(values, (0.1, 0.9, 0.4, 0.41), strict=True)
    }
    ruling = verdict_of_test(test, racing, RaceScores("s", 9, unsure))
    assert ruling.verdict == "open" and "No difference shown" in ruling.sentence
    fewer = dict(list(models.items())[:3])
    ruling = verdict_of_test(test, racing, RaceScores("s", 9, fewer))
    assert "one seed each" in ruling.sentence, "b was scored with one"
    write_json(race_scores.file_of(forgetful), {"models": models, "dataset": "s", "questions": 9})
    figures = race_outcome.evidence_of(forgetful).contestants[0].seeds[1].figures
    assert figures["token_f1"] == 0.82


def test_evidence_holds_what_the_runs_say(forgetful: Race) -> None:
    outcome = race_outcome.evidence_of(forgetful)
    assert outcome.id == forgetful.id and outcome.budget == "1,000 tokens"
    assert [each.name for each in outcome.contestants] == ["a", "b"]
    first = outcome.contestants[0].seeds[0].figures
    assert first["loss"] == pytest.approx(2.0) and first["forgetting"] == 0.5
    assert outcome.contestants[1].mean("forgetting") == pytest.approx(0.11)
    assert outcome.outcome.startswith("a has the lowest evaluation loss: 2.0")
    assert outcome.code == forgetful.code
    first_run = run_dir(forgetful.runs[0].run)
    noon = 400.5 * 86_400  # seconds since 1970
    write_json(first_run.process, {"time": noon})
    write_json(first_run.result, {"state": "done", "ended": noon + 90})
    outcome = race_outcome.evidence_of(forgetful)
    assert outcome.minutes == 1.5, "ninety seconds of its worker"
    assert outcome.date == "1971-02-05", "of its last run's end"
    rates = [finisher.contestant.first.spec["train"] for finisher in finishers(forgetful)]
    assert [rate["learning_rate"] for rate in rates] == ["auto", "auto"]
    assert outcome.question == "Which?" and outcome.machine == "mine"
    assert outcome.versions == {"torch": "2"}
    assert [each.id for each in race_outcome.keep_ended()] == [forgetful.id]
    assert race_outcome.keep_ended() == [], "Once."
    assert evidence.all_evidence()[0] == outcome or len(evidence.all_evidence()) > 1


def test_a_failed_run_is_named_and_the_rest_compared(forgetful: Race) -> None:
    broken = record("brok", state="failed")
    race = race_of(
        *[(RunDir(broken.path.parent / each.run), each.contestant, each.seed, each.role)
          for each in forgetful.runs],
        (broken, "c", 0, "default"),
    )  # fmt: skip
    outcome = race_outcome.evidence_of(race)
    assert [each.name for each in outcome.contestants] == ["a", "b"]
    assert any("c, seed 0: failed" in note for note in outcome.notes)
    (broken.path / "result.json").unlink()
    with pytest.raises(LabError, match="still running"):
        race_outcome.evidence_of(race)
    assert race_outcome.keep_ended() == []


def test_the_ladders_choice_is_a_contestant_of_its_own() -> None:
    probe = record("prob", losses=(2.0,), learning_rate=1e-3)
    tuned = record("tune", losses=(3.0, 2.1), learning_rate=1e-3)
    default = record("defa", losses=(3.0, 2.4), learning_rate=1e-4)
    ladder.write(tuned, Ladder({probe.id: 1e-3}, 1e-4))
    write_json(tuned.ladder_choice, {"rate": 1e-3, "losses": {probe.id: 2.0}})
    race = race_of(
        (probe, "a", 0, "probe"), (tuned, "a", 0, "tuned"), (default, "a", 0, "default"), ladder=3
    )
    racing = finishers(race)
    assert [each.name for each in racing] == ["a, best of 3", "a"]
    outcome = race_outcome.evidence_of(race)
    listed = outcome.contestants
    assert [each.settings["train.learning_rate"] for each in listed] == [1e-3, 1e-4]
    assert "a: the ladder chose a learning rate of 0.001." in outcome.notes
    assert "Learning rates: a, best of 3 1e-3, a 1e-4." in outcome.notes
    assert race_file.compared_runs(race) == [tuned, default]
    test = ClaimTest("A3", "learning_rate", "a", ratio=(1e-4, 3e-4))
    assert verdict_of_test(test, racing).verdict == "off", "2.1 at 1e-3, 2.4 at 1e-4."
    wide = ClaimTest("A3", "learning_rate", "a", ratio=(1e-4, 3e-3))
    ruling = verdict_of_test(wide, racing)
    assert ruling.verdict == "confirmed" and ruling.value == 1e-3
    worse = record("wors", losses=(3.0, 2.0), learning_rate=1e-4)
    turned = race_of((tuned, "a", 0, "tuned"), (worse, "a", 0, "default"), ladder=3)
    ruling = verdict_of_test(test, finishers(turned))
    assert ruling.verdict == "confirmed" and ruling.value == 1e-4, "Not what the probes chose."
    write_json(tuned.ladder_choice, json.loads(json.dumps(vars(LadderChoice(1e-4, {})))))
    assert [each.name for each in finishers(race)] == ["a"], "Not trained twice."
    assert race_file.compared_runs(race) == [default]


def test_what_is_left_is_known_where_every_run_has_a_forecast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = record("aaaa", state=None), record("bbbb", state=None)
    race = race_of((first, "a", 0, "default"), (second, "b", 0, "default"))
    write_json(first.estimate, {"pace": {"seconds": 60.0}})
    assert race_file.seconds_left(race, race_file.cells(race)) is None
    write_json(second.estimate, {"pace": {"seconds": 40.0}})
    assert race_file.seconds_left(race, race_file.cells(race)) == 100.0
    write_json(first.process, {"pid": 1})
    monkeypatch.setattr("lab.runs.status.process.is_alive", lambda record: True)
    monkeypatch.setattr(race_file, "run_progress", lambda run: SimpleNamespace(left_s=7.0))
    assert race_file.seconds_left(race, race_file.cells(race)) == 47.0, "the first is at work"
    write_json(first.result, {"state": "done"})
    assert race_file.seconds_left(race, race_file.cells(race)) == 40.0, "and now it has ended"


def test_large_figures_of_a_claim_are_written_out() -> None:
    sizes = ((1234, 5e9), (20_567, 6.5e9))
    runs = [
        record(f"{name}0xy", method={"name": "lora", "rank": rank}, tokens=tokens, peak=peak)
        for name, rank, (tokens, peak) in zip("ab", (4, 8), sizes, strict=True)
    ]
    race = race_of(*[(run, run.id[-4], 0, "default") for run in runs])
    racing = finishers(race)
    sentences = [
        verdict_of_test(ClaimTest("A8", figure, "a", "b", "lower"), racing).sentence
        for figure in ("tokens", "peak_bytes")
    ]
    assert sentences == [
        "Tokens of a: 1,234 against b: 20,567 (-19,333 ± 0, one seed each).",
        "Peak memory of a: 5.00 GB against b: 6.50 GB (-1.50 GB ± 130.00 MB, one seed each).",
    ]


def test_a_needless_run_is_no_failure_and_the_scored_questions_are_counted() -> None:
    default = record("defa", losses=(3.0, 2.4), learning_rate=1e-4)
    tuned = record("tune", losses=(), learning_rate=1e-4, state="cancelled")
    ladder.write(tuned, Ladder({}, 1e-4))
    write_json(tuned.ladder_choice, {"rate": 1e-4, "losses": {}})
    race = race_of((tuned, "a", 0, "tuned"), (default, "a", 0, "default"), ladder=3)
    models = {"base": {"token_f1": 0.25}, default.id: {"token_f1": 0.5}}
    write_json(race_scores.file_of(race), {"models": models, "dataset": "s", "questions": 9})
    notes = race_outcome.evidence_of(race).notes
    assert not any("cancelled" in note for note in notes), notes
    assert "Scored on 9 questions of s; the base: token F1 0.250." in notes


def test_a_range_is_of_the_contestant_and_its_ladder_alone() -> None:
    short = record("shor", losses=(3.0, 2.4), learning_rate=1e-4)
    longer = record("long", losses=(3.0, 2.0), learning_rate=1e-2)
    race = race_of((short, "a", 0, "default"), (longer, "ab", 0, "default"))
    test = ClaimTest("A3", "learning_rate", "a", ratio=(5e-5, 5e-4))
    ruling = verdict_of_test(test, finishers(race))
    assert (ruling.verdict, ruling.value) == ("confirmed", 1e-4), "`ab` is another contestant"


def test_races_are_listed_newest_first() -> None:
    older = race_of((record("aaaa"), "a", 0, "default"))
    newer = replace(older, id="race-20261123-101530-abcd")
    race_file.write(newer)
    assert [race.id for race in race_file.all_races()] == [newer.id, older.id]


def test_runs_that_failed_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    done, failed = record("aaaa"), record("bbbb", state="failed")
    race = race_of((done, "a", 0, "default"), (failed, "b", 0, "default"), score_set="builtin:x")
    scored: list[str] = []

    def score(names: Any, *_: Any, **__: Any) -> ScoreSheet:
        scored.extend(str(name) for name in names)
        return ScoreSheet()

    monkeypatch.setattr("lab.evals.score.score", score)
    assert race_scores.is_due(race) and not race_scores.is_due(replace(race, score_set=""))
    race_scores.measure(race)
    assert len(scored) == 1 and done.id in scored[0]
    assert not race_scores.is_due(race), "once"


def test_scores_of_a_race_are_kept_by_run_with_the_base_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = record("aaaa")
    race = race_of((run, "a", 0, "default"), score_set="builtin:x", score_most=3)
    questions: list[Any] = []

    def score(names: Any, dataset: str, most: int, **_: Any) -> ScoreSheet:
        questions.append(([each.name for each in names], dataset, most))
        figures = {"base:x": {"token_f1": 0.25}, f"run:{run.id}": {"token_f1": 0.5}}
        models = {name: ScoredModel(values) for name, values in figures.items()}
        return ScoreSheet(questions=(ScoredQuestion(),) * 3, models=models)

    monkeypatch.setattr("lab.evals.score.score", score)
    measured = race_scores.measure(race)
    assert questions == [([f"run:{run.id}"], "builtin:x", 3)]
    assert (measured.dataset, measured.questions) == ("builtin:x", 3)
    assert measured.models == {"base": {"token_f1": 0.25}, run.id: {"token_f1": 0.5}}
    assert race_scores.scores_of(race) == measured
