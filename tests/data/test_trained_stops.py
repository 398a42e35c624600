"""A trained model stops: a tiny one of each kind of chat template, in full and as an adapter, by
chat and by plain `generate()` on what it saves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.settings import GenerationSettings
from lab.export.merge import merge
from tests.conftest import run_here, write_rows

ANSWER, STEPS = "It is positive", 60
TURNS, TURNS_END = "{% for m in messages %}", "{% endfor %}"
ROLE = "<|{{ m.role }}|>{{ m.content }}"
ROLES = ["<|user|>", "<|assistant|>"]


def ask(prompt: str) -> str:
    return "{% if add_generation_prompt %}" + prompt + "{% endif %}"


# kind: (data.template, the tokenizer's own template, its end, its other special tokens)
KINDS: dict[str, tuple[str, str | None, str, list[str]]] = {
    "plain": ("plain", None, "</s>", []),
    "alpaca": ("alpaca", None, "</s>", []),
    "zephyr": ("zephyr", None, "</s>", []),
    "chatml": ("chatml", None, "</s>", []),
    "chatml with its tokens": ("chatml", None, "</s>", ["<|im_start|>", "<|im_end|>"]),
    "none": ("auto", None, "</s>", []),
    "an end that is not the tokenizer's": (
        "auto",
        f"{TURNS}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{TURNS_END}"
        + ask("<|im_start|>assistant\n"),
        "</s>",
        ["<|im_start|>", "<|im_end|>"],
    ),
    "no end": ("auto", f"{TURNS}{ROLE}{TURNS_END}{ask('<|assistant|>')}", "</s>", ROLES),
    "the next role ends": (
        "auto", f"{TURNS}{ROLE}{TURNS_END}{ask('<|assistant|>')}", "<|user|>", ["<|assistant|>"],
    ),
    "two tokens end": (
        "auto",
        f"{TURNS}<t>{{{{ m.role }}}}\n{{{{ m.content }}}}<s><e>\n{TURNS_END}"
        + ask("<t>assistant\n"),
        "</s>",
        ["<t>", "<s>", "<e>"],
    ),
    "a further end of the last turn": (
        "auto",
        f"{TURNS}{ROLE}<|end|>{TURNS_END}{{% if add_generation_prompt %}}<|assistant|>"
        "{% else %}{{ eos_token }}{% endif %}",
        "</s>",
        [*ROLES, "<|end|>"],
    ),
    "the prompt has an empty thought": (
        "auto",
        f"{TURNS}{ROLE}<|e|>{TURNS_END}{ask('<|assistant|><think></think>')}",
        "</s>",
        [*ROLES, "<|e|>", "<think>", "</think>"],
    ),
    "the last answer has an empty thought": (
        "auto",
        TURNS + "<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>"
        "\n\n{% endif %}{{ m.content }}<|e|>" + TURNS_END + ask("<|assistant|>"),
        "</s>",
        [*ROLES, "<|e|>"],
    ),
    "channels": (
        "auto",
        TURNS + "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>"
        "{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}" + TURNS_END
        + ask("<|start|>assistant"),
        "<|return|>",
        ["<|start|>", "<|end|>", "<|channel|>", "<|message|>"],
    ),
}  # fmt: skip


def make_base(folder: Path, tokenizer: Any, kind: str) -> None:
    """One layer. Its frozen head must be able to say any token: with weights of the usual size and
    so few dimensions no hidden state makes one token likely, whatever an adapter learns."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    _, template, end, special = KINDS[kind]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"eos_token": end, "additional_special_tokens": special})
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.3, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# which end is learned does not depend on the method: an adapter has to learn one of its own and one
# that the model had, and to say them when it is merged
WITH_ADAPTER = ("plain", "chatml with its tokens", "the next role ends", "channels")
CASES = [(kind, "full") for kind in KINDS] + [(kind, "lora") for kind in WITH_ADAPTER]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_trained_answer_ends(kind: str, method: str, byte_tokenizer: Any, tmp_path: Path) -> None:
    make_base(tmp_path / "base", byte_tokenizer, kind)
    questions = [{"role": "user", "content": text} for text in ("Hello", "you in", "is it", "form")]
    answer = {"role": "assistant", "content": ANSWER}
    chats = [[question, answer] for question in questions]
    chats += [[*chats[i - 1], *chat] for i, chat in enumerate(chats)]
    write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    options = {"rank": 16, "target_modules": "all-linear"} if method == "lora" else {}
    run = run_here(
        {
            "model": str(tmp_path / "base"),
            "method": {"name": method, **options},
            "data": {
                "dataset": str(tmp_path / "chats.jsonl"),
                "eval_fraction": 0,
                "max_length": 192,
                "packing": "off",
                "template": KINDS[kind][0],
            },
            "train": {
                "batch_size": 8,
                "max_steps": STEPS,
                "learning_rate": 2e-2,
                "save_steps": 0,
                "sample_steps": 0,
                "precision": "float32",
            },
        }
    )
    named = chat_models.parse(f"run:{run.id}")
    loaded = chat_models.load(named)
    for chat in (chats[2], chats[5]):  # one turn, two turns
        reply = generate.answer(loaded, named, chat[:-1], GenerationSettings(max_new_tokens=40))
        assert reply.finish == "stop", f"It goes on: {reply.text!r}"
        assert reply.text.endswith(ANSWER)
    folder = run.artifact
    if method == "lora":
        folder = tmp_path / "merged"
        merge(run, folder)
    assert_generate_stops(folder, chats[2][:-1])


def assert_generate_stops(folder: Path, messages: list[dict[str, str]]) -> None:
    """Plain transformers, which knows the files alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    ids = ids[prompt["input_ids"].shape[1] :]
    assert len(ids) < 40, f"generate() goes on: {tokenizer.decode(ids)!r}"
    assert tokenizer.decode(ids, skip_special_tokens=True).strip().endswith(ANSWER)
