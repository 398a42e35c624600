"""Answers: how they end, whose system prompt they have, and which weights give them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.atomic_files import read_object, write_json
from lab.chat import generate, side_by_side
from lab.chat import models as chat_models
from lab.chat.answers import AnswerReceipt, ModelAnswer, ProofRecord
from lab.chat.models import LoadedModel, ModelRef
from lab.chat.settings import GenerationSettings
from lab.errors import LabError
from lab.paths import RunDir

ASK = [{"role": "user", "content": "Hi"}]


class Scripted:
    """A model that says given tokens, as far as it is let, and remembers how it was asked."""

    device = torch.device("cpu")

    def __init__(self, ids: list[int], eos: Any = None) -> None:
        self.ids, self.said = ids, 0
        self.generation_config = SimpleNamespace(eos_token_id=eos)
        self.asked: dict[str, Any] = {}

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def generate(self, input_ids: Any, streamer: Any, stopping_criteria: Any, **how: Any) -> Any:
        self.asked = how | {"input_ids": input_ids}
        streamer.put(input_ids)
        made = input_ids
        for token in self.ids[: how["max_new_tokens"]]:
            made = torch.cat([made, torch.tensor([[token]])], dim=1)
            streamer.put(torch.tensor([token]))
            self.said += 1
            if any(bool(rule(made, None).all()) for rule in stopping_criteria):
                break
            time.sleep(0.002)
        streamer.end()
        return made


def say(model: Any, tokenizer: Any, **settings: Any) -> ModelAnswer:
    return generate.answer(
        LoadedModel(model, tokenizer), ModelRef("base:x", "x"), ASK, GenerationSettings(**settings)
    )


@pytest.fixture
def words(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer("one two three four")["input_ids"]
    return ids


def test_an_answer_stops_at_an_end_token_and_is_cut_at_its_length(
    tokenizer: Any, words: list[int]
) -> None:
    end = tokenizer.eos_token_id
    stopped = say(Scripted([*words, end]), tokenizer)
    assert (stopped.finish, stopped.text) == ("stop", "one two three four")
    assert stopped.token_ids == [*words, end], "The answer's tokens, without the prompt's."
    cut = say(Scripted([*words, end]), tokenizer, max_new_tokens=len(words))
    assert (cut.finish, cut.token_ids) == ("length", words)
    other = words[-1]
    for eos in (other, [end, other]):
        assert say(Scripted(words, eos), tokenizer).finish == "stop", "The model's own ends."
    assert say(Scripted([]), tokenizer).finish == "length"


def test_an_answer_ends_where_the_context_does(tokenizer: Any, words: list[int]) -> None:
    prompt = say(Scripted([]), tokenizer).receipt.prompt_tokens
    settings = GenerationSettings(max_new_tokens=100)
    for length, tokens in ((prompt + 7, 7), (prompt + 200, 100)):
        loaded = LoadedModel(Scripted(words * 100), tokenizer, length=length)
        answer = generate.answer(loaded, ModelRef("base:x", "x"), ASK, settings)
        assert len(answer.token_ids) == tokens, "The model reads no more than its context."
        assert answer.is_at_context_end is (tokens == 7)


def test_the_settings_reach_the_model(tokenizer: Any, words: list[int]) -> None:
    model = Scripted(words)
    say(model, tokenizer, max_new_tokens=3, temperature=0.7, seed=12)
    asked = model.asked
    assert asked["max_new_tokens"] == 3
    assert not asked["do_sample"], "The lab draws the tokens."
    assert asked["repetition_penalty"] == 1.0, "Without the model's own habits."
    [choice] = asked["logits_processor"]
    assert choice.generator.initial_seed() == 12
    assert [type(rule).__name__ for rule in choice.rules] == ["TemperatureLogitsWarper"]
    text = tokenizer.decode(model.asked["input_ids"][0])
    assert text.endswith("<|im_start|>assistant\n") and "Hi" in text


def test_the_receipt_is_of_what_was_asked(tokenizer: Any, words: list[int]) -> None:
    model = Scripted(words)
    first = say(model, tokenizer, system_prompt="Be odd.", seed=3).receipt
    assert first.prompt_tokens == model.asked["input_ids"].shape[1]
    assert "Be odd." in first.prompt and first.system_prompt == "Be odd."
    assert first.seed == 3 and first.dtype == "float32"
    again = say(Scripted([]), tokenizer, system_prompt="Be odd.", seed=3).receipt
    other = say(Scripted([]), tokenizer, system_prompt="Be even.", seed=3).receipt
    assert first.prompt_hash == again.prompt_hash != other.prompt_hash
    how = {
        "seed": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1,
        "max_new_tokens": 3,
    }  # fmt: skip
    receipt = say(model, tokenizer, stop=("one", "two"), **how).receipt
    stored = receipt.to_json()
    assert {key: stored[key] for key in how} == how and stored["stop"] == ["one", "two"]


def test_a_receipt_keeps_the_keys_of_its_json_and_is_read_back(
    tokenizer: Any, words: list[int]
) -> None:
    receipt = say(Scripted(words), tokenizer, stop=("one",), seed=2).receipt
    proven = replace(receipt, proof=ProofRecord(tensors=2, tensors_loaded=1, problems=("Only 1.",)))
    stored = json.loads(json.dumps(proven.to_json()))
    assert " ".join(stored) == (
        "model prompt prompt_hash prompt_tokens system_prompt template_hash seed temperature top_p "
        "top_k repetition_penalty stop max_new_tokens dtype template_of base step warning "
        "base_weights weights proof versions question_hash answer_hash"
    )
    assert " ".join(stored["proof"]) == "base_difference effect tensors tensors_loaded problems"
    assert AnswerReceipt.from_json(stored) == proven, "What was written is read."
    damaged = {"model": "base:x", "seed": "two", "proof": [], "of a later version": 1}
    assert AnswerReceipt.from_json(damaged) == AnswerReceipt(model="base:x")
    assert AnswerReceipt.from_json(None) == AnswerReceipt(), "Of an answer that did not begin."


def test_leaving_an_answer_stops_the_model(tokenizer: Any, words: list[int]) -> None:
    model = Scripted(words * 300)
    loaded = LoadedModel(model, tokenizer)
    pieces = generate.stream(
        loaded, ModelRef("base:x", "x"), ASK, GenerationSettings(max_new_tokens=1200)
    )
    assert isinstance(next(pieces), str)
    pieces.close()
    assert model.said < 600, f"It said {model.said} tokens to nobody."


def test_a_model_that_fails_says_so(tokenizer: Any) -> None:
    class Broken(Scripted):
        def generate(self, **_: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        say(Broken([]), tokenizer)


def trained_with(run: RunDir, system_prompt: str) -> None:
    stored = read_object(run.spec) or {}
    stored["data"]["system_prompt"] = system_prompt
    write_json(run.spec, stored)


def test_all_models_get_the_system_prompt_that_the_first_result_was_trained_with(
    trained: list[RunDir], tiny_model: Path
) -> None:
    full, lora = trained
    trained_with(full, "Be brief.")
    trained_with(lora, "Be long.")
    base = chat_models.parse(f"base:{tiny_model}")
    runs = [chat_models.parse(f"run:{run.id}") for run in (full, lora)]

    def prompts(names: list[ModelRef], **settings: Any) -> set[str]:
        answers = side_by_side.answer_all(
            names, ASK, GenerationSettings(max_new_tokens=1, **settings)
        )
        for row in answers:
            assert row.receipt.system_prompt in row.receipt.prompt
        return {row.receipt.system_prompt for row in answers}

    assert prompts([base, *runs]) == {"Be brief."}
    assert prompts([runs[1], base]) == {"Be long."}
    assert prompts([base]) == {""}
    assert prompts([base, runs[0]], system_prompt="Be odd.") == {"Be odd."}, "What is given counts."
    assert prompts([base, runs[0]], system_prompt="") == {""}, "No system prompt is given, too."


def test_a_checkpoint_answers_with_its_own_weights(trained: list[RunDir]) -> None:
    ids = torch.arange(40)[None]
    for run in trained:
        steps = sorted(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))
        loaded = {
            name: chat_models.load(chat_models.parse(f"run:{run.id}{name}"))
            for name in ("", *(f"@{step}" for step in (steps[0], steps[-1])))
        }
        logits = {}
        for name, answering in loaded.items():
            assert not answering.model.training, "Nothing is dropped out of an answer."
            with torch.inference_mode():
                logits[name] = answering.model(ids).logits
        first, last = (f"@{step}" for step in (steps[0], steps[-1]))
        assert not torch.allclose(logits[first], logits[last], atol=1e-4), "It went on learning."
        if steps[-1] == 12:
            assert torch.allclose(logits[last], logits[""], atol=1e-5), (
                "The last step is the result."
            )
        assert not torch.allclose(logits[first], logits[""], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("run:{id}@x", "is not a step"),
        ("run:{id}@-4", "is not a step"),
        ("run:{id}@3", "has no checkpoint of step 3"),
        ("run:", "is not a model"),
        ("base:", "is not a model"),
        ("{id}", "is not a model"),
    ],
)
def test_names_that_mean_no_model(trained: list[RunDir], name: str, says: str) -> None:
    with pytest.raises(LabError, match=says):
        chat_models.parse(name.format(id=trained[1].id))


def test_a_run_without_a_result_is_not_talked_to(trained: list[RunDir]) -> None:
    run = trained[1]
    run.artifact.rename(run.path / "elsewhere")
    with pytest.raises(LabError, match="no trained model yet"):
        chat_models.parse(f"run:{run.id}")
    checkpoint = chat_models.load(chat_models.parse(f"run:{run.id}@4"))
    assert checkpoint.tokenizer.chat_template, "Its checkpoints are, with the base's tokenizer."


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (AnswerReceipt(prompt_hash="p", question_hash="q", template_hash="t"), ""),
        (AnswerReceipt(prompt_hash="o", question_hash="r", template_hash="u"), "templates differ"),
        (AnswerReceipt(prompt_hash="o", question_hash="r", template_hash="t"), "other arguments"),
        (AnswerReceipt(prompt_hash="o", template_hash="u"), ""),
    ],
    ids=["alike", "another template", "another date", "an older receipt"],
)
def test_models_that_read_the_same_question_otherwise_are_told(
    second: AnswerReceipt, words: str
) -> None:
    first = AnswerReceipt(prompt_hash="p", question_hash="q", template_hash="t")
    warning = side_by_side.prompt_warning({"run:a": first, "run:b": second})
    assert words in warning and bool(warning) == bool(words)
    assert ("run:a | run:b" in warning) == bool(words)
