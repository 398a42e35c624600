"""From a record to an example: its parts become a conversation or a text."""

from __future__ import annotations

import math
from typing import Any

from lab.data import conversations
from lab.data.choices import lettered, number_as_text
from lab.data.conversations import Message
from lab.data.formats import (
    ADDED,
    FORMATS,
    Example,
    ReadOptions,
    columns_of,
    detect,
    format_by_columns,
)
from lab.data.lines import InvalidRow
from lab.data.placeholders import Slots, filled_text
from lab.data.record_keys import folded, is_empty, unused
from lab.data.turns import ROLE_KEYS, ROLES, dialogue, is_talk
from lab.schema import quote, quoted


def example(row: int, value: Any, reading: ReadOptions) -> Example:
    """The example of a record. Raises InvalidRow."""
    form = reading.form
    if form == "auto":
        by_columns = set(reading.columns) - ADDED
        form = format_by_columns(reading.columns) if by_columns else detect(value)
    if form == "text" and isinstance(value, str) and not reading.columns:
        value = {"text": value}  # a list of texts
    if form == "messages" and isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise InvalidRow(f"is {quoted(value)}, not an object")
    stray = [part for part in reading.columns if part not in FORMATS[form]]
    if stray:
        fitting = [name for name, parts in FORMATS.items() if set(reading.columns) <= set(parts)]
        raise InvalidRow(
            f"data.columns names {', '.join(stray)}, which the format {form} does not use"
            + (f"; data.format {' or '.join(fitting)} does" if fitting else "")
        )
    record = _Record(value, form, reading)
    if form == "text":
        if conversations.is_learned(value, record.read) is False:
            raise InvalidRow("is marked as not to be learned, and is plain text: nothing is left")
        record.read.add("goes_on")
        text = record.text("text")
        if dialogue(text):
            record.remarks.append(
                f"'{quote(record.name('text'))}' spells turns (Human:, Assistant:) and is learned "
                f'as plain text; set data.columns to {{"messages": '
                f'"{quote(record.name("text"))}"}} to learn the answers'
            )
        return Example(row, text=text, goes_on=bool(value.get("goes_on")), notes=record.notes())
    messages = record.messages()
    if reading.learns_all and any(message.get("learn") is False for message in messages):
        raise InvalidRow(
            "marks what is not to be learned, and data.loss_on is all; set it to assistant"
        )
    tools = conversations.tools_of(record.at("tools"), record.fill) if record.has("tools") else None
    return Example(row, messages=messages, tools=tools, notes=record.notes())


class _Record:
    """A record that is being read: which of its keys were, and what is to be noted."""

    def __init__(self, value: dict[str, Any], form: str, reading: ReadOptions) -> None:
        self.value, self.form = value, form
        self.where = columns_of(value, form, reading.columns)
        self.slots = Slots(reading.slots)
        self.read: set[Any] = set(reading.ignored)
        self.remarks: list[str] = []
        for part, column in self.where.items():
            known = FORMATS[form][part]
            if column not in known and folded(column) in known and part not in reading.columns:
                self.remarks.append(f"column '{quote(column)}' is read as '{folded(column)}'")

    def notes(self) -> tuple[str, ...]:
        """What is to be noted, each once."""
        return tuple(dict.fromkeys([*self.remarks, *unused(self.value, self.read)]))

    def name(self, part: str) -> str:
        return self.where.get(part) or FORMATS[self.form][part][0]

    def at(self, part: str) -> Any:
        """What stands under a column, or deeper where its name has dots. Raises InvalidRow."""
        name = self.name(part)
        if name in self.value:
            self.read.add(name)
            return self.value[name]
        inner: Any = self.value
        for depth, key in enumerate(name.split(".")):
            if isinstance(inner, list) and _number(key) < len(inner):
                inner = inner[_number(key)]
            elif isinstance(inner, dict) and key in inner:
                inner = inner[key]
            elif depth == 0 and (alike := self._alike(key)) is not None:
                key, inner = alike, self.value[alike]
            else:
                raise InvalidRow(f"has no '{quote(name)}'")
            if depth == 0:
                self.read.add(key)
        return inner

    def _alike(self, name: str) -> str | None:
        return next((key for key in self.value if folded(key) == folded(name)), None)

    def has(self, part: str) -> bool:
        """Whether a part that may be missing is there. A column that was named has to be."""
        if part not in self.where:
            return False
        value = self.at(part)
        return not (is_empty(value) or (isinstance(value, str) and value.isspace()))

    def fill(self, text: Any, name: str) -> str:
        return filled_text(text, name, self.slots)

    def text(self, part: str) -> str:
        return self.fill(self.at(part), self.name(part))

    def messages(self) -> tuple[Message, ...]:
        """The conversation of the record. Raises InvalidRow."""
        talk = {
            "messages": self._talk,
            "tree": lambda: self._messages_of(best_path(self.at("messages"))),
            "multiple-choice": self._choice,
            "preference": self._preferred,
        }.get(self.form, self._pair)()
        if self.has_part("system"):
            talk = self._with_system(talk, self._system_text())
        if self.has_part("thought"):
            self._add_thought(talk)
        if not any(message["role"] == "assistant" for message in talk):
            raise InvalidRow("has no assistant turn to learn from")
        if self._is_excluded():
            self.remarks.append(conversations.MARKED)
            talk = [
                message | {"learn": False} if message["role"] == "assistant" else message
                for message in talk
            ]
        return tuple(talk)

    def has_part(self, part: str) -> bool:
        return part in FORMATS[self.form] and self.has(part)

    def _messages_of(self, turns: Any, column: str = "messages") -> list[Message]:
        return conversations.messages_of(turns, self.fill, self.remarks, column)

    def _talk(self) -> list[Message]:
        return self._messages_of(self.at("messages"), self.name("messages"))

    def _pair(self) -> list[Message]:
        prompt = self._side("prompt", "user")
        answer = self._side("completion", "assistant")
        return [*self._before(prompt), *answer]

    def _before(self, prompt: list[Message]) -> list[Message]:
        """The prompt with what belongs before it and behind it."""
        if self.has_part("input"):
            more = self.text("input")
            prompt[-1]["content"] = f"{prompt[-1]['content']}\n\n{more}"
        if not self.has_part("history"):
            return prompt
        history = conversations.pairs_of(self.at("history"), self.fill, self.remarks)
        is_led = prompt[0]["role"] == "system"
        return [prompt[0], *history, *prompt[1:]] if is_led else [*history, *prompt]

    def _side(self, part: str, role: str) -> list[Message]:
        """One side of a pair: a text, or messages."""
        value = self.at(part)
        if isinstance(value, dict) and set(value) & set(ROLE_KEYS):
            value = [value]
        if is_talk(value):
            return self._messages_of(value)
        if self.form == "preference" and isinstance(value, str) and (turns := dialogue(value)):
            return self._messages_of(turns)
        if not isinstance(value, (bool, str)):
            value = number_as_text(value)  # a class, or the result of a sum
        return [{"role": role, "content": self.fill(value, self.name(part))}]

    def _preferred(self) -> list[Message]:
        """A prompt and the chosen answer. The answer may be the whole conversation."""
        answer = self._side("completion", "assistant")
        has_talk = self.has_part("messages")
        if answer[0]["role"] in ("system", "user"):  # it repeats what was asked
            self.read.update(
                self.where[part] for part in ("messages", "prompt") if part in self.where
            )
            return answer
        if has_talk:
            return [*self._talk(), *answer]
        return [*self._before(self._side("prompt", "user")), *answer]

    def _choice(self) -> list[Message]:
        question = self.text("prompt")
        names = [name.strip() for name in self.where.get("choices", "").split(",") if name.strip()]
        if len(names) == 1:
            choices = self.at("choices")
        else:
            choices = [self.value.get(name) for name in names]
            self.read.update(names)
        answer = self.at("completion") if "completion" in self.where else None
        listed, right = lettered(choices, answer, self.name("choices"))
        return [
            {"role": "user", "content": f"{question}\n\n{listed}"},
            {"role": "assistant", "content": right},
        ]

    def _system_text(self) -> str:
        """The system prompt of a record: a text, or parts that hold one."""
        value = self.at("system")
        if isinstance(value, dict):
            value = value.get("parts", value.get("content", value.get("text", value)))
        name = self.name("system")
        return conversations.text_of_parts(value, name, {}, self.fill, self.remarks)

    def _add_thought(self, talk: list[Message]) -> None:
        """Put the thought of a record before its last answer. Raises InvalidRow."""
        answer = next((m for m in reversed(talk) if m["role"] == "assistant"), None)
        if answer is not None:
            if "reasoning_content" in answer or "thinking" in answer:
                raise InvalidRow(
                    f"has a thought in its answer, and one in '{quote(self.name('thought'))}'"
                )
            answer["reasoning_content"] = self.text("thought")

    def _with_system(self, talk: list[Message], system: str) -> list[Message]:
        if talk[0]["role"] != "system":
            return [{"role": "system", "content": system}, *talk]
        if talk[0]["content"].strip() != system.strip():
            raise InvalidRow(
                f"has a system turn, and another text in '{quote(self.name('system'))}'"
            )
        return talk

    def _is_excluded(self) -> bool:
        """Whether the record as a whole is marked as not to be learned, or as a bad answer."""
        is_excluded = conversations.is_learned(self.value, self.read) is False
        for key in ("label", "kto_tag"):
            name = self._alike(key)
            if name is None or name in self.read:
                continue
            is_good = self.value[name]
            if isinstance(is_good, str) and is_good.strip().lower() in ("true", "false"):
                is_good = is_good.strip().lower() == "true"
            if not isinstance(is_good, bool):
                continue
            self.read.add(name)
            is_excluded = is_excluded or not is_good
            self.remarks.append(
                f"'{quote(name)}' says good or bad: bad answers are not learned, good ones as any "
                "other; what a comparison of both would teach is lost"
            )
        return is_excluded


def best_path(root: Any) -> list[dict[str, Any]]:
    """One conversation of a tree of replies: the best ranked reply at each turn, else the first.
    Replies that are marked as deleted are passed over; it ends with an assistant's turn."""
    path, node = [], root
    while isinstance(node, dict):
        path.append({"role": node.get("role"), "content": node.get("text", node.get("content"))})
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise InvalidRow(f"'replies' is {quoted(replies)}, not a list")
        usable = [
            reply for reply in replies if isinstance(reply, dict) and not reply.get("deleted")
        ]
        node = min(usable, key=_rank) if usable else None
    while len(path) > 1 and ROLES.get(str(path[-1]["role"])) != "assistant":
        path.pop()
    return path


def _rank(reply: dict[str, Any]) -> float:
    """The place of a reply among its siblings, 0 the best; those without one come last."""
    rank = reply.get("rank")
    if isinstance(rank, bool) or not isinstance(rank, (int, float)) or rank != rank:
        return math.inf
    return float(max(-1e300, min(rank, 1e300)))  # an integer may have thousands of digits


def _number(text: str) -> int:
    """The whole number that a short text spells; far above any count for other texts."""
    return int(text) if text.isdecimal() and len(text) <= 9 else 10**9
