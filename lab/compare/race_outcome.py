"""What a race has shown: the verdict on its contestants, and the evidence that is kept of it."""

from __future__ import annotations

import time

from lab import formatting
from lab.atomic_files import finite_number, read_object
from lab.compare import evidence, race_file, race_scores, ready_races
from lab.compare.claim_verdicts import FIGURES, claim_verdicts, learning_rate
from lab.compare.contestants import Contestant
from lab.compare.equal_terms import EqualTerms, equal_terms
from lab.compare.evidence import ContestantFigures, Evidence, SeedFigures
from lab.compare.finishers import Finisher, existing_run, finishers
from lab.compare.race_file import ClaimTest, Race
from lab.compare.race_scores import RaceScores
from lab.compare.run_figures import RunFigures
from lab.compare.verdict import ComparisonVerdict, verdict
from lab.errors import LabError
from lab.evals.score import TITLES


def race_verdict(racing: list[Finisher]) -> tuple[ComparisonVerdict, EqualTerms]:
    """The verdict of Compare, with the contestants' names in the race."""
    names = {finisher.contestant.id: finisher.name for finisher in racing}
    contestants = [finisher.contestant for finisher in racing]

    def name(contestant: Contestant) -> str:
        return names[contestant.id]

    terms = equal_terms(contestants, name)
    return verdict(contestants, terms, name), terms


def _sentences(headline: str, detail: str) -> str:
    end = "" if headline.endswith((".", "!")) or not detail else "."
    return f"{headline}{end} {detail}".strip()


def evidence_of(race: Race) -> Evidence:
    """Everything that the race has shown. Raises LabError while a run of it has not ended."""
    now = race_file.cells(race)
    if not race_file.has_ended(now):
        raise LabError(f"{race.id} is still running.", "Wait until its runs have ended.")
    racing, scores = finishers(race), race_scores.scores_of(race)
    result, terms = race_verdict(racing) if racing else (None, None)
    failed = [
        f"{cell.race_run.contestant}, seed {cell.race_run.seed}: {cell.status.state}. "
        f"{cell.status.message}".strip()
        for cell in now
        if cell.status.state != "done" and not cell.is_needless
    ]
    rates = [
        f"{name}: the ladder chose a learning rate of {rate:g}."
        for name, rate in race_file.chosen_rates(race).items()
    ]
    settings = {each.name: each for each in race.contestants}
    budget, tests = race.budget, tests_of(race)
    return Evidence(
        id=evidence_id(race),
        title=race.title,
        claims=tuple(dict.fromkeys(test.claim for test in tests)),
        question=race.question,
        base=race.base,
        dataset=race.dataset,
        budget=formatting.budget(budget.amount, budget.axis) if budget else "",
        contestants=tuple(
            ContestantFigures(
                finisher.name,
                finisher.contestant.first.entry.method,
                {
                    **(dict(listed.settings) if listed else {}),
                    **_rate(finisher.contestant.first),
                },
                tuple(_seed_figures(run, scores) for run in finisher.contestant.runs),
            )
            for finisher in racing
            for listed in [settings.get(finisher.name.removesuffix(f", best of {race.ladder}"))]
        ),
        outcome=_sentences(result.headline, result.detail) if result else "No run has ended well.",
        verdicts=claim_verdicts(tests, racing, scores),
        notes=(
            *race.left_out,
            *race.notes,
            *rates,
            _rates_note(racing),
            *failed,
            *(terms.remarks if terms and not race.ladder else ()),
            *_score_notes(scores),
        ),
        machine=race.machine,
        date=time.strftime("%Y-%m-%d", time.localtime(_last_end(race) or race.created)),
        versions=race.versions,
        code=race.code,
        minutes=round(sum(_minutes(each.run) for each in race.runs), 1),
    )


def tests_of(race: Race) -> tuple[ClaimTest, ...]:
    """Those of the ready race as it is today, else the race's own."""
    ready = next((each for each in ready_races.all_ready() if each.name == race.ready), None)
    return ready.tests if ready is not None else race.tests


def _rates_note(racing: list[Finisher]) -> str:
    """What a verdict depends on more than on anything else."""
    listed = [
        f"{each.name} {formatting.rate(rate)}"
        for each in racing
        if (rate := learning_rate(each.contestant.first)) is not None
    ]
    return f"Learning rates: {', '.join(listed)}."


def _score_notes(scores: RaceScores) -> list[str]:
    if not scores.models:
        return []
    base = scores.models.get(race_scores.BASE, {})
    words = ", ".join(f"{TITLES[name]} {value:.3f}" for name, value in base.items())
    questions = formatting.quantity(scores.questions, "question")
    return [f"Scored on {questions} of {scores.dataset}; the base: {words}."]


def evidence_id(race: Race) -> str:
    """A ready race has one place for its outcome; any other one of its own."""
    return race.ready or race.id


def _seed_figures(figures: RunFigures, scores: RaceScores) -> SeedFigures:
    values = {key: finite_number(getattr(figures, key)) for key in FIGURES}
    known = {key: float(value) for key, value in values.items() if value is not None}
    known |= scores.models.get(figures.id, {})
    return SeedFigures(figures.seed, figures.id, figures.entry.status.state, known)


def _rate(figures: RunFigures) -> dict[str, float]:
    rate = learning_rate(figures)
    return {} if rate is None else {"train.learning_rate": rate}


def _times(run_id: str) -> tuple[float | None, float | None]:
    """When the last attempt at the run began and ended, in seconds since 1970."""
    run = existing_run(run_id)
    if run is None:
        return None, None
    began = finite_number((read_object(run.process) or {}).get("time"))
    return began, finite_number((read_object(run.result) or {}).get("ended"))


def _minutes(run_id: str) -> float:
    began, ended = _times(run_id)
    return max(0.0, ended - began) / 60 if began and ended else 0.0


def _last_end(race: Race) -> float | None:
    return max((ended for each in race.runs if (ended := _times(each.run)[1])), default=None)


def keep_ended() -> list[Evidence]:
    """Write the evidence of the newest ended race of each kind, where it is not in its file yet."""
    written, names = [], set()
    for race in race_file.all_races():
        name = evidence_id(race)
        if name in names or not race_file.has_ended(race_file.cells(race)):
            continue
        names.add(name)
        file = evidence.folder() / f"{name}.json"
        stored = evidence.read_file(file) if file.is_file() else None
        ids = {seed.run for each in stored.contestants for seed in each.seeds} if stored else set()
        racing = finishers(race)
        if racing and not ids & {each.run for each in race.runs}:
            written.append(evidence_of(race))
            evidence.write(written[-1])
    return written
