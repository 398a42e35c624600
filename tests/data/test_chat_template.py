"""The mask covers exactly what the assistant says, its end-of-turn token included."""

from __future__ import annotations

from typing import Any

import pytest

from lab.data import chat_template
from lab.data.chat_template import IGNORE_INDEX, TokenizedExample
from lab.data.example_reader import Example
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


def learned(tokenizer: Any, tokens: TokenizedExample) -> str:
    return str(tokenizer.decode([label for label in tokens.labels if label != IGNORE_INDEX]))


def rows(
    tokenizer: Any, loss_on: str, *, system: str = "Be kind.", length: int = 512
) -> TokenizedExample:
    (tokens,) = chat_template.tokenize(CHAT, tokenizer, system, loss_on, length)
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
    assert everything.labels == [IGNORE_INDEX, *everything.ids[1:]]


def test_without_a_system_prompt_the_template_injects_its_own(tokenizer: Any) -> None:
    assert "named SmolLM" in tokenizer.decode(rows(tokenizer, "all", system="").ids)


def test_a_system_turn_of_the_row_wins(tokenizer: Any) -> None:
    own = ({"role": "system", "content": "Own."}, *CHAT.messages)
    assert chat_template.with_system(own, "Other.")[0]["content"] == "Own."


def test_cutting_can_leave_nothing_to_learn(tokenizer: Any) -> None:
    tokens = rows(tokenizer, "assistant", length=12)
    assert len(tokens.ids) == 12 and tokens.num_loss_tokens == 0


def test_text_is_cut_into_pieces_that_end_once(tokenizer: Any) -> None:
    pieces = chat_template.tokenize(Example(1, text="word " * 100), tokenizer, "", "all", 32)
    ids = [token for piece in pieces for token in piece.ids]
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert max(len(piece.ids) for piece in pieces) == 32
    assert all(piece.labels[0] == IGNORE_INDEX for piece in pieces)


def test_a_base_model_gets_the_plain_template_with_its_end_token(tokenizer: Any) -> None:
    import copy

    base = copy.deepcopy(tokenizer)
    base.chat_template = None
    assert chat_template.set_chat_template(base) and not chat_template.set_chat_template(base)
    (tokens,) = chat_template.tokenize(CHAT, base, "", "assistant", 512)
    assert learned(base, tokens) == "Hello you<|im_end|>Bye<|im_end|>"


def test_a_template_that_changes_the_words_is_refused(tokenizer: Any) -> None:
    import copy

    odd = copy.deepcopy(tokenizer)
    for words in ("m.content | upper", "m.content | replace('l', 'L')", "m.content[1:]"):
        odd.chat_template = "{% for m in messages %}{{ " + words + " }}{% endfor %}"
        with pytest.raises(LabError, match="changes or leaves out the words of turn") as caught:
            chat_template.tokenize(CHAT, odd, "", "assistant", 512)
        assert "all" not in str(caught.value).split(), "Nobody is led to learn the user's words."
    odd.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(LabError, match="no system turn, please"):
        chat_template.tokenize(CHAT, odd, "", "assistant", 512)


def test_a_template_that_turns_the_chat_round_learns_each_answer_as_it_is_asked(
    tokenizer: Any,
) -> None:
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = (
        "{% for m in messages | reverse %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    first, second = chat_template.tokenize(CHAT, odd, "", "assistant", 512)
    assert learned(odd, first) == "Hello you<|im_end|>"
    assert learned(odd, second) == "Bye<|im_end|>"
    assert odd.decode(second.ids) == "Hello you<|im_end|>" * 2 + "Hi<|im_end|>Bye<|im_end|>"


def test_the_fingerprint_follows_everything_that_matters(tokenizer: Any) -> None:
    first = chat_template.fingerprint(tokenizer, "a", "assistant")
    assert first == chat_template.fingerprint(tokenizer, "a", "assistant")
    assert first != chat_template.fingerprint(tokenizer, "b", "assistant")
    assert first != chat_template.fingerprint(tokenizer, "a", "all")


def test_the_left_side_can_be_cut(tokenizer: Any) -> None:
    (whole,) = chat_template.tokenize(CHAT, tokenizer, "", "assistant", 512)
    (tokens,) = chat_template.tokenize(CHAT, tokenizer, "", "assistant", 12, "left")
    assert tokens.ids == whole.ids[-12:] and tokens.labels[1:] == whole.labels[-11:]
    assert tokens.labels[0] == IGNORE_INDEX and tokens.truncated and not whole.truncated


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
    assert chat_template.set_chat_template(base, name)
    (tokens,) = chat_template.tokenize(CHAT, base, "Be kind.", "assistant", 512)
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
    chat_template.set_chat_template(base, "chatml")
    (tokens,) = chat_template.tokenize(CHAT, base, "", "assistant", 512)
    assert learned(base, tokens) == "Hello you<eos>Bye<eos>" and base.eos_token == "<eos>"


def words_of(words: Any, example: Example, loss_on: str = "assistant", **more: Any) -> str:
    """What is learned of an example, word by word, with the tokens between as dots."""
    (tokens,) = chat_template.tokenize(example, words, "", loss_on, 64, **more)
    shown = words.convert_ids_to_tokens(tokens.ids)
    pairs = zip(shown, tokens.labels, strict=True)
    return " ".join(word if label != IGNORE_INDEX else "." for word, label in pairs)


TALK = Example(
    3,
    messages=(
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3 w4"},
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "w6"},
    ),
)


def test_which_words_count_word_by_word(words: Any) -> None:
    assert words_of(words, TALK) == ". . . . . w3 w4 <|end|> . . . . w6 <|end|>"
    assert words_of(words, TALK, "completion") == ". . . . . . . . . . . . w6 <|end|>"
    assert words_of(words, TALK, "all") == (
        ". w1 w2 <|end|> <|turn|> w3 w4 <|end|> <|turn|> w5 <|end|> <|turn|> w6 <|end|>"
    ), "the first token is never predicted"


def test_what_the_model_writes_before_its_words_counts_too(words: Any) -> None:
    """A template that puts something between the generation prompt and the answer."""
    words.chat_template = (
        "{% for m in messages %}{{ '<|turn|> ' }}"
        "{{ 'w80 ' if m.role == 'assistant' else '' }}{{ m.content + ' <|end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn|> ' }}{% endif %}"
    )
    assert words_of(words, TALK, "completion").endswith(". w80 w6 <|end|>")


def test_of_two_end_tokens_the_longer_one_ends_the_turn(words: Any) -> None:
    """<|end|> may begin another token's text: the whole token is the end."""
    words.add_special_tokens({"additional_special_tokens": ["<|end|>!"]})
    words.chat_template = words.chat_template.replace("<|end|>", "<|end|>!")
    text = words_of(words, TALK, "completion")
    assert text.endswith(". w6 <|end|>!")


def test_each_side_of_a_cut(words: Any) -> None:
    for length, right, left in (
        (14, False, False),
        (13, True, True),
    ):
        (one,) = chat_template.tokenize(TALK, words, "", "assistant", length)
        (other,) = chat_template.tokenize(TALK, words, "", "assistant", length, "left")
        assert (one.truncated, other.truncated) == (right, left), (
            f"fourteen tokens, {length} allowed"
        )
        assert len(one.ids) == len(other.ids) == length and one.record_number == 3
    # cut within the words: the first of them is not predicted any more
    (cut,) = chat_template.tokenize(TALK, words, "", "assistant", 8, "left")
    assert words.convert_ids_to_tokens(cut.ids)[0] == "w4"
    assert cut.labels[0] == IGNORE_INDEX and cut.num_loss_tokens == 3


def test_tokens_of_its_own_are_written_by_the_template_only(words: Any) -> None:
    """A tokenizer that begins every text with a token must not begin a chat with it twice."""
    from tokenizers.processors import TemplateProcessing

    words.bos_token = "w90"
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="w90 $A", special_tokens=[("w90", 92)]
    )
    (tokens,) = chat_template.tokenize(TALK, words, "", "assistant", 64)
    assert words.convert_ids_to_tokens(tokens.ids)[:2] == ["<|turn|>", "w1"]
    (text,) = chat_template.tokenize(Example(1, text="w1 w2"), words, "", "all", 64)
    assert words.convert_ids_to_tokens(text.ids) == ["w90", "w1", "w2", "<|end|>"]
    (piece,) = chat_template.tokenize(Example(1, text="w1", goes_on=True), words, "", "all", 64)
    assert words.convert_ids_to_tokens(piece.ids) == ["w90", "w1"], "no end where it goes on"


@pytest.mark.parametrize(
    "change",
    [
        ("chat_template", "{{ messages }}"), ("eos_token", "w1"), ("pad_token", "w1"),
    ],
)  # fmt: skip
def test_the_fingerprint_sees_each_part(words: Any, change: tuple[str, str]) -> None:
    before = chat_template.fingerprint(words, "", "assistant")
    setattr(words, *change)
    assert chat_template.fingerprint(words, "", "assistant") != before


def test_a_tokenizer_keeps_its_own_template_unless_another_is_chosen(words: Any) -> None:
    own = words.chat_template
    assert not chat_template.set_chat_template(words) and words.chat_template == own
    assert (
        chat_template.set_chat_template(words, "zephyr")
        and words.chat_template == chat_template.ZEPHYR_TEMPLATE
    )
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert chat_template.set_chat_template(words, "chatml")
    assert words.eos_token == "<|im_end|>", "what the template ends with ends a generation"


def test_two_tokenizers_and_two_templates_never_share_a_frame(words: Any) -> None:
    """What is known of a template may not outlive it."""
    first = words_of(words, TALK)
    words.chat_template = words.chat_template.replace("<|turn|> ", "<|turn|> w70 ")
    second = words_of(words, TALK)
    assert first != second and second == (". . . . . . . w3 w4 <|end|> . . . . . . w6 <|end|>")


def test_a_template_that_answers_the_words_of_a_turn_is_learned_as_it_is_rendered(
    words: Any,
) -> None:
    """It writes w99 behind a turn that says w2: what is in front of an answer is not learned."""
    words.chat_template = (
        "{% for m in messages %}{{ '<|turn|> ' + m.content }}"
        "{{ ' w90' if 'w2' in m.content else '' }}{{ ' <|end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn|> ' }}{% endif %}"
    )
    assert words_of(words, TALK) == ". . . . . . w3 w4 <|end|> . . . . w6 <|end|>"
