"""Small tokenizers: one of a token a word, so that expectations can be written by hand, and one of
bytes, which can spell anything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import SHARED_MODELS
from tests.methods import tiny


@pytest.fixture
def words() -> Any:
    """w0 … w93, a turn and an end token, with a chat template; a fresh one for each test."""
    return tiny.make_chat_tokenizer()


@pytest.fixture(scope="session")
def whole_tokenizer() -> Any:
    """SmolLM2's with all its tokens, for tests that read them."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED_MODELS / "smollm2-135m-instruct")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """A small one, which is copied in no time; ` positive` is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(["is it positive content in form Hello you\n\n"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")
