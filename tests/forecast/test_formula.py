"""What is counted: bytes of disk, state and updates by hand; and what outlines say of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from lab.forecast import formula, memory_forecast
from lab.forecast.memory_forecast import TraceOptions, predict_memory
from lab.forecast.model_profile import profile_model
from lab.forecast.resolve import resolve
from lab.forecast.trace.allocation_log import Peak, Trace
from lab.forecasts import How, Phases
from lab.models import catalog, weights
from lab.spec import RunSpec
from tests.answers import check, estimate

Make = Callable[..., dict[str, Any]]
OUTLINE = {"shadow": False}


def disk_of(spec: dict[str, Any]) -> dict[str, int]:
    answer = check(spec)
    assert answer["problems"] == []
    disk: dict[str, int] = answer["estimate"]["disk"]
    return disk


@pytest.mark.parametrize(
    ("train", "checkpoints"),
    [
        ({"max_steps": 100, "keep_best": 3, "keep_last": 2}, 6),
        ({"max_steps": 100, "keep_best": 0, "keep_last": 1}, 2),
        ({"max_steps": 100, "keep_best": 3, "keep_last": 7}, 11),
        ({"max_steps": 12, "save_steps": 4}, 3),
        ({"max_steps": 100, "save_steps": 0}, 0),
        ({"max_steps": None, "epochs": 9.0, "save_steps": None}, 6),
    ],
)
def test_disk_holds_every_kept_checkpoint_and_the_one_being_written(
    make_spec: Make, train: dict[str, Any], checkpoints: int
) -> None:
    disk = disk_of(make_spec("full", train=train))
    assert disk["total"] == disk["artifact"] + checkpoints * disk["checkpoint"], (
        f"{checkpoints} checkpoints lie on the disk at once, with the result."
    )


def test_a_checkpoint_holds_what_trains_with_both_moments_and_a_result_what_is_saved(
    make_spec: Make,
) -> None:
    full, lora = (check(make_spec(name))["estimate"] for name in ("full", "lora"))
    for answer, name in ((full, "full"), (lora, "lora")):
        trains = 4 * answer["trainable"]  # float32
        assert answer["disk"]["artifact"] == trains, f"The result of {name} is what trained."
        assert answer["disk"]["checkpoint"] == 3 * trains, f"Weights and two moments of {name}."
    opened = check(make_spec("full", train={}) | {"method": {"name": "full", "train_layers": "1"}})
    assert opened["estimate"]["disk"]["artifact"] == full["disk"]["artifact"], (
        "A method that saves the whole model saves its frozen weights too."
    )
    assert opened["estimate"]["disk"]["checkpoint"] < full["disk"]["checkpoint"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config of four layers whose activations outweigh its weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("small")
    LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def of_small(
    small: str, method: Any = "lora", rows: int = 8, length: int = 512, **train: Any
) -> dict[str, Any]:
    return {
        "model": small,
        "method": method,
        "data": {"max_length": length},
        "train": {"batch_size": rows, "activation_checkpointing": "off", **train},
    }


def test_a_run_fits_into_its_peak_and_not_into_a_byte_less(small: str) -> None:
    value = of_small(small)
    peak = estimate(value, {"kind": "cuda"}, OUTLINE)["peak_bytes"]
    for size, fits in ((peak, True), (peak - 1, False)):
        assert estimate(value, {"memory_bytes": size}, OUTLINE)["fits"] is fits
        assert estimate(value, {"kind": "cpu", "memory_bytes": size}, OUTLINE)["has_margin"] is True
    assert estimate(value, {"memory_bytes": peak}, OUTLINE)["has_margin"] is False
    assert estimate(value, {"kind": "cuda"}, OUTLINE)["fits"] is None, "A GPU of no size."


def test_virtual_tokens_pass_through_all_layers(small: str) -> None:
    """512 virtual tokens before rows of 512 double what layers keep of each row."""
    few, many = (
        estimate(
            of_small(small, {"name": "prompt", "tokens": tokens}), {"kind": "cuda"}, OUTLINE
        )["bytes"]["activations"]
        for tokens in (1, 512)
    )  # fmt: skip
    assert many / few == pytest.approx((512 + 512) / (512 + 1), rel=0.01)


def test_an_update_that_works_in_memory_of_its_own_says_so(small: str) -> None:
    """Adafactor works in sixteen bytes for each element of its largest tensor; gradients of the
    whole model lie beside it."""
    plain, factored = (
        estimate(
            of_small(small, "full", rows=1, length=8, optimizer=name), {"kind": "cuda"}, OUTLINE
        )
        for name in ("sgd", "adafactor")
    )
    beside = plain["phases"]["optimizer"] - plain["bytes"]["optimizer"]
    state = factored["bytes"]["optimizer"]
    largest = 256 * 768  # of the feed-forward part
    assert factored["phases"]["optimizer"] - state - beside == 16 * largest


@pytest.mark.parametrize("on_gpu", [True, False])
def test_beside_a_traced_peak_stands_what_libraries_hold(on_gpu: bool) -> None:
    """The larger of tensors and blocks; and what a CPU's kernels copy, a third more."""
    config = weights.load_config(catalog.resolve_config("config:SmolLM2-135M"))
    spec = resolve(RunSpec.from_json({"method": {"name": "lora"}}), has_bf16=True).spec
    counts = formula.counted(profile_model(config, spec).sizes, spec, on_gpu=on_gpu)
    peaks = {phase.name: Peak(10**9) for phase in fields(Phases)}
    peaks["backward.head"] = Peak(10**11, counted=11 * 10**10)
    trace = Trace(peaks, 12 * 10**10 if on_gpu else None)
    memory = memory_forecast._traced(counts, trace, How.EVERY_LAYER, on_gpu=on_gpu)
    gpu = 11 * 10**10 + formula.CUBLAS_WORKSPACE, 12 * 10**10 + formula.CUBLAS_WORKSPACE
    cpu = 143 * 10**9 + formula.CPU_LIBRARIES, None
    assert (memory.peak_bytes, memory.reserved_bytes) == (gpu if on_gpu else cpu)
    assert memory.peak_phase == "backward"


def test_what_is_loaded_and_saved_is_counted_for_what_it_is() -> None:
    config = weights.load_config(catalog.resolve_config("config:SmolLM2-135M"))

    def phases(method: str, **train: Any) -> Phases:
        value = {
            "method": {"name": method},
            "data": {"max_length": 64, "packing": "off"},
            "train": {"precision": "bfloat16", "adapter_precision": "float32", **train},
        }
        spec = resolve(RunSpec.from_json(value), has_bf16=True).spec
        options = TraceOptions(on_gpu=True, traced=False)
        predicted = predict_memory(config, spec, options).phases
        assert predicted is not None
        return predicted

    base = 134_515_008 * 2
    vocabulary, probe_tokens = 49152, 128
    for method in ("lora", "full"):
        own = phases(method)
        assert own.load == base, "No adapter yet, no workspace yet."
        assert own.save - own.resume == 64 * vocabulary * (2 + 4), "The logits of the proof."
        probed = phases(method, forgetting_probe="on")
        logits = 4 * vocabulary * (probe_tokens * 2 + 64 * 2 * 4)
        assert probed.evaluate - probed.resume == max(logits, own.evaluate - own.resume)
