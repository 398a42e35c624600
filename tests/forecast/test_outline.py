"""The outline of a step against the step traced as a whole: methods, kinds of layers, settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import methods
from lab.forecast import outline as outlines
from lab.forecast.memory_forecast import (
    TraceOptions,
    outline_for_any_rows,
    predict_memory,
)
from lab.forecast.outline import choose_layers
from lab.forecast.trace import traced_step
from lab.forecasts import How, MemoryForecast
from lab.recent import Recent
from lab.spec import RunSpec
from tests.answers import check, estimate, limits, plan

OUTLINE = TraceOptions(on_gpu=True, traced=False)


def llama(layers: int = 8, vocabulary: int = 1024) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=4096,
        tie_word_embeddings=False,
    )  # fmt: skip


def spec_of(method: Any = "lora", rows: int = 4, length: int = 1024, **train: Any) -> RunSpec:
    return RunSpec.from_json(
        {
            "model": "config:x",
            "method": method if isinstance(method, dict) else {"name": method},
            "data": {"max_length": length, "packing": "off"},
            "train": {
                "batch_size": rows, "activation_checkpointing": "off", "precision": "bfloat16",
                "adapter_precision": "float32", "learning_rate": 1e-4,
                "loss_implementation": "fused",
            }
            | train,
        }
    )  # fmt: skip


def both(
    config: Any, spec: RunSpec, *, on_gpu: bool = True
) -> tuple[MemoryForecast, MemoryForecast]:
    """(the outline's prediction, the traced step's)."""
    outline, traced = (
        predict_memory(config, spec, TraceOptions(on_gpu, traced=traced))
        for traced in (False, True)
    )
    assert outline.how is How.OUTLINE, outline.trace_error
    assert traced.how.is_exact, traced.trace_error
    return outline, traced


def hold(
    outline: MemoryForecast,
    traced: MemoryForecast,
    within: float = 0.015,
    phases: float = 0.04,
) -> None:
    assert outline.peak_bytes == pytest.approx(traced.peak_bytes, rel=within)
    for phase in ("forward", "backward", "evaluate"):
        about, exact = (getattr(forecast.phases, phase) for forecast in (outline, traced))
        assert about == pytest.approx(exact, rel=phases), phase
    assert sum(vars(outline.at_peak).values()) == outline.peak_bytes, "The parts add up."


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_the_outline_is_near_the_traced_step_for_every_method(name: str) -> None:
    outline, traced = both(llama(), spec_of(name))
    assert traced.largest.activations > 0.3 * traced.peak_bytes, "What layers keep matters here."
    # the tensors of a prefix leave holes into which the blocks of the loss do not fit
    room = {"within": 0.02, "phases": 0.06} if name == "prefix" else {}
    hold(outline, traced, **room)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 128, "n_layer": 7, "n_head": 4, "n_positions": 1024}),
    "windows": (
        "gemma2",
        {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "head_dim": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 128,
        },
    ),
    "experts": (
        "mixtral",
        {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 7,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
        },
    ),
    "states": (
        "bamba",
        {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_indices": [3],
            "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 32,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_outline_is_near_the_traced_step_for_every_kind_of_layer(kind: str) -> None:
    from transformers import AutoConfig

    name, shape = KINDS[kind]
    config = AutoConfig.for_model(name, vocab_size=2048, **shape)
    hold(*both(config, spec_of("full", rows=4, length=512)))


@pytest.mark.parametrize(
    ("method", "train", "within"),
    [
        ("lora", {"activation_checkpointing": "on"}, 0.025),
        ("full", {"activation_checkpointing": "on", "checkpointed_layers": 5}, 0.025),
        ("full", {"gradient_accumulation_steps": 4}, 0.015),
        ("full", {"optimizer": "sgd_in_backward", "max_grad_norm": 0.0}, 0.015),
        ("lora", {"loss_implementation": "plain", "precision": "mixed"}, 0.015),
    ],
)
def test_the_outline_follows_the_settings(
    method: str, train: dict[str, Any], within: float
) -> None:
    hold(*both(llama(), spec_of(method, **train)), within)


def test_a_processors_outline_is_that_of_its_own_tensors() -> None:
    spec = spec_of("full", precision="float32")
    hold(*both(llama(), spec, on_gpu=False), 0.001)


def test_many_virtual_tokens_are_counted_for_every_layer() -> None:
    """Their keys and values are one tensor for all layers, made before the first."""
    hold(*both(llama(12), spec_of({"name": "prefix", "tokens": 512}, rows=2, length=256)))


def test_what_an_unknown_layer_keeps_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that nobody has met keeps two tensors more in each layer."""
    before, _ = both(llama(vocabulary=1000), spec_of())
    lora = methods.get("lora")
    apply = type(lora).apply

    def applied(self: Any, model: Any, *rest: Any) -> Any:
        model = apply(self, model, *rest)
        for name, module in model.named_modules():
            if name.endswith(".mlp"):
                module.register_forward_hook(lambda _m, args, out: out + args[0].exp().exp())
        return model

    monkeypatch.setattr(type(lora), "apply", applied)
    outline, traced = both(llama(vocabulary=1001), spec_of())
    hold(outline, traced)
    tokens, layers = 4 * 1024, 8
    more = outline.largest.activations - before.largest.activations
    assert more >= 2 * layers * tokens * 256 * 2, "Two tensors of 16 bits in each of eight layers."


def test_first_last_and_one_of_each_kind_are_chosen() -> None:
    assert choose_layers("aaaaaa") == ([0, 1, 5], [0, 1, 1, 1, 1, 2])
    assert choose_layers("ababab") == ([0, 1, 2, 5], [0, 1, 2, 1, 2, 3])
    assert choose_layers("ab") == ([0, 1], [0, 1])
    assert choose_layers("") == ([], [])


def test_outlines_of_two_numbers_of_rows_tell_those_of_others() -> None:
    config, spec = llama(), spec_of("full", rows=3)
    short = outline_for_any_rows(config, spec, OUTLINE, 8)
    quick, exact = (
        predict_memory(config, spec, OUTLINE, short=outline) for outline in (short, None)
    )
    assert quick.peak_bytes == pytest.approx(exact.peak_bytes, rel=0.02)


def test_rows_that_do_not_fill_a_chunk_of_the_loss_are_traced_as_they_are() -> None:
    config = llama(4, vocabulary=32_000)  # a chunk is of 524 tokens
    for rows in (1, 4):
        spec = spec_of("lora", rows=rows, length=256)
        short = outline_for_any_rows(config, spec, OUTLINE, 8)
        quick, exact = (
            predict_memory(config, spec, OUTLINE, short=outline) for outline in (short, None)
        )
        assert quick.peak_bytes == pytest.approx(exact.peak_bytes, rel=0.01), rows


@pytest.mark.parametrize(("rows", "length"), [(2, 128), (1, 2048)])
def test_few_tokens_and_single_rows_are_traced_as_they_are(rows: int, length: int) -> None:
    """The allocator rounds small tensors by a larger share, so that they lie on no line."""
    spec = spec_of("lokr", rows=rows, length=length, loss_implementation="plain")
    short = outline_for_any_rows(llama(4), spec, OUTLINE, 8)
    quick, exact = (
        predict_memory(llama(4), spec, OUTLINE, short=outline) for outline in (short, None)
    )
    assert quick.peak_bytes == exact.peak_bytes


@pytest.fixture
def untraceable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose own forward pass raises."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("an odd layer")

    monkeypatch.setattr(traced_step, "record", fail)
    # what other tests have traced is not to answer for it
    monkeypatch.setattr(outlines, "_outlines", Recent(256))


def test_a_step_that_cannot_be_traced_is_never_said_to_fit(
    tmp_path: Path, untraceable: None
) -> None:
    llama(4, vocabulary=999).save_pretrained(tmp_path)
    value = {"model": str(tmp_path), "method": "lora", "data": {"max_length": 256}}
    least = estimate(value, {"kind": "cuda"})["peak_bytes"]
    for how in ({}, {"shadow": False}):
        large = estimate(value, {"memory_bytes": 10**15}, how)
        assert large["fits"] is None and "an odd layer" in large["trace_error"], how
        assert large["source"] == "formula" and least == large["peak_bytes"] > 10**6
        small = estimate(value, {"memory_bytes": least - 1}, how)
        assert small["fits"] is False, "Not even the weights have room."
    assert limits(value, {"memory_bytes": 10**12}) == {
        "longest_row": 0, "largest_batch": 0, "largest_model": "",
    }  # fmt: skip
    (problem,) = plan(value, {"memory_bytes": 10**12})["problems"]
    assert "cannot be traced" in problem["message"] and "an odd layer" in problem["message"]


def test_a_run_of_which_nobody_can_say_whether_it_fits_starts_with_a_warning(
    make_spec: Callable[..., dict[str, Any]], untraceable: None
) -> None:
    answer = check(make_spec("lora", data={"max_length": 77}))
    assert answer["problems"] == [] and answer["estimate"]["fits"] is None
    (warning,) = [warning for warning in answer["facts"]["warnings"] if "memory" in warning]
    assert "not known" in warning and "an odd layer" in warning


def test_copies_of_weights_that_the_forward_pass_keeps_to_its_end_go_then() -> None:
    """Autocast's, of adapters in float32, where the layers recompute and keep none themselves."""
    spec = spec_of({"name": "lora", "rank": 64}, 1, 64, activation_checkpointing="on")
    outline, traced = both(llama(24), spec)
    hold(outline, traced)


def test_what_blocks_of_the_embeddings_leave_unused_does_not_grow_with_the_layers() -> None:
    config = llama(layers=16, vocabulary=32_000)
    method = {"name": "lora_embeddings", "rank": 64}
    settings = {"activation_checkpointing": "on", "loss_implementation": "plain"}
    outline, traced = both(config, spec_of(method, rows=2, length=128, **settings))
    assert outline.peak_bytes == pytest.approx(traced.peak_bytes, rel=0.01)
