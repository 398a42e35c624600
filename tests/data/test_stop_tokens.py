"""Where generation stops, as a model's folder says it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.data import rendering, stop_tokens


@pytest.mark.parametrize(
    ("value", "stops"),
    [(2, (2,)), ([2, 7], (2, 7)), (None, ()), (-1, ()), ([2, -1, True, "7", 7.0], (2,)), ("2", ())],
)
def test_a_folder_names_its_stop_tokens(tmp_path: Path, value: Any, stops: tuple[int, ...]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert stop_tokens.of_folder(tmp_path) == stops


def test_without_a_generation_config_the_models_own_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert stop_tokens.of_folder(tmp_path) == (9,)
    nested = {"eos_token_id": None, "text_config": {"eos_token_id": [4, 5]}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert stop_tokens.of_folder(tmp_path) == (4, 5)
    (tmp_path / "config.json").unlink()
    assert stop_tokens.of_folder(tmp_path) == ()


@pytest.mark.parametrize(("own", "more"), [(None, []), (5, [5]), ([7, 5], [5, 7])])
def test_a_models_own_ends_count_beside_the_tokenizers(tokenizer: Any, own: Any, more: Any) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    assert stop_tokens.ids(tokenizer, model) == sorted({*stop_tokens.ids(tokenizer), *more})


def test_what_is_not_named_of_a_templates_settings_stays(words: Any) -> None:
    whole = rendering.TemplateSettings({"thinking": False}, "2026-01-02", (5,))
    rendering.configure(words, args=whole.args, date=whole.date, stop_ids=whole.stop_ids)
    for named in ({}, {"args": whole.args}, {"date": whole.date}, {"stop_ids": whole.stop_ids}):
        rendering.configure(words, **named)
        assert rendering.settings_of(words) == whole, f"{list(named)} was set again"
    assert 5 in stop_tokens.ids(words)
    rendering.configure(words, args={}, date="", stop_ids=())
    assert rendering.settings_of(words) == rendering.TemplateSettings(), "nothing is asked for too"


class Ends:
    pad_token_id = 3


@pytest.mark.parametrize(("stops", "written"), [([2], 2), ([2, 7], [2, 7])])
def test_a_result_stops_at_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int], written: Any
) -> None:
    monkeypatch.setattr(stop_tokens, "ids", lambda tokenizer, model: stops)
    file = tmp_path / "generation_config.json"
    stop_tokens.write(tmp_path, Ends())
    assert json.loads(file.read_text()) == {"eos_token_id": written, "pad_token_id": 3}
    file.write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0, "top_k": 5}))
    stop_tokens.write(tmp_path, Ends())
    assert json.loads(file.read_text()) == {
        "eos_token_id": written, "pad_token_id": 0, "top_k": 5,
    }, "the rest stays"  # fmt: skip


@pytest.mark.parametrize(
    ("behind", "stops"),
    [("<|turn|>", ["<|turn|>", "<|end|>"]), ("<|end|>", ["<|end|>"]), ("", ["<|end|>"]),
     ("<|end|><|turn|>", ["<|end|>"])],
)  # fmt: skip
def test_what_the_template_writes_behind_an_answer_stops_it(
    words: Any, behind: str, stops: list[str]
) -> None:
    words.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}BEHIND{% endif %}"
        "{% endfor %}"
    ).replace("BEHIND", behind)
    assert stop_tokens.ids(words) == sorted(words.convert_tokens_to_ids(stops))
