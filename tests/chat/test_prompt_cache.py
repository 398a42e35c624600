"""Only the new turn is read, and the answer is that of reading all, to the bit."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from bench.small_model import VOCABULARY
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.engine import prompt_cache, together
from lab.chat.engine.decoding import Decoding
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.engine.prompt_cache import BLOCK, KeptPrompt, KeptPrompts
from lab.chat.settings import GenerationSettings
from lab.models import catalog, weights
from lab.paths import RunDir

SETTINGS = GenerationSettings(seed=1, temperature=0.8)


@pytest.fixture
def variants(tiny_model: Path) -> list[Any]:
    """The base and an adapter on it, which decode together."""
    from peft import LoraConfig, get_peft_model

    base = weights.load_model(catalog.resolve(str(tiny_model)), torch.float32).eval()
    together.share_products(base)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return [base, get_peft_model(weights.share_weights(base), config).eval()]


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCABULARY, (1, length), generator=generator)


def answer(
    model: Any, tokenizer: Any, ids: torch.Tensor, prompts: KeptPrompts | None, **named: Any
) -> Decoding:
    decoding = Decoding(
        model, tokenizer, ids, SETTINGS, most=9, stop_ids=[], prompts=prompts, **named
    )
    together.run_together([decoding.run])
    assert decoding.error is None, decoding.error
    return decoding


@pytest.mark.parametrize("index", [0, 1], ids=["base", "adapter"])
def test_the_next_turn_reads_what_is_new_and_answers_as_if_it_had_read_all(
    variants: list[Any], tokenizer: Any, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, memory = variants[index], KeptPrompts()
    first = prompt(3 * BLOCK + 5)
    answer(model, tokenizer, first, memory)
    assert [len(each.ids) for each in memory.prompts] == [3 * BLOCK], "Whole blocks of the prompt."
    second = torch.cat([first, prompt(90, 1)], dim=1)
    rows: list[int] = []
    forward = type(variants[0]).forward

    def counting(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        rows.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **named)

    monkeypatch.setattr(type(variants[0]), "forward", counting)
    quick = answer(model, tokenizer, second, memory)
    read = sum(rows) - (len(quick.token_ids) - 1)
    assert read == second.shape[1] - 3 * BLOCK and quick.kept_tokens == 3 * BLOCK
    rows.clear()
    whole = answer(model, tokenizer, second, KeptPrompts())
    assert sum(rows) - 8 == second.shape[1] and whole.kept_tokens == 0
    assert quick.token_ids == whole.token_ids
    assert quick.log_probabilities == whole.log_probabilities, "To the bit."


def test_reading_in_blocks_gives_the_tokens_of_reading_as_a_whole(
    variants: list[Any], tokenizer: Any
) -> None:
    for length in (BLOCK + 1, BLOCK + 2, 2 * BLOCK + 3, 5):
        ids = prompt(length, length)
        blocks, whole = (
            answer(variants[1], tokenizer, ids, prompts) for prompts in (KeptPrompts(), None)
        )
        assert blocks.token_ids == whole.token_ids
        assert blocks.log_probabilities == pytest.approx(whole.log_probabilities, abs=1e-4)


def test_another_conversation_takes_what_is_equal_and_no_more(
    variants: list[Any], tokenizer: Any
) -> None:
    model, memory = variants[0], KeptPrompts()
    first = prompt(3 * BLOCK + 9)
    answer(model, tokenizer, first, memory)
    other = first.clone()
    other[0, 2 * BLOCK - 1] += 1  # the second block differs in its last token
    quick = answer(model, tokenizer, other, memory)
    assert quick.kept_tokens == BLOCK
    assert (
        quick.log_probabilities == answer(model, tokenizer, other, KeptPrompts()).log_probabilities
    )
    again = answer(model, tokenizer, other, memory)
    assert again.kept_tokens == 3 * BLOCK and again.token_ids == quick.token_ids, "Answered anew."
    shorter = answer(model, tokenizer, other[:, : 2 * BLOCK], memory)
    assert shorter.kept_tokens == BLOCK, "Something is left to read, though all of it was kept."
    for seed in range(prompt_cache.CACHE_SIZE + 2):
        answer(model, tokenizer, prompt(BLOCK + 9, seed + 5), memory)
    assert len(memory.prompts) == prompt_cache.CACHE_SIZE, "The oldest goes."


@pytest.mark.parametrize("blocks", [(3, 1), (1, 3)])
def test_of_what_is_kept_the_longest_beginning_is_taken(blocks: tuple[int, int]) -> None:
    ids = list(range(4 * BLOCK))
    cropped: list[int] = []
    cache: Any = SimpleNamespace(crop=cropped.append, get_seq_length=lambda: 3 * BLOCK)
    prompts = [KeptPrompt(ids[: count * BLOCK], cache) for count in blocks]
    memory = KeptPrompts(list(prompts))
    assert memory.take(ids, 4 * BLOCK)[1] == 3 * BLOCK and cropped == [0]
    assert memory.prompts == [prompts[blocks.index(1)]], "whoever reads on with it changes it"


def test_models_that_decode_together_keep_their_own(variants: list[Any], tokenizer: Any) -> None:
    ids = prompt(2 * BLOCK + 9)
    longer = torch.cat([ids, prompt(40, 3)], dim=1)
    memory = [KeptPrompts(), KeptPrompts()]
    outcomes = []
    for question in (ids, longer):
        decodings = [
            Decoding(model, tokenizer, question, SETTINGS, most=9, stop_ids=[], prompts=own)
            for model, own in zip(variants, memory, strict=True)
        ]
        together.run_together([decoding.run for decoding in decodings])
        outcomes.append([(each.kept_tokens, each.token_ids) for each in decodings])
    assert [tokens for tokens, _ in outcomes[0]] == [0, 0]
    assert [tokens for tokens, _ in outcomes[1]] == [2 * BLOCK, 2 * BLOCK]
    for model, (_, ids_together) in zip(variants, outcomes[1], strict=True):
        assert answer(model, tokenizer, longer, KeptPrompts()).token_ids == ids_together


def test_a_stop_is_seen_between_blocks(variants: list[Any], tokenizer: Any) -> None:
    stopped, memory = threading.Event(), KeptPrompts()
    stopped.set()
    decoding = answer(variants[0], tokenizer, prompt(9 * BLOCK), memory, stopped=stopped)
    assert decoding.finish == "stopped" and decoding.token_ids == [] and memory.prompts == []


def test_what_cannot_be_cut_is_not_kept(tokenizer: Any) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    assert prompt_cache.can_keep(LlamaForCausalLM(LlamaConfig(**sizes)))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2))
    assert prompt_cache.can_keep(gpt2)
    window = MistralForCausalLM(MistralConfig(**sizes, sliding_window=8))
    assert not prompt_cache.can_keep(window)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    stretched = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope))
    assert not prompt_cache.can_keep(stretched)
    ids = prompt(2 * BLOCK + 3) % 300
    memory = KeptPrompts()
    assert answer(window, tokenizer, ids, memory).error is None and memory.prompts == []


def test_what_is_kept_counts_in_the_budget_and_goes_first(trained: list[RunDir]) -> None:
    models = LoadedModels()
    named = chat_models.parse(f"run:{trained[1].id}")
    question = [{"role": "user", "content": "What is 1 plus 1? " * 30}]
    loaded = models.get(named)
    before = models.bytes()
    pending = generate.prepare(loaded, named, question, GenerationSettings(max_new_tokens=3))
    together.run_together([pending.decoding.run])
    assert loaded.prompts is not None
    tokens = len(loaded.prompts.prompts[0].ids)
    config = loaded.model.config
    width = config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    assert tokens >= BLOCK and models.bytes() - before >= tokens * width * 2 * 4
    models.budget_bytes = models.bytes() - 1
    models.get(chat_models.parse(f"base:{named.base}"))
    assert loaded.prompts.prompts == [] and named.name in models.models, "The model stays."


def test_a_stop_leaves_the_rest_of_a_long_prompt_unread(variants: list[Any]) -> None:
    looks: list[int] = []

    def is_over() -> bool:
        looks.append(1)
        return len(looks) > 2

    read = prompt_cache.read(variants[0], prompt(9 * BLOCK), KeptPrompts(), is_over)
    assert read is not None and read.tokens == read.cache.get_seq_length() == 2 * BLOCK


def test_behind_virtual_tokens_no_prompt_is_kept(variants: list[Any], tokenizer: Any) -> None:
    ask = [{"role": "user", "content": "Hi"}]
    named = chat_models.ModelRef("base:x", "x")
    for virtual, keeps in ((0, True), (4, False)):
        memory = KeptPrompts()
        loaded = chat_models.LoadedModel(variants[0], tokenizer, virtual=virtual, prompts=memory)
        prompts = generate.prepare(loaded, named, ask, SETTINGS).decoding.prompts
        assert prompts is (memory if keeps else None), "its blocks would begin elsewhere"
