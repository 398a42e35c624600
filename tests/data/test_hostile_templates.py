"""Chat templates as programs of strangers: bounded, told clearly, and else as transformers runs
them."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import trl

from lab.data import answers, chat_template, sandbox, work
from lab.data.chat_template import TemplateUnusable
from lab.data.formats import Example
from lab.errors import LabError

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello you"},
    {"role": "user", "content": "one\n two "},
    {"role": "assistant", "content": "Bye"},
]
SYSTEM = [{"role": "system", "content": "Be kind."}, *CHAT]
PARTS = ("idefics3", "smolvlm", "llava_next")
STORED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def with_template(tokenizer: Any, source: Any) -> Any:
    other = copy.copy(tokenizer)
    other.chat_template = source
    return other


def test_every_known_template_renders_as_transformers_renders_it(tokenizer: Any) -> None:
    own = ["{{ messages|tojson(indent=2) }}", "{% generation %}{{ messages }}{% endgeneration %}"]
    own += ["{{ '%5.1f|%s' % (1.5, messages) }}{{ ['a', 1]|join('-') }}{{ 'x'|center(9) }}"]
    own += ["{% for a in [1,2,3]|batch(2, 0) %}{{ a }}{{ loop.last }}{% break %}{% endfor %}"]
    own += ["{{ range(7)|slice(3, 'x')|list }}{{ 'a b'.split() }}{{ '{:>4}'.format('é') }}"]
    own += ["{% set ns = namespace(a='x') %}{% set ns.a = ns.a ~ 1 ~ none ~ nope %}{{ ns.a }}"]
    own += ["{{ 'a\n\nb'|indent(2, true) }}{{ 2.567|round(1) }}{{ {'b': 1, 'a': [2]}|tojson }}"]
    own += [
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') * 2 }}{{ [1, 2]|sum }}{{ bos_token }}"
    ]
    sources = [path.read_text(encoding="utf-8") for path in STORED] + own
    in_parts = {path.read_text("utf-8") for path in STORED if path.stem.startswith(PARTS)}
    assert len(STORED) > 20
    compared = 0
    for source in sources:
        other = with_template(tokenizer, source)
        for messages in (CHAT, SYSTEM, CHAT[:1]):
            shown = messages
            if source in in_parts:  # of images and texts: a content that is a text is not written
                shown = [
                    {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
                    for m in messages
                ]
            for to_answer in (True, False):
                try:
                    expected = other.apply_chat_template(
                        shown, tokenize=False, add_generation_prompt=to_answer
                    )
                except Exception:
                    with pytest.raises(LabError):
                        chat_template.render(other, messages, to_answer=to_answer)
                    continue
                compared += 1
                assert chat_template.render(other, messages, to_answer=to_answer) == expected, (
                    source
                )
    assert compared > 3 * len(sources), "most templates take most chats"


def grown(change: str) -> str:
    return (
        "{% set ns = namespace(x='ab', l=['a'], d={'a': 'b'}, n=3) %}"
        "{% for i in range(60) %}" + change + "{% endfor %}{{ ns.x }}{{ ns.l }}{{ ns.d }}{{ ns.n }}"
    )


LARGE = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [1] * 10**9 }}",
    "{{ 7 ** (10**9) }}",
    "{{ 10**1000 * 10**1000 }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ messages|tojson(separators=('x' * 500000, 'y' * 500000)) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ '%1000000000d' % 5 }}",
    "{{ '%*d' % (10**9, 5) }}",
    "{{ '%1000000000d'|format(5) }}",
    "{{ '{:1000000000}'.format(5) }}",
    "{{ '{:{w}}'.format(5, w=10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ '5'.zfill(10**10) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ ('\n' * 100000)|indent(100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000)|replace('', 'b' * 100000) }}",
    "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "{{ (['a'] * 100000)|join('b' * 100000) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ 5|round(10**9, 'ceil') }}",
    "{{ range(99999)|map('string')|map('center', 99999)|list|length }}",
    "{% macro m(n) %}{% if n < 50 %}{{ m(n+1) }}{{ m(n+1) }}{% endif %}{% endmacro %}{{ m(0) }}",
    "{% set x = range(99999)|list %}{% for i in range(99999) %}{{ 'a' if 99999 in x }}{% endfor %}",
    "{{ strftime_now('%1000000000d') }}",
    grown("{% set ns.x = ns.x ~ ns.x %}"),
    grown("{% set ns.x = ns.x + ns.x %}"),
    grown("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    grown("{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    grown("{% set ns.x = '{0}{0}'.format(ns.x) %}"),
    grown("{% set ns.x = [ns.x, ns.x]|join %}"),
    grown("{% set ns.l = ns.l + ns.l %}"),
    grown("{% set ns.l = [ns.l, ns.l] %}"),
    grown("{% set ns.l = (ns.l, ns.l) %}"),
    grown("{% set ns.l = namespace(a=ns.l, b=ns.l) %}"),
    grown("{% set ns.d = {'a': ns.d, 'b': ns.d} %}"),
    grown("{% set ns.d = dict(a=ns.d, b=ns.d) %}"),
    grown("{% set ns.n = ns.n * ns.n %}"),
]


@pytest.mark.parametrize("source", LARGE)
def test_a_template_that_grows_or_goes_on_is_refused(tokenizer: Any, source: str) -> None:
    began = time.thread_time()
    with pytest.raises(TemplateUnusable, match=r"cannot be used: (it|a filter) .* Choose another"):
        chat_template.render(with_template(tokenizer, source), CHAT)
    assert time.thread_time() - began < 4, "the bounds end it early"


FAILING = [
    ("{{ 1 / 0 }}", "ZeroDivisionError, division by zero"),
    ("{{ 'a' + 5 }}", "TypeError"),
    ("{{ messages[0].nope.nope }}", "has no attribute 'nope'"),
    ("{{ nope() }}", "'nope' is undefined"),
    ("{{ {[]: 1} }}", "unhashable"),
    ("{{ 'a'.split('') }}", "ValueError, empty separator"),
    ("{{ range(10**12) }}", "OverflowError"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "RecursionError"),
    ("{% include 'x' %}", "no loader"),
    ("{{ '\ud800'|urlencode }}", "UnicodeEncodeError"),
    ("{{ '\\ud800' }}", "half of a Unicode pair"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ ''|attr('__class__')|string + 1 }}", "TypeError"),
    ("{{ '{0.__class__.__mro__}'.format('') }}", "unsafe"),
    ("{{ raise_exception('no\x1b[31m\u202e system') }}", "refuses this conversation: no\\x1b[31m"),
    ("{{ 'x'.encode() }}", "unsafe"),
    ("{{ namespace(_x=1) }}", "underscore"),
    ("{{", "cannot be used"),
    ("{% for %}", "cannot be used"),
    ("{{ " + "(" * 5000, "cannot be used: maximum recursion"),
    ("{{ 'a'|wordwrap(1) }}", "No filter named 'wordwrap'"),
    ("{{ 1" + "0" * 5000 + " }}", "Exceeds the limit"),
    ("x" * 200_001, "more than 200,000 characters"),
    (5, "is 5, not text"),
    ([], "not text"),
    ({"tool_use": "x"}, "no default: tool_use"),
    (None, "no chat template to use"),
]


@pytest.mark.parametrize(("source", "says"), FAILING, ids=[str(case[0])[:30] for case in FAILING])
def test_whatever_a_template_raises_is_told(tokenizer: Any, source: Any, says: str) -> None:
    with pytest.raises(LabError) as caught:
        chat_template.render(with_template(tokenizer, source), CHAT)
    assert says in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 500 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("source", ["{{ x.__class__ }}", "{{ ''|attr('__class__') }}"])
def test_nothing_internal_is_written(tokenizer: Any, source: str) -> None:
    try:
        written = chat_template.render(with_template(tokenizer, source), CHAT)
    except LabError:
        written = ""
    assert "class" not in written


def test_a_template_by_name_is_used_where_there_are_several(tokenizer: Any) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    other = with_template(tokenizer, {"default": source, "tool_use": "x"})
    example = Example(1, messages=tuple(CHAT))
    tokens = chat_template.tokenize(example, other, "", "assistant", 512)[-1]
    assert other.decode(tokens.ids).startswith("<user>Hi</s><assistant>Hello you</s>")


def test_bounds_follow_the_length_of_the_chat(tokenizer: Any) -> None:
    other = with_template(tokenizer, "{% for m in messages %}{{ m.content * 4 }}{% endfor %}")
    long = [{"role": "user", "content": "word " * 200_000}]
    assert len(chat_template.render(other, long)) == 4_000_000
    many = [{"role": "user", "content": "hi"} for _ in range(60_000)]
    assert len(chat_template.render(other, many)) == 480_000


def test_the_spans_of_a_chat_with_many_turns(tokenizer: Any) -> None:
    turns = [{"role": role, "content": f"{role} speaks"} for role in ("user", "assistant") * 1500]
    (piece,) = answers.pieces(tokenizer, turns, None, list(range(1, 3000, 2)))
    words = {piece.text[start:end] for start, end in piece.spans}
    assert len(piece.spans) == 1500 and words == {"assistant speaks<|im_end|>"}


def test_a_rendering_does_not_change_the_bounds_of_another(tokenizer: Any) -> None:
    other = with_template(tokenizer, "{{ 'a' * 900000 }}")
    for _ in range(5):
        assert len(chat_template.render(other, CHAT)) == 900_000
    with pytest.raises(sandbox.TooMuch, match="outside"):
        sandbox._environment().text("x")


def test_a_long_chat_may_take_more_steps_than_a_short_one() -> None:
    handled = 256 * 600_000  # characters, as many as 600,000 steps
    work.Work(100_000).spend(handled)
    with pytest.raises(work.TooMuch, match="too many steps"):
        work.Work(10).spend(handled)
