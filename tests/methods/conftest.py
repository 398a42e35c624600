"""What the tests of methods share: four tiny models on disk, and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.methods import tiny


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind in tiny.KINDS:
        folders[kind] = tmp_path_factory.mktemp("tiny") / kind
        tiny.make_model(kind).save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def wide_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same for methods that store the base in fewer bits."""
    folders = {}
    for kind in tiny.KINDS:
        folders[kind] = tmp_path_factory.mktemp("wide") / kind
        tiny.make_model(kind, 64).save_pretrained(folders[kind])
    return folders
