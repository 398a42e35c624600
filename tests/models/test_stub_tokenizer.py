"""What stands for a tokenizer where only a config is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab.models.stub_tokenizer import StubTokenizer


@pytest.mark.parametrize(
    ("fields", "special"),
    [
        ({"bos_token_id": 1, "eos_token_id": [7, 5], "pad_token_id": 5}, [1, 5, 7]),
        ({"bos_token_id": None, "eos_token_id": 2, "pad_token_id": -1}, [2]),
        ({}, [0]),
    ],
)
def test_special_tokens_are_those_of_the_config(fields: dict[str, Any], special: list[int]) -> None:
    tokenizer = StubTokenizer(SimpleNamespace(vocab_size=100, **fields))
    assert tokenizer.all_special_ids == special and len(tokenizer) == 100


def test_each_new_token_takes_a_row_of_its_own() -> None:
    tokenizer = StubTokenizer(SimpleNamespace(vocab_size=100))
    assert tokenizer.add_tokens(["<a>", "<b>", "<a>"]) == 2
    assert tokenizer.add_tokens(["<b>", "<c>"]) == 1
    assert len(tokenizer) == 103
    assert tokenizer.get_vocab() == {"<a>": 100, "<b>": 101, "<c>": 102}
