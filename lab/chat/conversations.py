"""Conversations on the disk: one JSON file each under LAB_HOME/chat/conversations.

A conversation has the same turns for all its models; an answer that failed or was stopped is part
of its turn. Whoever changes a file holds the lock of the folder, so that the chat process, pages
and the command line may all write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9]{4}", re.ASCII)
MAX_MODELS = 4
MAX_TURNS = 500
MAX_TITLE_CHARS = 80  # characters
PHASES = ("waiting", "loading", "reading the prompt", "answering")  # of an answer on its way
ENDS = ("stop", "length", "context", "stopped", "failed", "interrupted")


@dataclass
class Answer:
    """The answer of one model in one turn. `phase` is one of PHASES until `finish`, one of ENDS.

    Times are seconds from the start of decoding; `started` is the time of the clock.
    """

    phase: str = "waiting"
    text: str = ""
    finish: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    kept_tokens: int = 0  # of the prompt, that the model had read before
    context: int | None = None  # the most tokens that prompt and answer may have together
    seconds: float | None = None
    seconds_to_first_token: float | None = None
    log_probability: float | None = None  # natural logarithm, the sum over the answer's tokens
    started: float | None = None
    error: str = ""
    hint: str = ""
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)  # the text of each token, at the end
    # what other models of the turn give its tokens, by their name, where that was measured
    scores: dict[str, list[float]] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return bool(self.finish)

    @property
    def is_usable(self) -> bool:
        """Whether the conversation can go on from it."""
        if self.finish in ("stop", "length", "context"):
            return True  # also where it is empty
        return bool(self.text.strip()) and self.finish != "failed"


@dataclass
class Turn:
    """A question and an answer of each model."""

    question: str
    answers: dict[str, Answer] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # as requests.Bounds has them
    continue_from: str = ""  # the model whose answer all models go on from; "": each from its own

    @property
    def is_over(self) -> bool:
        return all(answer.is_over for answer in self.answers.values())


@dataclass
class Chat:
    """What is in a file. `models` are the names of the next turn's models, left to right."""

    id: str
    models: list[str] = field(default_factory=list)
    title: str = ""
    turns: list[Turn] = field(default_factory=list)
    created: float = 0.0
    changed: float = 0.0
    parent: str = ""  # the conversation that it branches from
    vote: str = ""  # the blind vote that it belongs to; its models are not to be shown
    next_message: str = ""  # written while the last turn was answered: sent after it

    @property
    def name(self) -> str:
        first = self.turns[0].question if self.turns else "New chat"
        return self.title or " ".join(first.split())[:MAX_TITLE_CHARS]

    def messages(self, model: str, turn: int) -> list[dict[str, str]]:
        """What `model` is asked in turn number `turn`: its own answers to the earlier questions,
        or those that all go on from. Questions without an answer are left out, since a template
        may demand that the roles alternate."""
        messages: list[dict[str, str]] = []
        for earlier in self.turns[:turn]:
            answer = earlier.answers.get(earlier.continue_from or model)
            if answer is not None and answer.is_usable:
                messages.append({"role": "user", "content": earlier.question})
                messages.append({"role": "assistant", "content": answer.text})
        return [*messages, {"role": "user", "content": self.turns[turn].question}]

    def interrupt(self, but: frozenset[tuple[int, str]] = frozenset()) -> None:
        """Mark answers that stand as being made, though nobody makes them; `but` are (turn, model)
        of those that are."""
        for index, turn in enumerate(self.turns):
            for name, answer in turn.answers.items():
                if not answer.is_over and (index, name) not in but:
                    answer.finish = "interrupted"

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Chat:
        """Unknown keys are ignored. Raises LabError where the file is damaged."""
        try:
            turns = [
                Turn(**_known(Turn, turn) | {
                    "answers": {
                        str(name): Answer(**_known(Answer, answer))
                        for name, answer in turn["answers"].items()
                    }
                })
                for turn in value["turns"]
            ]  # fmt: skip
            conversation = Chat(**_known(Chat, value) | {"turns": turns})
            _check_types(conversation)
            return conversation
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise LabError(
                f"The conversation {quote(value.get('id'))} cannot be read ({error}).",
                f"Its file is damaged: {folder()}.",
            ) from None


def _known(kind: type, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{kind.__name__.lower()} is not an object")
    return {f.name: value[f.name] for f in dataclasses.fields(kind) if f.name in value}


def _check_types(conversation: Chat) -> None:
    if not ID.fullmatch(conversation.id):
        raise ValueError("its id")
    if not all(isinstance(name, str) for name in conversation.models):
        raise ValueError("its models")
    for turn in conversation.turns:
        texts = [
            conversation.next_message, turn.question,
            *(answer.text for answer in turn.answers.values()),
        ]  # fmt: skip
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text")
        if not all(answer.finish in ("", *ENDS) for answer in turn.answers.values()):
            raise ValueError("how an answer ended")


def folder() -> Path:
    return paths.home() / "chat" / "conversations"


def path(conversation_id: str) -> Path:
    """The file of a conversation. Raises LabError for anything but an id."""
    if not isinstance(conversation_id, str) or not ID.fullmatch(conversation_id):
        raise LabError(f"'{quote(conversation_id)}' is not the id of a conversation.")
    return folder() / f"{conversation_id}.json"


def read(conversation_id: str) -> Chat:
    """Raises LabError if there is none, or its file is damaged."""
    value = read_object(path(conversation_id))
    if value is None:
        raise LabError(
            f"There is no conversation {conversation_id}.", "It was deleted, or never had a turn."
        )
    return Chat.from_json(value)


def all_conversations() -> list[Chat]:
    """Newest first; damaged files are left out."""
    conversations = []
    for file in folder().glob("*.json") if folder().is_dir() else ():
        with contextlib.suppress(LabError):
            conversations.append(read(file.stem))
    return sorted(conversations, key=lambda each: (each.changed, each.id), reverse=True)


@contextlib.contextmanager
def lock(directory: Path | None = None) -> Iterator[None]:
    """Held by whoever reads a conversation, or another file of `directory`, to write it again."""
    directory = paths.make_folder(directory or folder())
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def change(conversation_id: str) -> Iterator[Chat]:
    """The conversation, to be changed and then written. Nothing is written after an exception."""
    with lock():
        conversation = read(conversation_id)
        yield conversation
        _write(conversation)


def create(
    models: list[str], *, parent: str = "", turns: list[Turn] | None = None, vote: str = ""
) -> Chat:
    """A new conversation with `turns` to begin with. Raises LabError for too many models."""
    if not 1 <= len(models) <= MAX_MODELS or len(set(models)) != len(models):
        raise LabError(
            f"A chat has 1 to {MAX_MODELS} different models, not {len(models)}.",
            "Choose other models.",
        )
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    conversation = Chat(
        f"{stamp}-{secrets.token_hex(2)}",
        list(models),
        turns=turns or [],
        created=time.time(),
        parent=parent,
        vote=vote,
    )
    with lock():
        _write(conversation)
    return conversation


def branch(conversation_id: str, turn: int) -> Chat:
    """A new conversation with the turns before `turn`; the old one stays as it is."""
    old = read(conversation_id)
    if not 0 <= turn <= len(old.turns):
        raise LabError(
            f"The conversation has {quantity(len(old.turns), 'turn')}; there is no turn {turn + 1}."
        )
    return create(old.models, parent=old.id, turns=old.turns[:turn])


def continue_from(conversation_id: str, turn: int, model: str) -> None:
    """Let all models go on from `model`'s answer in `turn`. Raises LabError if it has none."""
    with change(conversation_id) as chat:
        answer = chat.turns[turn].answers.get(model) if 0 <= turn < len(chat.turns) else None
        if answer is None or not answer.is_usable:
            raise LabError(f"Turn {turn + 1} has no answer of {quote(model)} to continue from.")
        chat.turns[turn].continue_from = model


def keep_next(conversation_id: str, message: str) -> None:
    """Keep a message until all have answered. Raises LabError."""
    with change(conversation_id) as chat:
        chat.next_message = message


def take_next(conversation_id: str) -> str:
    """The message that waits, which is then kept no more: of two pages one gets it."""
    with change(conversation_id) as chat:
        message, chat.next_message = chat.next_message, ""
    return message


def delete(conversation_id: str) -> None:
    """Delete its file; nothing happens if there is none."""
    with lock():
        path(conversation_id).unlink(missing_ok=True)


def rename(conversation_id: str, title: str) -> None:
    """Give it a title of up to MAX_TITLE_CHARS characters. Raises LabError."""
    title = " ".join(title.split())
    if len(title) > MAX_TITLE_CHARS:
        raise LabError(
            f"The title has {quantity(len(title), 'character')}; at most {MAX_TITLE_CHARS} "
            "are kept."
        )
    with change(conversation_id) as conversation:
        conversation.title = title


def _write(conversation: Chat) -> None:
    conversation.changed = time.time()
    write_json(path(conversation.id), conversation.to_json(), durable=False)


def as_markdown(conversation: Chat) -> str:
    """The conversation for people to read."""
    lines = [f"# {conversation.name}", ""]
    for turn in conversation.turns:
        lines += [f"**Question:** {turn.question}", ""]
        for name, answer in turn.answers.items():
            end = f" ({answer.finish})" if answer.finish not in ("stop", "") else ""
            lines += [f"**{name}**{end}:", "", answer.text or answer.error or "(nothing)", ""]
    return "\n".join(lines)
