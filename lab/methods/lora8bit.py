"""LoRA on an 8-bit base: as LoRA, with the frozen weights stored as integers of 8 bits.

y = s_row (W8 x) + s B A x, with one scale a row of W; columns of the input with an entry above
`threshold` are multiplied in 16 bits (the outliers of LLM.int8()). Memory: 1 B a weight + 4 B a
row. Embeddings, norms and head stay as they are. A, B and their start are LoRA's.
Trainable = sum over targets of r (d_in + d_out). Step 0 equals the quantised base, not the
original.
Source: Dettmers et al. 2022, arXiv:2208.07339, with the adapters of arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, Unsupported, register
from lab.methods.lora import LoraConfig
from lab.methods.parts.int8_products import forget_inputs
from lab.methods.qlora import QuantisedLora, device_map, kbit_option
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class Lora8bitConfig(LoraConfig):
    init_lora_weights: str = option(
        "default",
        "Initialisation",
        "Initial A and B: default (A uniform, B zero), gaussian (A normal, B zero) or orthogonal.",
        choices=("default", "gaussian", "orthogonal"),
        formerly="start",
    )
    threshold: float = option(
        6.0,
        "Outlier threshold",
        "LLM.int8(): input features above it are computed in 16 bits. 0: none.",
        min=0.0,
        max=1000.0,
    )
    prepare_kbit: bool = kbit_option()


@register(
    "lora8bit",
    title="LoRA on an 8-bit base",
    source="arXiv:2208.07339",
    summary="LoRA beside a base that is stored in eight bits: half the memory of 16 bits, closer "
    "to the original than four.",
    formula="y = s_row (W₈ x) + (α/r) B A x",
    parameter_formula="Σ over targets of r (d_in + d_out), as LoRA",
    description="Eight bits a weight are enough to answer almost as the original does, except "
    "for a "
    "few channels with very large values; these are multiplied in 16 bits. The adapter beside it "
    "trains as in LoRA. It takes twice the memory of QLoRA and is the safer choice where four "
    "bits hurt.",
    diagram_labels={"attention": "8-bit  + B·A", "feed_forward": "8-bit  + B·A"},
    config=Lora8bitConfig,
    default_lr=2e-4,
    can_merge=Unsupported(
        "its products round the input to eight bits as well, so that no merged weight gives the "
        "same answers. The adapter can be put beside the base in 16 bits."
    ),
    can_quantise_base=True,
    is_identity_at_start=Unsupported(
        "it starts at the quantised base, which answers slightly differently."
    ),
)
class Lora8bit(QuantisedLora):
    def check(self, model: Any, config: Lora8bitConfig, context: Context) -> list[Problem]:
        problems = super().check(model, config, context)
        if config.use_dora:
            problems.append(
                Problem(
                    "method.use_dora",
                    "is on; its norms read the 8-bit base in a way that loses the scales of its "
                    "rows after the first step. Choose qlora or lora, or leave dora off.",
                )
            )
        return problems

    def load_kwargs(self, config: Lora8bitConfig) -> dict[str, Any]:
        import logging

        from transformers import BitsAndBytesConfig

        # it warns of its cast to 16 bits at every product, thousands of lines a run
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_8bit=True, llm_int8_threshold=config.threshold
            ),
            "device_map": device_map(),
        }

    def prepare(self, model: Any, config: Any, context: Context) -> None:
        super().prepare(model, config, context)
        forget_inputs()

    def needs_separate_base(self, config: Lora8bitConfig) -> bool:
        return True

    def script_load(self, config: Lora8bitConfig) -> list[str]:
        return [
            "quantization_config=BitsAndBytesConfig(\n"
            f"        load_in_8bit=True, llm_int8_threshold={config.threshold}\n"
            "    )",
            'device_map={"": 0 if torch.cuda.is_available() else "cpu"}',
        ]
