"""The shadow step against runs that were measured on an H100, and against itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.estimate_accuracy import Case
from lab import methods
from lab.forecast.memory_forecast import TraceOptions, predict_memory
from lab.forecast.model_profile import profile_model
from lab.forecast.trace.layer_repetition import shorten, step
from lab.forecast.trace.meta_model import build, with_layers
from lab.forecast.trace.trace_step import Batch, record
from lab.forecast.trace.traced_step import TracedStep
from lab.forecasts import How
from lab.models import catalog, shipped_configs, weights
from lab.models.empty_model import meta_model
from lab.spec import RunSpec
from lab.train import loss as loss_module
from tests.answers import estimate

# torch.cuda.max_memory_allocated of the twelve first steps on an H100, in GB: fused AdamW, clip
# 1.0, plain loss, no adapter dropout, alpha 2r, all rows full
MEASURED = [
    ("Llama-3.2-1B", {"name": "lora", "rank": 16}, 8, 1024, "on", "bfloat16", 15.89),
    ("Llama-3.2-1B", {"name": "full"}, 8, 1024, "on", "bfloat16", 20.76),
    ("Llama-3.1-8B", {"name": "lora", "rank": 16}, 4, 1024, "on", "bfloat16", 24.08),
    ("GPT2", {"name": "full"}, 4, 128, "off", "mixed", 2.57),
    (
        "gpt2",
        {"name": "lora", "rank": 8, "target_modules": ["c_attn"]},
        4,
        128,
        "off",
        "mixed",
        1.51,
    ),
    ("Llama-3.2-3B", {"name": "lora", "rank": 16}, 4, 512, "off", "bfloat16", 18.23),
    ("gpt2", {"name": "full"}, 8, 1024, "off", "mixed", 13.31),
    # tied embeddings: the sum of the two gradients of their matrix, which is not in place
    ("Llama-3.2-3B", {"name": "full"}, 2, 256, "on", "bfloat16", 27.35),
]


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case[0]}-{case[1]['name']}")
def test_measured_peaks(case: tuple[Any, ...]) -> None:
    model, method, rows, length, checkpointing, precision, measured = case
    if "rank" in method:
        method = method | {"dropout": 0.0, "alpha": 2.0 * method["rank"]}
    answer = estimate(
        spec_of(model, method, rows, length, checkpointing, precision), {"kind": "cuda"}
    )
    assert answer["source"] == "shadow", answer["notes"]
    assert answer["peak_bytes"] / 1e9 == pytest.approx(measured, rel=0.005)
    assert answer["peak_phase"] == "backward"
    assert answer["operation"] in ("_log_softmax_backward_data", "add")
    assert sum(answer["at_peak"].values()) == answer["peak_bytes"]


# (model, method, adapters, length, checkpointing, bytes): the allocator's peak over four steps of
# four rows with the fused loss, measured on an H100 80GB with torch 2.11 (`lab bench memory`)
MEASURED_FUSED = [
    ("Llama-3.2-1B", "lora", "bfloat16", 1024, "off", 11_941_618_688),
    ("Llama-3.2-1B", "lora", "bfloat16", 256, "on", 2_987_414_528),
    ("Llama-3.2-1B", "full", "float32", 1024, "off", 16_284_544_000),
    ("Llama-3.2-1B", "full", "float32", 256, "on", 10_487_468_544),
    ("Llama-3.2-1B", "ia3", "bfloat16", 1024, "on", 3_487_386_624),
    ("Llama-3.2-1B", "lokr", "bfloat16", 256, "on", 3_007_853_568),
    ("Llama-3.2-1B", "top_layers_lora", "float32", 1024, "on", 4_268_800_000),
    ("SmolLM2-135M", "lora8bit", "bfloat16", 1024, "on", 666_966_528),
    ("SmolLM2-135M", "lora8bit", "bfloat16", 1024, "off", 4_524_069_376),
    ("SmolLM2-135M", "vera", "bfloat16", 1024, "on", 708_808_192),
]


@pytest.mark.parametrize("row", MEASURED_FUSED, ids=lambda row: f"{row[0]}-{row[1]}-{row[4]}")
def test_measured_peaks_of_the_fused_loss(row: tuple[Any, ...]) -> None:
    model, method, adapters, length, checkpointing, measured = row
    case = Case(model, method, 4, length, checkpointing, "fused", (), adapters)
    forecast = predict_memory(case.config(), case.spec(), TraceOptions(on_gpu=True))
    assert forecast.how is How.REPEATED_LAYERS
    assert forecast.peak_bytes == pytest.approx(measured, rel=0.004)


def spec_of(
    model: str, method: dict[str, Any], rows: int, length: int, checkpointing: str, precision: str
) -> dict[str, Any]:
    return {
        "model": f"config:{model}",
        "method": method,
        "data": {"max_length": length},
        "train": {
            "batch_size": rows,
            "loss_implementation": "plain",
            "precision": precision,
            "adapter_precision": "float32",
            "activation_checkpointing": checkpointing,
        },
    }


def test_counts_of_all_shipped_configs() -> None:
    assert len(shipped_configs.shipped()) == 24
    for one in shipped_configs.shipped():
        config = weights.load_config(catalog.resolve_config(one.id))
        model = meta_model(config)
        assert sum(weight.numel() for weight in model.parameters()) == one.parameters, one.id


def resolved(value: dict[str, Any], **train: Any) -> RunSpec:
    value["train"] |= {"learning_rate": 1e-4, **train}
    return RunSpec.from_json(value)


@pytest.mark.parametrize(
    ("model", "method", "train"),
    [
        (
            "Qwen3-0.6B",
            "full",
            {"activation_checkpointing": "on", "gradient_accumulation_steps": 2},
        ),
        ("Qwen3-0.6B", "full", {"loss_implementation": "plain", "optimizer": "adamw8bit"}),
        ("Llama-3.2-1B", "lora", {"activation_checkpointing": "on", "checkpointed_layers": 6}),
        ("Llama-3.2-1B", "top_layers_lora", {"adapter_precision": "bfloat16"}),
        # its penalty makes tensors of every layer's weights behind the layers
        ("SmolLM2-135M", "adalora", {"loss_implementation": "plain"}),
        (
            "gpt2",
            "full",
            {"precision": "mixed", "max_grad_norm": 0, "optimizer": "sgd_in_backward"},
        ),
    ],
)
def test_layer_extension_says_what_the_full_trace_says(
    model: str, method: str, train: dict[str, Any]
) -> None:
    """Every part of the step, and what the allocator reserves, to the byte."""
    value = spec_of(model, {"name": method}, 2, 128, "off", "bfloat16")
    spec = resolved(value, **{"loss_implementation": "fused", **train})
    count = 12 if method == "top_layers_lora" else 8  # more of each kind than are traced
    config = with_layers(weights.load_config(catalog.resolve_config(spec.model)), range(count))
    layers, loss = profile_model(config, spec).layers, spec.train.loss_implementation
    traced = TracedStep(config, layers, spec, Batch(2, 128), loss, on_gpu=True)
    traces = {whole: step(traced, whole=whole) for whole in (True, False)}
    assert [how for _, how in traces.values()] == [How.EVERY_LAYER, How.REPEATED_LAYERS]
    whole, extended = (trace for trace, _ in traces.values())
    assert extended.reserved == whole.reserved
    assert whole.launches > 100 * count, "Each layer has a hundred kernels."
    # what works on many layers' tensors at once, or on none, is counted for the short model
    assert 0.97 * whole.launches < extended.launches <= whole.launches
    assert extended.peaks.keys() == whole.peaks.keys()
    for segment, peak in whole.peaks.items():
        if segment != "optimizer":  # its passes over all weights are told apart by layer
            assert extended.peaks[segment] == peak, segment
    ours, theirs = (one.peaks["optimizer"].counted for one in (extended, whole))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_layers_that_are_not_alike_are_not_left_out() -> None:
    assert shorten("aaaaaaaa") == ([0, 1, 2, 6, 7], [0, 1, 2, 2, 2, 2, 3, 4])
    assert shorten("aab" * 2) == (list(range(6)), list(range(6)))
    chosen, stands_for = shorten("aaaaaabbbbbbb")
    assert chosen == [0, 1, 2, 4, 5, 6, 7, 8, 11, 12]
    assert stands_for == [0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 7, 8, 9]


def test_chunks_of_the_loss_stand_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that trains its head, traced with all chunks and with a few."""
    spec = RunSpec.from_json(spec_of("SmolLM2-135M", {"name": "full"}, 4, 512, "on", "bfloat16"))
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, learning_rate=1e-4))
    config = with_layers(weights.load_config(catalog.resolve_config(spec.model)), range(2))

    def peaks() -> Any:
        model, quantised, _ = build(config, spec, methods.get("full"))
        log = record(
            model, methods.get("full"), spec, Batch(4, 512), "fused", quantised, on_gpu=True
        )
        return log.read(on_gpu=True)

    few = peaks()
    monkeypatch.setattr(loss_module, "_chunks", lambda count, step: range(0, count, step))
    every = peaks()
    losses = 4 * 4 * 512  # bytes of float32: an evaluation holds one of each token of a chunk
    assert few.peaks.keys() == every.peaks.keys()
    for name, peak in every.peaks.items():
        room = losses if name.startswith("evaluate") else 0
        assert few.peaks[name].counted == pytest.approx(peak.counted, abs=room, rel=0), name
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_paged_moments_are_not_in_the_memory_of_the_card(method: str) -> None:
    """On the H100 a run with paged moments took as much less as its large matrices' moments are,
    two bytes a parameter; small tensors and the scales stay."""
    answers = {}
    for rule in ("adamw8bit", "paged_adamw8bit"):
        value = spec_of("SmolLM2-135M", {"name": method}, 2, 128, "on", "bfloat16")
        value["train"]["optimizer"] = rule
        answers[rule] = estimate(value, {"kind": "cuda"})
    counted, paged = answers.values()
    assert {answer["source"] for answer in answers.values()} == {"shadow"}, paged["notes"]
    for phase in ("forward", "save", "resume"):  # traced, and worked out beside the trace
        less = counted["phases"][phase] - paged["phases"][phase]
        assert less == pytest.approx(2 * counted["trainable"] if method == "full" else 0, rel=2e-3)
    large = counted["phases"]["optimizer"] - paged["phases"]["optimizer"]
    if method == "full":
        assert large == pytest.approx(2 * counted["trainable"], rel=1e-3)
    else:
        assert large == 0, "no matrix of these adapters has 100,000 elements"
    is_told = any("paged optimizer states are not in this figure" in n for n in paged["notes"])
    assert is_told == bool(large)
    assert paged["disk"]["checkpoint"] == counted["disk"]["checkpoint"], "They are saved."


def test_the_scores_of_adalora_stay_in_memory() -> None:
    """Three tensors like each adapter: what a worker's update took on the H100."""
    case = Case("Llama-3.2-1B", "adalora", 4, 512, "off", "fused", (), "bfloat16")
    for is_traced in (True, False):
        options = TraceOptions(on_gpu=True, traced=is_traced)
        forecast = predict_memory(case.config(), case.spec(), options)
        assert forecast.phases.optimizer == pytest.approx(2_760_415_744, rel=1e-3)
