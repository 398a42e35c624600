"""Which characters of a rendered chat the model has to write: its answers, each with its end.

An answer is learned under the prompt under which it will be asked: the rendering of the turns
before it with the generation prompt. What follows that prompt in the rendering that ends with the
answer is the answer, up to the first token at which generation stops. Where every such rendering is
the beginning of the whole chat's, the chat stays one piece of text. Where it is not (a template
that drops earlier thoughts, moves the system prompt or treats the last turn apart), each answer
becomes a piece of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab.data import rendering, stop_tokens, wording
from lab.data.rendering import Message
from lab.errors import LabError
from lab.schema import quote, quoted

EXACT = 12  # answers up to which each is rendered under all turns before it
WINDOW = 6  # answers that are rendered together in a longer chat
ANCHORS = (24, 12, 6, 4)  # characters of a prompt that are looked for in a rendering
OPENED = re.compile(r"<think>\s*\Z")
ANOTHER = "Choose another template in data.template."

SPLIT = (
    "conversations became an example for each answer: the chat template writes a turn differently "
    "once it is not the last"
)
APPENDED = "conversations have an answer behind which the template writes no end token; {} is added"
PROMPTED = (
    "conversations have an answer that does not begin as the prompt of asking does, which ends "
    "with {}; set data.template_args (enable_thinking, say) if the template takes it"
)
MOVED = (
    "conversations have an answer in front of which the template writes something else than it "
    "asks with; it is learned behind the prompt of asking"
)
BUILT = (
    "conversations have an answer that the template would not write as it is; it stands behind the "
    "prompt of asking in its own words"
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


@dataclass(frozen=True)
class AnswerTurn:
    """An answer in the text that ends with it; `is_built` from the prompt and its own words."""

    text: str
    start: int
    end: int
    appends_end: bool = False
    notes: tuple[str, ...] = ()
    is_built: bool = False


class Conversation:
    """The renderings of one chat."""

    def __init__(self, tokenizer: Any, messages: list[Message], tools: Any = None) -> None:
        self.tokenizer, self.messages = tokenizer, messages
        self.tools = list(tools) if tools else None
        self.stops = stop_tokens.spellings(tokenizer)
        self.pattern = stop_tokens.control_pattern(tokenizer)
        self._texts: dict[int, str] = {}

    def text(self, count: int) -> str:
        """The first `count` messages."""
        if count not in self._texts:
            self._texts[count] = rendering.render(
                self.tokenizer, self.messages[:count], tools=self.tools
            )
        return self._texts[count]

    def prompt(self, count: int) -> str:
        """What the model is asked with behind the first `count` messages."""
        return rendering.render(
            self.tokenizer, self.messages[:count], to_answer=True, tools=self.tools
        )

    def answer(self, index: int) -> AnswerTurn:
        """The answer in message `index`, under the prompt of asking. Raises LabError."""
        message, text = self.messages[index], self.text(index + 1)
        prompt = self._prompt_of(index, text)
        notes: tuple[str, ...] = ()
        start = len(prompt)
        if not text.startswith(prompt):
            start = wording.shared_length(prompt, text)
            begun = wording.shared_length(prompt, self.text(index)) if index else 0
            # what differs must be the generation prompt, not what stands before it
            if start < begun:
                return self._built(index, prompt, text)
            first = wording.position(text, wording.parts_of(message), begun)
            start = min(start, first if first >= 0 else start)
            # and the text must be past the beginning of it
            if self._heading(prompt[begun:]) in text[start : max(first, start)]:
                return self._built(index, prompt, text)
            notes = (PROMPTED.format(quoted(prompt[start:])),)
        missing = wording.lost(message, text[start:])
        if missing:
            if missing <= {"thought", *rendering.THOUGHT_KEYS}:
                return self._built(index, prompt, text, missing)
            raise _lost(missing, message, index)
        return self._ended(message, text, start, notes)

    def _heading(self, opening: str) -> str:
        """What a generation prompt begins with: its first control token, or a few characters."""
        match = self.pattern.match(opening.lstrip())
        return match[0] if match else opening.strip()[: ANCHORS[-1]] or "\0"

    def _prompt_of(self, index: int, text: str) -> str:
        if index:
            return self.prompt(index)
        try:
            prompt = self.prompt(0)
        except LabError:
            prompt = ""
        if prompt and text.startswith(prompt):
            return prompt
        # the assistant speaks first, and the template has no prompt for that
        first = wording.position(text, wording.parts_of(self.messages[0]), 0)
        return text[: max(first, 0)]

    def _built(
        self, index: int, prompt: str, text: str, missing: frozenset[str] = frozenset()
    ) -> AnswerTurn:
        """The prompt of asking, and behind it the answer: as the template writes it behind such a
        prompt elsewhere, or in its own words."""
        message = self.messages[index]
        for size in ANCHORS if not missing else ():
            anchor = prompt[-size:]
            behind = text.rpartition(anchor)[2] if anchor and anchor in text else ""
            if behind and not wording.lost(message, behind):
                return self._ended(message, prompt + behind, len(prompt), (MOVED,), True)
        if message.get("tool_calls"):
            raise _lost(missing or frozenset({"tool_calls"}), message, index)
        words = str(message.get("content") or "")
        thought = rendering.thought_of(message)
        if thought:
            source = rendering.source_of(self.tokenizer, self.tools)
            if "think>" not in source + prompt:
                raise _lost(missing, message, index)
            words = f"<think>\n{thought.strip()}\n</think>\n\n{words.lstrip()}"
        if OPENED.search(prompt) and words.lstrip().startswith("<think>"):
            words = words.lstrip().removeprefix("<think>").lstrip("\n")
            prompt = prompt.rstrip() + "\n" if prompt.rstrip() == prompt else prompt
        plain = wording.parts_of(message)[-1:] or [""]
        behind = text[max(0, wording.end_position(text, plain[-1])) :]
        end = self.pattern.match(behind.lstrip())
        stop = end[0] if end and end[0] in self.stops else ""
        whole = prompt + (words if stop else words.rstrip()) + stop
        return AnswerTurn(
            whole, len(prompt), len(whole), not stop, self._append_notes(not stop, (BUILT,)), True
        )

    def _ended(
        self,
        message: Message,
        text: str,
        start: int,
        notes: tuple[str, ...] = (),
        is_built: bool = False,
    ) -> AnswerTurn:
        """The answer from `start` to the first stop token behind its words."""
        for match in self.pattern.finditer(text, start):
            if match[0] in self.stops and not wording.lost(message, text[start : match.start()]):
                return AnswerTurn(text, start, match.end(), False, notes, is_built)
        content = str(message.get("content") or "")
        blanks = content[len(content.rstrip()) :]
        end = max(start, len(text.rstrip()))
        if blanks and content.strip() and text.startswith(blanks, end):
            end += len(blanks)
        return AnswerTurn(text, start, end, True, self._append_notes(True, notes), is_built)

    def _append_notes(self, appends: bool, notes: tuple[str, ...]) -> tuple[str, ...]:
        if not appends:
            return notes
        return (*notes, APPENDED.format(quote(str(self.tokenizer.eos_token))))


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
            notes = [note for note in notes if note not in chat._append_notes(True, ())]
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
    kept = tuple(spans[index] for index in learned)
    return Piece(text, kept, appends and all_answers[-1] in learned, tuple(dict.fromkeys(notes)))


def _opening_before(messages: list[Message], opening: str, index: int) -> int:
    """The message before `index` from which a chat can begin: of the role that opens this one, and
    behind an answer."""
    while index > 0:
        if messages[index]["role"] == opening and messages[index - 1]["role"] == "assistant":
            return index
        index -= 1
    return 0


def _lost(missing: frozenset[str], message: Message, index: int) -> LabError:
    keys = sorted(missing - {"content", "thought"})
    if keys:
        return LabError(
            f"The chat template leaves out '{keys[0]}' of turn {index + 1}.",
            f"{ANOTHER[:-1]}, or remove the key from the row.",
        )
    if missing == {"thought"}:
        return LabError(f"The chat template leaves out the thought of turn {index + 1}.", ANOTHER)
    return LabError(
        f"The chat template changes or leaves out the words of turn {index + 1} "
        f"({message['role']}): {quoted(str(message.get('content', '')))}.",
        ANOTHER,
    )


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
            raise _lost(frozenset({"content"}), message, index)
    for tool in chat.tools or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and not wording.is_written(name, text, squeezed):
            raise LabError(
                f"The chat template leaves out 'tools': nothing says '{quote(name)}'.",
                f"{ANOTHER[:-1]}, or remove the tools from the row.",
            )
