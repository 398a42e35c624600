"""Predictions held against measurements, on a GPU; on a CPU the parts that a CPU can check.

On a GPU each case is trained for a few steps with random weights made on the device, and the
allocator's own figures are put beside the prediction. On a CPU tensor bytes by kind must be equal
to the byte, and the tracker of the fake step to that of the same step with real tensors. `grid`
holds the predictions against each other: outlines and layer extension against full traces.
"""

from __future__ import annotations

import dataclasses
import gc
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lab import methods, optimizers
from lab.forecast.memory_forecast import TraceOptions, outline_for_any_rows, predict_memory
from lab.forecast.resolve import Resolution
from lab.forecasts import How
from lab.methods.parts import compatibility
from lab.models import catalog, weights
from lab.models.empty_model import meta_model
from lab.spec import RunSpec

STEPS = 4
ENDLESS = 10**15  # bytes: whatever can be traced fits
MODELS = ("SmolLM2-135M", "gpt2", "Llama-3.2-1B", "Qwen2.5-1.5B", "Llama-3.2-3B", "Llama-3.1-8B")
GRID_MODELS = (
    *("SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B", "TinyLlama-1.1B", "Llama-3.2-1B"),
    *("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen3-0.6B", "Qwen3-1.7B", "Llama-3.2-3B"),
    *("Mistral-7B-v0.3", "Llama-3.1-8B", "Llama-2-13B", "gpt2", "Gemma-2-2B"),
)


# Kinds of layers that the shipped configs have not, at sizes where what they keep matters.
BODY: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192,
}  # fmt: skip
STATES = {"mamba_d_state": 64, "mamba_n_groups": 1}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {**BODY, "head_dim": 64, "sliding_window": 512},
    "mixtral": {**BODY, "num_local_experts": 4},
    "qwen3_moe": {**BODY, **EXPERTS, "head_dim": 64, "num_experts": 8},
    "gpt_oss": {**BODY, "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bamba": {
        **BODY, **STATES, "attn_layer_indices": [5], "mamba_n_heads": 16, "mamba_d_head": 64,
    },
    "falcon_h1": {
        **BODY, **STATES, "mamba_d_ssm": 512, "mamba_n_heads": 8, "mamba_d_head": 64,
    },
    "mamba2": {
        "vocab_size": 32_000, "hidden_size": 512, "state_size": 64, "num_hidden_layers": 12,
        "num_heads": 16, "head_dim": 64, "n_groups": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: str
    method: str
    rows: int
    length: int
    checkpointing: str
    loss: str
    options: tuple[tuple[str, Any], ...] = ()
    adapters: str = "float32"

    def spec(self, precision: str = "bfloat16") -> RunSpec:
        value = {
            "model": f"config:{self.model}",
            "method": {"name": self.method, **dict(self.options)},
            "data": {"max_length": self.length, "packing": "off"},
            "train": {
                "batch_size": self.rows,
                "activation_checkpointing": self.checkpointing,
                "loss_implementation": self.loss,
                "precision": precision,
                "adapter_precision": self.adapters,
                "learning_rate": 1e-4,
            },
        }
        return Resolution(RunSpec.from_json(value)).fitted_to(meta_model(self.config())).spec

    def config(self) -> Any:
        if self.model in FAMILIES:
            from transformers import AutoConfig

            return AutoConfig.for_model(self.model, **FAMILIES[self.model])
        return weights.load_config(catalog.resolve_config(f"config:{self.model}"))


def matrix(names: tuple[str, ...] = MODELS) -> Iterator[Case]:
    """Models, methods, lengths and checkpointing, each with each that goes together; adapters in
    the type that a run would give them."""
    for model in names:
        for method in methods.all_methods():
            has_copies = optimizers.can_use_master_weights(method, optimizers.get("adamw"))
            narrow = has_copies and bool(method.can_use_bfloat16_adapters)
            adapters = "bfloat16" if narrow else "float32"
            for way in ("off", "on"):
                short, long = (
                    Case(model, method.name, 4, length, way, "fused", (), adapters)
                    for length in (256, 1024)
                )
                if not _is_refused(short):
                    yield from (short, long)


def measure(case: Case, say: Callable[[str], object]) -> dict[str, Any]:
    """One case on this machine's GPU: predicted, allocated, reserved, error, and whether "fits"
    was right. Raises what the training raises, but for running out of memory."""
    import torch
    from accelerate import Accelerator

    from lab.forecast.trace.materialise import materialise
    from lab.forecast.trace.meta_model import build
    from lab.forecast.trace.trace_step import Batch, batch_of
    from lab.train.loop import StepConfig, step
    from lab.train.optimizer import make_optimizer

    free, _ = torch.cuda.mem_get_info()
    spec, method = case.spec(), methods.get(case.method)
    predicted = predict_memory(case.config(), spec, TraceOptions(on_gpu=True), free)
    row: dict[str, Any] = {
        **dataclasses.asdict(case),
        "predicted": predicted.peak_bytes,
        "fits": predicted.fits,
        "source": predicted.how.value,
    }
    gc.collect()  # what the case before has left behind in cycles
    torch.cuda.empty_cache()
    try:
        model, _, _ = build(case.config(), spec, method)
        with torch.no_grad():
            materialise(model, "cuda", random=True)
        torch.cuda.reset_peak_memory_stats()  # a worker loads its base in another way
        model.train()
        optimizer = make_optimizer(model, method, spec)
        inputs = {
            name: tensor.cuda() for name, tensor in batch_of(Batch(case.rows, case.length)).items()
        }
        accelerator = Accelerator(mixed_precision="no")
        config = dataclasses.replace(  # nothing is pruned in so few steps
            StepConfig.of(method, spec.method_config, spec.train, case.loss),
            on_optimizer_step=lambda model, step: None,
        )
        for step_number in range(1, STEPS + 1):
            step(accelerator, model, optimizer, [inputs], config, step_number)
        allocated = torch.cuda.max_memory_allocated()
        row |= {
            "allocated": allocated,
            "reserved": torch.cuda.max_memory_reserved(),
            "error": predicted.peak_bytes / allocated - 1,
            "fitted": True,
        }
    except torch.OutOfMemoryError:
        row |= {"allocated": None, "reserved": None, "error": None, "fitted": False}
    row["fits_was_right"] = row["fits"] == row["fitted"]
    say(f"{case.model} {case.method} {case.rows} x {case.length} {case.checkpointing}: {row}")
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of `measure` come to: errors of those that fitted, and promises not kept."""
    errors = [abs(row["error"]) for row in rows if row.get("error") is not None]
    return {
        "cases": len(rows),
        "fitted": len(errors),
        "median_error": statistics.median(errors) if errors else None,
        "within_1_percent": sum(error <= 0.01 for error in errors) / max(1, len(errors)),
        "within_3_percent": sum(error <= 0.03 for error in errors) / max(1, len(errors)),
        "worst_error": max(errors, default=None),
        "said_to_fit_but_did_not": sum(
            bool(row["fits"]) and not row["fitted"] for row in rows if "fitted" in row
        ),
        "traced": sum(How(row["source"]).is_exact for row in rows),
    }


def check_tracker(case: Case) -> dict[str, Any]:
    """What a CPU can check of one case: bytes by kind and the tracker, fake against real."""
    from lab.forecast.trace.meta_model import build
    from lab.forecast.trace.trace_step import Batch, record

    spec, method = case.spec("float32"), methods.get(case.method)
    batch = Batch(case.rows, case.length)
    logged: list[Any] = []
    for real in (False, True):
        model, quantised, _ = build(case.config(), spec, method)
        log = record(model, method, spec, batch, case.loss, quantised, on_gpu=False, real=real)
        logged.append(log.read(on_gpu=False).peaks)
    fake, real_peaks = logged
    kinds = ("weights", "gradients", "optimizer")
    top = {name: max(peak.total for peak in peaks.values()) for name, peaks in zip(
        ("fake", "real"), logged, strict=True
    )}  # fmt: skip
    return {
        **dataclasses.asdict(case),
        "kinds_equal": all(
            fake["optimizer"].kinds.get(kind) == real_peaks["optimizer"].kinds.get(kind)
            for kind in kinds
        ),
        "fake_peak": top["fake"],
        "real_peak": top["real"],
        "error": top["fake"] / top["real"] - 1,
    }


def on_processor() -> Iterator[Case]:
    """Cases that a CPU can run with real tensors: the smallest model, and every method that takes
    random weights."""
    for method in methods.all_methods():
        quantises = "quantization_config" in method.load_kwargs(method.config())
        if quantises:
            continue
        yield Case("SmolLM2-135M", method.name, 1, 64, "off", "plain")


def draw(count: int, seed: int, names: tuple[str, ...] = (*GRID_MODELS, *FAMILIES)) -> list[Case]:
    """Cases of the grid: models × methods × rows × lengths × checkpointing × loss × type of the
    adapters, by chance; those left out that the lab refuses."""
    dice = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < count:
        method = dice.choice(methods.all_methods())
        model = dice.choice(names)
        length = dice.choice((128, 256, 512, 1024, 2048, 4096))
        if model == "gpt2" and length > 1024:
            continue
        way = dice.choice(("off", "on")) if method.can_checkpoint_activations else "off"
        options: tuple[tuple[str, Any], ...] = ()
        if any(field.name == "rank" for field in dataclasses.fields(method.config)):
            options = (("rank", dice.choice((4, 16, 64))),)
        case = Case(
            model,
            method.name,
            dice.choice((1, 2, 4, 8)),
            length,
            way,
            dice.choice(("fused", "plain")),
            options,
            dice.choice(("float32", "bfloat16")),
        )
        if not _is_refused(case):
            cases.append(case)
    return cases


def _is_refused(case: Case) -> bool:
    method, spec = methods.get(case.method), case.spec()
    empty = meta_model(case.config())
    problems = method.check(empty, spec.method_config, methods.Context(spec))
    return bool(problems or compatibility.refusals(method, spec))


def grid(
    count: int, seed: int, say: Callable[[str], object], *, whole: bool = True
) -> dict[str, Any]:
    """Outline and layer extension against the shadow step, over `count` cases.

    Outlines as pages show them, and as plans make them of two numbers of rows. `whole` traces
    every layer too. Shares are of the cases that can be traced.
    """
    rows, refused, wrongly_fits = [], 0, 0
    for i, case in enumerate(draw(count, seed)):
        config, spec = case.config(), case.spec()
        options = TraceOptions(on_gpu=True)
        as_outline = dataclasses.replace(options, traced=False)
        try:
            outline = predict_memory(config, spec, as_outline, ENDLESS)
            extended = predict_memory(config, spec, options, ENDLESS)
            short = outline_for_any_rows(config, spec, as_outline, 8)
            planned = predict_memory(config, spec, as_outline, ENDLESS, short)
        except ValueError as error:  # the lab refuses it too, in these words
            refused += 1
            say(f"{i + 1:4d} {case.model} {case.method}: refused: {error}")
            continue
        if not extended.how.is_exact:
            wrongly_fits += any(figure.fits for figure in (outline, extended, planned))
            say(f"{i + 1:4d} {case.model} {case.method}: not known: {extended.trace_error}")
            continue
        row = {
            **dataclasses.asdict(case),
            "shadow": extended.peak_bytes,
            "outline_error": outline.peak_bytes / extended.peak_bytes - 1,
            "plan_error": planned.peak_bytes / extended.peak_bytes - 1,
        }
        if whole:
            full = predict_memory(config, spec, dataclasses.replace(options, whole=True))
            row["extension_error"] = extended.peak_bytes / full.peak_bytes - 1
        rows.append(row)
        say(
            f"{i + 1:4d} {case.model} {case.method} {case.rows}x{case.length} "
            f"{case.checkpointing} {case.loss}: {extended.peak_bytes / 1e9:.2f} GB, outline "
            f"{row['outline_error']:+.1%}, plan {row['plan_error']:+.1%}"
            + (f", extension {row['extension_error']:+.3%}" if "extension_error" in row else "")
        )
    outline_errors = [abs(row["outline_error"]) for row in rows]
    plan_errors = [abs(row["plan_error"]) for row in rows]
    extension = [abs(row["extension_error"]) for row in rows if "extension_error" in row]
    most = max(1, len(rows))
    return {
        "cases": len(rows),
        "refused": refused,
        "untraced_that_fit": wrongly_fits,
        "outline_within_2.5_percent": sum(error <= 0.025 for error in outline_errors) / most,
        "outline_worst": max(outline_errors, default=None),
        "plan_within_2.5_percent": sum(error <= 0.025 for error in plan_errors) / most,
        "plan_worst": max(plan_errors, default=None),
        "extension_within_half_a_percent": (
            sum(error <= 0.005 for error in extension) / len(extension) if extension else None
        ),
        "extension_worst": max(extension, default=None),
        "rows": rows,
    }
