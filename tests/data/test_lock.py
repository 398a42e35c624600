"""The template lock: kept with a result, enforced when it is loaded, told token by token."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from lab.chat import answer
from lab.chat.answer import Settings
from lab.data import lock, template
from lab.errors import LabError


def test_the_same_terms_pass_and_others_are_told(tokenizer: Any) -> None:
    made = json.loads(json.dumps(lock.make(tokenizer, "Be kind.", "assistant")))
    lock.enforce(made, tokenizer)
    lock.enforce({}, tokenizer)
    other = copy.deepcopy(tokenizer)
    template.choose(other, "zephyr")
    with pytest.raises(LabError) as caught:
        lock.enforce(made, other)
    said = str(caught.value)
    assert "The template of this result differs" in said
    assert "From token 1 on: trained ⟨<|im_start|>⟩ ⟨system⟩" in said and "now ⟨<⟩ ⟨|⟩" in said
    pad = copy.deepcopy(tokenizer)
    pad.pad_token = "<|endoftext|>"
    with pytest.raises(LabError, match="The pad token of this result differs"):
        lock.enforce(made, pad)


def test_another_system_prompt_is_a_warning(tokenizer: Any) -> None:
    made = lock.make(tokenizer, "Be kind.", "assistant")
    assert lock.warning(made, tokenizer, "Be kind.") == ""
    said = lock.warning(made, tokenizer, "Be rude.")
    assert "not the one in training" in said and "kind" in said and "rude" in said


def test_chat_refuses_a_result_whose_template_was_changed(trained: list[Any]) -> None:
    run = trained[1]
    named = answer.parse(f"run:{run.id}")
    loaded = answer.load(named)
    ask = [{"role": "user", "content": "Hi"}]
    quiet = answer.answer(loaded, named, ask, Settings(max_new_tokens=2, system_prompt=""))
    assert quiet["receipt"]["warning"] == ""
    loud = answer.answer(loaded, named, ask, Settings(max_new_tokens=2, system_prompt="Hm."))
    assert "not the one in training" in loud["receipt"]["warning"]
    file = run.artifact / "chat_template.jinja"
    file.write_text(file.read_text().replace("user", "person").replace("<|im_end|>", "<|im_end|>!"))
    with pytest.raises(LabError, match="The template of this result differs"):
        answer.load(named)


@pytest.mark.parametrize("name", ["alpaca", "zephyr"])
def test_a_chosen_template_travels_to_chat(work_here: Callable[..., Any], name: str) -> None:
    run = work_here(
        data={"template": name},
        train={"max_steps": 2, "save_every": 1, "sample_every": 0, "eval_every": 0},
    )
    for which in (f"run:{run.id}", f"run:{run.id}@1"):
        loaded = answer.load(answer.parse(which))
        assert loaded.tokenizer.chat_template == (
            template.ALPACA_TEMPLATE if name == "alpaca" else template.ZEPHYR_TEMPLATE
        )
