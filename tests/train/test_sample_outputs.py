"""A sample shows what the model itself answers, and changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.data.catalog import Dataset
from lab.data.formats import Example
from lab.data.prepare import DataFigures, PreparedData
from lab.train import sample_outputs
from lab.train.sample_outputs import SampleGenerator
from tests.methods import tiny

ASKED, ANSWER = "w5 w6", "w70 w71 w72"
CHAT = Example(
    1,
    messages=(
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "w7"},
        {"role": "assistant", "content": "w73"},
    ),
)


class Events:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.written: list[tuple[int, int, str]] = []
        self.warnings: list[str] = []

    def event(self, kind: str, **values: Any) -> None:
        self.records.append({"kind": kind, **values})

    def enter_phase(self, phase: str) -> None:
        assert phase == "sampling"

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def writing(self, done: int, most: int, text: str) -> None:
        self.written.append((done, most, text))


def sampler(
    tokenizer: Any,
    first: Example,
    card: dict[str, Any] | None = None,
    system: str = "",
    length: int | None = None,
) -> tuple[SampleGenerator, Events]:
    data = PreparedData([], [], system, first, DataFigures())
    events: Any = Events()
    dataset = Dataset("x", Path("x"), card or {})
    return SampleGenerator(tokenizer, dataset, data, events, "float32", length=length), events


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.make_model("llama")


def test_the_prompt_ends_where_the_answer_begins(small_tokenizer: Any, model: Any) -> None:
    samples, events = sampler(small_tokenizer, CHAT)
    samples.sample(model, 7)
    (record,) = events.records
    assert record["kind"] == "sample" and record["step"] == 7
    counts = [done for done, _, _ in events.written]
    assert counts == list(range(1, len(counts) + 1)), "one token after another"
    assert record["text"].startswith(events.written[-1][2].strip()), "the text so far"
    assert record["prompt"] == ASKED, "a person reads the question, not the template"
    assert samples.prompt.split() == [tiny.TURN, *ASKED.split(), tiny.END, tiny.TURN]
    assert "w70" not in samples.prompt, "the right answer must not be given away"


def test_the_text_is_what_greedy_choice_adds_to_the_prompt(
    small_tokenizer: Any, model: Any
) -> None:
    samples, events = sampler(small_tokenizer, CHAT)
    samples.sample(model, 0)
    ids = small_tokenizer(samples.prompt, add_special_tokens=False)["input_ids"]
    begun = len(ids)
    with torch.no_grad():
        while len(ids) < begun + sample_outputs.MAX_NEW_TOKENS and (
            len(ids) == begun or ids[-1] != 0
        ):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    expected = small_tokenizer.decode(ids[begun:], skip_special_tokens=True).strip()
    assert events.records[0]["text"] == expected and expected


@pytest.mark.parametrize("room", [2, 0])
def test_a_sample_takes_no_more_than_the_model_reads(
    small_tokenizer: Any, model: Any, room: int
) -> None:
    width = len(small_tokenizer(sampler(small_tokenizer, CHAT)[0].prompt)["input_ids"])
    samples, events = sampler(small_tokenizer, CHAT, length=width + room)
    samples.sample(model, 1)
    samples.sample(model, 2)
    assert [(done, most) for done, most, _ in events.written] == [(1, room), (2, room)] * room
    assert len(events.records) == (2 if room else 0)
    assert len(events.warnings) == (0 if room else 1), "without room it is told once"


def test_tools_belong_to_the_example_that_offers_them(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        sample_outputs.chat_template,
        "render",
        lambda tokenizer, messages, to_answer, tools: given.append(tools) or ASKED,
    )
    tool = {"type": "function", "function": {"name": "look"}}
    offering = dataclasses.replace(CHAT, tools=(tool,))
    sampler(small_tokenizer, offering)
    sampler(small_tokenizer, offering, card={"try": ["w8 w8"]})
    assert given == [[tool], []], "a suggestion is not asked with an example's tools"


@pytest.mark.parametrize(("command", "events"), [("stop", 0), ("cancel", 0), ("save", 1)])
def test_half_a_sample_is_none(small_tokenizer: Any, model: Any, command: str, events: int) -> None:
    samples, log = sampler(small_tokenizer, CHAT)
    samples.command = lambda: command
    samples.sample(model, 1)
    assert len(log.records) == events


def test_a_set_may_suggest_what_to_try(small_tokenizer: Any) -> None:
    samples, _ = sampler(small_tokenizer, CHAT, card={"try": ["w8 w8", "w9"]})
    assert samples.question == "w8 w8" and "w8 w8" in samples.prompt and "w5" not in samples.prompt


def test_the_system_prompt_of_the_training_stands_in_front(small_tokenizer: Any) -> None:
    samples, _ = sampler(small_tokenizer, CHAT, system="w50 w51")
    assert samples.prompt.index("w50 w51") < samples.prompt.index(ASKED)
    assert samples.question == ASKED


def test_a_text_is_continued_from_its_first_words(small_tokenizer: Any, model: Any) -> None:
    words = [f"w{number}" for number in range(20)]
    samples, events = sampler(small_tokenizer, Example(1, text=" ".join(words)))
    samples.sample(model, 1)
    assert events.records[0]["prompt"] == samples.prompt == " ".join(words[:8])


@pytest.mark.parametrize("is_training", [True, False])
def test_a_sample_draws_nothing_and_leaves_the_mode(
    small_tokenizer: Any, is_training: bool
) -> None:
    """Dropout is off while it answers, so that two samples of one model are equal."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        resid_pdrop=0.6, embd_pdrop=0.6, attn_pdrop=0.6, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train(is_training)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8.0)
    samples, events = sampler(small_tokenizer, CHAT)
    state = torch.get_rng_state()
    samples.sample(model, 1)
    samples.sample(model, 2)
    assert model.training is is_training
    assert torch.equal(torch.get_rng_state(), state), "a resumed run sees the same dropout masks"
    first, second = (record["text"] for record in events.records)
    assert first == second and first


def test_the_mode_comes_back_where_generation_fails(small_tokenizer: Any) -> None:
    class Broken(torch.nn.Linear):
        device = torch.device("cpu")

        def generate(self, **_: Any) -> Any:
            raise RuntimeError("no memory")

    samples, _ = sampler(small_tokenizer, CHAT)
    broken: Any = Broken(2, 2).train()
    with pytest.raises(RuntimeError):
        samples.sample(broken, 1)
    assert broken.training
