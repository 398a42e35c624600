"""What the tests of training share: a model of a hundred words, on which a run takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.paths import RunDir
from tests.conftest import run_here, write_rows
from tests.methods import tiny


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    """One token a word, with a chat template."""
    return tiny.make_chat_tokenizer()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Any) -> Path:
    """A random Llama of two layers and 96 words, whose answers depend on what it reads."""
    folder = tmp_path_factory.mktemp("models") / "small-llama"
    tiny.make_model("llama").save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four chats; the word that is asked decides the words of the answer."""
    file = tmp_path_factory.mktemp("data") / "small-chats.jsonl"
    rows = []
    for number in range(24):
        answer = " ".join(f"w{(number + 7 * place) % 30 + 30}" for place in range(3 + number % 5))
        turns = [("user", f"w{number + 1} w9"), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    write_rows(file, rows)
    return file


@pytest.fixture(scope="session")
def small_spec(small_model: Path, small_chats: Path) -> Callable[..., dict[str, Any]]:
    """A spec on the small model: `small_spec("lora", data={...}, train={...})`."""

    def make(method: str | dict[str, Any] = "lora", **sections: Any) -> dict[str, Any]:
        train = {"batch_size": 2, "max_steps": 6, "learning_rate": 1e-3, "sample_steps": 0}
        data = {"dataset": str(small_chats), "eval_fraction": 0.2, "max_length": 32}
        return {
            "name": "small",
            "model": str(small_model),
            "method": {"name": method} if isinstance(method, str) else method,
            "data": {**data, "packing": "off", **sections.get("data", {})},
            "train": {**train, **sections.get("train", {})},
        }

    return make


@pytest.fixture
def small_run(small_spec: Callable[..., dict[str, Any]]) -> Callable[..., RunDir]:
    """Do a run on the small model inside this process."""

    def work(method: str | dict[str, Any] = "lora", **sections: Any) -> RunDir:
        return run_here(small_spec(method, **sections))

    return work
