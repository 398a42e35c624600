"""Claims about memory: their own sums worked out, and the step simulated under stated settings."""

from __future__ import annotations

from typing import Any

from lab import gpu_table, methods
from lab.advise.claims import (
    Basis,
    Claim,
    Finding,
    Ruling,
    Sum,
    exactly,
    finds,
    get,
    judged,
    percent,
    range_of,
)
from lab.advise.claims.parameter_counts import ON_A_GPU, Q_AND_V, counted
from lab.advise.options import APPROACHES, estimate
from lab.forecasts import Forecast, Parts
from lab.formatting import quantity

GIB, GB = 2**30, 1e9
# A shipped config for each size that the articles speak of
MODELS = {
    "7B": "Mistral-7B-v0.3",
    "13B": "Llama-2-13B",
    "34B": "CodeLlama-34B",
    "70B": "Llama-3-70B",
}
BILLIONS = {"1B": 1, "3B": 3, "7B": 7, "13B": 13, "34B": 34, "70B": 70}
ROWS, LENGTH = 4, 2048  # C9's, where a claim names neither
A100 = {"gpu": "A100 80GB"}

PRECISIONS = ("bfloat16", "float32")
HYBRIDS = "top_layers_lora progressive adalora lora_embeddings"


def simulated(
    model: str,
    method: str,
    rows: int = ROWS,
    length: int = LENGTH,
    train: dict[str, Any] | None = None,
    device: dict[str, Any] | None = None,
    **options: Any,
) -> Forecast:
    """The outline of a step on a GPU of no particular size. Raises LabError."""
    spec = {
        "model": f"config:{model}",
        "method": {"name": method, **options},
        "data": {"max_length": length},
        "train": {"batch_size": rows, "activation_checkpointing": "on", **(train or {})},
    }
    return estimate(spec, device or ON_A_GPU)


def peak_gb(forecast: Forecast) -> float:
    return forecast.memory.peak_bytes / GB


def parts(forecast: Forecast) -> Parts:
    return forecast.memory.largest or Parts()


def under(rows: int = ROWS, length: int = LENGTH) -> str:
    return f"outline of a step, {rows} × {length:,} tokens, layers recomputed"


@finds("A2")
def full_with_adam(claim: Claim) -> Finding:
    low, high = range_of(claim.printed["bytes_a_parameter"])
    total = claim.printed["total_70B"]
    forecast = simulated(MODELS["70B"], "full", 1)
    mixed = simulated(MODELS["70B"], "full", 1, train={"precision": "mixed"})
    figures = [
        exactly("70B", total, low * 70, "GB", f"{low} B × 70 B, the low end of {low} to {high}"),
        Sum(
            "bytes a parameter, bf16",
            low,
            high,
            _each(forecast),
            "B",
            f"Llama-3-70B, moments in bf16 too; {under(1)}",
        ),
        Sum(
            "bytes a parameter, mixed",
            low,
            high,
            _each(mixed),
            "B",
            f"Llama-3-70B, weights and moments in float32; {under(1)}",
        ),
    ]
    activations = parts(forecast).activations / parts(forecast).weights
    return judged(
        figures,
        Basis.SIMULATED,
        depends="the types of weights and moments",
        note=f"Activations are {activations:.0%} of the weights there: they grow with the rows "
        "and shrink when layers are recomputed, so that 'comparable' says little.",
    )


def _each(forecast: Forecast) -> float:
    """Bytes at the peak for each parameter."""
    return forecast.memory.peak_bytes / max(forecast.memory.parameters, 1)


@finds("A4")
def quantised_weights(claim: Claim) -> Finding:
    printed = claim.printed["qlora_weights_70B"]
    qlora = simulated(MODELS["70B"], "qlora", 1, rank=16, alpha=32.0)
    lora, full = simulated(MODELS["7B"], "lora"), simulated(MODELS["7B"], "full")
    ratio = parts(lora).activations / max(parts(full).activations, 1)
    figures = [
        exactly("0.5 B × 70 B", printed, 0.5 * 70, "GB", "0.5 × 70"),
        Sum(
            "weights of Llama-3-70B", printed, printed, parts(qlora).weights / GB, "GB",
            "NF4 with double quantisation; embeddings, head and norms keep 16 bits",
        ),
    ]  # fmt: skip
    note = f"LoRA's activations are {ratio:.2f} of full's for a 7B model ({under()})."
    return judged(figures, Basis.SIMULATED, note=note)


@finds("B1")
def rules_of_thumb(claim: Claim) -> Finding:
    each = claim.printed["adamw_bf16"]
    figures = [
        exactly(
            name, claim.printed[name], each * BILLIONS[name] * GB / GIB, "GiB",
            f"{each} × {BILLIONS[name]}e9 / 2³⁰",
        )
        for name in ("1B", "3B", "7B", "13B", "70B")
    ]  # fmt: skip
    figures.append(
        exactly(
            "bf16 SGD", claim.printed["sgd_bf16"], 2 + 2 + 2, "B", "2 + 2 + 2, as it lists them"
        )
    )
    return judged(figures, Basis.COMPUTED)


@finds("B2")
def hardware_steps(claim: Claim) -> Finding:
    cards = {24: "RTX 4090 24GB", 48: "RTX A6000 48GB", 80: "A100 80GB"}
    rooms = {step: gpu_table.get(name).usable_bytes / GB for step, name in cards.items()}
    others = [gpu.name for gpu in gpu_table.GPUS if gpu.label_gb in (16, 32, 40)]
    note = (
        f"Its steps leave out {quantity(len(others), 'card')} of the table "
        f"({', '.join(others)}). Two cards "
        "are counted as one of twice the size, which takes a sharded run."
    )
    kind = Ruling.CONFIRMED if all(room >= step for step, room in rooms.items()) else Ruling.OFF
    value = ", ".join(f"{cards[step]} leaves {room:.1f} GB" for step, room in rooms.items())
    return Finding(value, Basis.COMPUTED, kind, "", (), note)


@finds("C2")
def seven_billion(claim: Claim) -> Finding:
    printed = claim.printed
    lora = counted("Mistral-7B-v0.3", "lora", rank=16, alpha=32.0, target_modules=list(Q_AND_V))
    plain = 32 * 16 * (4 * 4096)  # without grouped heads, as the article's 7B
    figures = [
        exactly("full", printed["full"], 14 + 28 + 56, "GB", "14 + 28 + 56"),
        exactly(
            "LoRA's gradients", printed["lora_gradients"], 4 * plain / GB, "GB",
            f"4 B × {plain:,} parameters (32 layers × 16 × 2 × (4096 + 4096)); Mistral-7B has "
            f"{lora.trainable:,}",
        ),
        exactly(
            "LoRA's optimizer", printed["lora_optimizer"], 8 * plain / GB, "GB",
            f"8 B × {plain:,}",
        ),
        Sum("7B full here", printed["full"], printed["full"],
               peak_gb(simulated(MODELS["7B"], "full", 1)), "GB", under(1)),
    ]  # fmt: skip
    return judged(figures, Basis.SIMULATED)


@finds("C3")
def table_of_sizes(claim: Claim) -> Finding:
    figures = [
        exactly(
            f"{size} full", claim.printed[size][0], 14 * BILLIONS[size], "GB",
            f"C2's 2 + 4 + 8 B × {BILLIONS[size]} B",
        )
        for size in MODELS
    ]  # fmt: skip
    for size, model in MODELS.items():
        for index, method in enumerate(APPROACHES):
            printed = claim.printed[size][index]
            options: dict[str, Any] = {} if index == 0 else {"rank": 16, "alpha": 32.0}
            value = peak_gb(simulated(model, method.value, **options))
            figures.append(
                Sum(
                    f"{size} {method.in_words}",
                    printed,
                    printed,
                    value,
                    "GB",
                    f"{model}, {under()}",
                )
            )
    return judged(figures, Basis.SIMULATED)


@finds("C4")
def eight_billion_quantised(claim: Claim) -> Finding:
    printed = claim.printed
    fixed = printed["weights"] + printed["adapters"] + printed["optimizer"]
    low, high = printed["activations"]
    forecast = simulated("Llama-3.1-8B", "qlora", rank=16, alpha=32.0)
    trainable = forecast.memory.trainable
    total = printed["total"]
    figures = [
        exactly("least in all", total[0], fixed + low, "GB", f"{fixed:.1f} + {low}"),
        exactly("most in all", total[1], fixed + high, "GB", f"{fixed:.1f} + {high}"),
        exactly(
            "adapters", printed["adapters"], 2 * trainable / GB, "GB",
            f"2 B × {trainable:,} (r 16, all linear layers)",
        ),
        Sum("peak here", total[0], total[1], peak_gb(forecast), "GB", under()),
        Sum(
            "weights here", printed["weights"], printed["weights"],
            parts(forecast).weights / GB, "GB", "embeddings and head keep 16 bits",
        ),
    ]  # fmt: skip
    return judged(figures, Basis.SIMULATED)


@finds("C5")
def recomputing(claim: Claim) -> Finding:
    off, on = (
        simulated(MODELS["7B"], "lora", train={"activation_checkpointing": choice}, device=A100)
        for choice in ("off", "on")
    )
    low, high = range_of(claim.printed["slower"])
    slower = 0.0
    if on.speed and off.speed and on.speed.tokens_per_s and off.speed.tokens_per_s:
        slower = 100 * (off.speed.tokens_per_s / on.speed.tokens_per_s - 1)
    fewer = parts(off).activations / max(parts(on).activations, 1)
    figures = [
        Sum(
            "slower", low, high, slower, "%",
            f"Mistral-7B with LoRA on an A100, {ROWS} × {LENGTH:,} tokens: the forward pass again",
        )
    ]  # fmt: skip
    note = (
        f"Activations are {fewer:.1f} times smaller, so the batch may grow by more than 2 to 3 "
        "times where they are what fills the card."
    )
    return judged(figures, Basis.SIMULATED, note=note)


@finds("D1")
def gpt2(claim: Claim) -> Finding:
    printed = claim.printed
    figures = [
        exactly(
            "memory, times",
            printed["times"],
            printed["full_gb"] / printed["lora_gb"],
            "",
            f"{printed['full_gb']} / {printed['lora_gb']}",
        ),
        exactly(
            "time, times",
            printed["times"],
            printed["full_s"] / printed["lora_s"],
            "",
            f"{printed['full_s']} / {printed['lora_s']}",
        ),
    ]
    for precision in PRECISIONS:
        train = {"activation_checkpointing": "off", "precision": precision}
        full = simulated("gpt2", "full", 4, 128, train)
        lora = simulated(
            "gpt2", "lora", 4, 128, train, rank=8, alpha=16.0, target_modules=["c_attn"]
        )
        how = f"outline of a step, 4 × 128 tokens, {precision}"
        values = {"full": peak_gb(full), "lora": peak_gb(lora)}
        for name, value in values.items():
            size = printed[f"{name}_gb"]
            figures.append(Sum(f"{name}, {precision}", size, size, value, "GB", how))
    return judged(figures, Basis.SIMULATED, depends="the precision, which it does not name")


@finds("D2")
def ratio_of_full(claim: Claim) -> Finding:
    memory_low, memory_high = range_of(claim.printed["memory"])
    time_low, time_high = range_of(claim.printed["time"])
    printed = get("D1").printed
    full = simulated(MODELS["7B"], "full", 1, device=A100)
    lora = simulated(MODELS["7B"], "lora", 1, device=A100)
    speeds = [each.speed.tokens_per_s if each.speed else None for each in (full, lora)]
    slower = speeds[1] / speeds[0] if speeds[0] and speeds[1] else 0.0
    where = f"Mistral-7B on an A100, {under(1)}"
    figures = [
        Sum("memory in D1", memory_low, memory_high, printed["full_gb"] / printed["lora_gb"],
               "times", "the same article's measurement", is_own=True),
        Sum("time in D1", time_low, time_high, printed["full_s"] / printed["lora_s"], "times",
               "the same article's measurement", is_own=True),
        Sum("memory", memory_low, memory_high, peak_gb(full) / peak_gb(lora), "times", where),
        Sum("time", time_low, time_high, slower, "times", where),
    ]  # fmt: skip
    return judged(figures, Basis.SIMULATED)


@finds("B6")
def quantised_recipe(claim: Claim) -> Finding:
    config = methods.get("qlora").config()
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    plain, prepared = (
        peak_gb(simulated("Llama-3.1-8B", "qlora", 4, 512, prepare_kbit=choice))
        for choice in (False, True)
    )
    value = (
        f"{config.quant_type}, double quantisation "
        f"{'on' if config.double_quantisation else 'off'}: {bits:.3f} bits a weight"
    )
    note = (
        "Norms prepared for k-bit training (float32) take "
        f"{percent(prepared / plain - 1)} memory ({plain:.1f} → {prepared:.1f} GB for "
        "Llama-3.1-8B at 4 × 512 tokens); the lab leaves them as they are unless told otherwise, "
        "since frozen weights gain nothing."
    )
    return Finding(
        value, Basis.SIMULATED, Ruling.DEPENDS, "on how the norms are prepared", (), note
    )


@finds("B7")
def bottleneck(claim: Claim) -> Finding:
    layers, width, inner = 32, 4096, claim.printed["bottleneck"]
    memory = counted("Llama-3.1-8B", "bottleneck", size=inner)
    each = 2 * width * inner + inner + width
    figures = [
        exactly(
            "two modules in each of 32 layers",
            2 * layers * each,
            memory.trainable,
            "parameters",
            f"2 × {layers} × (2 × {width} × {inner} + {inner} + {width}); Llama-3.1-8B",
        )
    ]
    value = f"{memory.trainable:,} parameters train in Llama-3.1-8B"
    return judged(figures, Basis.COMPUTED, value, note=methods.get("bottleneck").formula)


@finds("A12")
def hybrids(claim: Claim) -> Finding:
    titles = [methods.get(name).title for name in HYBRIDS.split()]
    value = f"each is a method here: {', '.join(titles)}"
    note = "That they can be trained is confirmed; which is better for what is not claimed."
    return Finding(value, Basis.COMPUTED, Ruling.CONFIRMED, "", (), note)
