"""Answers on their way, by conversation, turn and model. They live in the chat process.

A page asks, looks and stops; it holds nothing, so that a reload, another page or a closed tab
neither loses nor stops an answer. Text is written to the conversation's file every second, so that
also the end of this process leaves what was there.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.chat import conversations, downloads, generate
from lab.chat import models as chat_models
from lab.chat.conversations import Answer, Chat, Turn
from lab.chat.engine import scoring, together
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.generate import PendingAnswer
from lab.chat.models import ModelRef
from lab.chat.settings import GenerationSettings
from lab.errors import LabError

SAVE_S = 1.0
PATIENCE_S = 10.0  # of a measurement, while answers are made


@dataclass
class PendingTurn:
    """The answers of some models in one turn."""

    conversation: str
    turn: int
    settings: GenerationSettings
    answers: dict[str, Answer]
    stops: dict[str, threading.Event] = field(default_factory=dict)
    pending: dict[str, PendingAnswer] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return all(answer.is_over for answer in self.answers.values())

    def update(self) -> None:
        """Bring the answers up to what is decoded."""
        for name, pending in list(self.pending.items()):
            decoding, answer = pending.decoding, self.answers[name]
            if answer.is_over or decoding.started is None:
                continue
            answer.started = answer.started or time.time()
            answer.phase = "answering" if decoding.token_ids else "reading the prompt"
            ended = decoding.ended or time.perf_counter()
            answer.seconds = ended - decoding.started
            if decoding.first_token is not None:
                answer.seconds_to_first_token = decoding.first_token - decoding.started
            answer.kept_tokens = decoding.kept_tokens
            answer.token_ids = list(decoding.token_ids)
            answer.tokens = len(answer.token_ids)
            answer.log_probabilities = list(decoding.log_probabilities)[: answer.tokens]
            answer.log_probability = sum(answer.log_probabilities)
            answer.text = decoding.text.strip()
            if decoding.ended is None:
                continue
            answer.receipt = pending.receipt().to_json()
            answer.pieces = [decoding.tokenizer.decode([token]) for token in answer.token_ids]
            if decoding.error is not None:
                _fail(answer, decoding.error)
            elif decoding.finish == "length" and answer.tokens == pending.room:
                answer.finish = "context"
            else:
                answer.finish = decoding.finish


class Board:
    """Questions in the order in which they came; one is answered at a time, by all its models."""

    def __init__(self, models: LoadedModels) -> None:
        self.models = models
        self.jobs: queue.Queue[PendingTurn] = queue.Queue()
        self.active: dict[tuple[str, int], PendingTurn] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self._work, name="board", daemon=True).start()

    def is_busy(self) -> bool:
        return bool(self.active)

    def ask(
        self, conversation_id: str, question: str, settings: dict[str, Any], names: list[str]
    ) -> int:
        """Begin a turn; its number from 0 on. Raises LabError while an earlier turn is answered,
        and for a model that cannot be talked to."""
        for name in names:
            chat_models.parse(name)
        self._settle(conversation_id)
        with self._changed(conversation_id) as conversation:
            if self._jobs_of(conversation_id):
                raise LabError(
                    "The last question is still being answered.", "Wait until all have answered."
                )
            if len(conversation.turns) >= conversations.MAX_TURNS:
                raise LabError(
                    f"The conversation has {conversations.MAX_TURNS} turns, the most there may be."
                )
            conversation.interrupt()
            conversation.models = list(names)
            answers = {name: Answer() for name in names}
            conversation.turns.append(Turn(question, answers, settings))
            turn = len(conversation.turns) - 1
            self._begin(conversation_id, turn, settings, names)
        return turn

    def answer_again(self, conversation_id: str, names: list[str] | None) -> int:
        """Answer the last turn anew with `names` of its models, or all. Raises LabError."""
        self._settle(conversation_id)
        with self._changed(conversation_id) as conversation:
            turn = len(conversation.turns) - 1
            if turn < 0:
                raise LabError("The conversation has no question yet.")
            if self._jobs_of(conversation_id):
                raise LabError("It is still being answered.", "Stop it first.")
            conversation.interrupt()
            last = conversation.turns[turn]
            names = list(last.answers) if names is None else names
            unknown = [name for name in names if name not in last.answers]
            if unknown or not names:
                raise LabError(f"The last turn has no answer of {', '.join(unknown) or 'nobody'}.")
            for name in names:
                last.answers[name] = Answer()
            self._begin(conversation_id, turn, last.settings, names)
        return turn

    def score(self, conversation_id: str, turn: int, writer: str) -> dict[str, list[float]]:
        """What each model of a turn gives the tokens of `writer`'s answer, by model; kept with the
        answer. Models of another base are left out: they have other tokens. Raises LabError."""
        conversation = conversations.read(conversation_id)
        answers = conversation.turns[turn].answers if 0 <= turn < len(conversation.turns) else {}
        if writer not in answers or not answers[writer].is_over:
            raise LabError("There is no answer to measure.", "Wait until it ends.")
        ids, messages = answers[writer].token_ids, conversation.messages(writer, turn)
        settings = GenerationSettings.of_request(conversation.turns[turn].settings)
        refs = {name: _asked_together(name, list(answers)) for name in answers}
        names = [name for name, ref in refs.items() if ref.base == refs[writer].base]
        if not self.models.turn.acquire(timeout=PATIENCE_S):
            raise LabError("Answers are being made.", "Try again when they have ended.")
        try:
            scores = {
                name: scoring.log_probabilities(
                    self.models.get(refs[name], frozenset(names)), messages, settings, ids
                )
                for name in names
            }
        finally:
            self.models.turn.release()
        with self._changed(conversation_id) as conversation:
            answer = conversation.turns[turn].answers.get(writer)
            if answer is not None and answer.token_ids == ids:
                answer.scores = scores
        return scores

    def stop(self, conversation_id: str, names: list[str] | None = None) -> int:
        """Stop answers of a conversation, by default all; what is there stays. How many."""
        stopped = 0
        for job in self._jobs_of(conversation_id):
            for name, event in job.stops.items():
                if (names is None or name in names) and not event.is_set():
                    event.set()
                    stopped += 1
        return stopped

    def view(self, conversation_id: str) -> Chat:
        """The conversation as it is now. Answers that no process works at any more are
        interrupted."""
        before = self._jobs_of(
            conversation_id
        )  # one that ends meanwhile may not be in what is read
        conversation = conversations.read(conversation_id)
        after = self._jobs_of(conversation_id)
        jobs = [*(job for job in before if job not in after), *after]
        for job in jobs:
            if job.turn < len(conversation.turns):
                job.update()
                conversation.turns[job.turn].answers |= job.answers
        working = frozenset((job.turn, name) for job in jobs for name in job.answers)
        conversation.interrupt(but=working)
        return conversation

    def _jobs_of(self, conversation_id: str) -> list[PendingTurn]:
        return [job for job in list(self.active.values()) if job.conversation == conversation_id]

    def _settle(self, conversation_id: str) -> None:
        """Wait the moment in which answers that are over are written."""
        while any(job.is_over for job in self._jobs_of(conversation_id)):
            time.sleep(0.01)

    @contextlib.contextmanager
    def _changed(self, conversation_id: str) -> Iterator[Chat]:
        """`conversations.change`, in which no other request begins a turn."""
        with self.lock, conversations.change(conversation_id) as conversation:
            yield conversation

    def _begin(
        self, conversation_id: str, turn: int, settings: dict[str, Any], names: list[str]
    ) -> None:
        job = PendingTurn(
            conversation_id,
            turn,
            GenerationSettings.of_request(settings),
            {name: Answer() for name in names},
            {name: threading.Event() for name in names},
        )
        self.active[(conversation_id, turn)] = job
        self.jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            saving = threading.Event()
            saver = threading.Thread(target=self._save_often, args=(job, saving), daemon=True)
            saver.start()
            try:
                self._answer(job)
            except Exception as error:
                traceback.print_exc()
                for answer in job.answers.values():
                    if not answer.is_over:
                        _fail(answer, error)
            finally:
                saving.set()
                saver.join()
                self._save(job)
                self.models.last_used = time.monotonic()  # before it looks idle
                self.active.pop((job.conversation, job.turn), None)

    def _answer(self, job: PendingTurn) -> None:
        """Load what is missing, then decode all together. What goes wrong with one model is its
        answer; the others go on."""
        with conversations.lock():  # the turn is written by now
            conversation = conversations.read(job.conversation)
        in_use = frozenset(job.answers)
        self._fetch_bases(job)
        with self.models.turn:
            for name, answer in job.answers.items():
                if answer.finish:
                    continue
                if job.stops[name].is_set():
                    answer.finish = "stopped"
                    continue
                try:
                    named = _asked_together(name, list(conversation.turns[job.turn].answers))
                    answer.phase = "waiting" if self.models.holds(named) else "loading"
                    loaded = self.models.get(named, in_use)
                    pending = generate.prepare(
                        loaded,
                        named,
                        conversation.messages(name, job.turn),
                        job.settings,
                        stopped=job.stops[name],
                    )
                except Exception as error:
                    _fail(answer, error)
                    continue
                answer.phase = "waiting"
                answer.prompt_tokens = pending.decoding.prompt_ids.shape[1]
                answer.context = loaded.length
                job.pending[name] = pending
            together.run_together([pending.decoding.run for pending in job.pending.values()])
            job.update()

    def _fetch_bases(self, job: PendingTurn) -> None:
        """Download what is missing, before the turn is taken: others need not wait for the Hub."""
        for name, answer in job.answers.items():
            try:
                for phase in downloads.fetch(chat_models.parse(name), job.stops[name].is_set):
                    answer.phase = phase
                    self.models.last_used = time.monotonic()
            except Exception as error:
                _fail(answer, error)

    def _save_often(self, job: PendingTurn, over: threading.Event) -> None:
        while not over.wait(SAVE_S):
            job.update()
            self._save(job)

    def _save(self, job: PendingTurn) -> None:
        """Write the answers; a conversation that was deleted meanwhile stays deleted."""
        with contextlib.suppress(LabError), conversations.change(job.conversation) as conversation:
            if job.turn < len(conversation.turns):
                conversation.turns[job.turn].answers |= job.answers


def _asked_together(name: str, names: list[str]) -> ModelRef:
    """The model called `name` among those of a question. Raises LabError if it cannot be asked;
    the others may be broken."""
    refs = [chat_models.parse(name)]
    for other in names:
        with contextlib.suppress(LabError):
            refs.append(chat_models.parse(other))
    return chat_models.with_shared_template(refs)[0]


def _fail(answer: Answer, error: Exception) -> None:
    answer.finish = "failed"
    if isinstance(error, LabError):
        answer.error, answer.hint = error.message, error.hint
    else:
        traceback.print_exception(error)
        answer.error = f"{type(error).__name__}: {error}"
