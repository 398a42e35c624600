"""What a real run writes of its held-out rows is what its evaluations say."""

from __future__ import annotations

import json

import pytest

from lab.compare.comparison import compare
from lab.compare.contestants import contestants
from lab.compare.verdict import loss_difference
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.held_out_losses import held_out_losses


def test_the_rows_add_up_to_every_evaluation_loss(trained: list[RunDir]) -> None:
    for run in trained:
        losses = held_out_losses(run)
        assert losses is not None and losses.base is not None
        evaluations = record_reader.metrics(run, "eval")
        base = [record for record in evaluations if record.get("of") == "base"]
        others = [record for record in evaluations if record.get("of") != "base"]
        total = losses.tokens.sum()
        assert total == base[0]["eval/loss_tokens"]
        assert losses.base.sum() / total == pytest.approx(base[0]["eval/loss"], rel=1e-5)
        assert losses.steps.tolist() == [record["step"] for record in others]
        means = [record["eval/loss"] for record in others]
        assert (losses.sums.sum(1) / total).tolist() == pytest.approx(means, rel=1e-5)
        assert losses.rows_hash == record_reader.last_event(run, "data")["held_out_hash"]
        assert len(set(losses.sources.tolist())) == len(losses.tokens), "a chat is a document"


def test_two_real_runs_get_a_verdict_by_example(trained: list[RunDir]) -> None:
    full, lora = contestants(trained)
    difference = loss_difference(full, lora)
    assert difference is not None and difference.rows == 5
    gap = (full.value("loss") or 0) - (lora.value("loss") or 0)
    assert difference.mean == pytest.approx(gap, abs=1e-5)
    answer = json.loads(json.dumps(compare(trained).to_json()))
    assert answer["unequal"] == [] and answer["verdict"]["case"] in ("one seed", "no difference")
    assert answer["remarks"] == []
