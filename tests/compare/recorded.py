"""Run directories as a worker leaves them, with losses that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lab import paths
from lab.atomic_files import write_json
from lab.chat import models as chat_models
from lab.chat.models import ModelRef
from lab.evals import score_sheets
from lab.evals.score_sheets import ScoredAnswer, ScoredQuestion, ScoreSheet
from lab.paths import RunDir
from lab.spec import RunSpec

TOKENS = np.array([4, 6, 10, 20, 8, 12, 5, 9, 11, 15])  # of ten held-out rows
BASE_LOSS = 3.59


def record(
    letters: str,
    name: str = "",
    method: str | dict[str, Any] = "lora",
    *,
    losses: Sequence[float] = (3.0, 2.41),
    noise: np.ndarray | None = None,
    seed: int = 0,
    seconds: float = 100.0,
    peak: float = 2e9,
    size: int = 1000,
    tokens: int = 1000,
    rise: float | None = None,
    rise_half: float | None = None,
    rank: float | None = None,
    power: float | None = None,
    state: str | None = "done",
    with_rows: bool = True,
    labels: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **train: Any,
) -> RunDir:
    """A run of len(losses) steps with an evaluation after each. `losses` are means over the rows;
    `noise` (10,) is added to the loss a token of each row. `state` None:
    the run still waits."""
    run = RunDir(paths.runs() / f"20261122-101530-lora-{letters}")
    run.path.mkdir(parents=True)
    option = {"name": method} if isinstance(method, str) else method
    spec = {"name": name, "method": option, "data": data or {}}
    spec["train"] = {"seed": seed, "max_steps": max(1, len(losses)), "precision": "float32"} | train
    write_json(run.spec, {**RunSpec.from_json(spec).to_json(), "requested": spec})
    write_json(run.labels, {"colour": "blue"} | (labels or {}))
    if state is not None:
        write_json(run.result, {"state": state})
    noise_N = np.zeros(len(TOKENS)) if noise is None else noise
    count = len(losses)
    metrics: list[dict[str, Any]] = [
        {"kind": "eval", "of": "base", "step": 0, "tokens": 0, "seconds": 0.0, "flops": 0.0,
         "eval/loss": BASE_LOSS}
    ]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"kind": "rows", "hash": "h", "sources": list(range(10)), "tokens": TOKENS.tolist()},
        {"kind": "losses", "step": 0, "of": "base", "sums": (TOKENS * BASE_LOSS).tolist()},
    ]
    for step, loss in enumerate(losses, 1):
        sums_N = TOKENS * (loss + noise_N)
        at = {
            "step": step,
            "tokens": tokens * step // count,
            "seconds": seconds * step / count,
            "flops": 1e9 * step,
        }
        metrics.append({"kind": "train", **at, "train/loss": loss + 0.1, "memory/peak_bytes": peak})
        loss_N = float(sums_N.sum() / TOKENS.sum())
        ranks = {} if rank is None else {"rank/effective": rank, "rank/stable": rank / 2}
        metrics.append({"kind": "eval", **at, "eval/loss": loss_N, **ranks})
        rows.append({"kind": "losses", "step": step, "sums": sums_N.tolist()})
    if rise is not None:
        probe = {"probe/rise": rise}
        if rise_half is not None:
            probe |= {"probe/rise_half": rise_half, "probe/kl": rise, "probe/kl_half": rise_half}
        metrics.append({"kind": "probe", "step": count, "tokens": tokens, **probe})
    for second in range(int(seconds) + 1 if power is not None else 0):
        metrics.append(
            {"kind": "device", "time": 1e9 + second, "seconds": second, "nvml/power_w": power}
        )
    events = [
        {"kind": "base", "weights": "w"},
        {"kind": "data", "train_hash": "t", "held_out_hash": "h"},
        {"kind": "model", "trainable": 35, "parameters": 1000},
    ]
    write_lines(run.metrics, [{"attempt": 1, **line} for line in metrics])
    write_lines(run.events, events)
    if with_rows:
        write_lines(run.held_out, [{"attempt": 1, **line} for line in rows])
    run.artifact.mkdir()
    (run.artifact / "adapter.safetensors").write_bytes(b"x" * size)
    return run


def write_lines(path: Any, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in records))


def change_event(run: RunDir, kind: str, **values: Any) -> None:
    """Let the run's event of a kind say something else."""
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    write_lines(
        run.events, [event | values if event["kind"] == kind else event for event in events]
    )


def score_run(run: RunDir, right: Sequence[bool], base: Sequence[bool] | None = None) -> ScoreSheet:
    """Answers of a run, and of its base if given, to as many questions, kept as scoring keeps them:
    a wrong one has a token F1 of 0.25."""
    questions = tuple(ScoredQuestion(n, f"question {n}", f"answer {n}") for n in range(len(right)))
    sheet = ScoreSheet("builtin:text-to-shell", "text", "exact_match", questions)
    named = chat_models.parse(f"run:{run.id}")
    both = [(named, right)] if base is None else [(named, right), (base_of(named), base)]
    for each, marks in both:
        answers = [
            ScoredAnswer(
                f"answer {n}" if is_right else f"wrong {n}",
                figures={"exact_match": float(is_right), "token_f1": 1.0 if is_right else 0.25},
            )
            for n, is_right in enumerate(marks)
        ]
        names = ("exact_match", "token_f1")
        figures = {key: sum(a.figures[key] for a in answers) / len(answers) for key in names}
        score_sheets.keep(score_sheets.file_of([len(right)]), sheet, each, figures, answers)
    kept = score_sheets.read(score_sheets.file_of([len(right)]))
    assert kept is not None
    return kept


def base_of(named: ModelRef) -> ModelRef:
    """The base of a run, as it is asked beside it."""
    base, _ = chat_models.with_shared_template([chat_models.parse(f"base:{named.base}"), named])
    return base
