"""Templates of many families, each with conversations of many kinds, against an oracle of its own:
the renderings of transformers and the words of the turns.

The templates are short ones of the lab's own, each with what is peculiar to a family.
"""

# ruff: noqa: E501 (templates and conversations are more readable on one line)
from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from lab.data import chat_template, rendering, stop_tokens
from lab.data.chat_template import IGNORE_INDEX
from lab.data.formats import Example
from lab.errors import LabError
from tests.data.test_answers import bot, spelled, user

ROWS, END = "{% for m in messages %}", "{% endfor %}"
ASK = "{% if add_generation_prompt %}"
FI = "{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
)
THINKS = (
    "{% set t = m.reasoning_content|default('', true) %}{% set c = m.content %}"
    "{% if not t and '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}"
)
CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
)
TOOLS = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"

# family: (template, end token, further control tokens)
FAMILIES: dict[str, tuple[str, str, str]] = {
    "instruct (the words of the system in the first turn)": (
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}" + ALTERNATE
        + "{{ bos_token }}" + ROWS + "{% if m.role == 'user' %}[INST] {{ s if loop.first }}"
        "{{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}"
        "{% endif %}" + END, "</s>", "",
    ),
    "colons": (
        ROWS + "{{ m.role|upper }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n"
        + END + ASK + "ASSISTANT: " + FI, "</s>", "",
    ),
    "colons, no blank behind": (
        ROWS + "{{ m.role|capitalize }}: {{ m.content }}\n\n" + END + ASK + "Assistant:" + FI,
        "<eos>", "",
    ),
    "headings": (
        ROWS + "{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}{{ eos_token }}\n\n"
        "{% else %}{{ m.content }}\n\n{% endif %}" + END + ASK + "### Response:\n" + FI, "</s>", "",
    ),
    "im_start": (
        TOOLS + ROWS + "<|im_start|>{{ m.role }}\n{{ m.content }}" + CALLS + "<|im_end|>\n" + END
        + ASK + "<|im_start|>assistant\n" + FI, "<|im_end|>", "<|im_start|>",
    ),
    "im_sep, nothing between turns": (
        ROWS + "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>" + END + ASK
        + "<|im_start|>assistant<|im_sep|>" + FI, "<|im_end|>", "<|im_start|> <|im_sep|>",
    ),
    "headers": (
        "{{ bos_token }}" + TOOLS + ROWS + "<|head|>{{ m.role }}<|/head|>\n\n{{ m.content|trim }}"
        + CALLS + "<|eot|>" + END + ASK + "<|head|>assistant<|/head|>\n\n" + FI,
        "<|eot|>", "<|head|> <|/head|>",
    ),
    "turns of a model": (
        ALTERNATE + ROWS + "<start>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end>\n" + END + ASK + "<start>model\n" + FI, "<end>", "<start>",
    ),
    "a role ends where the next begins": (
        "[gMASK]<sop>" + ROWS + "<|{{ m.role }}|>\n{{ m.content }}" + END + ASK + "<|assistant|>\n"
        + FI, "<|user|>", "[gMASK] <sop> <|assistant|> <|system|> <|tool|>",
    ),
    "an end behind the last turn only": (
        ROWS + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END + ASK + "<|assistant|>\n"
        "{% else %}{{ eos_token }}" + FI, "<|eos|>",
        "<|end|> <|user|> <|assistant|> <|system|> <|tool|>",
    ),
    "one line a turn": (
        ROWS + "[|{{ m.role }}|]{{ m.content }}{{ '[|eot|]' if m.role == 'assistant' }}\n" + END
        + ASK + "[|assistant|]" + FI, "[|eot|]", "[|user|] [|assistant|]",
    ),
    "an answer in two tokens": (
        ROWS + "<t>{{ m.role }}<x>{% if m.role == 'assistant' %}<r>{{ m.content }}</r>{% else %}"
        "{{ m.content }}{% endif %}<e>" + END + ASK + "<t>assistant<x>" + FI,
        "<e>", "<t> <x> <r> </r>",
    ),
    "thoughts that later turns drop": (
        TOOLS + ROWS + "{% if m.role == 'assistant' %}" + THINKS + "<|im_start|>assistant\n"
        "{% if loop.last %}<think>\n{{ t.strip() }}\n</think>\n\n{% endif %}{{ c.lstrip() }}"
        + CALLS + "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>\n"
        + END + ASK + "<|im_start|>assistant\n" + FI,
        "<|im_end|>", "<|im_start|> <think> </think>",
    ),
    "thoughts that every turn drops": (
        ROWS + "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
        "{% endif %}<|{{ m.role }}|>{{ c }}{{ '<|e|>' if m.role == 'assistant' }}" + END + ASK
        + "<|assistant|><think>\n" + FI, "<|e|>", "<|user|> <|assistant|> <|system|>",
    ),
    "an empty thought to ask with": (
        ROWS + "<|{{ m.role }}|>{{ m.content }}<|e|>" + END + ASK
        + "<|assistant|>{% if not enable_thinking|default(false) %}<think></think>{% endif %}" + FI,
        "<|e|>", "<|user|> <|assistant|> <|system|> <think> </think>",
    ),
    "a thought that is closed where it is not shown": (
        ROWS + "{% if m.role == 'assistant' %}" + THINKS + "<|assistant|>"
        "{{ '<think>' + t + '</think>' if t else '</think>' }}{{ c }}{% else %}<|{{ m.role }}|>"
        "{{ m.content }}{% endif %}" + END + ASK + "<|assistant|><think>" + FI,
        "<|user|>", "<|assistant|> <|system|> <think> </think>",
    ),
    "channels": (
        ROWS + "{% if m.role == 'assistant' %}{% if loop.last and m.thinking %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>{{ m.role }}<|message|>"
        "{{ m.content }}<|end|>{% endif %}" + END + ASK + "<|start|>assistant" + FI,
        "<|return|>", "<|start|> <|end|> <|channel|> <|message|>",
    ),
    "an answer that is never written at the end": (
        ROWS + "{% if m.role == 'assistant' %} Answer:{% if loop.last %}[SEP]{% else %} "
        "{{ m.content }}\n\n{% endif %}{% else %} User: {{ m.content }}\n\n{% endif %}" + END
        + ASK + " Answer:[SEP]" + FI, "</s>", "[SEP]",
    ),
    "the system prompt before the last question": (
        "{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif %}" + ROWS + "{% if m.role == 'user' %}"
        "[INST]{{ s + '\n' if loop.last }}{{ m.content }}[/INST]{% else %} {{ m.content }}</s>"
        "{% endif %}" + END, "</s>", "[INST] [/INST]",
    ),
    "arguments as text": (
        "{{ tools|tojson if tools }}" + ROWS + "<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' '"
        " + c.function.arguments + '</call>' }}{% endfor %}<|e|>" + END + ASK + "<|assistant|>"
        + FI, "<|e|>", "<|user|> <|assistant|> <|tool|> <|system|>",
    ),
    "arguments as Python writes them": (
        "{{ tools|tojson if tools }}" + ROWS + "<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments }}"
        "</call>{% endfor %}<|e|>" + END + ASK + "<|assistant|>" + FI,
        "<|e|>", "<|user|> <|assistant|> <|tool|> <|system|>",
    ),
    "a plan before a call": (
        "{{ tools|tojson if tools }}" + ROWS + "<|{{ m.role }}|>{% if m.tool_calls %}"
        "{{ m.tool_plan }}{{ m.tool_calls|tojson }}{% else %}{{ m.content }}{% endif %}<|e|>" + END
        + ASK + "<|assistant|>" + FI, "<|e|>", "<|user|> <|assistant|> <|tool|> <|system|>",
    ),
    "thoughts as parts": (
        ROWS + "<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for b in m.content %}{% if b['type'] == 'thinking' %}[THINK]{{ b['thinking'] }}"
        "[/THINK]{% else %}{{ b.text }}{% endif %}{% endfor %}{% endif %}</s>" + END + ASK
        + "<|assistant|>" + FI, "</s>", "<|user|> <|assistant|> <|system|>",
    ),
    "a turn goes on behind a call": (
        "{{ tools|tojson if tools }}" + ROWS + "{% if m.role == 'assistant' %}{% if loop.index0 == 0 "
        "or messages[loop.index0 - 1].role != 'tool' %}<turn>model\n{% endif %}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function|tojson }}</call>"
        "{% set i = loop.index0 %}{% endfor %}{% if m.tool_calls and not loop.last %}<result>"
        "{{ messages[loop.index0 + 1].content }}</result>{% endif %}{{ m.content }}"
        "{{ '<end>\n' if not m.tool_calls or messages[loop.index0 + 2] is not defined }}{% elif m.role != 'tool' %}<turn>{{ m.role }}\n"
        "{{ m.content }}<end>\n{% endif %}" + END + ASK
        + "<turn>model\n" + FI, "<end>", "<turn>",
    ),
}  # fmt: skip

TOOL = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}
CALL = {"id": "a1b2c3d4e", "type": "function",
        "function": {"name": "rain", "arguments": {"town": "Oslo", "days": 2}}}  # fmt: skip
SAID = {"role": "tool", "content": "quite wet", "tool_call_id": "a1b2c3d4e", "name": "rain"}
BE = {"role": "system", "content": "Xylo be terse."}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one answer": [user("Zebra?"), bot("Otter one")],
    "two answers": [user("Zebra?"), bot("Otter one"), user("Yak"), bot("Lemur\n\ntwo")],
    "a system prompt": [BE, user("Zebra?"), bot("Otter one"), user("Yak"), bot("Lemur")],
    "blanks": [user("  Zebra? \n"), bot(" Otter\tone \n"), user("\tYak "), bot("\n\nLemur\n\n")],
    "code": [user("Zebra ```py\nx```"), bot("```py\ndef otter():\n    return {'a': 1}\n```\n")],
    "scripts": [user("Zebra 你好 Привет"), bot("日本語 हिन्दी عربى 👍🏽 e\u0301"), user("Yak"), bot("שלום")],
    "control tokens in words": [user("Zebra </s> <|im_end|>"), bot("Otter <|im_end|> <e> one")],
    "a thought": [user("Zebra?"), bot("<think>\nHippo.\n</think>\n\nOtter one")],
    "thoughts": [user("Zebra?"), bot("<think>\nHippo.\n</think>\n\nOtter"), user("Yak"),
                 bot("<think>\nRhino.\n</think>\n\nLemur")],
    "thoughts beside": [user("Zebra?"), bot("Otter", reasoning_content="Hippo."), user("Yak"),
                        bot("Lemur", reasoning_content="Rhino.")],
    "a tool": [user("Zebra?"), bot("", tool_calls=[CALL]), SAID, bot("Otter rains.")],
    "words and a tool": [user("Zebra?"), bot("Otter looks.", tool_calls=[CALL]), SAID,
                         bot("Lemur rains."), user("Yak"), bot("Tapir")],
    "two questions": [user("Zebra?"), user("Yak"), bot("Otter one")],
    "two answers in a row": [user("Zebra?"), bot("Otter one"), bot("Lemur two")],
    "an answer first": [bot("Otter hello"), user("Zebra?"), bot("Lemur two")],
    "a question last": [user("Zebra?"), bot("Otter one"), user("Yak")],
    "the same words": [user("Yes"), bot("Yes"), user("Yes"), bot("Yes")],
    "names of roles": [user("user"), bot("assistant"), user("model"), bot("system")],
    "single characters": [user("Zebra?"), bot("."), user("Yak 1"), bot("7")],
    "one not learned": [user("Zebra?"), bot("Otter one", learn=False), user("Yak"), bot("Lemur")],
    "a system turn between": [user("Zebra?"), bot("Otter one"), BE, user("Yak"), bot("Lemur")],
    "many turns": [(user, bot)[i % 2](f"{('Zebra', 'Otter')[i % 2]} {i * i}") for i in range(32)],
}  # fmt: skip
FOREIGN = ("Zebra", "Yak", "Xylo", "quite wet")


@pytest.fixture(scope="module")
def families(byte_tokenizer: Any) -> dict[str, Any]:
    tokenizers = {}
    for name, (template, end, special) in FAMILIES.items():
        changed = copy.deepcopy(byte_tokenizer)
        changed.add_special_tokens(
            {"bos_token": "<bos>", "eos_token": end, "additional_special_tokens": special.split()}
        )
        changed.chat_template = template
        tokenizers[name] = changed
    return tokenizers


def squeezed(text: str) -> str:
    return "".join(text.split())


def learned_runs(tokens: Any) -> list[tuple[int, list[int]]]:
    """(where it begins, its ids) of each run of counted tokens."""
    runs: list[tuple[int, list[int]]] = []
    for place, label in enumerate(tokens.labels):
        if label == IGNORE_INDEX:
            continue
        if place and tokens.labels[place - 1] != IGNORE_INDEX:
            runs[-1][1].append(label)
        else:
            runs.append((place, [label]))
    return runs


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_answer_is_learned_whole_alone_and_with_its_end(
    families: dict[str, Any], family: str
) -> None:
    tokenizer, num_learned = families[family], 0
    for name, chat in CHATS.items():
        tools = [TOOL] if "tool" in name else None
        try:
            sequences = chat_template.tokenize(
                Example(1, messages=tuple(chat), tools=tools), tokenizer, "", "assistant", 9999
            )
        except LabError as error:
            assert re.search(
                r"leaves out '(tools|tool_calls|reasoning_content)|Roles must alternate"
                r"|leaves out the words of turn \d \((system|tool)\)", str(error)
            ), f"{name}: {error}"  # fmt: skip
            continue
        num_learned += 1
        stops = set(stop_tokens.ids(tokenizer))
        answers = [i for i, m in enumerate(chat) if m["role"] == "assistant" and "learn" not in m]
        runs = [(tokens, *run) for tokens in sequences for run in learned_runs(tokens)]
        notes = " ".join(note for tokens in sequences for note in tokens.notes)
        if name != "two answers in a row":  # with nothing between them they are one run
            assert len(runs) == len(answers), name
        for (tokens, place, ids), index in zip(runs, answers, strict=False):
            text, message = tokenizer.decode(ids), chat[index]
            assert ids[-1] in stops, f"{name}: generation does not stop behind {text!r}."
            words = [*re.split("</?think>", message["content"]), message.get("reasoning_content")]
            for part in filter(None, words):
                first = 1 if place == 1 and index == 0 else 0  # the first token is never predicted
                assert squeezed(part)[first:] in squeezed(text), f"{name}: {text!r} is not whole."
            if "tool_calls" in message:
                assert "rain" in text and "Oslo" in text, f"{name}: no call in {text!r}."
                assert "{'town'" not in text, f"{name}: a call as Python writes it."
            foreign = [word for word in FOREIGN if word in text and word not in str(message)]
            assert foreign == [], f"{name}: {text!r} is not the assistant's alone."
            if index and "prompt of asking does" not in notes:
                asked = rendering.render(tokenizer, chat[:index], to_answer=True, tools=tools)
                before = tokenizer.decode(tokens.ids[:place])
                assert asked.startswith(before) and not asked[len(before) :].strip(), (
                    f"{name}: learned behind {before[-40:]!r}, asked with {asked[-40:]!r}."
                )
    assert num_learned >= 8, "Most conversations can be learned."


@pytest.mark.parametrize(
    ("family", "chat", "learned"),
    [
        ("an empty thought to ask with", "one answer",
         ["<|user|>Zebra?<|e|><|assistant|><think></think>⟦Otter one<|e|>⟧"]),
        ("an empty thought to ask with", "thoughts beside",
         ["<|user|>Zebra?<|e|><|assistant|>⟦<think>\nHippo.\n</think>\n\nOtter<|e|>⟧",
          "<|user|>Zebra?<|e|><|assistant|>Otter<|e|><|user|>Yak<|e|><|assistant|>"
          "⟦<think>\nRhino.\n</think>\n\nLemur<|e|>⟧"]),
        ("a thought that is closed where it is not shown", "one answer",
         ["[gMASK]<sop><|user|>Zebra?<|assistant|><think>⟦</think>Otter one<|user|>⟧"[12:]]),
        ("a thought that is closed where it is not shown", "a thought",
         ["<|user|>Zebra?<|assistant|><think>⟦\nHippo.\n</think>\n\nOtter one<|user|>⟧"]),
        ("channels", "two answers",
         ["<|start|>user<|message|>Zebra?<|end|><|start|>assistant"
          "⟦<|channel|>final<|message|>Otter one<|return|>⟧",
          "<|start|>user<|message|>Zebra?<|end|><|start|>assistant<|channel|>final<|message|>"
          "Otter one<|end|><|start|>user<|message|>Yak<|end|><|start|>assistant"
          "⟦<|channel|>final<|message|>Lemur\n\ntwo<|return|>⟧"]),
        ("an answer that is never written at the end", "one answer",
         [" User: Zebra?\n\n Answer:[SEP]⟦Otter one</s>⟧"]),
        ("thoughts as parts", "thoughts beside",
         ["<|user|>Zebra?</s><|assistant|>⟦[THINK]Hippo.[/THINK]Otter</s>⟧<|user|>Yak</s>"
          "<|assistant|>⟦[THINK]Rhino.[/THINK]Lemur</s>⟧"]),
        ("arguments as Python writes them", "a tool",
         ["⟦<call>rain {\"town\": \"Oslo\", \"days\": 2}</call><|e|>⟧"]),
        ("a plan before a call", "words and a tool", ["<|assistant|>⟦Otter looks.[{"]),
    ],
)  # fmt: skip
def test_what_is_learned_of_what_is_peculiar_to_a_family(
    families: dict[str, Any], family: str, chat: str, learned: list[str]
) -> None:
    tools = [TOOL] if "tool" in chat else None
    sequences = chat_template.tokenize(
        Example(1, messages=tuple(CHATS[chat]), tools=tools), families[family], "", "assistant",
        9999,
    )  # fmt: skip
    shown = [spelled(families[family], tokens) for tokens in sequences]
    if len(learned) == len(shown) and not tools:
        assert shown == learned
    else:
        assert learned[0] in shown[0]
