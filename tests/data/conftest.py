"""A tokenizer of one token a word, so that expectations can be written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.methods import tiny


@pytest.fixture
def words() -> Any:
    """w0 … w93, a turn and an end token, with a chat template; a fresh one for each test."""
    return tiny.make_chat_tokenizer()
