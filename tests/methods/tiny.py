"""Four random architectures, small enough to train in a tenth of a second, and a toy task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lab.data.batches import collate, single_rows
from lab.data.chat_template import TokenizedExample
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.models.empty_model import meta_model

KINDS = ("llama", "qwen3", "gpt2", "neox")
VOCABULARY = 96
TURN, END = "<|turn|>", "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|turn|> ' + m.content + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|> ' }}{% endif %}"
)


def make_tokenizer() -> Any:
    """One token a word w0 … w93, an end and a turn token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {END: 0, TURN: 1, **{f"w{number}": number + 2 for number in range(VOCABULARY - 2)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, additional_special_tokens=[TURN]
    )


def make_chat_tokenizer() -> Any:
    """The same with a chat template: a turn token, the content, an end token for every turn."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_config(kind: str, width: int = 32) -> Any:
    """Two layers, four heads; grouped heads where the architecture has them. A `width` of 64 lets
    no block of 4-bit weights reach over the end of a row, which some processors' kernels mind."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "llama":
        return LlamaConfig(**shape, num_key_value_heads=2, tie_word_embeddings=False)
    if kind == "qwen3":  # head size x heads is not the hidden size, head and embeddings are one
        return Qwen3Config(
            **shape, num_key_value_heads=2, head_dim=width // 2, tie_word_embeddings=True
        )
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=2, n_head=4, n_positions=128,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
    return GPTNeoXConfig(**shape, tie_word_embeddings=False)


def stored_base_bytes(model: Any, method: Any, config: Any) -> int:
    """Bytes of the weights of `model` (on the meta device) as the method loads them."""
    from lab.forecast.trace.meta_model import Quantised, _quantise, stored_bytes

    settings = method.load_kwargs(config)["quantization_config"]
    quantised = Quantised.of(settings)
    assert quantised is not None
    with torch.device("meta"):
        _quantise(model, settings, quantised)
    return sum(stored_bytes(weight, quantised) for weight in model.parameters())


def make_empty(kind: str, width: int = 32) -> Any:
    """The architecture without memory, as the planner sees it."""
    return meta_model(make_config(kind, width))


def make_model(kind: str, width: int = 32) -> Any:
    """The architecture with random weights that are not all alike."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(kind, width))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # a fresh GPT-2's biases and a fresh norm's scales are all alike
                weight.add_(0.05 * torch.randn(weight.shape))
            else:  # fresh layers add next to nothing; a trained model's do
                weight.mul_(8.0)
    return model.eval()


def load(folder: Path, **extra: Any) -> Any:
    """The model as the worker loads it."""
    source = ModelSource("tiny", str(folder), local_only=True)
    return weights.load_model(source, torch.float32, **extra).eval()


def toy_batch() -> dict[str, torch.Tensor]:
    """Four rows of different lengths: a turn token and a word decide the words that follow."""
    rows = []
    for number, length in enumerate((12, 9, 12, 7)):
        ids = [1, 10 + number, *[20 + (number + 3 * place) % 8 for place in range(length)], 0]
        rows.append(TokenizedExample(ids, [-100, -100, *ids[2:]]))
    return collate(single_rows(rows), pad=0)
