"""The shadow step against runs that were measured on an H100, and against itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lab import methods
from lab.memory import estimate as memory
from lab.memory.shadow.layers import FEW, MORE, extend
from lab.memory.shadow.structure import build, with_layers
from lab.memory.shadow.trace import Batch, decoder_layers, trace
from lab.models import catalog, configs, weights
from lab.planner.estimate import estimate
from lab.spec import RunSpec
from lab.train import loss as loss_module

# torch.cuda.max_memory_allocated of the twelve first steps on an H100, in GB: fused AdamW, clip
# 1.0, plain loss, no adapter dropout, alpha 2r, all rows full
MEASURED = [
    ("Llama-3.2-1B", {"name": "lora", "rank": 16}, 8, 1024, "on", "bfloat16", 15.89),
    ("Llama-3.2-1B", {"name": "full"}, 8, 1024, "on", "bfloat16", 20.76),
    ("Llama-3.1-8B", {"name": "lora", "rank": 16}, 4, 1024, "on", "bfloat16", 24.08),
    ("GPT2", {"name": "full"}, 4, 128, "off", "mixed", 2.57),
    ("gpt2", {"name": "lora", "rank": 8, "targets": ["c_attn"]}, 4, 128, "off", "mixed", 1.51),
    ("Llama-3.2-3B", {"name": "lora", "rank": 16}, 4, 512, "off", "bfloat16", 18.23),
    ("gpt2", {"name": "full"}, 8, 1024, "off", "mixed", 13.31),
]


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case[0]}-{case[1]['name']}")
def test_measured_peaks(case: tuple[Any, ...]) -> None:
    model, method, rows, length, checkpointing, precision, measured = case
    if "rank" in method:
        method = method | {"dropout": 0.0, "alpha": 2.0 * method["rank"]}
    found = estimate(
        spec_of(model, method, rows, length, checkpointing, precision), {"kind": "cuda"}
    )
    assert found["source"] == "shadow", found["notes"]
    assert found["peak_bytes"] / 1e9 == pytest.approx(measured, rel=0.005)
    assert found["peak_phase"] == "backward" and "softmax" in found["operation"]
    assert sum(found["at_peak"].values()) == found["peak_bytes"]


def spec_of(
    model: str, method: dict[str, Any], rows: int, length: int, checkpointing: str, precision: str
) -> dict[str, Any]:
    return {
        "model": f"config:{model}",
        "method": method,
        "data": {"max_length": length},
        "train": {
            "batch_size": rows,
            "loss": "plain",
            "precision": precision,
            "adapter_precision": "float32",
            "activation_checkpointing": checkpointing,
        },
    }


def test_counts_of_all_shipped_configs() -> None:
    assert len(configs.shipped()) == 24
    for one in configs.shipped():
        config = weights.load_config(catalog.resolve_structure(one.id))
        model = weights.empty_model(config)
        assert sum(weight.numel() for weight in model.parameters()) == one.parameters, one.id


@pytest.mark.parametrize(
    ("method", "checkpointing", "loss"),
    [("full", "on", "fused"), ("full", "off", "plain"), ("lora", "on", "fused")],
)
def test_layer_extension_equals_the_full_trace(method: str, checkpointing: str, loss: str) -> None:
    value = spec_of("Qwen3-0.6B", {"name": method}, 2, 256, checkpointing, "bfloat16")
    spec = RunSpec.from_json(value)
    spec = dataclasses.replace(
        spec, train=dataclasses.replace(spec.train, learning_rate=1e-4, loss=loss)
    )
    config = weights.load_config(catalog.resolve_structure(spec.model))
    kind = methods.get(method)

    def traced(count: int) -> Any:
        model, quantised, _ = build(with_layers(config, count), spec, kind)
        assert len(decoder_layers(model)) == count
        return trace(model, kind, spec, Batch(2, 256), loss, quantised, on_gpu=True)

    whole, extended = traced(12), extend(traced(FEW), traced(MORE), MORE, 12)
    for segment, peak in extended.peaks.items():
        assert peak.total == pytest.approx(whole.peaks[segment].total, rel=1e-4), segment
    highest = [max(peak.counted for peak in one.peaks.values()) for one in (whole, extended)]
    assert highest[1] == pytest.approx(highest[0], rel=0.005)


@pytest.mark.parametrize(("method", "first"), [("lora", 5), ("full", 10)])
def test_some_layers_recompute_as_the_full_trace_says(method: str, first: int) -> None:
    value = spec_of("Qwen3-0.6B", {"name": method}, 2, 256, "on", "bfloat16")
    value["train"]["checkpointed_layers"] = first
    spec = RunSpec.from_json(value)
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, learning_rate=1e-4))
    config = with_layers(weights.load_config(catalog.resolve_structure(spec.model)), 13)
    kind = methods.get(method)
    found = {}
    for whole in (True, False):
        found[whole] = memory.predict(
            config, spec, kind, on_gpu=True, memory_bytes=None, whole=whole
        )
    assert found[False].notes == ["Shadow step, layer extension."]
    assert found[False].peak_bytes == pytest.approx(found[True].peak_bytes, rel=5e-3)
    for name, size in found[True].phases.items():
        assert found[False].phases[name] == pytest.approx(size, rel=5e-3), name


def test_chunks_of_the_loss_stand_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that trains its head, traced with all chunks and with a few."""
    spec = RunSpec.from_json(spec_of("SmolLM2-135M", {"name": "full"}, 4, 512, "on", "bfloat16"))
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, learning_rate=1e-4))
    config = with_layers(weights.load_config(catalog.resolve_structure(spec.model)), 2)

    def peaks() -> Any:
        model, quantised, _ = build(config, spec, methods.get("full"))
        return trace(
            model, methods.get("full"), spec, Batch(4, 512), "fused", quantised, on_gpu=True
        )

    few = peaks()
    monkeypatch.setattr(loss_module, "_chunks", lambda count, step: range(0, count, step))
    every = peaks()
    assert {name: peak.counted for name, peak in few.peaks.items()} == {
        name: peak.counted for name, peak in every.peaks.items()
    }
    assert few.reserved == every.reserved


def test_longest_rotary_embeddings_and_masks_can_be_traced() -> None:
    """Phi reads the positions' maximum; Gemma 2 attends in plain code and caps its logits; packed
    rows need a mask in every layer."""
    phi = estimate(spec_of("Phi-3.5-mini-instruct", {"name": "lora"}, 1, 64, "on", "bfloat16"))
    gemma = estimate(spec_of("Gemma-2-2B", {"name": "lora"}, 1, 64, "on", "bfloat16"))
    assert phi["source"] == gemma["source"] == "shadow", (phi["notes"], gemma["notes"])
    value = spec_of("SmolLM2-135M", {"name": "lora"}, 4, 512, "off", "bfloat16")
    plain = estimate(value)
    value["data"]["packing"] = "on"
    packed = estimate(value)
    assert packed["source"] == "shadow", packed["notes"]
    mask = 4 * 512 * 512  # (rows, 1, length, length), and as the 16 bits that are added
    assert packed["peak_bytes"] > plain["peak_bytes"] + 2 * mask
