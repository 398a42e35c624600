"""A model that is small enough to kill and to test with."""

from __future__ import annotations

from pathlib import Path

from lab.models.catalog import BUILT_IN


def make_model(folder: Path, width: int = 32) -> None:
    """A random two-layer Llama with the built-in model's real tokenizer: 1.6 M parameters, or 3.2
    M at a `width` of 64, which every processor can store in four bits."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN[0].folder, trust_remote_code=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
