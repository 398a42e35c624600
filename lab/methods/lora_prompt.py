"""LoRA plus a soft prompt: n trained vectors before the text, thin updates inside.

[P; E(x)] goes in, with P (n, h) trained and E(x) (T, h) the text's embeddings; every linear layer
of the decoder gets y = W0 x + (alpha / r) B A x, B zero at the start.
Trainable = sum over linear layers of r (d_in + d_out) + n h.
Sources: Hu et al. 2021, arXiv:2106.09685; Lester et al. 2021, arXiv:2104.08691, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.formatting import quantity
from lab.methods import Context, Method, Unsupported, register
from lab.methods.parts import adapter_files, fitting_defaults
from lab.methods.parts.lora_with_base import HybridConfig, add_lora, linear_in_layers, lora_count
from lab.methods.parts.peft_method import is_meta, keeps_float32_adapters
from lab.models import headers
from lab.schema import option

PROMPT = "soft_prompt.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoraPromptConfig(HybridConfig):
    virtual_tokens: int = option(
        16, "Virtual tokens", "Number of trained vectors before the text.", min=1, max=2048
    )
    start_text: str = option(
        "",
        "Initial text",
        "Text whose embeddings initialise the vectors. Empty: random tokens.",
        multiline=True,
        max_characters=20_000,
    )


@register(
    "lora_prompt",
    title="LoRA + soft prompt",
    source="arXiv:2104.08691",
    summary="Trained vectors before the text steer the model, low-rank updates adapt it.",
    formula="[P; E(x)] in; y = W₀x + (α/r) B A x",
    parameter_formula="Σ over linear layers of r (d_in + d_out) + n·h",
    description="A soft prompt is an instruction that no words could spell: vectors found by "
    "training and placed before every text. Alone it learns slowly; with LoRA it "
    "carries what is the same in all answers, and leaves the rest to the low-rank "
    "matrices.",
    diagram_labels={"input": "P", "attention": "+ B·A", "feed_forward": "+ B·A"},
    config=LoraPromptConfig,
    default_lr=1e-3,
    can_script=Unsupported("PEFT cannot mix a prompt with LoRA; the lab's hooks do."),
    can_pack=Unsupported(
        "the prompt is placed before the first of the packed examples, not before each."
    ),
    is_identity_at_start=Unsupported("the vectors are before the text from the first step on."),
)
class LoraPrompt(Method):
    def fit_defaults(
        self, model: Any, config: LoraPromptConfig
    ) -> tuple[dict[str, Any], list[str]]:
        return fitting_defaults.fitting_dropout(model, config, linear_in_layers(model))

    def virtual_tokens(self, config: LoraPromptConfig) -> tuple[int, int]:
        return (config.virtual_tokens, 0)

    def trainable_count(self, model: Any, config: LoraPromptConfig, context: Context) -> int:
        h: int = model.get_input_embeddings().weight.shape[1]
        return lora_count(model, linear_in_layers(model), config.rank) + config.virtual_tokens * h

    def apply(self, model: Any, config: LoraPromptConfig, context: Context) -> Any:
        import torch

        from lab.methods.parts import soft_prompt

        model = add_lora(model, linear_in_layers(model), config, context)
        dtype = torch.float32 if keeps_float32_adapters(context) else torch.bfloat16
        prompt = soft_prompt.insert(model, config.virtual_tokens, dtype)
        if is_meta(model):
            return model
        table = soft_prompt.body_of(model).get_input_embeddings().weight
        ids = torch.tensor(_start_ids(config, context.tokenizer, len(table)))
        with torch.no_grad():
            prompt.vectors.copy_(table[ids.to(table.device)])
        return model

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        from lab.methods.parts import soft_prompt

        model.save_pretrained(folder, save_embedding_layers=False)
        adapter_files.keep_from_peft(folder)  # without the vectors it is half of the result
        vectors = soft_prompt.body_of(model).soft_prompt.vectors.detach().contiguous()
        save_file({"vectors": vectors}, folder / PROMPT)

    def load(self, base: Any, folder: Path) -> Any:
        import torch
        from safetensors.torch import load_file

        from lab.methods.parts import soft_prompt

        self._check_vectors(base, folder)
        vectors = load_file(folder / PROMPT)["vectors"]
        model = adapter_files.read(base, folder, "LoraConfig", only=".lora_")
        prompt = soft_prompt.insert(model, vectors.shape[0], vectors.dtype)
        with torch.no_grad():
            prompt.vectors.copy_(vectors)
        return model

    def check_saved(self, base: Any, folder: Path) -> None:
        self._check_vectors(base, folder)
        adapter_files.check(base, folder, "LoraConfig")

    def _check_vectors(self, base: Any, folder: Path) -> None:
        vectors = headers.read_if_there(folder / PROMPT).get("vectors")
        width = base.get_input_embeddings().weight.shape[1]
        if vectors is None or len(vectors.shape) != 2 or vectors.shape[1] != width:
            raise LabError(
                f"{folder} has no {PROMPT} with vectors of {quantity(width, 'number')}.",
                "The result is incomplete, or belongs to another base model.",
            )


def _start_ids(config: LoraPromptConfig, tokenizer: Any, rows: int) -> list[int]:
    """The tokens whose embeddings the vectors start from; drawn from torch's generator."""
    import torch

    n = config.virtual_tokens
    ids = tokenizer(config.start_text, add_special_tokens=False)["input_ids"]
    if ids:
        return [ids[index % len(ids)] for index in range(n)]
    with torch.device("cpu"):
        drawn: list[int] = torch.randint(min(rows, len(tokenizer)), (n,)).tolist()
    return drawn
