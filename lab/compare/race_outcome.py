"""What a race has shown: the verdict on its contestants, and on the claims that it tests.

A claim is held against a difference of two contestants and its 95 % interval: confirmed where the
difference is shown in the direction of the claim, off where it is shown in the other one, open
where it is not shown.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lab import formatting
from lab.atomic_files import finite_number, read_object
from lab.compare import evidence, race_file, race_scores, ready_races
from lab.compare.contestants import Contestant
from lab.compare.equal_terms import EqualTerms, equal_terms
from lab.compare.evidence import ClaimVerdict, ContestantFigures, Evidence, SeedFigures
from lab.compare.race_file import PROBE, TUNED, ClaimTest, Race
from lab.compare.race_scores import RaceScores
from lab.compare.run_figures import RunFigures, run_figures
from lab.compare.verdict import ComparisonVerdict, figure_difference, seed_difference, verdict
from lab.errors import LabError
from lab.evals.score import TITLES
from lab.paths import RunDir, run_dir
from lab.runs import ladder

# Figures of RunFigures that evidence keeps, by its field's name, with their words.
FIGURES = {
    "loss": "evaluation loss",
    "base_loss": "evaluation loss of the base",
    "forgetting": "forgetting",
    "kl": "KL divergence from the base",
    "seconds": "training time",
    "tokens": "tokens",
    "flops": "FLOPs",
    "peak_bytes": "peak memory",
    "tokens_per_s": "tokens/s",
    "artifact_bytes": "size of the result",
    "trainable": "trainable parameters",
}

RATE = "learning_rate"  # of a ladder's choice: a claim names the range that it should lie in


@dataclass(frozen=True, eq=False)
class Finisher:
    """A contestant with the runs that ended well, by its name in the race."""

    name: str
    role: str
    contestant: Contestant


def finishers(race: Race) -> list[Finisher]:
    """In the order of the race; the ladder's best rate beside the default as one of its own."""
    groups: dict[tuple[str, str], list[RunFigures]] = {}
    for each in race.runs:
        run = _run(each.run)
        if each.role == PROBE or run is None or ladder.is_needless(run):
            continue
        figures = run_figures(run)
        if figures.entry.status.state == "done":
            groups.setdefault((each.contestant, each.role), []).append(figures)
    return [
        Finisher(
            name if role != TUNED else f"{name}, best of {race.ladder}",
            role,
            Contestant(tuple(sorted(group, key=lambda figures: figures.seed))),
        )
        for (name, role), group in groups.items()
    ]


def _run(run_id: str) -> RunDir | None:
    try:
        return run_dir(run_id)
    except LabError:
        return None


def race_verdict(racing: list[Finisher]) -> tuple[ComparisonVerdict, EqualTerms]:
    """The verdict of Compare, with the contestants' names in the race."""
    names = {finisher.contestant.id: finisher.name for finisher in racing}
    contestants = [finisher.contestant for finisher in racing]

    def name(contestant: Contestant) -> str:
        return names[contestant.id]

    terms = equal_terms(contestants, name)
    return verdict(contestants, terms, name), terms


def claim_verdict(
    test: ClaimTest, racing: list[Finisher], scores: RaceScores | None = None
) -> ClaimVerdict:
    """What the race says of one claim. "open" where a contestant has no run that ended well."""
    sides = {finisher.name: finisher.contestant for finisher in racing}
    if test.of not in sides or (test.than and test.than not in sides):
        missing = test.of if test.of not in sides else test.than
        return ClaimVerdict("open", None, f"No run of {missing} has ended well.")
    if test.figure == RATE:
        return _range_verdict(test, racing)
    if test.figure in TITLES:
        return _score_verdict(test, sides, scores)
    apart, half = figure_difference(sides[test.of], sides[test.than], test.figure)
    words = FIGURES.get(test.figure, test.figure)
    if not math.isfinite(apart):
        return ClaimVerdict("open", None, f"The runs did not measure {words}.")
    if test.ratio:
        return _ratio_verdict(test, sides, words)
    values = [sides[side].value(test.figure) for side in (test.of, test.than)]
    seeds = min(len(sides[test.of].runs), len(sides[test.than].runs))
    return _verdict(test, words, values, apart, half, seeds)


def _verdict(
    test: ClaimTest,
    words: str,
    values: list[float | None],
    apart: float,
    half: float,
    seeds: int,
) -> ClaimVerdict:
    sides = " against ".join(
        f"{side}: {_text(value, test.figure)}"
        for side, value in zip((test.of, test.than), values, strict=True)
    )
    seeds_text = "one seed each" if seeds == 1 else f"{seeds} seeds each"
    sure = "with nothing to say how sure that is"
    if math.isfinite(half):
        sure = f"± {_text(half, test.figure, digits=2)}"
    change = f"{'-' if apart < 0 else '+'}{_text(abs(apart), test.figure)}"
    sentence = f"{_capital(words)} of {sides} ({change} {sure}, {seeds_text})."
    if abs(apart) <= half:
        return ClaimVerdict("open", apart, f"No difference shown. {sentence}")
    is_lower = apart < 0
    return ClaimVerdict(
        "confirmed" if is_lower == (test.expect == "lower") else "off", apart, sentence
    )


def _score_verdict(
    test: ClaimTest, sides: dict[str, Contestant], scores: RaceScores | None
) -> ClaimVerdict:
    """By the scores of each side's seeds on the race's questions."""
    known = scores.models if scores is not None else {}
    values = [
        [
            known[run.id][test.figure]
            for run in sides[side].runs
            if test.figure in known.get(run.id, {})
        ]
        for side in (test.of, test.than)
    ]
    words = TITLES[test.figure]
    if not all(values):
        return ClaimVerdict("open", None, f"The runs were not scored, so {words} is not known.")
    means = [sum(each) / len(each) for each in values]
    apart, half = seed_difference(*values) or (means[0] - means[1], math.inf)
    return _verdict(test, words, list(means), apart, half, min(map(len, values)))


def _ratio_verdict(test: ClaimTest, sides: dict[str, Contestant], words: str) -> ClaimVerdict:
    """Whether the figure of one is so many times the other's; `value` is the measured ratio."""
    values = sides[test.of].value(test.figure), sides[test.than].value(test.figure)
    if values[0] is None or not values[1]:
        return ClaimVerdict("open", None, f"The runs did not measure {words}.")
    ratio, (low, high) = values[0] / values[1], test.ratio[:2]
    sentence = (
        f"{_capital(words)} of {test.of} is {ratio:.2f} times that of {test.than} "
        f"({_text(values[0], test.figure)} against {_text(values[1], test.figure)}); "
        f"claimed: {low:g} to {high:g} times."
    )
    return ClaimVerdict("confirmed" if low <= ratio <= high else "off", ratio, sentence)


def _range_verdict(test: ClaimTest, racing: list[Finisher]) -> ClaimVerdict:
    """Whether the rate at which a contestant did best on the whole budget lies between the claim's
    two: what the short runs of a ladder chose need not be that one."""
    losses = {
        rate: loss
        for each in racing
        if each.name == test.of or each.name.startswith(f"{test.of}, best of ")
        if (rate := _rate(each.contestant.first).get("train.learning_rate")) is not None
        if (loss := each.contestant.value("loss")) is not None
    }
    if not losses:
        return ClaimVerdict("open", None, "No learning rate has an evaluation loss.")
    best = min(losses, key=lambda rate: losses[rate])
    low, high = test.ratio[:2]
    listed = ", ".join(f"{formatting.rate(rate)}: {loss:.2f}" for rate, loss in losses.items())
    sentence = (
        f"{test.of} did best at a learning rate of {formatting.rate(best)} (evaluation losses on "
        f"the whole budget: {listed}); claimed: {formatting.rate(low)} to {formatting.rate(high)}."
    )
    return ClaimVerdict("confirmed" if low <= best <= high else "off", best, sentence)


def _sentences(headline: str, detail: str) -> str:
    end = "" if headline.endswith((".", "!")) or not detail else "."
    return f"{headline}{end} {detail}".strip()


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _text(value: float | None, figure: str = "", digits: int = 3) -> str:
    """Never "1.23e+03": whole numbers where `digits` do not reach."""
    if value is None:
        return "–"
    if figure.endswith("_bytes"):
        return formatting.size(value)
    return f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:,.0f}"


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
        verdicts={test.claim: claim_verdict(test, racing, scores) for test in tests},
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
        if (rate := _rate(each.contestant.first).get("train.learning_rate")) is not None
    ]
    return f"Learning rates: {', '.join(listed)}."


def _score_notes(scores: RaceScores) -> list[str]:
    if not scores.models:
        return []
    base = scores.models.get(race_scores.BASE, {})
    words = ", ".join(f"{TITLES[name]} {value:.3f}" for name, value in base.items())
    return [f"Scored on {scores.questions} questions of {scores.dataset}; the base: {words}."]


def evidence_id(race: Race) -> str:
    """A ready race has one place for its outcome; any other one of its own."""
    return race.ready or race.id


def _seed_figures(figures: RunFigures, scores: RaceScores) -> SeedFigures:
    values = {key: finite_number(getattr(figures, key)) for key in FIGURES}
    known = {key: float(value) for key, value in values.items() if value is not None}
    known |= scores.models.get(figures.id, {})
    return SeedFigures(figures.seed, figures.id, figures.entry.status.state, known)


def _rate(figures: RunFigures) -> dict[str, float]:
    rate = finite_number((figures.spec.get("train") or {}).get("learning_rate"))
    return {} if rate is None else {"train.learning_rate": float(rate)}


def _times(run_id: str) -> tuple[float | None, float | None]:
    """When the last attempt at the run began and ended, in seconds since 1970."""
    run = _run(run_id)
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
