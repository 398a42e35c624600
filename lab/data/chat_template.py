"""From messages to token ids and labels. The labels are the lab's own.

`answers.py` says which characters of a rendered chat the model has to write; a token that overlaps
them is counted. A label of -100 means "not counted", the convention of
torch.nn.functional.cross_entropy. Tensor legend: T tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab.data import answers, rendering, stop_tokens
from lab.data.formats import Example
from lab.data.rendering import Message, TemplateUnusable, render
from lab.formatting import quantity
from lab.schema import quote
from lab.spec_sections import DataSpec

IGNORE_INDEX = -100
__all__ = ["TemplateUnusable", "render"]  # of rendering.py, where chats become text

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
TEMPLATES = {
    "plain": PLAIN_TEMPLATE,
    "alpaca": ALPACA_TEMPLATE,
    "chatml": CHATML_TEMPLATE,
    "zephyr": ZEPHYR_TEMPLATE,
}


@dataclass(frozen=True)
class TokenizedExample:
    """One sequence as the model sees it: ids and labels of equal length T, its record in the file,
    whether tokens were cut off, what is to be told of it, and its tokens before it was cut."""

    ids: list[int]
    labels: list[int]
    record_number: int = 0
    truncated: bool = False
    notes: tuple[str, ...] = ()
    full_length: int = 0

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that the loss counts; the first of a row is never predicted."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class ExampleNotes:
    """What was done to examples so that they can be learned, each kind with the number of examples
    and the first record."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first_records: dict[str, int] = {}
        self._num_parts = 0  # examples that conversations were split into
        self._num_tokens = 0  # of these: the turns before an answer are read again for each

    def add(self, example: Example, sequences: list[TokenizedExample]) -> None:
        notes = {note for sequence in sequences for note in sequence.notes}
        for note in notes:
            self._counts[note] += 1
            self._first_records.setdefault(note, example.row)
        if answers.SPLIT in notes:
            self._num_parts += len(sequences)
            self._num_tokens += sum(len(sequence.ids) for sequence in sequences)

    def lines(self) -> list[str]:
        """A sentence for each kind of note."""
        lines = []
        for note, count in sorted(self._counts.items()):
            parts = (
                f"; {quantity(self._num_parts, 'example')}, which repeat the turns before "
                "each answer: "
            )
            parts += f"{self._num_tokens:,} tokens in all"
            parts = parts if note == answers.SPLIT else ""
            lines.append(f"{count} {note} (first: row {self._first_records[note]}{parts}).")
        return lines


def set_chat_template(tokenizer: Any, name: str = "auto") -> bool:
    """Give the tokenizer the template of that name, with the end token that goes with it; True if
    its own template was replaced or it had none. `auto` keeps its own, or takes the plain one."""
    if name == "auto":
        if tokenizer.chat_template:
            rendering.source_of(tokenizer)  # of several there must be a default
            return False
        name = "plain"
    chosen = TEMPLATES[name]
    if name == "chatml":
        # a base model that never learned <|im_end|> as one token ends with the end it knows
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        chosen = chosen.replace("END", end)
        if tokenizer.eos_token != end:
            tokenizer.eos_token = end
    tokenizer.chat_template = chosen
    return True


def set_up_template(tokenizer: Any, data: DataSpec) -> bool:
    """Give the tokenizer the chat template, its arguments and its date as a spec says; True if its
    own template was replaced or it had none. Raises LabError."""
    is_new = set_chat_template(tokenizer, data.template)
    rendering.configure(tokenizer, args=data.template_args, date=data.template_date or "")
    return is_new


def with_system(messages: tuple[Message, ...], system_prompt: str) -> list[Message]:
    """The messages, with `system_prompt` in front where they bring no system turn."""
    if system_prompt and messages[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *messages]
    return list(messages)


def tokenize(
    example: Example,
    tokenizer: Any,
    system_prompt: str,
    loss_on: str,
    max_length: int,
    truncation: str = "right",
) -> list[TokenizedExample]:
    """The sequences that an example becomes: one for a chat, or one for each answer where the chat
    template treats the last turn apart; one for each `max_length` tokens of a text."""
    if not example.messages:
        return text_pieces(text_ids(example, tokenizer), example.row, max_length)
    sequences = []
    for encoded in encode(example, tokenizer, system_prompt, loss_on):
        sequence = truncate(encoded.ids, encoded.labels, example.row, max_length, truncation)
        sequences.append(replace(sequence, notes=encoded.notes, full_length=len(encoded.ids)))
        begun = next((i for i, label in enumerate(encoded.labels) if label != IGNORE_INDEX), 0)
        if truncation == "right" and begun > 2 * max_length:
            break  # nothing of the answers behind a longer prompt would be left
    return sequences


@dataclass(frozen=True)
class Encoded:
    """A text of a chat before it is truncated: its ids and labels, and each token's (start, end)
    in the text. The end token that is appended to a text stands behind its last character."""

    text: str
    ids: list[int]
    labels: list[int]
    offsets: list[tuple[int, int]]
    notes: tuple[str, ...] = ()


def encode(example: Example, tokenizer: Any, system_prompt: str, loss_on: str) -> Iterator[Encoded]:
    """Render, tokenise and label a chat."""
    messages = with_system(example.messages, system_prompt)
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if loss_on == "completion":
        indices = indices[-1:]
    learned = [i for i in indices if messages[i].get("learn") is not False]
    spelled = _spelled(messages, tokenizer)
    for piece in answers.pieces(tokenizer, messages, getattr(example, "tools", None), learned):
        ids, offsets = _tokens(piece, tokenizer)
        if loss_on == "all":
            labels = ids.copy()
        else:
            labels = _within(piece.spans, ids, offsets, tokenizer)
        if piece.appends_end:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
            offsets.append((len(piece.text), len(piece.text)))
        if labels:
            labels[0] = IGNORE_INDEX
        yield Encoded(piece.text, ids, labels, offsets, (*piece.notes, *spelled))


def _spelled(messages: list[Message], tokenizer: Any) -> tuple[str, ...]:
    """A note for each control token that the words of a turn spell."""
    pattern = stop_tokens.control_pattern(tokenizer)
    texts = [m["content"] for m in messages if isinstance(m.get("content"), str)]
    special = set(tokenizer.all_special_tokens) | stop_tokens.spellings(tokenizer)
    tokens = {token for text in texts for token in pattern.findall(text)} & special
    return tuple(answers.SPELLED.format(quote(token)) for token in sorted(tokens))


def _tokens(piece: answers.Piece, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a text and their places in it. The template writes every special token itself.

    Where a token would hold both an answer's beginning and words in front of it, the text is
    tokenised in two parts, as it is when the model is asked: nothing but the answer may be learned.
    """

    def coded(text: str, shift: int) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [(start + shift, end + shift) for start, end in encoding["offset_mapping"]]
        return list(encoding["input_ids"]), offsets

    ids, offsets = coded(piece.text, 0)
    starts = [start for start, _ in piece.spans]
    cuts = [
        span_start
        for span_start, (start, end) in _straddling(starts, offsets)
        if piece.text[start:span_start].strip()
    ]
    if not cuts:
        return ids, offsets
    ids, offsets = [], []
    for start, end in itertools.pairwise([0, *cuts, len(piece.text)]):
        part_ids, part_offsets = coded(piece.text[start:end], start)
        ids.extend(part_ids)
        offsets.extend(part_offsets)
    return ids, offsets


def _straddling(
    starts: list[int], offsets: list[tuple[int, int]]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """(start of a span, token's place) of each token that begins before a span and ends in it."""
    current = 0
    for offset in offsets:
        while current < len(starts) and starts[current] <= offset[0]:
            current += 1
        if current < len(starts) and offset[1] > starts[current]:
            yield starts[current], offset


def _within(
    spans: tuple[tuple[int, int], ...],
    ids: list[int],
    offsets: list[tuple[int, int]],
    tokenizer: Any,
) -> list[int]:
    """The ids whose text overlaps a span, IGNORE_INDEX elsewhere. Spans are in order. A special
    token that swallows the blanks of an answer behind it is no part of it."""
    labels = [IGNORE_INDEX] * len(ids)
    special = set(tokenizer.all_special_ids)
    current = 0
    for i, (start, end) in enumerate(offsets):
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        if current == len(spans):
            break
        begins_inside = start >= spans[current][0]
        if begins_inside or (end > spans[current][0] and ids[i] not in special):
            labels[i] = ids[i]
    return labels


def text_pieces(ids: list[int], row: int, length: int) -> list[TokenizedExample]:
    """The ids of a plain text in pieces of `length`; all but the first of each are learned."""
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [TokenizedExample(piece, [IGNORE_INDEX, *piece[1:]], row) for piece in pieces]


def text_ids(example: Example, tokenizer: Any) -> list[int]:
    """The ids of a plain text: with the begin token that the tokenizer itself would write, and
    the end token, unless the next row goes on."""
    begin = tokenizer("")["input_ids"]
    has_begin = begin[:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    ids = list(tokenizer(example.text, add_special_tokens=False)["input_ids"])
    end = [] if example.goes_on else [tokenizer.eos_token_id]
    return [*(begin[:1] if has_begin else []), *ids, *end]


def truncate(
    ids: list[int], labels: list[int], row: int, max_length: int, side: str
) -> TokenizedExample:
    """At most `max_length` tokens, losing the end ("right") or the beginning ("left")."""
    is_cut = len(ids) > max_length
    if is_cut and side == "left":
        ids, labels = ids[-max_length:], [IGNORE_INDEX, *labels[-max_length + 1 :]]
    return TokenizedExample(ids[:max_length], labels[:max_length], row, is_cut)


def fingerprint(tokenizer: Any, system_prompt: str, loss_on: str) -> str:
    """Hash of everything that decides how text becomes tokens and labels."""
    parts = [
        tokenizer.chat_template,
        system_prompt,
        tokenizer.eos_token,
        tokenizer.pad_token,
        loss_on,
    ]
    more = rendering.settings_of(tokenizer).to_json()  # results from before these have none
    return hashlib.sha256(json.dumps([*parts, more] if more else parts).encode()).hexdigest()[:16]
