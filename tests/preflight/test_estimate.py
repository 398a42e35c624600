"""Estimates for any device: limits to the token, energy, and what is decided by the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.data import token_cache
from lab.data.prepare import prepare
from lab.models import shipped_configs
from lab.spec import RunSpec
from tests.answers import check, estimate, limits, plan

OUTLINE = {"shadow": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import LlamaConfig

    place = tmp_path_factory.mktemp("limits")
    LlamaConfig(
        vocab_size=1024, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
    ).save_pretrained(place)  # fmt: skip
    return str(place)


SHIPPED = ("SmolLM2-135M", "Qwen3-0.6B", "Llama-3.1-8B")


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Limits try the shipped models, too: `shipped(*names)` says which, at first none."""
    every = shipped_configs.shipped()

    def those(*names: str) -> None:
        configs = tuple(config for config in every if config.name in names)
        monkeypatch.setattr(shipped_configs, "shipped", lambda: configs)

    those()
    return those


def spec(folder: str, rows: int = 2, length: int = 256, way: str = "off") -> dict[str, Any]:
    train = {"batch_size": rows, "activation_checkpointing": way}
    return {"model": folder, "method": "lora", "data": {"max_length": length}, "train": train}


def test_limits_are_where_one_more_does_not_fit(folder: str) -> None:
    device = {"memory_bytes": 300 * 10**6}
    answer = limits(spec(folder), device)
    row, rows = answer["longest_row"], answer["largest_batch"]
    assert 256 < row < 8192 and 2 < rows < 4096
    step = 256 // 2  # tokens that one more row is worth
    assert row == pytest.approx(step * rows, abs=step), "Twice the tokens either way."
    for value, more in (
        (spec(folder, length=row), spec(folder, length=row + 1)),
        (spec(folder, rows=rows), spec(folder, rows=rows + 1)),
    ):
        assert estimate(value, device, OUTLINE)["fits"] is True, value
        assert estimate(more, device, OUTLINE)["fits"] is False, more


def test_limits_end_where_the_model_or_the_lab_ends(
    folder: str, shipped: Callable[..., None]
) -> None:
    shipped(*SHIPPED)
    short = spec(folder, rows=1, length=8)
    everything = limits(short, {"memory_bytes": 10**15})
    assert everything["longest_row"] == 8192, "As far as the model reads."
    assert everything["largest_batch"] == 4096
    assert everything["largest_model"] == "Llama-3.1-8B"
    shipped(SHIPPED[0])
    nothing = limits(short, {"memory_bytes": 10**6})
    assert nothing == {"longest_row": 0, "largest_batch": 0, "largest_model": ""}


def test_the_largest_model_is_the_last_that_fits_with_its_method(
    folder: str, shipped: Callable[..., None]
) -> None:
    shipped(*SHIPPED[1:])
    device = {"memory_bytes": 8 * 10**9}  # of eight billion weights half a byte each, and the rest
    for method, largest in (("lora", "Qwen3-0.6B"), ("qlora", "Llama-3.1-8B")):
        value = spec(folder, rows=1, length=8) | {"method": method}
        assert limits(value, device)["largest_model"] == largest, method


def test_where_checkpointing_is_open_limits_are_those_with_it(folder: str) -> None:
    device = {"memory_bytes": 300 * 10**6}
    rows = {
        way: limits(spec(folder, way=way), device)["longest_row"] for way in ("off", "on", "auto")
    }
    assert rows["auto"] == rows["on"] > 1.5 * rows["off"]


def test_checkpointing_that_is_open_follows_the_size(folder: str) -> None:
    value = spec(folder, rows=8, length=1024, way="auto")
    plain = estimate(spec(folder, rows=8, length=1024), {"kind": "cuda"})
    needed = max(plain["peak_bytes"], plain["reserved_bytes"])
    for size, way in ((needed, "off"), (needed - 1, "on")):
        answer = estimate(value, {"memory_bytes": size})
        assert answer["settings"]["activation_checkpointing"] == way, size
        assert answer["fits"] is True
    assert estimate(value, {"kind": "cuda"})["settings"]["activation_checkpointing"] == "off"
    prefix = value | {"method": "prefix"}
    assert estimate(prefix, {"memory_bytes": 200 * 10**6})["fits"] is False
    assert "problems" not in estimate(prefix, {"memory_bytes": 200 * 10**6})


def test_a_plan_needs_a_device_of_a_size_and_says_its_energy(folder: str) -> None:
    refused = plan(spec(folder), {"kind": "cuda"})
    assert "no size" in refused["problems"][0]["message"]
    answer = plan(spec(folder), {"gpu": "T4 16GB"})
    assert answer["rows"].startswith("rows of max_length, 256 tokens")
    hours = 1e6 / answer["choices"][0]["tokens_per_s"] / 3600
    assert answer["energy_wh_per_million_tokens"] == pytest.approx(70 * hours, rel=0.02, abs=0.01)
    assert plan(spec(folder), {"memory_bytes": 10**10})["energy_wh_per_million_tokens"] is None


def test_rows_are_packed_elsewhere_only_if_that_is_asked_for(folder: str) -> None:
    value = spec(folder)
    assert estimate(value, {"kind": "cuda"})["settings"]["packed"] is False
    value["data"]["packing"] = "on"
    assert estimate(value, {"kind": "cuda"})["settings"]["packed"] is True


def test_all_problems_are_refused_before_anything_is_estimated(folder: str) -> None:
    value = spec(folder, rows=0) | {"method": {"name": "lora", "rank": 0}}
    for answer in (estimate(value), plan(value), limits(value, {"memory_bytes": 10**9})):
        assert {problem["field"] for problem in answer["problems"]} == {
            "train.batch_size",
            "method.rank",
        }
    long = estimate(spec(folder, length=8193), {"kind": "cuda"})
    assert [problem["field"] for problem in long["problems"]] == ["data.max_length"]


def test_figures_are_those_of_the_rows_that_the_run_will_have(make_spec: Any) -> None:
    value = make_spec(data={"max_length": 512}, train={"batch_size": 8, "max_steps": None})
    checked = check(value)
    own, longest = checked["estimate"], checked["estimate"]["settings"]["longest_row"]
    assert 30 < longest < 100 and own["settings"]["knows_rows"]
    read = estimate(value, None, {"shadow": False, "time": True})
    assert read["settings"] == own["settings"] and read["peak_bytes"] == own["peak_bytes"]
    assert read["pace"]["tokens"] == own["pace"]["tokens"]
    unread = estimate(value, None, OUTLINE)
    assert unread["settings"]["longest_row"] == 512 and not unread["settings"]["knows_rows"]
    fitted = estimate({**value, "data": {**value["data"], "max_length": longest}}, None, OUTLINE)
    # all of whose tokens count, where a part of the run's does
    assert own["peak_bytes"] < fitted["peak_bytes"] < unread["peak_bytes"]
    small = {"kind": "cpu", "memory_bytes": 10**10}
    planned = plan(value, small)
    same = ("batch_size", "optimizer", "loss_implementation", "activation_checkpointing")
    asked_for = [checked["spec"]["train"][name] for name in same]
    (alike,) = [c for c in planned["choices"] if [c[name] for name in same] == asked_for]
    assert alike["peak_bytes"] == pytest.approx(own["peak_bytes"], rel=0.001)
    assert planned["rows"] == f"longest row of the dataset: {longest} tokens"


def test_what_a_check_has_tokenised_its_worker_need_not(make_spec: Any, tokenizer: Any) -> None:
    checked = check(make_spec())
    stored = set(token_cache.folder().iterdir())
    prepare(RunSpec.from_stored(checked["spec"]), tokenizer)
    assert len(stored) == 1 and set(token_cache.folder().iterdir()) == stored
