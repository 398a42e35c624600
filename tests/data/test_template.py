"""The mask covers exactly what the assistant says, its end-of-turn token included."""

from __future__ import annotations

from typing import Any

import pytest

from lab.data import template
from lab.data.rows import Example
from lab.data.template import IGNORED, Tokens
from lab.errors import LabError

CHAT = Example(
    1,
    messages=(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello you"},
        {"role": "user", "content": "Hello you"},
        {"role": "assistant", "content": "Bye"},
    ),
)


def learned(tokenizer: Any, tokens: Tokens) -> str:
    return str(tokenizer.decode([label for label in tokens.labels if label != IGNORED]))


def rows(tokenizer: Any, loss_on: str, *, system: str = "Be kind.", length: int = 512) -> Tokens:
    (tokens,) = template.tokenize(CHAT, tokenizer, system, loss_on, length)
    return tokens


def test_smollm2_assistant_turns(tokenizer: Any) -> None:
    tokens = rows(tokenizer, "assistant")
    assert tokenizer.decode(tokens.ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello you<|im_end|>\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\nBye<|im_end|>\n"
    )
    assert learned(tokenizer, tokens) == "Hello you<|im_end|>Bye<|im_end|>"


def test_completion_counts_the_last_turn_and_all_counts_everything(tokenizer: Any) -> None:
    assert learned(tokenizer, rows(tokenizer, "completion")) == "Bye<|im_end|>"
    everything = rows(tokenizer, "all")
    assert everything.labels == [IGNORED, *everything.ids[1:]]


def test_without_a_system_prompt_the_template_injects_its_own(tokenizer: Any) -> None:
    assert "named SmolLM" in tokenizer.decode(rows(tokenizer, "all", system="").ids)


def test_a_system_turn_of_the_row_wins(tokenizer: Any) -> None:
    own = ({"role": "system", "content": "Own."}, *CHAT.messages)
    assert template.with_system(own, "Other.")[0]["content"] == "Own."


def test_cutting_can_leave_nothing_to_learn(tokenizer: Any) -> None:
    tokens = rows(tokenizer, "assistant", length=12)
    assert len(tokens.ids) == 12 and tokens.counted == 0


def test_text_is_cut_into_pieces_that_end_once(tokenizer: Any) -> None:
    pieces = template.tokenize(Example(1, text="word " * 100), tokenizer, "", "all", 32)
    ids = [token for piece in pieces for token in piece.ids]
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert max(len(piece.ids) for piece in pieces) == 32
    assert all(piece.labels[0] == IGNORED for piece in pieces)


def test_a_base_model_gets_the_plain_template_with_its_end_token(tokenizer: Any) -> None:
    import copy

    base = copy.deepcopy(tokenizer)
    base.chat_template = None
    assert template.ensure_template(base) and not template.ensure_template(base)
    (tokens,) = template.tokenize(CHAT, base, "", "assistant", 512)
    assert learned(base, tokens) == "Hello you<|im_end|>Bye<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    import copy

    odd = copy.deepcopy(tokenizer)
    for words in ("m.content | upper", "m.content | replace('l', 'L')", "m.content[1:]"):
        odd.chat_template = "{% for m in messages %}{{ " + words + " }}{% endfor %}"
        with pytest.raises(LabError, match=r"set data\.loss_on to all"):
            template.tokenize(CHAT, odd, "", "assistant", 512)
    odd.chat_template = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(LabError, match=r"set data\.loss_on to all"):
        template.tokenize(CHAT, odd, "", "assistant", 512)
    odd.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(LabError, match="no system turn, please"):
        template.tokenize(CHAT, odd, "", "assistant", 512)


def test_the_fingerprint_follows_everything_that_matters(tokenizer: Any) -> None:
    first = template.fingerprint(tokenizer, "a", "assistant")
    assert first == template.fingerprint(tokenizer, "a", "assistant")
    assert first != template.fingerprint(tokenizer, "b", "assistant")
    assert first != template.fingerprint(tokenizer, "a", "all")


def test_the_left_side_can_be_cut(tokenizer: Any) -> None:
    (whole,) = template.tokenize(CHAT, tokenizer, "", "assistant", 512)
    (tokens,) = template.tokenize(CHAT, tokenizer, "", "assistant", 12, "left")
    assert tokens.ids == whole.ids[-12:] and tokens.labels[1:] == whole.labels[-11:]
    assert tokens.labels[0] == IGNORED and tokens.cut and not whole.cut


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("chatml", "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi", "<|im_end|>"),
        ("zephyr", "<|system|>\nBe kind.<|endoftext|>\n<|user|>\nHi<|endo", "<|endoftext|>"),
        ("alpaca", "Be kind.\n\n### Instruction:\nHi\n\n### Response:\n", "<|endoftext|>"),
        ("plain", "### System:\nBe kind.\n\n### User:\nHi\n\n### Assist", "<|endoftext|>"),
    ],
)
def test_templates_for_a_base_model(tokenizer: Any, name: str, begin: str, end: str) -> None:
    import copy

    base = copy.deepcopy(tokenizer)
    base.chat_template, base.eos_token = None, "<|endoftext|>"
    assert template.choose(base, name)
    (tokens,) = template.tokenize(CHAT, base, "Be kind.", "assistant", 512)
    assert str(base.decode(tokens.ids)).startswith(begin)
    assert learned(base, tokens) == f"Hello you{end}Bye{end}"
    assert base.eos_token == end, "generation has to end with the token that was learned"


def test_chatml_without_its_tokens_ends_with_the_end_that_the_model_knows() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    base = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    template.choose(base, "chatml")
    (tokens,) = template.tokenize(CHAT, base, "", "assistant", 512)
    assert learned(base, tokens) == "Hello you<eos>Bye<eos>" and base.eos_token == "<eos>"
