"""Each answer is learned under the prompt under which it is asked, and ends where generation stops.

The expectations are written by hand; ⟦ ⟧ stand around what the loss counts. For the templates of
trl that mark the answers themselves, transformers' own mask is the oracle.
"""

from __future__ import annotations

import copy
import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import trl

from lab.data import answers, chat_template, rendering, sandbox, stop_tokens
from lab.data.chat_template import IGNORE_INDEX
from lab.data.formats import Example
from lab.errors import LabError
from tests.data.test_masks import marked

TRL = Path(trl.__file__).parent / "chat_templates"
ROW = "{% for m in messages %}"
END = "{% endfor %}"


@pytest.fixture
def tokenizer(byte_tokenizer: Any) -> Any:
    return byte_tokenizer


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def bot(content: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def prompt(text: str) -> str:
    return "{% if add_generation_prompt %}" + text + "{% endif %}"


# keeps the last thought and drops older ones
THINKING = (
    ROW + "{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}{% set t = m.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m.content else m.reasoning_content|default('') %}"
    "<r>assistant\n<think>\n{{ t }}\n</think>\n\n{{ c }}</e>{% else %}<r>assistant\n{{ c }}</e>"
    "{% endif %}{% else %}<r>{{ m.role }}\n{{ m.content }}</e>{% endif %}\n"
    + END + prompt("<r>assistant\n")
)  # fmt: skip
PLAIN = ROW + "<r>{{ m.role }}\n{{ m.content }}</e>" + END + prompt("<r>assistant\n")
TWO = [user("a b"), bot("c"), user("d"), bot("e f")]
THOUGHT = "<think>\nSo.\n</think>\n\nc"

# name: (template, chat, what is learned of each example)
CASES: dict[str, tuple[str, list[dict[str, Any]], list[str]]] = {
    "no end behind an answer": (
        ROW + "<r>{{ m.role }}:{{ m.content }}" + END + prompt("<r>assistant:"),
        TWO,
        ["<r>user:a b<r>assistant:⟦c</e>⟧",
         "<r>user:a b<r>assistant:c<r>user:d<r>assistant:⟦e f</e>⟧"],
    ),
    "no end behind the last answer only": (
        ROW + "<r>{{ m.role }}:{{ m.content }}{{ '</e>' if m.role == 'user' or not loop.last }}"
        + END + prompt("<r>assistant:"),
        [user("a b"), bot("c"), user("d"), bot("e f ")],
        ["<r>user:a b</e><r>assistant:⟦c</e>⟧<r>user:d</e><r>assistant:⟦e f </e>⟧"],
    ),
    "only a line break behind an answer": (
        ROW + "{{ m.role }}: {{ m.content }}\n" + END + prompt("assistant: "),
        [user("a b"), bot("c")],
        ["user: a b\nassistant: ⟦c</e>⟧"],
    ),
    "an end behind every turn but the last": (
        ROW + "<r>{{ m.role }}:{{ m.content }}{{ '</e>' if not loop.last }}" + END
        + prompt("<r>assistant:"),
        TWO,
        ["<r>user:a b<r>assistant:⟦c</e>⟧",
         "<r>user:a b</e><r>assistant:c</e><r>user:d<r>assistant:⟦e f</e>⟧"],
    ),
    "two tokens close an answer": (
        ROW + "<r>{{ m.role }}\n{{ m.content }}{{ '<s>' if m.role == 'assistant' }}</e>" + END
        + prompt("<r>assistant\n"),
        TWO,
        ["<r>user\na b</e><r>assistant\n⟦c<s></e>⟧<r>user\nd</e><r>assistant\n⟦e f<s></e>⟧"],
    ),
    "the first word and a blank are one token": (
        ROW + "{{ m.role|upper }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n" + END
        + prompt("ASSISTANT: "),
        [user("Good?"), bot("positive")],
        ["USER: Good?\nASSISTANT:⟦ positive</e>⟧\n"],
    ),
    "the template trims": (
        ROW + "{% if m.role == 'user' %}[I] {{ m.content.strip() }} [/I]{% else %} "
        "{{ m.content.strip() }} </e>{% endif %}" + END,
        [user("Hi "), bot(" Hello.\n")],
        ["[I] Hi [/I]⟦ Hello. </e>⟧"],
    ),
    "a thought": (
        THINKING, [user("a"), bot(THOUGHT)],
        ["<r>user\na</e><r>assistant\n⟦<think>\nSo.\n</think>\n\nc</e>⟧"],
    ),
    "a thought beside the content": (
        THINKING, [user("a"), bot("c", thinking="So.")],
        ["<r>user\na</e><r>assistant\n⟦<think>\nSo.\n</think>\n\nc</e>⟧"],
    ),
    "thoughts that are dropped later": (
        THINKING, [user("a"), bot(THOUGHT), user("b"), bot("<think>\nNo.\n</think>\n\nd")],
        ["<r>user\na</e><r>assistant\n⟦<think>\nSo.\n</think>\n\nc</e>⟧",
         "<r>user\na</e><r>assistant\nc</e><r>user\nb</e><r>assistant\n"
         "⟦<think>\nNo.\n</think>\n\nd</e>⟧"],
    ),
    "thoughts that are always dropped": (
        ROW + "<r>{{ m.role }}\n{{ m.content.split('</think>')[-1].strip() }}</e>" + END
        + prompt("<r>assistant\n<think>\n"),
        [user("a"), bot(THOUGHT)],
        ["<r>user\na</e><r>assistant\n<think>\n⟦So.\n</think>\n\nc</e>⟧"],
    ),
    "the system prompt moves": (
        "{% set s = messages[0].content %}" + ROW + "{% if m.role == 'user' %}[I] "
        "{{ s + '\n' if loop.last }}{{ m.content }}[/I]{% elif m.role == 'assistant' %} "
        "{{ m.content }}</e>{% endif %}" + END,
        [{"role": "system", "content": "Be."}, *TWO],
        ["[I] Be.\na b[/I]⟦ c</e>⟧", "[I] a b[/I] c</e>[I] Be.\nd[/I]⟦ e f</e>⟧"],
    ),
    "the prompt opens a thought that the row lacks": (
        PLAIN.replace("<r>assistant\n{% endif", "<r>assistant\n<think>\n{% endif"),
        [user("a"), bot("<b>c</b>")],
        ["<r>user\na</e><r>assistant\n⟦<b>c</b></e>⟧"],
    ),
    "an answer that spells the end": (
        PLAIN, [user("a</e>"), bot("b</e>c"), user("d"), bot("e</e>")],
        ["<r>user\na</e></e><r>assistant\n⟦b</e>c</e>⟧<r>user\nd</e><r>assistant\n⟦e</e></e>⟧"],
    ),
    "words that run into each other": (
        ROW + "{{ m.content }}{{ '</e>' if m.role == 'assistant' }}" + END,
        [user("con"), bot("tent"), user("in"), bot("form")],
        ["con⟦tent</e>⟧in⟦form</e>⟧"],
    ),
    "two turns of a role, and an answer that is not learned": (
        PLAIN, [user("a"), user("b"), bot("c", learn=False), bot("d")],
        ["<r>user\na</e><r>user\nb</e><r>assistant\nc</e><r>assistant\n⟦d</e>⟧"],
    ),
    "code and scripts of the world": (
        PLAIN, [user("כתוב\tקוד"), bot("def f():\n    return '日本'\n\n"), user("да"), bot("👍🏽 हाँ")],  # noqa: E501
        ["<r>user\nכתוב\tקוד</e><r>assistant\n⟦def f():\n    return '日本'\n\n</e>⟧"
         "<r>user\nда</e><r>assistant\n⟦👍🏽 हाँ</e>⟧"],
    ),
    "contents as parts": (
        ROW + "<r>{{ m.role }}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% endif %}{% endfor %}</e>" + END + prompt("<r>assistant"),
        TWO, ["<r>usera b</e><r>assistant⟦c</e>⟧<r>userd</e><r>assistant⟦e f</e>⟧"],
    ),
    "no word about whether there are tools": (
        "{% for t in tools %}{{ t }}{% endfor %}" + PLAIN,
        TWO[:2], ["<r>user\na b</e><r>assistant\n⟦c</e>⟧"],
    ),
}  # fmt: skip


def with_template(tokenizer: Any, template: Any, special: tuple[str, ...] = ("<r>", "<s>")) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens(
        {"eos_token": "</e>", "pad_token": "</e>", "additional_special_tokens": list(special)}
    )
    changed.chat_template = template
    return changed


def spelled(tokenizer: Any, tokens: Any) -> str:
    """As `marked`, each run decoded as a whole: a letter may take several tokens."""
    text, ids, is_counted = "", [], False
    for token, label in [*zip(tokens.ids, tokens.labels, strict=True), (None, None)]:
        if ids and (token is None or (label != IGNORE_INDEX) != is_counted):
            words = tokenizer.decode(ids)
            text += f"⟦{words}⟧" if is_counted else words
            ids = []
        is_counted = label != IGNORE_INDEX
        ids.append(token)
    return text


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_learned_of_each_kind_of_template(tokenizer: Any, name: str) -> None:
    template, chat, expected = CASES[name]
    family = with_template(tokenizer, template)
    sequences = chat_template.tokenize(
        Example(1, messages=tuple(chat)), family, "", "assistant", 512
    )
    assert [spelled(family, tokens) for tokens in sequences] == expected
    for tokens in sequences:
        ends = [
            tokens.ids[i]
            for i, label in enumerate(tokens.labels)
            if label != IGNORE_INDEX and tokens.labels[i + 1 : i + 2] in ([], [IGNORE_INDEX])
        ]
        assert set(ends) <= set(stop_tokens.ids(family)), "Generation stops where an answer ends."


def test_what_is_told_of_an_example(tokenizer: Any) -> None:
    options = {}
    for name, (template, chat, _) in CASES.items():
        family = with_template(tokenizer, template)
        tokenized = chat_template.tokenize(
            Example(1, messages=tuple(chat)), family, "", "assistant", 512
        )
        options[name] = " ".join(tokenized[0].notes)
    assert "an example for each answer" in options["thoughts that are dropped later"]
    assert "no end token; </e> is added" in options["no end behind an answer"]
    assert (
        "does not begin as the prompt" in options["the prompt opens a thought that the row lacks"]
    )
    assert "<think>" in options["the prompt opens a thought that the row lacks"]
    assert "in its own words" in options["thoughts that are always dropped"]
    assert "in front of which" in options["the system prompt moves"]
    assert "spell the control token </e>" in options["an answer that spells the end"]
    assert options["two tokens close an answer"] == options["a thought"] == ""


CALL = {"type": "function", "function": {"name": "rain", "arguments": {"town": "Oslo"}}}


@pytest.mark.parametrize(
    ("template", "chat", "key"),
    [
        (PLAIN, [user("a"), bot("b", tool_calls=[CALL])], "'tool_calls' of turn 2"),
        (PLAIN, [user("a"), bot("b", reasoning_content="So.")], "'reasoning_content' of turn 2"),
        (ROW + "{{ m.content|upper }}</e>" + END, [user("a"), bot("b")], "words of turn 2"),
        (
            ROW + "{{ m.content if m.role != 'system' }}</e>" + END,
            [{"role": "system", "content": "Be."}, user("a"), bot("b")],
            r"words of turn 1 \(system\): 'Be.'",
        ),
    ],
)
def test_what_a_template_drops_is_refused_by_name(
    tokenizer: Any, template: str, chat: list[dict[str, Any]], key: str
) -> None:
    family = with_template(tokenizer, template)
    with pytest.raises(LabError, match=key) as caught:
        chat_template.tokenize(Example(1, messages=tuple(chat)), family, "", "assistant", 512)
    assert "loss_on" not in str(caught.value), "Nobody is led to learn the user's words."


def test_tool_calls_and_tools_are_learned_as_the_template_writes_them(tokenizer: Any) -> None:
    family = with_template(tokenizer, (TRL / "qwen3_training.jinja").read_text("utf-8"))
    family.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chat = [user("Rain?"), bot("Let me look.", tool_calls=[CALL]),
            {"role": "tool", "content": "yes"}, bot("It rains.")]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {}}}]
    spans = list(answers.pieces(family, chat, tools, [1, 3]))
    words = [piece.text[start:end] for piece in spans for start, end in piece.spans]
    assert words[0].endswith(
        'Let me look.\n<tool_call>\n{"name": "rain", "arguments": {"town": "Oslo"}}\n</tool_call>'
        "<|im_end|>"
    )
    assert words[1].endswith("It rains.<|im_end|>") and '"name": "rain"' in spans[0].text
    silent = with_template(tokenizer, PLAIN)
    with pytest.raises(LabError, match="leaves out 'tools'"):
        list(answers.pieces(silent, [user("a"), bot("b")], tools, [1]))


ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion": "<turn|>", "gemma": "<end_of_turn>", "gemma4": "<turn|>", "glm": "<|user|>",
    "gptoss": "<|return|>", "idefics": "<end_of_utterance>", "smolvlm": "<end_of_utterance>",
    "lfm": "<|im_end|>", "llama": "<|eot_id|>", "llava": "</s>", "nemotron": "<|im_end|>",
    "phi": "<|endoftext|>", "qwen": "<|im_end|>", "muse": "<|eot|>",
}  # fmt: skip
CONTROL = re.compile(
    r"<[|｜][^<>|｜\n{}' ]{1,40}[|｜]>|<(?:start|end)_of_[a-z]+>|<\|[a-z_\"]+>|<[a-z_]+\|>"
    "|</?think>"
)


def of_trl(tokenizer: Any, file: Path) -> Any:
    source = file.read_text("utf-8")
    end = next(
        ENDS[key] for key in sorted(ENDS, key=len, reverse=True) if file.name.startswith(key)
    )
    changed = copy.deepcopy(tokenizer)
    special = sorted({*CONTROL.findall(source)} - {end})
    changed.add_special_tokens(
        {"bos_token": "<bos>", "eos_token": end, "additional_special_tokens": special}
    )
    changed.chat_template = source
    return changed


WITH_MARKS = sorted(TRL.glob("*_training.jinja"))


@pytest.mark.parametrize("file", WITH_MARKS, ids=lambda file: file.stem)
def test_the_mask_is_the_one_that_a_template_marks_itself(tokenizer: Any, file: Path) -> None:
    """It may also mark what the prompt of asking holds already, and what follows the stop."""
    family = of_trl(tokenizer, file)
    for chat in ([user("Hi there"), bot("Hello you")], [user("2+2?"), bot("Quite\n\nfour")]):
        shown = chat
        if file.stem.startswith(("idefics3", "smolvlm", "llava_next")):
            shown = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]
        marks = family.apply_chat_template(
            shown, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
        )
        theirs = family.decode(
            [i for i, m in zip(marks["input_ids"], marks["assistant_masks"], strict=True) if m]
        )
        (tokens,) = chat_template.tokenize(
            Example(1, messages=tuple(chat)), family, "", "assistant", 4096
        )
        ours = family.decode([label for label in tokens.labels if label != IGNORE_INDEX])
        before, parts, after = theirs.partition(ours)
        assert parts, f"{ours!r} is no part of what the template marks: {theirs!r}"
        prompt = rendering.render(family, chat[:1], to_answer=True)
        whole = rendering.render(family, chat)
        common = prompt if whole.startswith(prompt) else whole[: whole.index(ours)]
        assert common.rstrip().endswith(before.rstrip()), "What is marked in front is asked with."
        assert after.strip() in ("", family.eos_token), "Nothing of weight follows the stop."


@pytest.mark.parametrize("file", sorted(TRL.glob("*.jinja")), ids=lambda file: file.stem)
def test_every_answer_of_trls_templates_ends_and_nothing_else_is_learned(
    tokenizer: Any, file: Path
) -> None:
    family = of_trl(tokenizer, file)
    chat = [user("Zebra?"), bot("Otter one"), user("Yak walrus"), bot("Lemur\n\ntwo")]
    stops = set(stop_tokens.ids(family))
    learned = ""
    for tokens in chat_template.tokenize(
        Example(1, messages=tuple(chat)), family, "", "assistant", 4096
    ):
        counted = [i for i, label in enumerate(tokens.labels) if label != IGNORE_INDEX]
        learned += family.decode([tokens.ids[i] for i in counted])
        last = [i for i in counted if i + 1 not in counted]
        assert {tokens.ids[i] for i in last} <= stops, (
            "Each run of counted tokens ends with a stop."
        )
    assert "Zebra" not in learned and "Yak" not in learned
    assert learned.index("Otter one") < learned.index("Lemur\n\ntwo")


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of messages of each rendering."""
    sizes: list[int] = []
    render = sandbox.render

    def counting(source: str, messages: list[Any], **more: Any) -> str:
        sizes.append(len(messages))
        return render(source, messages, **more)

    monkeypatch.setattr(sandbox, "render", counting)
    return sizes


def long_chat(turns: int) -> list[dict[str, Any]]:
    return [(user, bot)[i % 2](f"turn {i} says {i * i}") for i in range(turns)]


def test_a_long_chat_takes_work_in_proportion_to_its_turns(
    tokenizer: Any, renderings: list[int]
) -> None:
    family = with_template(tokenizer, PLAIN)
    work = {}
    for turns in (100, 400):
        renderings.clear()
        (piece,) = answers.pieces(family, long_chat(turns), None, list(range(1, turns, 2)))
        work[turns] = sum(renderings)
        assert [piece.text[start:end] for start, end in piece.spans] == [
            f"turn {i} says {i * i}</e>" for i in range(1, turns, 2)
        ]
    assert work[400] < 5 * work[100], "Four times the turns are four times the rendered messages."


EMPTY_THOUGHT = ROW + "<r>{{ m.role }}\n{{ m.content }}</e>" + END + prompt("<r>assistant\n<t></t>")


def test_a_long_chat_of_an_example_for_each_answer_is_bounded_by_the_length_and_told(
    tokenizer: Any, renderings: list[int]
) -> None:
    """Under a prompt of asking with an empty thought no answer can stand in front of another."""
    family = with_template(tokenizer, EMPTY_THOUGHT)
    chat = Example(1, tuple(long_chat(200)))
    work, examples = {}, {}
    for length in (150, 100_000):
        renderings.clear()
        examples[length] = chat_template.tokenize(chat, family, "", "assistant", length)
        work[length] = sum(renderings)
    assert len(examples[100_000]) == 100, "One for each answer."
    assert len(examples[150]) < 40 and work[150] < work[100_000] / 4, "No more than fits."
    notes = chat_template.ExampleNotes()
    notes.add(chat, examples[100_000])
    tokens = sum(len(example.ids) for example in examples[100_000])
    lines = [line for line in notes.lines() if "example for each answer" in line]
    assert len(lines) == 1 and lines[0].endswith(
        f"(first: row 1; 100 examples, which repeat the turns before each answer: {tokens:,} "
        "tokens in all)."
    )


def test_a_long_chat_sees_what_a_template_does_to_earlier_turns(tokenizer: Any) -> None:
    family = with_template(tokenizer, THINKING)
    chat = long_chat(60)
    chat[41] = bot("<think>\nDeep.\n</think>\n\nturn 41")
    pieces = list(answers.pieces(family, chat, None, list(range(1, 60, 2))))
    assert len(pieces) == 30, "One for each answer."
    deep = pieces[20]
    assert deep.text[slice(*deep.spans[0])] == "<think>\nDeep.\n</think>\n\nturn 41</e>"
    short = chat_template.tokenize(Example(1, messages=tuple(chat)), family, "", "assistant", 64)
    assert 2 < len(short) < 30 and short[0].num_loss_tokens, "None where no answer would be left."


def test_of_several_templates_the_default_is_taken(tokenizer: Any) -> None:
    family = with_template(tokenizer, {"default": PLAIN, "tool_use": "{{ tools }}" + PLAIN})
    (tokens,) = chat_template.tokenize(Example(1, messages=tuple(TWO)), family, "", "assistant", 99)
    assert spelled(family, tokens).startswith("<r>user\na b</e><r>assistant\n⟦c</e>⟧")
    family.chat_template = {"rag": PLAIN, "tool_use": PLAIN}
    for ask in (
        lambda: chat_template.set_chat_template(family),
        lambda: rendering.render(family, TWO),
    ):
        with pytest.raises(LabError, match="2 chat templates and no default: rag, tool_use"):
            ask()


def test_arguments_and_the_date_reach_every_rendering(tokenizer: Any) -> None:
    family = with_template(
        tokenizer,
        "{{ strftime_now('%d %B %Y') }}{{ ' short' if style == 'short' }}" + PLAIN
        + "{{ '<think></think>' if add_generation_prompt and enable_thinking is false }}",
    )  # fmt: skip
    before = chat_template.fingerprint(family, "", "assistant")
    rendering.configure(
        family, args={"style": "short", "enable_thinking": False}, date="2024-02-29"
    )
    text = rendering.render(family, TWO[:1], to_answer=True)
    assert text.startswith("29 February 2024 short") and text.endswith("<think></think>")
    assert chat_template.fingerprint(family, "", "assistant") != before
    assert copy.deepcopy(family) and rendering.settings_of(copy.deepcopy(family)).date
    for args in ({"messages": 1}, {"add_generation_prompt": True}, {"a b": 1}):
        with pytest.raises(LabError, match="cannot be set"):
            rendering.configure(family, args=args)
    with pytest.raises(LabError, match="is not a date"):
        rendering.configure(family, date="soon")


@pytest.mark.parametrize(
    ("template", "model_stops", "expected"),
    [
        (PLAIN, [], ["</e>"]),
        (PLAIN.replace("</e>", "</e><s>"), [], ["</e>"]),
        (PLAIN.replace("</e>", "<s>"), [], ["<s>", "</e>"]),
        (PLAIN.replace("</e>", "<r><s>"), [], ["<s>", "</e>"]),
        (PLAIN.replace("</e>", "<s>"), ["<s>"], ["</e>", "<s>"]),
        (PLAIN.replace("</e>", "!"), ["<r>"], ["</e>", "<r>"]),
        (PLAIN.replace("</e>", "<s>\n") + "</e>", [], ["<s>", "</e>"]),
    ],
)
def test_where_a_turn_ends(
    tokenizer: Any, template: str, model_stops: list[str], expected: list[str]
) -> None:
    family = with_template(tokenizer, template)
    rendering.configure(family, stop_ids=tuple(family.convert_tokens_to_ids(model_stops)))
    assert sorted(family.convert_ids_to_tokens(stop_tokens.ids(family))) == sorted(expected)


def test_no_cache_holds_a_tokenizer(tokenizer: Any) -> None:
    family = with_template(tokenizer, PLAIN)
    chat_template.tokenize(Example(1, messages=tuple(TWO)), family, "", "assistant", 99)
    held = weakref.ref(family)
    del family
    gc.collect()
    assert held() is None, "A tokenizer of each look at a file would fill the memory."


def test_everything_is_counted_where_it_is_asked_for(tokenizer: Any) -> None:
    family = with_template(tokenizer, CASES["no end behind an answer"][0])
    first, second = chat_template.tokenize(Example(1, messages=tuple(TWO)), family, "", "all", 512)
    assert marked(family, first) == "<r>⟦user:a b<r>assistant:c</e>⟧"
    assert marked(family, second).endswith("assistant:e f</e>⟧")
