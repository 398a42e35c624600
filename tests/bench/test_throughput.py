"""The speed bench: equal work is proven, ratios are honest, and what is missing is named."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import baseline_trainer, frameworks, paired_stats, throughput
from bench.workload import SHAPES, Work, make_folder, work
from lab.errors import LabError

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def test_the_bound_of_the_median_is_the_sign_tests() -> None:
    # of twenty fair coins, five or fewer fall on one side in 2.07 % of all cases, six in 5.77 %
    assert paired_stats.lower_bound([float(n) for n in range(20, 0, -1)]) == 6.0
    assert paired_stats.lower_bound([3.0, 1.0, 2.0, 5.0, 4.0]) == 1.0, "1 in 32"
    assert paired_stats.lower_bound([1.0] * 4) is None, "four coins prove nothing at 95 %"
    spread = paired_stats.spread([0.9, 1.1, 1.0])
    assert (spread["median"], spread["smallest"], spread["largest"]) == (1.0, 0.9, 1.1)


def test_losses_that_differ_leave_no_ratio() -> None:
    def answers(losses: list[float], seconds: float, tokens: int = 100) -> dict[int, Any]:
        one = {"losses": losses, "seconds": seconds, "tokens": tokens, "precision": "float32"}
        return {0: one, 4: one, 5: {"error": "broke down"}}

    ours = answers([2.0, 1.5], 1.0)
    equal = throughput.ratio(ours, answers([2.0005, 1.5005], 2.0))
    assert equal and equal["ratio"]["median"] == 2.0 and equal["ratio"]["pairs"] == 2
    for other, words in (
        (answers([2.0, 1.51], 2.0), "at step 2"),
        (answers([2.0, float("nan")], 2.0), "at step 2"),
        (answers([2.0], 2.0), "steps"),
        (answers([2.0, 1.5], 2.0, 90), "tokens"),
    ):
        ratio = throughput.ratio(ours, other)
        assert ratio and ratio["ratio"] is None and words in ratio["not_equal"]
    assert throughput.ratio(ours, {1: ours[0]}) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speed") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", SHAPES["small"] | TINY)
        make_folder(made, "tiny", 8, 64)
    return made


def shape_of(case: str, folder: Path) -> Work:
    length = 192 if case == "chat" else 32
    return work(case, folder, length=length, batch=2, warm=1, steps=2, compile="off")


@pytest.mark.parametrize(("case", "switch"), [("full", "off"), ("lora", "on"), ("chat", "off")])
def test_all_contestants_do_the_same_work(case: str, switch: str, folder: Path) -> None:
    """The losses of every step agree, so weights, adapters, rows, order and rates are the same."""
    requested = shape_of(case, folder).with_checkpointing(switch)
    rows = baseline_trainer.batches(requested)
    assert case == "chat" or {len(one["input_ids"]) for step in rows for one in step} == {32}
    assert case != "chat" or max(len(step) for step in rows) > 2, "chats are packed"
    there = [name for name in ("worker", "plain", "trl") if not frameworks.absent(name)]
    found = {name: frameworks.trial(name, requested) for name in there}
    ours = found.pop("worker")
    assert len(ours["losses"]) == 3 and ours["seconds"] > 0
    for name, theirs in found.items():
        assert paired_stats.far_apart(ours["losses"], theirs["losses"], 1e-4) == "", name
        assert theirs["tokens"] == ours["tokens"] > 0


def test_a_contestant_on_other_rates_is_found_out(folder: Path) -> None:
    shape = shape_of("lora", folder)
    train = replace(shape.spec.train, learning_rate=2e-2)
    ours = frameworks.trial("worker", shape)
    theirs = frameworks.trial("plain", replace(shape, spec=replace(shape.spec, train=train)))
    assert "at step 3" in paired_stats.far_apart(ours["losses"], theirs["losses"], 1e-3)


def test_a_missing_contestant_is_named_and_a_wrong_plan_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frameworks.host, "gpus", list)
    monkeypatch.setitem(frameworks.NEEDS, "trl", ("a_package_that_nobody_has",))
    monkeypatch.setitem(frameworks.NEEDS, "liger", ())
    assert frameworks.absent("trl") == "not installed"
    assert frameworks.absent("liger") == "needs a GPU"
    assert frameworks.absent("plain") == frameworks.absent("worker") == ""
    with pytest.raises(LabError, match=r"Unknown case 'lore'.*full, lora"):
        throughput.speed(throughput.Plan(cases=("lore",)))


def test_the_share_of_the_lab_is_measured(folder: Path, tmp_path: Path) -> None:
    from bench.overhead import measure_share

    share = measure_share(shape_of("lora", folder), tmp_path)
    assert 0 < share["share"] < 1 and share["step_s"] > 0
    assert share["parts_ms_a_step"]["on_step_end"] > 0
    assert statistics.fsum(share["parts_ms_a_step"].values()) < 1e3 * share["step_s"] * 3


def test_the_pack_takes_the_versions_of_the_requirements(tmp_path: Path) -> None:
    from bench import offline_bundle

    named = offline_bundle.pinned()
    assert len(named) == len(offline_bundle.PACKAGES) and any(
        tensor.startswith("psutil==") for tensor in named
    )
    with pytest.raises(LabError, match="no folder"):
        offline_bundle.pack(tmp_path / "none" / "x.tgz", "3.12", [])
