"""A model that is small enough to kill and to test with."""

from __future__ import annotations

import json
from pathlib import Path

from lab.models.catalog import BUILT_IN

VOCABULARY = 8192  # tokens, of 49,152: to read those takes longer than a short run


def make_model(folder: Path, width: int = 32, context: int = 512) -> None:
    """A random two-layer Llama with the most frequent tokens of the built-in model's tokenizer:
    0.3 M parameters, or 0.6 M at a `width` of 64, which every processor can store in four bits.
    `context`: the most tokens that it reads."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    source = BUILT_IN[0].folder
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    # ids follow the order of the merges, so that those that are left stay what they are
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < VOCABULARY}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
