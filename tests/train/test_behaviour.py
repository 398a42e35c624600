"""Whether answers end by themselves, and how long they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.data import chat_template, stop_tokens
from lab.models.context_length import PromptTooLong
from lab.runs import record_reader
from lab.train import behaviour
from lab.train.behaviour import GreedyAnswer


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():  # else it repeats its last token, whatever it is asked
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(500.0)
            layer.self_attn.o_proj.weight.mul_(500.0)
    return model


def test_a_batch_answers_as_each_prompt_alone(model: Any, tokenizer: Any) -> None:
    prompts = ["Hi", "Name three large rivers of Europe, please.", "Why?"]
    signs: list[int] = []
    model.train()
    state = torch.get_rng_state()
    together = behaviour.greedy_answers(model, tokenizer, prompts, 8, None, lambda: signs.append(1))
    assert torch.equal(torch.get_rng_state(), state), "training goes on with the same numbers"
    assert model.training, "the model is put back into its mode"
    assert 0 < len(signs) <= 8, "a sign of life at every token"
    alone = [behaviour.greedy_answers(model, tokenizer, [p], 8, None)[0] for p in prompts]
    assert together == alone and len({answer.text for answer in alone}) > 1
    expected = []
    for prompt in prompts:
        text = chat_template.render(
            tokenizer, [{"role": "user", "content": prompt}], to_answer=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for _ in range(8):
            with torch.no_grad():
                ids = torch.cat([ids, model.eval()(ids).logits[:, -1:].argmax(-1)], 1)
        expected.append(tokenizer.decode(ids[0, -8:], skip_special_tokens=True).strip())
    assert [answer.text for answer in alone] == expected, "the likeliest token each time"


class Dictated:
    """Says the rows that it was given."""

    training = False

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def generate(self, input_ids: Any, **how: Any) -> Any:
        assert not how["do_sample"] and how["max_new_tokens"] == 4
        return torch.cat([input_ids, torch.tensor(self.rows)], dim=1)


def test_an_answer_ends_at_the_first_token_that_ends_one(tokenizer: Any) -> None:
    end, pad = stop_tokens.ids(tokenizer)[0], tokenizer.pad_token_id
    yes, no = (tokenizer(word)["input_ids"][0] for word in ("is", "no"))
    rows = [[yes, end, pad, pad], [yes, no, yes, no], [end, pad, pad, pad], [yes, no, yes, end]]
    answers = behaviour.greedy_answers(Dictated(rows), tokenizer, ["a", "b", "c", "d"], 4, None)
    assert [(each.tokens, each.ended) for each in answers] == [
        (1, True), (4, False), (0, True), (3, True),
    ]  # fmt: skip
    assert [each.text for each in answers] == ["is", "isnoisno", "", "isnois"]
    own_end = behaviour._answer(tokenizer, [yes, no, yes], {no})
    assert own_end == GreedyAnswer("is", 1, True), "an end that is a plain word is not said"
    assert behaviour.figures(answers) == (0.75, 2.0)
    assert behaviour.figures([GreedyAnswer("", 40, False)]) == (0.0, 40.0)


def test_an_answer_takes_no_more_than_the_model_reads(model: Any, tokenizer: Any) -> None:
    text = chat_template.render(tokenizer, [{"role": "user", "content": "Hi"}], to_answer=True)
    width = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    (answer,) = behaviour.greedy_answers(model, tokenizer, ["Hi"], 8, width + 3)
    assert answer.tokens <= 3
    with pytest.raises(PromptTooLong):
        behaviour.greedy_answers(model, tokenizer, ["Hi"], 8, width)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_do_not_stand_in_the_way(
    work_here: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.train import forgetting

    monkeypatch.setattr(forgetting, "prompts", lambda: ["Hi", "Name three rivers.", "Why?"])
    spec = {"max_steps": 2, "eval_steps": 1, "save_steps": 0, "forgetting_probe": "on"}
    records = record_reader.metrics(work_here(method, train=spec), "probe")
    assert [record["step"] for record in records] == [1, 2, 2]
    for record in records:
        assert 0 <= record["probe/answer_tokens"] <= behaviour.MAX_NEW_TOKENS
    assert records[0]["probe/base_ended"] == records[1]["probe/base_ended"]
