"""Which characters of a rendered chat the model has to write: its answers, each with its end.

An answer is learned under the prompt under which it will be asked: the rendering of the turns
before it with the generation prompt. What follows that prompt in the rendering that ends with the
answer is the answer, up to the first token at which generation stops. Where every such rendering is
the beginning of the whole chat's, the chat stays one piece of text. Where it is not (a template
that drops earlier thoughts, moves the system prompt or treats the last turn apart), each answer
becomes a piece of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab.data import wording
from lab.data.answer_turn import ANOTHER, AnswerTurn, Conversation, lost
from lab.data.template_input import Message
from lab.errors import LabError
from lab.schema import quote

EXACT = 12  # answers up to which each is rendered under all turns before it
WINDOW = 6  # answers that are rendered together in a longer chat

SPLIT = (
    "conversations became an example for each answer: the chat template writes a turn differently "
    "once it is not the last"
)
SPELLED = "conversations spell the control token {}, which the model reads as such"


@dataclass(frozen=True)
class Piece:
    """A text with (start, end) of each answer in it; `appends_end`: the tokenizer's end token
    follows the text and is learned. `turns` messages stand in it."""

    text: str
    spans: tuple[tuple[int, int], ...]
    appends_end: bool = False
    notes: tuple[str, ...] = ()


def pieces(
    tokenizer: Any,
    messages: list[Message],
    tools: Any,
    learned: list[int],
) -> Iterator[Piece]:
    """The texts that a chat becomes, with the spans of the answers in the messages `learned`: one
    text where it can be, else one for each answer, rendered when it is asked for.

    Raises LabError where the template loses something that the chat says.
    """
    chat = Conversation(tokenizer, messages, tools)
    if not learned:
        yield Piece(_whole(chat), ())
        return
    if learned == [len(messages) - 1]:
        yield _single(chat, learned[0])
        return
    try:
        piece = _by_windows(chat, learned) if len(learned) > EXACT else _exactly(chat, learned)
    except _NoWindows:
        piece = _exactly(chat, learned)
    if piece is not None:
        yield piece
        return
    for index in learned:
        single = _single(chat, index)
        yield replace(single, notes=(SPLIT, *single.notes) if len(learned) > 1 else single.notes)


class _NoWindows(Exception):
    """A long chat cannot be put together from windows."""


def _exactly(chat: Conversation, learned: list[int]) -> Piece | None:
    """The whole chat as one text, each answer held against the rendering that ends with it."""
    answers = []
    for index in learned:
        answer = chat.answer(index)
        if not chat.text(len(chat.messages)).startswith(answer.text[: answer.end]):
            return None
        answers.append(answer)
    return _together(chat, answers, learned)


def _single(chat: Conversation, index: int) -> Piece:
    answer = chat.answer(index)
    _check_others(answer.text[: answer.start], chat.messages[:index], chat)
    text = answer.text[: answer.end] if answer.appends_end else answer.text
    return Piece(text, ((answer.start, answer.end),), answer.appends_end, answer.notes)


def _whole(chat: Conversation) -> str:
    text = chat.text(len(chat.messages))
    _check_others(text, chat.messages, chat)
    return text


def _together(chat: Conversation, answers: list[AnswerTurn], learned: list[int]) -> Piece | None:
    """The whole chat as one text, if it begins as each answer's own rendering does."""
    text = chat.text(len(chat.messages))
    end = str(chat.tokenizer.eos_token)
    spans: list[tuple[int, int]] = []
    appends, notes = False, list[str]()
    for index, answer in zip(learned, answers, strict=True):
        if not text.startswith(answer.text[: answer.end]):
            return None
        notes.extend(answer.notes)
        if not answer.appends_end:
            spans.append((answer.start, answer.end))
        elif text.startswith(end, answer.end):
            spans.append((answer.start, answer.end + len(end)))
            notes = [note for note in notes if note not in chat.end_notes(True)]
        elif index == len(chat.messages) - 1:
            spans.append((answer.start, answer.end))
            text, appends = text[: answer.end], True
        else:
            return None
    _check_others(text, chat.messages, chat)
    return Piece(text, tuple(spans), appends, tuple(dict.fromkeys(notes)))


def _by_windows(chat: Conversation, learned: list[int]) -> Piece | None:
    """As `_together` for a long chat, in a number of renderings that grows with its turns only.

    Windows of some answers are rendered as chats of their own. What a window writes between and
    for its answers must stand in the whole text, one behind the other; the last answer, and some
    in the middle, are held against their full renderings.
    """
    messages = chat.messages
    head = 1 if messages[0]["role"] == "system" else 0
    opening = messages[head]["role"]
    all_answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    text = chat.text(len(messages))
    spans: dict[int, tuple[int, int]] = {}
    notes: list[str] = []
    first, cursor = 0, 0
    while first < len(all_answers):
        last = min(first + WINDOW, len(all_answers)) - 1
        begin = head
        if first:
            begin = _opening_before(messages, opening, all_answers[first - 1])
            if begin <= head:
                raise _NoWindows
        window = [*messages[:head], *messages[begin : all_answers[last] + 1]]
        shift = begin - head
        part = Conversation(chat.tokenizer, window, chat.tools)
        inside = [i for i in all_answers[: last + 1] if i >= begin]
        try:
            piece = _exactly(part, [i - shift for i in inside])
        except LabError:  # of the window, which may be less than the template takes
            raise _NoWindows from None
        if piece is None:
            return None
        notes.extend(piece.notes)
        for k, index in enumerate(inside):
            start, end = piece.spans[k]
            if index in spans:
                continue
            before = piece.spans[k - 1][1] if k else 0
            between, words = piece.text[before:start], piece.text[start:end]
            if (k == 0 and first) or not text.startswith(between + words, cursor):
                raise _NoWindows
            spans[index] = (cursor + len(between), cursor + len(between) + len(words))
            cursor = spans[index][1]
        appends, first = piece.appends_end, last + 1
    for index in {learned[len(learned) // 2], learned[-1]}:  # also under all turns before
        answer = chat.answer(index)
        if (answer.start, answer.end) != spans[index] or answer.is_built:
            return None
        if not text.startswith(answer.text[: answer.end]):
            return None
    if appends and all_answers[-1] == len(messages) - 1:
        text = text[: spans[all_answers[-1]][1]]
    _check_others(text, messages, chat)
    learned_spans = tuple(spans[index] for index in learned)
    return Piece(
        text, learned_spans, appends and all_answers[-1] in learned, tuple(dict.fromkeys(notes))
    )


def _opening_before(messages: list[Message], opening: str, index: int) -> int:
    """The message before `index` from which a chat can begin: of the role that opens this one, and
    behind an answer."""
    while index > 0:
        if messages[index]["role"] == opening and messages[index - 1]["role"] == "assistant":
            return index
        index -= 1
    return 0


def _check_others(text: str, messages: list[Message], chat: Conversation) -> None:
    """Raise LabError unless `text` says what the turns say that are not the model's, and names the
    tools."""
    squeezed = wording.squeezed(text)
    cursor = 0
    for index, message in enumerate(messages):
        content = message.get("content")
        if message["role"] == "assistant" or not isinstance(content, str):
            continue
        words = wording.squeezed(content)
        at = squeezed.find(words, cursor)
        if at >= 0:
            cursor = at + len(words)
        elif words not in squeezed and not wording.is_written(content, text, squeezed):
            raise lost(frozenset({"content"}), message, index)
    for tool in chat.tools or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and not wording.is_written(name, text, squeezed):
            raise LabError(
                f"The chat template leaves out 'tools': nothing says '{quote(name)}'.",
                f"{ANOTHER[:-1]}, or remove the tools from the row.",
            )
