"""QLoRA: LoRA beside a base that is stored in four bits.

y = dequant(W4) x + s B A x. Each weight is one of 16 levels of NF4 (quantiles of a normal
distribution) times the largest absolute value of its block of 64; with double quantisation these
scales are stored in 8 bits, in blocks of 256. Memory: 0.5 B a weight + 0.0625 B for the scales,
or 0.016 B with double quantisation. Weights are turned back one matrix at a time, in the compute
type. Embeddings, norms and head stay as they are: norms compute in float32 inside, and frozen
weights gain nothing from more bits. `prepare_kbit` makes them float32 all the same, as many recipes
do; what the layers hand on is float32 then.
A, B and their start are LoRA's. Trainable = sum over targets of r (d_in + d_out). Step 0 equals
the quantised base, not the original.
Source: Dettmers et al. 2023, arXiv:2305.14314.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from lab.errors import Problem
from lab.library_imports import import_peft
from lab.methods import Context, Unsupported, register
from lab.methods.lora import Lora, LoraConfig
from lab.methods.parts.peft_method import cast_trainable, keeps_float32_adapters
from lab.methods.parts.target_modules import ALL_LINEAR, linear_layers, target_layers
from lab.schema import option

BLOCK = 64  # weights that share a scale


def kbit_option() -> Any:
    """The field `prepare_kbit` of methods beside a quantised base."""
    return option(
        False,
        "Prepare for k-bit training",
        "Norms, embeddings and head in float32, as PEFT's prepare_model_for_kbit_training makes "
        "them: the layers hand on float32 then, which takes a quarter more memory or so.",
    )


@dataclass(frozen=True, kw_only=True)
class QloraConfig(LoraConfig):
    init_lora_weights: str = option(
        "default",
        "Initialisation",
        "Initial A and B: default (A uniform, B zero), gaussian (A normal, B zero) or orthogonal.",
        choices=("default", "gaussian", "orthogonal"),
        formerly="start",
    )
    quant_type: str = option(
        "nf4",
        "4-bit data type",
        "nf4 (normal float, recommended) or fp4 (4-bit float).",
        choices=("nf4", "fp4"),
        formerly="levels",
    )
    double_quantisation: bool = option(
        True,
        "Double quantisation",
        "Quantise the quantisation constants too; saves about 0.4 bits per weight.",
    )
    compute_dtype: str = option(
        "auto",
        "Compute dtype",
        "Data type that weights are dequantised to for each product. auto: bfloat16 if the GPU "
        "supports it, else float32.",
        choices=("auto", "float32", "bfloat16"),
        formerly="compute",
    )
    prepare_kbit: bool = kbit_option()


@cache
def dequantises_exactly(width: int, levels: str) -> bool:
    """Whether rows of `width` weights come back from four bits as they should on this processor,
    tried: some kernels forget that a block of 64 may reach over the end of a row."""
    import torch
    from bitsandbytes import functional

    weights = torch.randn((4, width), generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weights, blocksize=BLOCK, quant_type=levels)
    dequantised = functional.dequantize_4bit(packed, state).flatten()
    flat = torch.nn.functional.pad(weights.flatten(), (0, -weights.numel() % BLOCK))
    blocks = flat.reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / largest).unsqueeze(-1).sub(state.code).abs().argmin(-1)
    expected = (state.code[nearest] * largest).flatten()[: weights.numel()]
    return bool(torch.isclose(dequantised, expected, atol=1e-2).float().mean() > 0.99)


class QuantisedLora(Lora):
    """LoRA beside a base that bitsandbytes stores in fewer bits."""

    def check(self, model: Any, config: Any, context: Context) -> list[Problem]:
        problems = super().check(model, config, context)
        if config.bias != "none":
            problems = [problem for problem in problems if problem.field != "method.bias"]
            problems.append(
                Problem("method.bias", f"is {config.bias}; biases of a quantised base are frozen.")
            )
        return problems

    def prepare(self, model: Any, config: Any, context: Context) -> None:
        import torch

        if not config.prepare_kbit:
            return
        head = model.get_output_embeddings()
        layers = [model.get_submodule(layer.name) for layer in linear_layers(model)]
        packed = {id(layer.weight) for layer in layers if layer is not head}
        for weight in model.parameters():  # as PEFT does, which turns checkpointing on besides
            if id(weight) not in packed and weight.dtype in (torch.bfloat16, torch.float16):
                weight.data = weight.data.to(torch.float32)

    def apply(self, model: Any, config: Any, context: Context) -> Any:
        import torch

        model = super().apply(model, config, context)
        # PEFT leaves adapters beside integers in float32
        return model if keeps_float32_adapters(context) else cast_trainable(model, torch.bfloat16)

    def script_before(self, config: Any) -> list[str]:
        lines = super().script_before(config)
        if not config.prepare_kbit:
            return lines
        call = "peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)"
        return [f"model = {call}", *lines]


def device_map() -> dict[str, Any]:
    """Where bitsandbytes builds the base: weights are quantised on the device that holds them."""
    import torch

    return {"": 0 if torch.cuda.is_available() else "cpu"}


def compute_type(name: str) -> Any:
    import torch

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if name == "auto":
        name = "bfloat16" if has_bf16 else "float32"
    return getattr(torch, name)


@register(
    "qlora",
    title="QLoRA",
    source="arXiv:2305.14314",
    summary="LoRA beside a base that is stored in four bits: a quarter of the memory for weights, "
    "at the cost of dequantising them in every step.",
    formula="y = dequant(W₄) x + (α/r) B A x",
    parameter_formula="Σ over targets of r (d_in + d_out), as LoRA",
    description="The frozen base need not be exact, since only the adapter learns. QLoRA "
    "stores each "
    "weight as one of 16 levels with a scale for every 64 of them and turns one matrix at a time "
    "back into 16 bits when it is needed. An 8-billion-parameter base fits into 6 GB. The adapter "
    "also learns to make up for the rounding; merging "
    "it dequantises the base first.",
    diagram_labels={"attention": "4-bit  + B·A", "feed_forward": "4-bit  + B·A"},
    config=QloraConfig,
    default_lr=2e-4,
    can_merge=True,
    can_quantise_base=True,
    is_identity_at_start=Unsupported(
        "it starts at the quantised base, which answers slightly differently."
    ),
    is_standard=True,
)
class Qlora(QuantisedLora):
    def check(self, model: Any, config: QloraConfig, context: Context) -> list[Problem]:
        import torch

        problems = super().check(model, config, context)
        if torch.cuda.is_available() or context.tokenizer is None:
            return problems  # an estimate may be for any device
        widths = sorted({layer.d_in for layer in target_layers(model, ALL_LINEAR)})
        wrong = [width for width in widths if not dequantises_exactly(width, config.quant_type)]
        if wrong:
            problems.append(
                Problem(
                    "method",
                    f"this processor's 4-bit kernel turns rows of {', '.join(map(str, wrong))} "
                    "weights back wrongly (they are no multiple of 64). Choose lora8bit or lora "
                    "for this model, or a GPU.",
                )
            )
        return problems

    def load_kwargs(self, config: QloraConfig) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=config.quant_type,
                bnb_4bit_use_double_quant=config.double_quantisation,
                bnb_4bit_compute_dtype=compute_type(config.compute_dtype),
            ),
            "device_map": device_map(),
        }

    def needs_separate_base(self, config: QloraConfig) -> bool:
        return True

    def merge(self, model: Any) -> Any:
        """The base is dequantised first: a merged weight in four bits would be another one."""
        peft = import_peft()
        settings = model.active_peft_config
        adapter = peft.get_peft_model_state_dict(model)
        base = model.unload()
        base = base.dequantize(dtype=base.get_input_embeddings().weight.dtype)
        again = peft.get_peft_model(base, settings)
        peft.set_peft_model_state_dict(again, adapter)
        return again.merge_and_unload()

    def script_load(self, config: QloraConfig) -> list[str]:
        compute = {
            "auto": "torch.bfloat16 if torch.cuda.is_available() and "
            "torch.cuda.is_bf16_supported() else torch.float32"
        }.get(config.compute_dtype, f"torch.{config.compute_dtype}")
        return [
            "quantization_config=BitsAndBytesConfig(\n"
            "        load_in_4bit=True,\n"
            f"        bnb_4bit_quant_type={config.quant_type!r},\n"
            f"        bnb_4bit_use_double_quant={config.double_quantisation},\n"
            f"        bnb_4bit_compute_dtype={compute},\n"
            "    )",
            'device_map={"": 0 if torch.cuda.is_available() else "cpu"}',
        ]
