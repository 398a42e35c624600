"""Tokens are chosen as transformers' `generate` chooses them, alone and beside other models."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.chat import generate, side_by_side
from lab.chat import models as chat_models
from lab.chat.engine import together
from lab.chat.engine.decoding import Decoding
from lab.chat.settings import GenerationSettings
from lab.models import catalog, weights
from lab.paths import RunDir

PROMPT = torch.arange(5, 25)[None]
SAMPLED = GenerationSettings(seed=7, temperature=0.9)
RULES = {
    "greedy": {},
    "temperature": {"temperature": 1.3, "seed": 3},
    "top-k": {"temperature": 0.9, "top_k": 5, "seed": 4},
    "top-p": {"temperature": 0.9, "top_p": 0.6, "seed": 5},
    "penalty": {"repetition_penalty": 1.4},
    "all of them": {
        "temperature": 1.1, "top_k": 30, "top_p": 0.8, "repetition_penalty": 1.2, "seed": 6,
    },
}  # fmt: skip


@pytest.fixture
def base(tiny_model: Path) -> Any:
    source = catalog.resolve(str(tiny_model))
    return together.share_products(weights.load_model(source, torch.float32).eval())


@pytest.fixture
def variants(base: Any) -> list[Any]:
    """The base, an adapter of every linear layer, and a model whose weights are its own."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapter = get_peft_model(weights.share_weights(base), config).eval()
    own = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return [base, adapter, own]


def decoding(model: Any, tokenizer: Any, settings: GenerationSettings, **named: Any) -> Decoding:
    named = {"most": 24, "stop_ids": [], **named}
    return Decoding(model, tokenizer, PROMPT, settings, **named)


def tokens(model: Any, tokenizer: Any, settings: GenerationSettings, **named: Any) -> list[int]:
    answer = decoding(model, tokenizer, settings, **named)
    together.run_together([answer.run])
    assert answer.error is None, answer.error
    return answer.token_ids


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_tokens_are_those_of_generate(base: Any, tokenizer: Any, rules: dict[str, Any]) -> None:
    settings = GenerationSettings(**rules)
    own = {key: value for key, value in rules.items() if key != "seed"}
    own |= {"do_sample": True, "top_k": own.get("top_k", 0)} if "temperature" in own else {}
    torch.manual_seed(settings.seed)
    expected = base.generate(PROMPT, max_new_tokens=24, eos_token_id=None, pad_token_id=0, **own)
    chosen = tokens(base, tokenizer, settings)
    assert chosen == expected[0, PROMPT.shape[1] :].tolist()
    assert len(set(chosen)) > 1 or not own.get("do_sample"), "It draws."


def test_log_probabilities_are_those_of_the_model(base: Any, tokenizer: Any) -> None:
    answer = decoding(base, tokenizer, SAMPLED)
    together.run_together([answer.run])
    ids = torch.cat([PROMPT, torch.tensor([answer.token_ids])], dim=1)
    with torch.inference_mode():
        expected = base(ids).logits.log_softmax(-1)[0, PROMPT.shape[1] - 1 : -1]
    expected = expected.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(answer.log_probabilities), expected, atol=1e-4)


def test_models_that_decode_together_choose_the_tokens_that_each_chooses_alone(
    variants: list[Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [replace(SAMPLED, seed=seed) for seed in range(3)]
    lengths = (24, 9, 17)
    pairs = list(zip(variants, settings, lengths, strict=True))
    alone = [tokens(model, tokenizer, how, most=most) for model, how, most in pairs]
    joined: list[int] = []
    original = together._joined_products

    def count(requests: dict[int, Any]) -> Any:
        pointers = [layer.weight.data_ptr() for layer, _, _ in requests.values()]
        joined.append(len(pointers) - len(set(pointers)))
        return original(requests)

    monkeypatch.setattr(together, "_joined_products", count)
    answers = [decoding(model, tokenizer, how, most=most) for model, how, most in pairs]
    together.run_together([answer.run for answer in answers])
    assert [answer.token_ids for answer in answers] == alone
    assert [len(answer.token_ids) for answer in answers] == list(lengths), "Each at its own end."
    layers = len(together._linear_layers(variants[0]))
    # the adapter's nine tokens stand beside the base's: one product for both, in every layer
    assert sum(joined) >= 8 * layers, "Models at the same layer share its product."


def test_models_in_step_need_no_more_products_than_one(
    variants: list[Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, own = variants
    assert together.is_shared(adapter, base) and not together.is_shared(own, base)
    rows: list[int] = []
    linear = torch.nn.Linear.forward

    def count(layer: Any, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[0] if x.dim() == 2 else 0)
        return linear(layer, x)

    answers = [decoding(model, tokenizer, SAMPLED, most=4) for model in (base, base, adapter)]
    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    together.run_together([answer.run for answer in answers])
    assert max(rows) == 3, "Three models at one layer, one product."


def test_one_model_alone_is_equal_to_the_bit(base: Any, tiny_model: Path) -> None:
    plain = weights.load_model(catalog.resolve(str(tiny_model)), torch.float32).eval()
    results = []
    with torch.inference_mode():
        together.run_together([lambda: results.append(base(PROMPT[:, :1]).logits)])
        assert torch.equal(results[0], plain(PROMPT[:, :1]).logits)


def test_what_fails_beside_others_does_not_stop_them(
    variants: list[Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tokens(variants[0], tokenizer, SAMPLED)
    monkeypatch.setattr(variants[2], "generate", lambda **_: 1 / 0)
    answers = [decoding(model, tokenizer, SAMPLED) for model in variants]
    together.run_together([answer.run for answer in answers])
    assert isinstance(answers[2].error, ZeroDivisionError)
    assert answers[0].token_ids == alone and answers[1].error is None


def test_a_stopped_answer_keeps_what_it_has(variants: list[Any], tokenizer: Any) -> None:
    stopped = threading.Event()
    pieces: list[str] = []

    def stop_soon(piece: str) -> None:
        pieces.append(piece)
        stopped.set()

    first = decoding(variants[0], tokenizer, SAMPLED, most=200, on_text=stop_soon, stopped=stopped)
    second = decoding(variants[1], tokenizer, SAMPLED, most=30)
    together.run_together([first.run, second.run])
    assert first.finish == "stopped" and 0 < len(first.token_ids) < 200
    assert "".join(pieces) == first.text
    assert second.finish == "length" and len(second.token_ids) == 30, "Only one was stopped."


def test_an_answer_ends_before_its_stop_string(base: Any, tokenizer: Any) -> None:
    whole = decoding(base, tokenizer, SAMPLED, most=60)
    together.run_together([whole.run])
    text = whole.text
    for string in (text[20:23], text[30:37]):
        pieces: list[str] = []
        how = replace(SAMPLED, stop=("never said", string))
        answer = decoding(base, tokenizer, how, most=60, on_text=pieces.append)
        together.run_together([answer.run])
        assert answer.finish == "stop" and answer.text == text.split(string)[0]
        assert "".join(pieces) == answer.text, "The stop string is not shown in passing."
        assert len(answer.token_ids) < 60


def test_beside_a_stop_string_of_one_character_the_text_comes_as_without(
    base: Any, tokenizer: Any
) -> None:
    pieces: dict[tuple[str, ...], list[str]] = {(): [], ("\0",): []}
    for stop, shown in pieces.items():
        answer = decoding(base, tokenizer, replace(SAMPLED, stop=stop), on_text=shown.append)
        together.run_together([answer.run])
        assert "".join(shown) == answer.text
    assert pieces["\0",] == pieces[()] and len(pieces[()]) > 1, "nothing is held back to the end"


def test_of_two_stop_strings_in_one_token_the_first_in_the_text_ends_the_answer() -> None:
    spelled = SimpleNamespace(decode=lambda ids, **_: "yes one two")
    answer = decoding(None, spelled, replace(SAMPLED, stop=("two", "one")))
    answer.add(5)
    assert answer.finish == "stop" and answer.text == "yes ", "whichever is named first"


def test_an_adapter_answers_beside_its_base_as_alone(
    trained: list[RunDir], tiny_model: Path
) -> None:
    """The results of real runs, with everything that loads them."""
    names = [
        chat_models.parse(f"base:{tiny_model}"),
        *(chat_models.parse(f"run:{r.id}") for r in trained),
    ]
    chat = [{"role": "user", "content": "Hi"}]
    settings = GenerationSettings(max_new_tokens=12)
    alone = [generate.answer(chat_models.load(name), name, chat, settings) for name in names]
    beside = side_by_side.answer_all(names, chat, settings)
    assert [answer.token_ids for answer in beside] == [answer.token_ids for answer in alone]


def test_a_stop_string_of_many_bytes_is_found_though_each_token_is_one() -> None:
    spelled = SimpleNamespace(decode=lambda ids, **_: bytes(ids).decode(errors="ignore"))
    answer = decoding(None, spelled, replace(SAMPLED, stop=("🐦🐦🐦",)))
    for byte in "Look: 🐦🐦🐦".encode():
        answer.add(byte)
    assert answer.finish == "stop" and answer.text == "Look: "


def test_what_was_held_back_is_shown_where_a_model_fails(tokenizer: Any) -> None:
    class Failing:
        def generate(self, streamer: Any, **_: Any) -> None:
            for tokens in (
                PROMPT,
                *map(torch.tensor, tokenizer("one two three four")["input_ids"]),
            ):
                streamer.put(tokens.reshape(-1))
            raise MemoryError

    pieces: list[str] = []
    how = replace(SAMPLED, stop=("never said in this text",))
    answer = decoding(Failing(), tokenizer, how, on_text=pieces.append)
    answer.run()
    assert isinstance(answer.error, MemoryError)
    assert "".join(pieces) == answer.text == "one two three four"
