"""The table of figures: for each contestant what it reached and what it took, with the best marked
where it is better than the second by more than its uncertainty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.compare.contestants import Contestant, Names
from lab.compare.curves import HIGHER, LOWER
from lab.compare.verdict import figure_difference
from lab.formatting import count, duration, flops, quantity, signed, size
from lab.rank.spectrum import ENERGY

NOTHING = "–"


@dataclass(frozen=True)
class ComparedFigure:
    """A row of the table. `better` is LOWER, HIGHER, or "" where neither is."""

    key: str
    title: str
    better: str
    unit: str = ""


FIGURES = (
    ComparedFigure("loss", "Evaluation loss", LOWER, "nats per token"),
    ComparedFigure("perplexity", "Perplexity", LOWER),
    ComparedFigure(
        "forgetting", "Forgetting (rise on the base's own answers)", LOWER, "nats per token"
    ),
    ComparedFigure("kl", "KL divergence from the base", LOWER, "nats per token"),
    ComparedFigure("ended", "General answers that end by themselves", "", "fraction"),
    ComparedFigure("answer_tokens", "Length of general answers", "", "tokens"),
    ComparedFigure("peak_bytes", "Peak memory", LOWER, "bytes"),
    ComparedFigure("seconds", "Training time", LOWER, "s"),
    ComparedFigure("tokens_per_s", "Tokens per second", HIGHER, "tokens/s"),
    ComparedFigure("energy_wh", "Energy", LOWER, "Wh"),
    ComparedFigure("cost", "Cost", LOWER, "USD"),
    ComparedFigure("flops", "Model FLOPs", LOWER, "FLOPs"),
    ComparedFigure("trainable", "Trainable parameters", ""),
    ComparedFigure("effective_rank", "Effective rank of the updates (median)", "", "directions"),
    ComparedFigure("stable_rank", "Stable rank of the updates (median)", "", "directions"),
    ComparedFigure("needed_rank", f"Rank that holds {100 * ENERGY:g} % of the energy", "", "rank"),
    ComparedFigure("artifact_bytes", "Size of the result", LOWER, "bytes"),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


@dataclass(frozen=True)
class Cell:
    """A value, half of its interval where several seeds give one, and whether it is the best."""

    value: float | None
    half: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """`base` is None where the base has no such figure; `cells` are in the contestants' order."""

    figure: ComparedFigure
    base: float | None
    cells: tuple[Cell, ...]


def figure_rows(contestants: Sequence[Contestant], price: float = 0.0) -> list[Row]:
    """The rows that have a value; `price` is in USD an hour."""
    rows = []
    for figure in FIGURES:
        intervals = [interval(each, figure.key, price) for each in contestants]
        if all(value is None for value, _ in intervals):
            continue
        base = base_value(contestants, figure.key)
        best = _best(contestants, figure, [value for value, _ in intervals], base, price)
        cells = tuple(
            Cell(value, half, index == best) for index, (value, half) in enumerate(intervals)
        )
        rows.append(Row(figure, base, cells))
    return rows


def interval(contestant: Contestant, key: str, price: float) -> tuple[float | None, float | None]:
    """(mean over the seeds, half of its interval) of any figure of the table. Of a single seed that
    of forgetting is known, too: by drawing its prompts again."""
    if key == "perplexity":  # of the mean loss, as everywhere
        loss = contestant.value("loss")
        return (None if loss is None else math.exp(min(loss, 700.0))), None
    if key == "cost":
        value, half = contestant.interval("seconds")
        scale = price / 3600
        if value is None or not price:
            return None, None
        return value * scale, None if half is None else half * scale
    value, half = contestant.interval(key)
    if key in ("forgetting", "kl") and value is not None and len(contestant.runs) == 1:
        half = contestant.value(f"{key}_half")
    return value, half


def base_value(contestants: Sequence[Contestant], key: str) -> float | None:
    """The figure of the untouched base; None where it has none."""
    if key in ("ended", "answer_tokens"):
        return _first(contestants, f"base_{key}")
    loss = _first(contestants, "base_loss")
    if key == "loss" or loss is None:
        return loss if key == "loss" else None
    if key == "perplexity":
        return math.exp(min(loss, 700.0))
    has_probe = any(each.value("forgetting") is not None for each in contestants)
    return 0.0 if key in ("forgetting", "kl") and has_probe else None


def _first(contestants: Sequence[Contestant], key: str) -> float | None:
    """Of the first contestant that has it: all have the same base."""
    values = (each.value(key) for each in contestants)
    return next((value for value in values if value is not None), None)


def _best(
    contestants: Sequence[Contestant],
    figure: ComparedFigure,
    values: list[float | None],
    base: float | None,
    price: float,
) -> int | None:
    """The place of the best value, where it is better than the second by more than its uncertainty,
    and better than the base."""
    sign = -1.0 if figure.better == HIGHER else 1.0
    known = [index for index, value in enumerate(values) if value is not None]
    if not figure.better or len(known) < 2:
        return None
    first, second = sorted(known, key=lambda index: sign * (values[index] or 0.0))[:2]
    best = values[first] or 0.0
    if figure.key in ("loss", "perplexity") and base is not None and best >= base:
        return None
    key = {"perplexity": "loss", "cost": "seconds"}.get(figure.key, figure.key)
    apart, floor = figure_difference(contestants[first], contestants[second], key)
    return first if abs(apart) > floor else None


def text(figure: ComparedFigure, value: float | None, half: float | None = None) -> str:
    """The value as a page shows it: "2.412 ± 0.018", "2.18 GB", "+0.06", "4 min 10 s"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if figure.key == "loss":
        return f"{value:.3f}" + (f" ± {half:.3f}" if half is not None else "")
    if figure.key in ("forgetting", "kl"):
        sign = signed(value) if figure.key == "forgetting" else f"{value:.3f}"
        return sign + (f" ± {half:.2f}" if half is not None else "")
    if figure.unit == "fraction":
        return f"{100 * value:.0f} %"
    if figure.unit == "tokens":
        return quantity(value, "token")
    if figure.unit in ("directions", "rank"):
        digits = 1 if figure.unit == "directions" or half is not None else 0
        return f"{value:.{digits}f}" + (f" ± {half:.1f}" if half is not None else "")
    if figure.key == "perplexity":
        return f"{value:,.1f}" if value < 1e5 else f"{value:.2g}"
    if figure.unit == "bytes":
        return size(value)
    if figure.unit == "s":
        return duration(value)
    if figure.unit == "FLOPs":
        return flops(value).removesuffix(" FLOPs")
    if figure.unit == "tokens/s":
        return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
    if figure.unit == "Wh":
        return f"{value:,.1f} Wh" if value < 1000 else f"{value / 1000:,.1f} kWh"
    if figure.unit == "USD":
        return f"{value:,.2f} USD" if value >= 0.01 else f"{value:.4f} USD"
    return count(value)


def trainable_text(contestant: Contestant) -> str:
    """ "4.9 M (3.5 %)"."""
    trainable, parameters = contestant.value("trainable"), contestant.value("parameters")
    if trainable is None:
        return NOTHING
    if not parameters:
        return count(trainable)
    percent = 100 * trainable / parameters
    digits = 0 if percent >= 9.95 else 1 if percent >= 0.1 else 3
    return f"{count(trainable)} ({percent:.{digits}f} %)"


def as_csv(contestants: Sequence[Contestant], names: Names, price: float = 0.0) -> str:
    """One line a figure: its unit, the base, then value and half interval of each contestant."""
    out = io.StringIO()
    writer = csv.writer(out)
    header = ["figure", "unit", "better", "base"]
    for each in contestants:
        name = _harmless(names(each))
        header += [name, f"{name} ± (95 % interval)"]
    writer.writerow(header)
    for row in figure_rows(contestants, price):
        line: list[Any] = [row.figure.title, row.figure.unit, row.figure.better, row.base]
        for cell in row.cells:
            line += [cell.value, cell.half]
        writer.writerow(["" if item is None else item for item in line])
    return out.getvalue()


def _harmless(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.lstrip()[:1] in ("=", "+", "-", "@") else name
