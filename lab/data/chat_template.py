"""From messages to token ids and labels. The labels are the lab's own.

Most chat templates do not mark the assistant's words. The template is rendered once with marks in
place of the contents, which shows what it writes around them; the answer's span then runs from
behind the generation prompt to the end-of-turn token. A label of -100 means "not counted", the
convention of torch.nn.functional.cross_entropy. Tensor legend: T tokens of a row.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from lab.data import formats, sandbox
from lab.data.formats import Example
from lab.errors import LabError
from lab.schema import quoted

IGNORE_INDEX = -100
EXACT = 32  # turns before each of which the generation prompt is rendered
MARK = "\ue000{}\ue001"  # private-use characters: no template trims or rewrites them
MARKS = re.compile("\ue000(\\d+)\ue001")

# For a base model without a template of its own: plain headings that any tokenizer can spell.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
ALPACA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + 'END\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TokenizedExample:
    """One row as the model sees it: ids and labels of equal length T, its row in the file, and
    whether tokens were cut off."""

    ids: list[int]
    labels: list[int]
    record_number: int = 0
    truncated: bool = False

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that the loss counts; the first of a row is never predicted."""
        return sum(label != IGNORE_INDEX for label in self.labels)


def set_chat_template(tokenizer: Any, name: str = "auto") -> bool:
    """Give the tokenizer the template of that name, with the end token that goes with it; True if
    its own template was replaced or it had none. `auto` keeps its own, or takes the plain one."""
    if name == "auto":
        if tokenizer.chat_template:
            return False
        name = "plain"
    chosen = {
        "plain": PLAIN_TEMPLATE,
        "alpaca": ALPACA_TEMPLATE,
        "chatml": CHATML_TEMPLATE,
        "zephyr": ZEPHYR_TEMPLATE,
    }[name]
    if name == "chatml":
        # a base model that never learned <|im_end|> as one token ends with the end it knows
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        chosen = chosen.replace("END", end)
        if tokenizer.eos_token != end:
            tokenizer.eos_token = end
    tokenizer.chat_template = chosen
    return True


def ensure_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the lab's plain one; True if it needed it."""
    return set_chat_template(tokenizer)


def with_system(messages: tuple[dict[str, str], ...], system_prompt: str) -> list[dict[str, str]]:
    """The messages, with `system_prompt` in front where they bring no system turn."""
    if system_prompt and messages[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *messages]
    return list(messages)


class TemplateUnusable(LabError):
    """The chat template cannot render any chat: no row of a file can be better than the others."""


def source_of(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template. Raises TemplateUnusable if it has none."""
    try:
        source = tokenizer.get_chat_template()
    except (ValueError, AttributeError) as error:
        raise TemplateUnusable(
            f"The tokenizer has no chat template to use: {_told(error)}.",
            "Choose one in data.template.",
        ) from None
    if not isinstance(source, str):
        raise TemplateUnusable(
            f"The chat template of the tokenizer is {quoted(source)}, not text.",
            "Choose one in data.template, or correct tokenizer_config.json.",
        )
    return source


def render(tokenizer: Any, messages: list[dict[str, str]], *, to_answer: bool = False) -> str:
    """The exact text of a chat; with `to_answer`, up to where the assistant begins to speak.

    The same as `tokenizer.apply_chat_template`, within the bounds of `lab.data.sandbox`. Raises
    LabError where the template refuses the chat or fails on it.
    """
    from jinja2 import TemplateError

    source = source_of(tokenizer)
    try:
        sandbox.compiled(source)
    except Exception as error:  # whatever a parser can raise at nonsense
        raise _unusable(error) from None
    try:
        text = sandbox.render(
            source,
            messages,
            tools=None,
            documents=None,
            add_generation_prompt=to_answer,
            **tokenizer.special_tokens_map,
        )
    except sandbox.TooMuch as error:
        raise _unusable(error) from None
    except TemplateError as error:
        raise LabError(
            f"The chat template refuses this conversation: {_told(error)}.",
            "Check the order of the roles, and whether the template takes a system turn.",
        ) from None
    except Exception as error:  # a template is a stranger's program: it can fail in any way
        raise LabError(
            f"The chat template fails on this conversation: {type(error).__name__}, "
            f"{_told(error)}.",
            "Choose another in data.template, or correct it in the model's folder.",
        ) from None
    if not text.isascii() and formats.SURROGATE.search(text):
        raise LabError(
            "The chat template writes half of a Unicode pair.",
            "Choose another in data.template, or correct it in the model's folder.",
        )
    return text


def _unusable(error: Exception) -> TemplateUnusable:
    return TemplateUnusable(
        f"The chat template cannot be used: {_told(error)}.",
        "Choose another in data.template, or correct it in the model's folder.",
    )


def _told(error: Exception) -> str:
    """What an error of a template says, on one line."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text[:301])
    return text if len(text) <= 300 else f"{text[:299]}…"


def tokenize(
    example: Example,
    tokenizer: Any,
    system_prompt: str,
    loss_on: str,
    max_length: int,
    truncation: str = "right",
) -> list[TokenizedExample]:
    """The rows that an example becomes: one for a chat, one for each `max_length` of a text."""
    if example.messages:
        return [_chat(example, tokenizer, system_prompt, loss_on, max_length, truncation)]
    ids = text_ids(example, tokenizer)
    pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [TokenizedExample(piece, [IGNORE_INDEX, *piece[1:]], example.row) for piece in pieces]


def text_ids(example: Example, tokenizer: Any) -> list[int]:
    """The ids of a plain text: with the begin token that the tokenizer itself would write, and
    the end token, unless the next row goes on."""
    begin = tokenizer("")["input_ids"]
    has_begin = begin[:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    ids = list(tokenizer(example.text, add_special_tokens=False)["input_ids"])
    end = [] if example.goes_on else [tokenizer.eos_token_id]
    return [*(begin[:1] if has_begin else []), *ids, *end]


@dataclass(frozen=True)
class Encoded:
    """A whole chat before it is cut: its text, ids and labels, and each token's place in it."""

    text: str
    ids: list[int]
    labels: list[int]
    places: list[tuple[int, int]]


def encode(example: Example, tokenizer: Any, system_prompt: str, loss_on: str) -> Encoded:
    """Render, tokenise and label a chat."""
    messages = with_system(example.messages, system_prompt)
    text = render(tokenizer, messages)
    # The template writes every special token itself.
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = list(coded["input_ids"]), list(coded["offset_mapping"])
    if loss_on == "all":
        labels = ids.copy()
    else:
        spans = answer_spans(tokenizer, messages, text)
        if loss_on == "completion":
            spans = spans[-1:]
        labels = _within(spans, ids, places)
    if labels:
        labels[0] = IGNORE_INDEX
    return Encoded(text, ids, labels, places)


def _within(
    spans: list[tuple[int, int]], ids: list[int], places: list[tuple[int, int]]
) -> list[int]:
    """The ids whose text begins within a span, IGNORED elsewhere. Spans are in order."""
    labels = [IGNORE_INDEX] * len(ids)
    current = 0
    for number, (start, _) in enumerate(places):
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        if current == len(spans):
            break
        if start >= spans[current][0]:
            labels[number] = ids[number]
    return labels


def _chat(
    example: Example,
    tokenizer: Any,
    system_prompt: str,
    loss_on: str,
    max_length: int,
    truncation: str,
) -> TokenizedExample:
    whole = encode(example, tokenizer, system_prompt, loss_on)
    return truncate(whole.ids, whole.labels, example.row, max_length, truncation)


def truncate(
    ids: list[int], labels: list[int], row: int, max_length: int, side: str
) -> TokenizedExample:
    """At most `max_length` tokens, losing the end ("right") or the beginning ("left")."""
    is_cut = len(ids) > max_length
    if is_cut and side == "left":
        ids, labels = ids[-max_length:], [IGNORE_INDEX, *labels[-max_length + 1 :]]
    return TokenizedExample(ids[:max_length], labels[:max_length], row, is_cut)


def answer_spans(
    tokenizer: Any, messages: list[dict[str, str]], text: str
) -> list[tuple[int, int]]:
    """(start, end) in `text` of each assistant turn, its end-of-turn token included.

    Raises LabError where the template does not write the contents as they are, in order.
    """
    roles = tuple(message["role"] for message in messages)
    frame = _frame(tokenizer, source_of(tokenizer), tokenizer.eos_token, len(tokenizer), roles)
    spans, place = [], 0
    for number, message in enumerate(messages):
        place += len(frame.before[number])
        content = _written(text, place, message["content"], frame.before[number], frame.after)
        if content is None or not text.startswith(frame.before[0]):
            raise LabError(
                f"The chat template changes the words of turn {number + 1}, or their order.",
                "The loss cannot be limited to the assistant's words; set data.loss_on to all.",
            )
        if message["role"] == "assistant":
            spans.append((place - frame.lead[number], place + len(content) + frame.tail[number]))
        place += len(content)
        following = frame.before[number + 1] if number + 1 < len(messages) else frame.after
        if not text.startswith(following, place):
            raise LabError(
                f"The chat template changes what stands behind turn {number + 1} by its words.",
                "The loss cannot be limited to the assistant's words; set data.loss_on to all.",
            )
    return spans


def _written(text: str, place: int, content: str, before: str, after: str) -> str | None:
    """The content as the template wrote it at `place`: whole, or trimmed."""
    if not text.startswith(before, place - len(before)):
        return None
    for form in (content, content.strip(), content.lstrip("\n"), content.rstrip()):
        if text.startswith(form, place):
            return form
    return None


@dataclass(frozen=True)
class Frame:
    """What a template writes around the contents of turns with certain roles.

    before[k]: what stands in front of content k; after: behind the last. For an assistant's turn
    lead[k] is how much of before[k] the model itself has to write (behind the generation prompt),
    tail[k] how much behind its content, up to and with the end-of-turn token.
    """

    before: tuple[str, ...]
    after: str
    lead: tuple[int, ...]
    tail: tuple[int, ...]


@functools.lru_cache(maxsize=512)
def _frame(tokenizer: Any, template: str, end: str, size: int, roles: tuple[str, ...]) -> Frame:
    """The frame for these roles. Raises LabError if a content is left out or stands twice."""
    marked = [{"role": role, "content": MARK.format(number)} for number, role in enumerate(roles)]
    parts = MARKS.split(render(tokenizer, marked))
    if [int(number) for number in parts[1::2]] != list(range(len(roles))):
        raise LabError(
            "The chat template changes the order of the turns, or leaves some out.",
            "The loss cannot be limited to the assistant's words; set data.loss_on to all.",
        )
    around = parts[0::2]
    ends = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    lead, tail = [], []
    leads: dict[tuple[str, str], int] = {}  # of chats with many turns, which repeat themselves
    for number, role in enumerate(roles):
        if role != "assistant":
            lead.append(0)
            tail.append(0)
            continue
        alike = (roles[number - 1], around[number])
        if number < EXACT or alike not in leads:
            prompt = _prompt(tokenizer, marked[:number])
            is_prompted = bool(prompt) and around[number].startswith(prompt)
            leads[alike] = len(around[number]) - len(prompt) if is_prompted else 0
        lead.append(leads[alike])
        tail.append(_to_end_of_turn(around[number + 1], ends))
    return Frame(tuple(around[:-1]), around[-1], tuple(lead), tuple(tail))


def _prompt(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """What stands behind the last content when the model is to answer; all that follows it in a
    whole chat the model writes by itself. "" where the assistant speaks first."""
    if not messages:
        return ""
    return MARKS.split(render(tokenizer, messages, to_answer=True))[-1]


def _to_end_of_turn(behind: str, ends: set[str]) -> int:
    """How many characters behind an answer belong to it: up to and with the first special token,
    if nothing but white space stands before it; else none but its line break."""
    white = len(behind) - len(behind.lstrip())
    found = [end for end in ends if end and behind.startswith(end, white)]
    return white + max(map(len, found)) if found else white


def fingerprint(tokenizer: Any, system_prompt: str, loss_on: str) -> str:
    """Hash of everything that decides how text becomes tokens and labels."""
    parts = [
        tokenizer.chat_template,
        system_prompt,
        tokenizer.eos_token,
        tokenizer.pad_token,
        loss_on,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
