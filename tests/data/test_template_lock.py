"""The template lock: kept with a result, enforced when it is loaded, told token by token."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.settings import GenerationSettings
from lab.data import chat_template, template_lock
from lab.errors import LabError


def test_the_same_terms_pass_and_others_are_told(whole_tokenizer: Any) -> None:
    parsed = json.loads(
        json.dumps(template_lock.make_lock(whole_tokenizer, "Be kind.", "assistant"))
    )
    template_lock.check_tokenizer(parsed, whole_tokenizer)
    template_lock.check_tokenizer({}, whole_tokenizer)
    other = copy.deepcopy(whole_tokenizer)
    chat_template.set_chat_template(other, "zephyr")
    with pytest.raises(LabError) as caught:
        template_lock.check_tokenizer(parsed, other)
    message = str(caught.value)
    assert "The template of this result differs" in message
    assert (
        "From token 1 on: trained ⟨<|im_start|>⟩ ⟨system⟩" in message and "now ⟨<⟩ ⟨|⟩" in message
    )
    pad = copy.deepcopy(whole_tokenizer)
    pad.pad_token = "<|endoftext|>"
    with pytest.raises(LabError, match="The pad token of this result differs"):
        template_lock.check_tokenizer(parsed, pad)


def test_another_system_prompt_is_a_warning(whole_tokenizer: Any) -> None:
    lock = template_lock.make_lock(whole_tokenizer, "Be kind.", "assistant")
    assert template_lock.warning(lock, whole_tokenizer, "Be kind.") == ""
    warning = template_lock.warning(lock, whole_tokenizer, "Be rude.")
    assert "not the one in training" in warning and "kind" in warning and "rude" in warning


def test_chat_refuses_a_result_whose_template_was_changed(trained: list[Any]) -> None:
    run = trained[1]
    named = chat_models.parse(f"run:{run.id}")
    loaded = chat_models.load(named)
    ask = [{"role": "user", "content": "Hi"}]
    quiet = generate.answer(
        loaded, named, ask, GenerationSettings(max_new_tokens=2, system_prompt="")
    )
    assert quiet.receipt.warning == ""
    loud = generate.answer(
        loaded, named, ask, GenerationSettings(max_new_tokens=2, system_prompt="Hm.")
    )
    assert "not the one in training" in loud.receipt.warning
    file = run.artifact / "chat_template.jinja"
    file.write_text(file.read_text().replace("user", "person").replace("<|im_end|>", "<|im_end|>!"))
    with pytest.raises(LabError, match="The template of this result differs"):
        chat_models.load(named)


@pytest.mark.parametrize("name", ["alpaca", "zephyr"])
def test_a_chosen_template_travels_to_chat(work_here: Callable[..., Any], name: str) -> None:
    run = work_here(
        data={"template": name},
        train={"max_steps": 2, "save_steps": 1, "sample_steps": 0, "eval_steps": 0},
    )
    for which in (f"run:{run.id}", f"run:{run.id}@1"):
        loaded = chat_models.load(chat_models.parse(which))
        assert loaded.tokenizer.chat_template == (
            chat_template.ALPACA_TEMPLATE if name == "alpaca" else chat_template.ZEPHYR_TEMPLATE
        )


@pytest.fixture
def result(words: Any, tmp_path: Any) -> Any:
    """(folder, receipt) of a result's tokenizer."""
    words.save_pretrained(tmp_path / "result")
    folder = tmp_path / "result"
    receipt = {"tokenizer_files": template_lock.files(folder)}
    assert set(receipt["tokenizer_files"]) >= {"tokenizer.json", "tokenizer_config.json"}
    return folder, receipt


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_changed_or_missing_file_of_the_tokenizer_is_named(
    result: Any, name: str, how: str
) -> None:
    folder, receipt = result
    template_lock.enforce_files(receipt, folder)
    file = folder / name
    if how == "changed":
        file.write_text(file.read_text() + " ")
    else:
        file.unlink()
    with pytest.raises(LabError, match=name.replace(".", r"\.")):
        template_lock.enforce_files(receipt, folder)


def test_a_template_that_was_put_beside_a_result_is_named(result: Any) -> None:
    """It would rule over the one that the result was trained with."""
    folder, receipt = result
    file = folder / "chat_template.jinja"
    if file.exists():
        del receipt["tokenizer_files"][file.name]
    file.write_text("{{ messages }}")
    with pytest.raises(LabError, match=r"chat_template\.jinja of this result"):
        template_lock.enforce_files(receipt, folder)
    template_lock.enforce_files({}, folder)  # a result from before the files were kept


def test_further_named_templates_are_files_of_the_tokenizer_too(result: Any) -> None:
    folder, receipt = result
    name = "additional_chat_templates/tool_use.jinja"
    (folder / name).parent.mkdir()
    (folder / name).write_text("{{ messages }}")
    with pytest.raises(LabError, match=name):
        template_lock.enforce_files(receipt, folder)
    receipt["tokenizer_files"] = template_lock.files(folder)
    template_lock.enforce_files(receipt, folder)
    (folder / name).write_text("{{ tools }}")
    with pytest.raises(LabError, match=name):
        template_lock.enforce_files(receipt, folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [("pad_token", "The pad token"), ("eos_token", "The end token"), ("chat_template", "template")],
)
def test_each_part_of_the_terms_is_held(words: Any, change: str, says: str) -> None:
    lock = template_lock.make_lock(words, "w1", "assistant")
    template_lock.check_tokenizer(lock, words)
    setattr(words, change, "w7" if change != "chat_template" else "{{ messages[0].content }}")
    with pytest.raises(LabError, match=says):
        template_lock.check_tokenizer(lock, words)
    with pytest.raises(LabError, match=says):
        template_lock.check_settings(lock, words, "w1", "assistant", "x")


def test_rows_on_other_terms_are_refused_with_the_first_difference(words: Any) -> None:
    lock = template_lock.make_lock(words, "w1", "assistant")
    template_lock.check_settings(lock, words, "w1", "assistant", "run-x")
    template_lock.check_settings({}, words, "w9", "all", "run-x")
    with pytest.raises(LabError) as caught:
        template_lock.check_settings(lock, words, "w9", "assistant", "run-x")
    message = str(caught.value)
    assert "run-x was trained with the system prompt 'w1'; these rows have 'w9'" in message
    assert (
        "From token 2 on: trained ⟨<|turn|>⟩ ⟨w1⟩" in message and "now ⟨<|turn|>⟩ ⟨w9⟩" in message
    )
    with pytest.raises(LabError, match="with the loss on 'assistant'; these rows have 'all'"):
        template_lock.check_settings(lock, words, "w1", "all", "run-x")


def test_a_difference_in_length_stands_at_the_end(words: Any) -> None:
    ids = words("w1 w2 w3")["input_ids"]
    assert (
        template_lock.difference(words, ids, ids) == template_lock.difference(words, [], ids) == ""
    )
    assert (
        template_lock.difference(words, ids[:2], ids)
        == "From token 3 on: trained ⟨w2⟩; now ⟨w2⟩ ⟨w3⟩."
    )
