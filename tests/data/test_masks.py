"""Eight real chat templates: the mask covers the assistant's tokens and the end of turn, no more.

The expectations are written by hand; ⟦ ⟧ stand around what the loss counts.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lab.data import chat_template
from lab.data.chat_template import IGNORE_INDEX
from lab.data.formats import Example
from lab.errors import LabError

CHAT = Example(
    1,
    messages=(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello you"},
        {"role": "user", "content": "Hello you"},
        {"role": "assistant", "content": "Bye\n\nnow"},
    ),
)
SYSTEM = "Be kind."
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.first and system is defined %}"
    "{{- ' [INST] ' + system + '\n\n' + message['content'] + ' [/INST]' }}{%- else %}"
    "{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)

# name: (template text or file of trl, special tokens, begin, end, without system, with system)
CASES: dict[str, tuple[str, list[str], str, str, str, str]] = {
    "llama3": (
        "llama3.jinja",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello you<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nHello you<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Bye\n\nnow<|eot_id|>⟧",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello you<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nHello you<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Bye\n\nnow<|eot_id|>⟧",
    ),
    "qwen3": (  # the last answer begins with the empty thought that the model itself writes
        "qwen3.jinja",
        ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello you<|im_end|>⟧\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>\n\n</think>\n\nBye\n\nnow<|im_end|>⟧\n",
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello you<|im_end|>⟧\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>\n\n</think>\n\nBye\n\nnow<|im_end|>⟧\n",
    ),
    "gemma": (
        "gemma.jinja",
        ["<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<end_of_turn>",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n"
        "<start_of_turn>model\n⟦Hello you<end_of_turn>⟧\n"
        "<start_of_turn>user\nHello you<end_of_turn>\n"
        "<start_of_turn>model\n⟦Bye\n\nnow<end_of_turn>⟧\n",
        "System role not supported",
    ),
    "phi3": (
        "phi3.jinja",
        ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "<s>",
        "<|endoftext|>",
        "<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello you<|end|>⟧\n"
        "<|user|>\nHello you<|end|>\n<|assistant|>\n⟦Bye\n\nnow<|end|>⟧\n<|endoftext|>",
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello you<|end|>⟧\n"
        "<|user|>\nHello you<|end|>\n<|assistant|>\n⟦Bye\n\nnow<|end|>⟧\n<|endoftext|>",
    ),
    "smollm2": (
        "",
        [],
        "",
        "",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello you<|im_end|>⟧\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\n⟦Bye\n\nnow<|im_end|>⟧\n",
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello you<|im_end|>⟧\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\n⟦Bye\n\nnow<|im_end|>⟧\n",
    ),
    "chatml": (
        CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello you<|im_end|>⟧\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\n⟦Bye\n\nnow<|im_end|>⟧\n",
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello you<|im_end|>⟧\n"
        "<|im_start|>user\nHello you<|im_end|>\n<|im_start|>assistant\n⟦Bye\n\nnow<|im_end|>⟧\n",
    ),
    "zephyr": (
        ZEPHYR,
        [],
        "<s>",
        "</s>",
        "<|user|>\nHi</s>\n<|assistant|>\n⟦Hello you</s>⟧\n"
        "<|user|>\nHello you</s>\n<|assistant|>\n⟦Bye\n\nnow</s>⟧\n",
        "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n⟦Hello you</s>⟧\n"
        "<|user|>\nHello you</s>\n<|assistant|>\n⟦Bye\n\nnow</s>⟧\n",
    ),
    "mistral": (
        MISTRAL,
        [],
        "<s>",
        "</s>",
        "<s> [INST] Hi [/INST]⟦ Hello you</s>⟧ [INST] Hello you [/INST]⟦ Bye\n\nnow</s>⟧",
        "<s> [INST] Be kind.\n\nHi [/INST]⟦ Hello you</s>⟧"
        " [INST] Hello you [/INST]⟦ Bye\n\nnow</s>⟧",
    ),
}


def dressed(tokenizer: Any, name: str) -> Any:
    """SmolLM2's tokenizer with the template and the special tokens of another family."""
    source, special, begin, end, *_ = CASES[name]
    changed = copy.deepcopy(tokenizer)
    if source.endswith(".jinja"):
        import importlib.util

        module = importlib.util.find_spec("trl")
        assert module is not None and module.origin is not None
        source = (Path(module.origin).parent / "chat_templates" / source).read_text("utf-8")
    if source:
        changed.add_special_tokens(
            {"bos_token": begin, "eos_token": end, "additional_special_tokens": special}
        )
        changed.chat_template = source
    return changed


def marked(tokenizer: Any, tokens: chat_template.TokenizedExample) -> str:
    """The row's text with ⟦ ⟧ around each run of counted tokens."""
    text, is_open = "", False
    for token, label in zip(tokens.ids, tokens.labels, strict=True):
        if (label != IGNORE_INDEX) != is_open:
            text += "⟧" if is_open else "⟦"
            is_open = not is_open
        text += tokenizer.decode([token])
    return text + ("⟧" if is_open else "")


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_the_mask_covers_the_answers_and_their_ends(tokenizer: Any, name: str, system: str) -> None:
    family = dressed(tokenizer, name)
    expected = CASES[name][5 if system else 4]
    if expected.startswith("System role"):
        with pytest.raises(LabError, match=expected):
            chat_template.tokenize(CHAT, family, system, "assistant", 512)
        return
    sequences = chat_template.tokenize(CHAT, family, system, "assistant", 512)
    if name == "qwen3":  # which writes an answer differently once it is not the last
        first, second = sequences
        opening, mark, _ = expected.partition("⟦")
        assert marked(family, first) == (
            opening + mark + "<think>\n\n</think>\n\nHello you<|im_end|>⟧\n"
        )
        assert marked(family, second) == expected.replace("⟦", "", 1).replace("⟧", "", 1)
    else:
        assert [marked(family, tokens) for tokens in sequences] == [expected]
    (last,) = chat_template.tokenize(CHAT, family, system, "completion", 512)
    assert marked(family, last) == expected.replace("⟦", "", 1).replace("⟧", "", 1)


# not Qwen3, whose earlier thoughts are left out later; and the borrowed tokenizer splits the two
# line breaks of a Llama header by what follows them, which Llama's own does not
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("qwen3", "llama3")])
def test_training_and_asking_agree(tokenizer: Any, name: str) -> None:
    """What stands before the last answer in training is what the model is asked with."""
    family = dressed(tokenizer, name)
    (tokens,) = chat_template.tokenize(CHAT, family, "", "completion", 512)
    prompt = chat_template.render(family, list(CHAT.messages[:-1]), to_answer=True)
    before = [
        token_id
        for token_id, label in zip(tokens.ids, tokens.labels, strict=True)
        if label == IGNORE_INDEX
    ]
    assert (
        family(prompt, add_special_tokens=False)["input_ids"]
        == before[: len(family(prompt, add_special_tokens=False)["input_ids"])]
    )
