"""Blind votes on the disk: one JSON file each under LAB_HOME/chat/votes.

Models answer the same prompts; a person sees the answers without names, in an order that the seed
shuffles and that brings each model to each place equally often. A vote is a model's name, TIE or
BAD: one for each prompt and voter, to be changed until the vote has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import methods, paths
from lab.atomic_files import load_json, read_object, write_json
from lab.chat import conversations
from lab.chat.conversations import MAX_MODELS, Chat
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

TIE, BAD = "tie", "bad"
IDENTICAL, FAILED = "identical", "failed"  # why a prompt is not voted on
COMPLETE_ENDS = ("stop", "length", "context")  # how answers end that are fair to compare
MAX_PROMPTS = 500
MAX_VOTER_CHARS = 40  # characters
MAX_FILE_BYTES = 64_000_000  # bytes
TELL_NOTHING = {"base", "chat", "full", "instruct", "model", "result", "run", "step", "the"}


@dataclass
class VotePrompt:
    """A prompt, what the models answer, and who prefers which."""

    prompt: str
    conversation: str = ""  # in which it is answered; "": not asked yet
    order: list[str] = field(default_factory=list)  # the models of answers A, B, …
    answers: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    skipped: str = ""  # IDENTICAL or FAILED
    named: list[str] = field(default_factory=list)  # models that their own answers name
    votes: dict[str, str] = field(default_factory=dict)  # of each voter

    @property
    def is_answered(self) -> bool:
        return bool(self.answers)

    @property
    def verdict(self) -> str:
        """What most voters say; TIE where as many say something else, "" without a vote. Voters of
        one prompt judge the same answers, so that a prompt counts once."""
        counts = Counter(self.votes.values())
        most = [vote for vote, count in counts.items() if count == max(counts.values())]
        return "" if not most else most[0] if len(most) == 1 else TIE


@dataclass
class VoteSession:
    """What is in a file. `models` are names as the chat knows them, the first is the base."""

    id: str
    models: list[str]
    titles: dict[str, str] = field(default_factory=dict)  # of the models, as they were at the start
    planned: int | None = None  # votes, fixed before the first one
    seed: int = 0
    voter: str = "me"
    source: str = ""  # the set that the prompts are from; "": typed
    settings: dict[str, Any] = field(default_factory=dict)  # as requests.Bounds has them
    prompts: list[VotePrompt] = field(default_factory=list)
    created: float = 0.0
    changed: float = 0.0
    ended: float = 0.0  # the time of the clock; 0: it goes on

    @property
    def is_over(self) -> bool:
        return self.ended > 0

    @property
    def num_votes(self) -> int:
        """Prompts with a vote of this voter."""
        return sum(self.voter in prompt.votes for prompt in self.prompts)

    @property
    def is_complete(self) -> bool:
        """Whether the planned votes are given."""
        return self.planned is not None and self.num_votes >= self.planned

    @property
    def is_exhausted(self) -> bool:
        """Whether no prompt of the set is left."""
        return bool(self.source) and self.next_prompt() is None

    @property
    def is_early(self) -> bool:
        """Whether a person ended it before the planned votes were given."""
        is_short = self.planned is not None and self.num_votes < self.planned
        return self.is_over and is_short and not self.is_exhausted

    def next_prompt(self) -> int | None:
        """The first prompt that waits for a vote of this voter."""
        for index, prompt in enumerate(self.prompts):
            if not prompt.skipped and self.voter not in prompt.votes:
                return index
        return None

    def add_prompt(self, text: str) -> int:
        """Its place. Raises LabError for an empty prompt, one too many, and one that was asked."""
        self._check_open()
        if not text.strip():
            raise LabError("The prompt is empty.", "Write a question.")
        if len(self.prompts) >= MAX_PROMPTS:
            raise LabError(f"A blind vote has up to {MAX_PROMPTS} prompts.", "Begin another one.")
        if any(prompt.prompt == text for prompt in self.prompts):
            raise LabError("This prompt is in the vote already.", "Ask something else.")
        self.prompts.append(VotePrompt(text))
        return len(self.prompts) - 1

    def take_answers(self, index: int, chat: Chat) -> None:
        """Take the answers of the last turn of `chat`, once all are over, and shuffle them. Prompts
        with equal answers, or without one of them, are skipped."""
        prompt, turn = self.prompts[index], chat.turns[-1]
        if prompt.is_answered or not turn.is_over:
            return
        answers = {name: turn.answers[name] for name in self.models}
        prompt.answers = {name: answer.text for name, answer in answers.items()}
        prompt.tokens = {name: answer.tokens for name, answer in answers.items()}
        prompt.named = [name for name, text in prompt.answers.items() if self.names(name, text)]
        if not all(answer.finish in COMPLETE_ENDS for answer in answers.values()):
            prompt.skipped = FAILED
        elif len({" ".join(text.split()) for text in prompt.answers.values()}) == 1:
            prompt.skipped = IDENTICAL
        else:
            shown = sum(bool(other.order) for other in self.prompts)
            prompt.order = order(self.models, self.seed, shown)

    def ask_again(self, index: int) -> None:
        """Let a prompt without all its answers be asked anew. Raises LabError for another one."""
        self._check_open()
        if self.prompts[index].skipped != FAILED:
            raise LabError(f"Prompt {index + 1} has its answers.")
        self.prompts[index] = VotePrompt(self.prompts[index].prompt)

    def vote(self, index: int, vote: str) -> None:
        """Give or change the vote on a prompt. Raises LabError."""
        self._check_open()
        prompt = self.prompts[index] if 0 <= index < len(self.prompts) else None
        if prompt is None or not prompt.order:
            raise LabError(f"Prompt {index + 1} has no answers to vote on.")
        if vote not in (*self.models, TIE, BAD):
            choices = ", ".join((*self.models, TIE, BAD))
            raise LabError(f"'{quote(vote)}' is not a vote.", f"Vote one of: {choices}.")
        if self.is_complete and self.voter not in prompt.votes:
            raise LabError(
                f"All of the planned votes are given: {self.planned}.", "Look at the outcome."
            )
        prompt.votes[self.voter] = vote

    def end(self) -> None:
        """Show the names; no vote is given or changed after this. Raises LabError without one."""
        if not self.num_votes and not self.is_exhausted:
            raise LabError("Nothing has been voted on.", "Vote, or delete this blind vote.")
        self.ended = self.ended or time.time()

    def names(self, model: str, text: str) -> bool:
        """Whether an answer has a word of its model's title that tells it from the others."""
        words = _words(self.titles.get(model) or model)
        others = [_words(self.titles.get(name) or name) for name in self.models if name != model]
        distinct = words - set().union(*others)
        return bool(distinct & _words(text))

    def _check_open(self) -> None:
        if self.is_over:
            raise LabError("This blind vote has ended.", "Begin another one.")

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(value: Any) -> VoteSession:
        """Unknown keys are ignored. Raises LabError that says what is wrong."""
        try:
            prompts = [VotePrompt(**_known(VotePrompt, prompt)) for prompt in value["prompts"]]
            session = VoteSession(**_known(VoteSession, value) | {"prompts": prompts})
            _check(session)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise LabError(
                f"This is no blind vote: {_reason(error)}.",
                "Give the id of one, or the JSON file that the Chat page saves.",
            ) from None
        return session


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else quote(str(error))


def _known(kind: type, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} stands where an object belongs")
    return {f.name: value[f.name] for f in dataclasses.fields(kind) if f.name in value}


def _check(session: VoteSession) -> None:
    """Raises ValueError. A file of another person may hold anything."""
    models = session.models
    if not conversations.ID.fullmatch(session.id):
        raise ValueError("its id is not the id of a vote")
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        raise ValueError("its models are no list of names")
    if not 2 <= len(models) <= MAX_MODELS or len(set(models)) != len(models):
        raise ValueError(
            f"it has {quantity(len(models), 'model')}; 2 to {MAX_MODELS} different ones belong"
        )
    if session.planned is not None and (type(session.planned) is not int or session.planned < 1):
        raise ValueError(f"{session.planned!r} is no planned number of votes")
    if type(session.seed) is not int or not isinstance(session.voter, str):
        raise ValueError("its seed or its voter is of another kind")
    for times in (session.created, session.changed, session.ended):
        if type(times) not in (int, float):
            raise ValueError(f"{times!r} is no time")
    for position, prompt in enumerate(session.prompts, 1):
        if not isinstance(prompt.prompt, str) or prompt.skipped not in ("", IDENTICAL, FAILED):
            raise ValueError(f"prompt {position} is damaged")
        if prompt.order and sorted(prompt.order) != sorted(models):
            raise ValueError(f"the order of prompt {position} is not one of its models")
        if prompt.answers and set(prompt.answers) != set(models):
            raise ValueError(f"prompt {position} has answers of other models")
        if not all(isinstance(text, str) for text in prompt.answers.values()):
            raise ValueError(f"an answer to prompt {position} is no text")
        if not all(type(count) is int for count in prompt.tokens.values()):
            raise ValueError(f"a number of tokens of prompt {position} is no number")
        for voter, vote in prompt.votes.items():
            if not isinstance(voter, str) or vote not in (*models, TIE, BAD):
                raise ValueError(f"prompt {position} has the vote {vote!r}")


def _words(text: str) -> set[str]:
    """Words that tell models apart: lower case, of three letters or more; of "SmolLM2" also what
    stands before its number. Names of methods are words of everybody."""
    words = set(re.findall(r"[^\W_]{3,}", text.lower()))
    words |= {word.rstrip("0123456789") for word in words}
    common = TELL_NOTHING | {name.lower() for name in methods.names()}
    return {word for word in words - common if len(word) >= 3 and not word.isdigit()}


def order(models: list[str], seed: int, pair_index: int) -> list[str]:
    """The models in the places A, B, … of pair number `pair_index` that is shown, from 0 on.

    In each block of len(models) prompts every model is once in every place (a Latin square of
    rotations, itself shuffled), so that no preference for a place becomes one for a model.
    """
    count = len(models)
    draw = random.Random(f"{seed}:{pair_index // count}")
    first = draw.sample(models, count)
    turn = draw.sample(range(count), count)[pair_index % count]
    return first[turn:] + first[:turn]


def folder() -> Path:
    return paths.home() / "chat" / "votes"


def path(session_id: str) -> Path:
    """The file of a blind vote. Raises LabError for anything but an id."""
    if not isinstance(session_id, str) or not conversations.ID.fullmatch(session_id):
        raise LabError(f"'{quote(session_id)}' is not the id of a blind vote.")
    return folder() / f"{session_id}.json"


def read(session_id: str) -> VoteSession:
    """Raises LabError if there is none, or its file is damaged."""
    value = read_object(path(session_id))
    if value is None:
        raise LabError(f"There is no blind vote {session_id}.", "It was deleted, or never begun.")
    return VoteSession.from_json(value)


def read_file(file: Path) -> VoteSession:
    """The blind vote in a file that a person names. Raises LabError."""
    return VoteSession.from_json(load_json(file, MAX_FILE_BYTES))


def all_sessions() -> list[VoteSession]:
    """Newest first; damaged files are left out."""
    sessions = []
    for file in folder().glob("*.json") if folder().is_dir() else ():
        with contextlib.suppress(LabError):
            sessions.append(read(file.stem))
    return sorted(sessions, key=lambda each: (each.changed, each.id), reverse=True)


@contextlib.contextmanager
def change(session_id: str) -> Iterator[VoteSession]:
    """The blind vote, to be changed and then written. Nothing is written after an exception."""
    with conversations.lock(folder()):
        session = read(session_id)
        yield session
        _write(session)


def create(
    models: list[str],
    *,
    planned: int | None = None,
    seed: int = 0,
    voter: str = "me",
    source: str = "",
    prompts: list[str] | None = None,
    titles: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
) -> VoteSession:
    """A new blind vote. With a `source` it ends with its `prompts`; each is asked once. Raises
    LabError."""
    if not 2 <= len(models) <= MAX_MODELS or len(set(models)) != len(models):
        raise LabError(
            f"A blind vote is between 2 and {MAX_MODELS} different models, not {len(models)}.",
            "Choose other models.",
        )
    voter = " ".join(voter.split())
    if not 1 <= len(voter) <= MAX_VOTER_CHARS:
        raise LabError(
            f"The voter's name has {quantity(len(voter), 'character')}, not 1 to {MAX_VOTER_CHARS}."
        )
    if planned is not None and not 1 <= planned <= MAX_PROMPTS:
        raise LabError(f"{planned} votes are planned, not 1 to {MAX_PROMPTS}.")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    session = VoteSession(
        f"{stamp}-{secrets.token_hex(2)}", list(models), titles or {}, planned, seed, voter,
        source, settings or {}, created=time.time(),
    )  # fmt: skip
    for text in dict.fromkeys(prompts or []):
        session.add_prompt(text)
    if source and not session.prompts:
        raise LabError(f"'{quote(source)}' has no prompt.", "Choose another set.")
    with conversations.lock(folder()):
        _write(session)
    return session


def delete(session_id: str) -> None:
    """Delete its file; nothing happens if there is none."""
    with conversations.lock(folder()):
        path(session_id).unlink(missing_ok=True)


def _write(session: VoteSession) -> None:
    session.changed = time.time()
    write_json(path(session.id), session.to_json(), durable=False)


def preference_rows(session: VoteSession) -> list[dict[str, str]]:
    """Rows (prompt, chosen, rejected) of each decided prompt: what won against each other answer;
    an answer equal to it, or to one before, makes no row."""
    rows: list[dict[str, str]] = []
    for prompt in session.prompts:
        chosen = prompt.answers.get(prompt.verdict, "")
        others = [text for name, text in prompt.answers.items() if name != prompt.verdict]
        for rejected in dict.fromkeys(others if chosen.strip() else []):
            if rejected.strip() and rejected != chosen:
                rows.append({"prompt": prompt.prompt, "chosen": chosen, "rejected": rejected})
    return rows
