"""Claims that print numbers of parameters: the planner builds each model on the meta device."""

from __future__ import annotations

from typing import Any

from lab.advise import shapes
from lab.advise.claims import Basis, Claim, Finding, Sum, exactly, finds, judged
from lab.advise.options import estimate
from lab.forecasts import MemoryForecast
from lab.models import shipped_configs

ON_A_GPU = {"kind": "cuda"}
Q_AND_V, ATTENTION = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")


def counted(model: str, method: str, **options: Any) -> MemoryForecast:
    """Parameters, and those that train, of a shipped config with a method. Raises LabError."""
    spec = {
        "model": f"config:{model}",
        "method": {"name": method, **options},
        "data": {"max_length": 512},
        "train": {"batch_size": 1},
    }
    return estimate(spec, ON_A_GPU).memory


def _lora_formula(model: str, rank: int, names: tuple[str, ...]) -> str:
    """ "28 layers × 16 × (q_proj 3072 + 3072, …) = 4,587,520"."""
    config = shipped_configs.get(model).config
    each = ", ".join(
        f"{name} {width:,} + {out:,}"
        for name, (width, out) in shapes.linear_shapes(config).items()
        if not names or name in names
    )
    total = shapes.lora_count(config, rank, names)
    return f"{shapes.layers(config)} layers × r {rank} × ({each}) = {total:,}"


def _held_against(
    claim: Claim, model: str, rank: int, names: tuple[str, ...], *, method: str = "lora"
) -> list[Sum]:
    """The count of a LoRA by its own formula and on the meta device, with total and share."""
    options: dict[str, Any] = {"rank": rank, "alpha": 2.0 * rank}
    if names:
        options["target_modules"] = list(names)
    memory = counted(model, method, **options)
    printed = claim.printed
    figures = [
        exactly(
            "trainable parameters", printed["trainable"], memory.trainable, "",
            _lora_formula(model, rank, names),
        ),
        Sum(
            "all parameters", printed["total"], printed["total"], memory.parameters, "",
            f"{shipped_configs.get(model).parameters:,} of the base and {memory.trainable:,}",
        ),
    ]  # fmt: skip
    if "percent" in printed:
        share = 100 * memory.trainable / memory.parameters
        formula = f"{memory.trainable:,} / {memory.parameters:,}"
        figures.append(Sum("share", printed["percent"], printed["percent"], share, "%", formula))
    return figures


@finds("B3")
def full_count(claim: Claim) -> Finding:
    memory = counted("Llama-3.2-3B", "full")
    formula = "every parameter of the config, tied embeddings once"
    figures = [
        exactly("trainable parameters", claim.printed["trainable"], memory.trainable, "", formula),
        exactly("all parameters", claim.printed["total"], memory.parameters, "", formula),
    ]
    return judged(figures, Basis.COMPUTED)


@finds("B4")
def lora_with_grouped_heads(claim: Claim) -> Finding:
    figures = _held_against(claim, "Llama-3.2-3B", 16, Q_AND_V)
    others = [
        config.name
        for config in shipped_configs.shipped()
        if set(Q_AND_V) <= set(shapes.linear_shapes(config.config))
        and shapes.lora_count(config.config, 16, Q_AND_V) == claim.printed["trainable"]
    ]
    note = f"The printed count is that of {' or '.join(others)}." if others else ""
    return judged(figures, Basis.COMPUTED, note=note)


@finds("B13")
def bottleneck_layer(claim: Claim) -> Finding:
    width, inner = 4096, 64
    one_module = 2 * width * inner + inner + width
    layer_count = 32
    here = counted("Llama-3.1-8B", "bottleneck", size=inner).trainable // layer_count
    figures = [
        exactly(
            "two modules", claim.printed["layer"], 2 * one_module, "parameters",
            f"2 × (2 × {width} × {inner} + {inner} + {width}) = {2 * one_module:,}; one module has "
            f"{one_module:,}",
        ),
        Sum(
            "a layer of Llama-3.1-8B", claim.printed["layer"], claim.printed["layer"], here,
            "parameters", "counted on the meta device, two modules a layer",
        ),
    ]  # fmt: skip
    return judged(figures, Basis.COMPUTED)


@finds("C6")
def lora_on_seven(claim: Claim) -> Finding:
    note = "The printed count is that of rank 32."
    figures = _held_against(claim, "Llama-3.1-8B", 16, ())
    is_double = claim.printed["trainable"] == 2 * figures[0].value
    return judged(figures, Basis.COMPUTED, note=note if is_double else "")


@finds("C7")
def qlora_on_attention(claim: Claim) -> Finding:
    figures = _held_against(claim, "Llama-3.1-8B", 64, ATTENTION)
    on_all = shapes.lora_count(shipped_configs.get("Llama-3.1-8B").config, 64)
    note = "The printed count is that of all seven projections."
    return judged(
        figures, Basis.COMPUTED, note=note if on_all == claim.printed["trainable"] else ""
    )


@finds("D3")
def gpt2_lora(claim: Claim) -> Finding:
    figures = _held_against(claim, "gpt2", 8, ("c_attn",))
    note = "The printed total is the base alone, and the count is half of what the formula gives."
    is_half = 2 * claim.printed["trainable"] == figures[0].value
    return judged(figures, Basis.COMPUTED, note=note if is_half else "")


@finds("B8")
def prefix_count(claim: Claim) -> Finding:
    layers, width, positions = 32, 4096, 20
    value = 2 * layers * width * positions
    grouped = counted("Mistral-7B-v0.3", "prefix", num_virtual_tokens=positions).trainable
    figures = [
        exactly(
            "without grouped heads", claim.printed["parameters"], value, "parameters",
            f"2 × {layers} layers × {width} × {positions} = {value:,}",
        )
    ]  # fmt: skip
    note = f"With grouped heads, as Mistral-7B has them, it is {grouped:,} (meta device)."
    return judged(figures, Basis.COMPUTED, note=note)


@finds("B5", "C1")
def lora_matrix(claim: Claim) -> Finding:
    width, rank = 4096, 16
    matrix, adapter = width * width, rank * (width + width)
    figures = [
        exactly("matrix", claim.printed["matrix"], matrix, "", f"{width} × {width}"),
        exactly("adapter", claim.printed["adapter"], adapter, "", f"{rank} × ({width} + {width})"),
        exactly("times fewer", claim.printed["times"], matrix / adapter, "", "the first over it"),
    ]
    note = "B starts at zero; the conformance tests hold step 0 to the base's logits."
    return judged(figures, Basis.COMPUTED, f"{matrix / adapter:,.0f} times fewer", note=note)


@finds("A1")
def what_trains(claim: Claim) -> Finding:
    full, lora = counted("Llama-3.2-3B", "full"), counted("Llama-3.2-3B", "lora")
    base = lora.parameters - lora.trainable
    figures = [
        exactly(
            "full: trainable",
            full.parameters,
            full.trainable,
            "",
            f"all {full.parameters:,} of Llama-3.2-3B",
        ),
        exactly(
            "LoRA: frozen",
            full.parameters,
            base,
            "",
            f"{lora.parameters:,} − {lora.trainable:,} that train",
        ),
    ]
    return judged(figures, Basis.COMPUTED, f"full {full.trainable:,}, LoRA {lora.trainable:,}")
