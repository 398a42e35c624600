"""One prompt, several models, the same template and seed."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lab.atomic_files import part
from lab.chat.answers import AnswerReceipt, ModelAnswer
from lab.chat.models import LoadedModel, ModelRef, PromptTerms
from lab.chat.settings import GenerationSettings
from lab.data import chat_template, stop_tokens, template_lock
from lab.models.context_length import room_for_answer

if TYPE_CHECKING:
    from lab.chat.engine.decoding import Decoding


def check_length(
    terms: PromptTerms,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
) -> None:
    """Raise PromptTooLong if the conversation leaves no room for an answer."""
    prompt = render(terms.tokenizer, conversation, settings)
    ids = terms.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    room_for_answer(len(ids), terms.length, named.name, terms.virtual)


def answer(
    loaded: LoadedModel,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
) -> ModelAnswer:
    """The answer of one model. Raises PromptTooLong, and what the model raised."""
    *_, last = stream(loaded, named, conversation, settings)
    assert isinstance(last, ModelAnswer)
    return last


def stream(
    loaded: LoadedModel,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
    stopped: threading.Event | None = None,
) -> Generator[str | ModelAnswer]:
    """Each piece of text as it comes, then the whole answer.

    Ending the iteration early stops the model at its next token; so does `stopped`, which another
    thread may set, since many tokens may come before the next piece. An answer ends where the
    model's context does. Raises PromptTooLong if the prompt leaves no room for one.
    """
    from lab.chat.engine import together

    pieces: queue.Queue[str | None] = queue.Queue()
    pending = prepare(loaded, named, conversation, settings, pieces.put, stopped)

    def decode() -> None:
        together.run_together([pending.decoding.run])
        pieces.put(None)

    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    piece: str | None = ""
    try:
        while (piece := pieces.get()) is not None:
            yield piece
    finally:
        if piece is not None:  # it was left before its end
            pending.decoding.stopped.set()
        thread.join()
    yield pending.outcome()


@dataclass(frozen=True)
class PendingAnswer:
    """A rendered prompt and the answer that is decoded for it."""

    loaded: LoadedModel
    named: ModelRef
    prompt: str
    question: str  # the prompt of the last message alone: the same for models that read alike
    settings: GenerationSettings
    room: int  # tokens between the prompt and the end of the context
    decoding: Decoding

    def outcome(self) -> ModelAnswer:
        """The whole answer, once it is decoded. Raises what the model raised."""
        from lab.chat.engine.decoding import timing

        decoding = self.decoding
        if decoding.error is not None:
            raise decoding.error
        times = timing(decoding)
        return ModelAnswer(
            model=self.named.name,
            text=decoding.text.strip(),
            token_ids=decoding.token_ids,
            is_at_context_end=len(decoding.token_ids) == self.room,
            finish=decoding.finish,
            seconds=times.total,
            seconds_to_first_token=times.to_first_token,
            log_probability=sum(decoding.log_probabilities),
            log_probabilities=decoding.log_probabilities,
            receipt=self.receipt(),
        )

    def receipt(self) -> AnswerReceipt:
        ids = self.decoding.prompt_ids[0].tolist()
        return replace(
            receipt(self.loaded, self.named, self.prompt, ids, self.settings),
            question_hash=hashlib.sha256(self.question.encode()).hexdigest()[:16],
            answer_hash=_hash_of(self.decoding.token_ids),
        )


def prepare(
    loaded: LoadedModel,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
    on_text: Callable[[str], None] = lambda _: None,
    stopped: threading.Event | None = None,
) -> PendingAnswer:
    """The answer that `PendingAnswer.decoding.run` decodes. Raises PromptTooLong."""
    from lab.chat.engine.decoding import Decoding
    from lab.chat.engine.prompt_cache import KeptPrompts

    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = render(tokenizer, conversation, settings)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    room = room_for_answer(ids.shape[1], loaded.length, named.name, loaded.virtual)
    decoding = Decoding(
        model,
        tokenizer,
        ids.to(model.device),
        settings,
        most=min(settings.max_new_tokens, room),
        stop_ids=stop_tokens.ids(tokenizer, model),
        on_text=on_text,
        stopped=stopped,
        # virtual tokens stand before the prompt: its blocks would not begin where they should
        prompts=None if loaded.virtual else loaded.prompts or KeptPrompts(),
    )
    is_first = len(conversation) == 1 or conversation[-1]["role"] != "user"
    question = prompt if is_first else render(tokenizer, conversation[-1:], settings)
    return PendingAnswer(loaded, named, prompt, question, settings, room, decoding)


def render(tokenizer: Any, conversation: list[dict[str, str]], settings: GenerationSettings) -> str:
    messages = chat_template.with_system(tuple(conversation), settings.system_prompt or "")
    return chat_template.render(tokenizer, messages, to_answer=True)


def receipt(
    loaded: LoadedModel, named: ModelRef, prompt: str, ids: list[int], settings: GenerationSettings
) -> AnswerReceipt:
    """What is known of an answer before its first token."""
    differs = template_lock.warning(
        part(loaded.receipt, "lock"), loaded.tokenizer, settings.system_prompt or ""
    )
    return AnswerReceipt(
        model=named.name,
        prompt=prompt,
        prompt_hash=_hash_of(ids),
        prompt_tokens=len(ids),
        system_prompt=settings.system_prompt or "",
        template_hash=hashlib.sha256(str(loaded.tokenizer.chat_template).encode()).hexdigest()[:16],
        seed=settings.seed,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        stop=tuple(settings.stop),
        max_new_tokens=settings.max_new_tokens,
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        template_of=named.template_of.name if named.template_of else "",
        base=named.base,
        step=named.step,
        warning=f"{loaded.note} {differs}".strip(),
        base_weights=loaded.base_weights,
        weights=_weights_of(loaded, named),
        proof=loaded.proof.record() if loaded.proof else None,
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )


def _weights_of(loaded: LoadedModel, named: ModelRef) -> dict[str, str]:
    """The sha256 of each file of weights, as it was written with the result or the checkpoint."""
    if named.step is None:
        return dict(part(loaded.receipt, "weights"))
    files = part(loaded.version, "written", "files")
    return {file.name: str(part(files, file.name).get("sha256")) for file in named.weight_files}


def _hash_of(ids: list[int]) -> str:
    """What tells prompts and answers apart: the first 16 hexadecimal digits of a sha256."""
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
