"""What is refused, what is proposed instead, and which settings are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import gpu_table
from lab.forecast import rules_of_thumb
from tests.answers import estimate, plan

LLAMA: dict[str, Any] = {
    "model": "config:Llama-3.2-1B",
    "method": {"name": "lora"},
    "data": {"max_length": 4096},
    "train": {"batch_size": 2},
}


def test_settings_are_chosen_by_speed_among_those_that_fit() -> None:
    large = plan(LLAMA, {"gpu": "H100 80GB"})["choices"]
    assert large[0]["fits"] and large[0]["activation_checkpointing"] == "off"
    small = plan(LLAMA, {"memory_bytes": 10 * 10**9})["choices"]
    best = small[0]
    assert best["fits"] and best["source"] == "shadow"
    assert best["peak_bytes"] <= 10e9 * 0.94 < large[0]["peak_bytes"]
    assert best["batch_size"] * best["gradient_accumulation_steps"] == 2
    fitting = [weight for weight in small if weight["fits"] and weight["is_requested_optimizer"]]
    assert all(choice["tokens_per_s"] <= best["tokens_per_s"] for choice in fitting)
    again = estimate(
        LLAMA | {"train": {key.split(".")[1]: value for key, value in best["changes"].items()}},
        {"memory_bytes": 10 * 10**9},
    )
    assert again["fits"] and again["peak_bytes"] == best["peak_bytes"]


def test_as_few_layers_recompute_as_make_it_fit() -> None:
    value = LLAMA | {"train": LLAMA["train"] | {"activation_checkpointing": "off"}}
    needed = {way: estimate(with_train(value, way), {"kind": "cuda"}) for way in ("off", "on")}
    most, least = (needed[way]["peak_bytes"] for way in ("off", "on"))
    assert most > 1.3 * least
    room = (most + least) // 2
    answer = estimate(with_train(value, "auto"), {"memory_bytes": room})
    chosen = answer["settings"]["checkpointed_layers"]
    assert answer["fits"] and 2 <= chosen <= 14, "of sixteen"
    assert answer["peak_bytes"] <= 0.94 * room < room
    one_less = with_train(value, "on", checkpointed_layers=chosen - 1)
    assert estimate(one_less, {"kind": "cuda"})["peak_bytes"] > 0.94 * room
    best = plan(value, {"memory_bytes": room})["choices"][0]
    assert best["fits"] and best["peak_bytes"] <= 0.94 * room


def with_train(value: dict[str, Any], way: str, **settings: Any) -> dict[str, Any]:
    train = {**value["train"], "activation_checkpointing": way, **settings}
    return value | {"train": train}


def test_rules_of_thumb() -> None:
    """Claims as they are printed: B1's GiB for 7B, C3's table, B10 and C24 by their words."""
    full = rules_of_thumb.rules(7 * 10**9, "full")
    assert full["B1-adamw-bf16"] / rules_of_thumb.GIB == pytest.approx(
        91.3, abs=0.1
    )  # printed: 91.5
    assert full["C3"] == 98e9 and full["C2"] == full["A2"] == 98e9
    assert rules_of_thumb.rules(70 * 10**9, "qlora")["C3-qlora"] == 80e9
    assert rules_of_thumb.rules(13 * 10**9, "lora")["B10-lora"] == 28e9
    assert all(
        rules_of_thumb.says(claim)
        for kind in ("full", "lora", "qlora")
        for claim in rules_of_thumb.rules(10**9, kind)
    )
    assert rules_of_thumb.rules(rules_of_thumb.GPT2_PARAMETERS, "full")["D1"] == 2.14e9
    assert rules_of_thumb.rules(rules_of_thumb.GPT2_PARAMETERS, "lora")["D1-lora"] == 0.89e9
    by_kind = {kind: rules_of_thumb.rules(8 * 10**9, kind) for kind in ("full", "lora", "qlora")}
    assert by_kind["lora"] == {
        "A4": 32e9, "C2-lora": pytest.approx(16e9 + 0.9e9 * 8 / 7, abs=1), "D2": 16e9,
        "C3-lora": pytest.approx(18e9 + 14e9 / 6, abs=1), "B10-lora": 18e9, "C24-lora": 20e9,
    }  # fmt: skip
    assert by_kind["qlora"] == {
        "A4-qlora": 20e9, "C3-qlora": 11e9, "C4": 9e9, "B10-qlora": 6.8e9, "C24-qlora": 4.8e9,
    }  # fmt: skip
    assert by_kind["full"]["B1-adamw-fp32"] == 160e9 and by_kind["full"]["B1-sgd-bf16"] == 64e9
    assert rules_of_thumb.rules(140 * 10**9, "full")["C3"] == 1920e9, "in proportion beyond 70B"
    adapted = rules_of_thumb.rules(8 * 10**9 + 5, "lora", 7 * 10**9)
    assert adapted["B10-lora"] == 16e9, "the base's parameters count, not the adapter's"


def test_configs_without_weights(
    lab_json: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab import cli

    listed = {row["id"]: row for row in lab_json("models")["models"]}
    assert listed["config:gpt2"]["parameters"] == 124_439_808
    spec = tmp_path / "spec.json"
    spec.write_text('{"model": "config:GPT2"}')
    assert cli.main(["start", str(spec)]) == 2
    assert "config:gpt2' has no weights" in capsys.readouterr().err
    assert cli.main(["estimate", "--model", "config:Llama-3.1-9B", "--method", "full"]) == 2
    assert "Did you mean config:Llama-3.1-8B" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,'
        '"num_hidden_layers": 2, "num_attention_heads": 4}'
    )
    answer = estimate({"model": str(tmp_path), "method": "full", "data": {"max_length": 32}})
    assert (answer["device"], answer["source"]) == ("cuda", "shadow")
    same = {"model": str(tmp_path / "config.json"), "method": "full", "data": {"max_length": 32}}
    assert estimate(same)["peak_bytes"] == answer["peak_bytes"]
    (tmp_path / "own.json").write_text('{"model_type": "llama", "auto_map": {}}')
    (tmp_path / "not.json").write_text("[1, 2]")
    for name, says in (
        ("own.json", "code of its own"),
        ("not.json", "not a readable"),
    ):
        arguments = ["estimate", "--model", str(tmp_path / name), "--method", "full"]
        assert cli.main(arguments) == 2
        assert says in capsys.readouterr().err


def test_gpus() -> None:
    assert gpu_table.get("rtx 4090 24gb").memory_bytes > 23 * 2**30
    known = gpu_table.known("NVIDIA H100 80GB HBM3")
    assert known is not None and known.name == "H100 80GB"
    with pytest.raises(Exception, match="RTX 4090"):
        gpu_table.get("RTX 409")


@pytest.mark.parametrize(
    ("kind", "method", "shape", "expected"),
    [
        ("mamba", "full", {"hidden_size": 64, "num_hidden_layers": 3}, "shadow"),
        (
            "mixtral",
            {"name": "lora", "dropout": 0.1},
            {
                "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
            },
            "Set it to 0",
        ),
    ],
)  # fmt: skip
def test_layers_of_other_kinds_are_estimated_or_refused_with_the_way_out(
    kind: str, method: Any, shape: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(kind, vocab_size=128, **shape).save_pretrained(tmp_path)
    value = {"model": str(tmp_path), "method": method, "data": {"max_length": 64}}
    answer = estimate(value, {"kind": "cuda"})
    if "problems" in answer:
        assert answer["problems"][0]["field"] == "method.dropout"
        assert expected in answer["problems"][0]["message"]
        value["method"] = method | {"dropout": 0.0}
        assert estimate(value, {"kind": "cuda"})["source"] == "shadow"
    else:
        assert answer["source"] == expected, answer["notes"]
