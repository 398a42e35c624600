"""One answer while it is decoded: which token comes next, when it ends, and its text so far.

transformers' own `generate` runs, with every model's own cache; what the lab adds is a choice of
tokens that draws from a generator of its own, so that answers which are decoded together draw the
same tokens as each alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList, TextStreamer
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lab.chat.engine import prompt_cache, together
from lab.chat.engine.prompt_cache import KeptPrompts, ReadPrompt

if TYPE_CHECKING:
    from lab.chat.settings import GenerationSettings


class TokenChoice:
    """A logits processor that leaves exactly one token: (1, T) ids and (1, V) scores in, (1, V)
    out, with -inf for every other token.

    The order of the rules is that of `generate`: repetition penalty, temperature, top-k, top-p.
    `log_probabilities` collects the natural logarithm of each chosen token's probability under the
    model, before any rule.
    """

    def __init__(self, settings: GenerationSettings, device: torch.device) -> None:
        self.is_greedy = settings.temperature <= 0
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.log_probabilities: list[float] = []
        self.rules = LogitsProcessorList()
        if settings.repetition_penalty != 1:
            self.rules.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if not self.is_greedy:
            self.rules.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_k > 0:
                self.rules.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.rules.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ruled = self.rules(ids, scores)
        if self.is_greedy:
            token = ruled.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(ruled.softmax(dim=-1), 1, generator=self.generator)
        log_probability = scores.gather(1, token) - scores.logsumexp(dim=-1, keepdim=True)
        self.log_probabilities.append(float(log_probability))
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class Decoding:
    """An answer on its way. `run` decodes it; another thread may read the rest, and `stop` it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt_ids: torch.Tensor,
        settings: GenerationSettings,
        *,
        most: int,
        stop_ids: list[int],
        on_text: Callable[[str], None] = lambda _: None,
        stopped: threading.Event | None = None,
        prompts: KeptPrompts | None = None,
    ) -> None:
        """`prompt_ids` (1, T); at most `most` new tokens. `on_text` gets each piece of text once
        it is certain, in the decoding thread. With `prompts` the prompt is read in blocks, those
        that are kept there not at all; without it is read as a whole."""
        self.model, self.tokenizer = model, tokenizer
        self.prompt_ids, self.settings = prompt_ids, settings
        self.most, self.stop_ids, self.on_text = most, stop_ids, on_text
        self.stopped = stopped or threading.Event()
        self.prompts = prompts
        self.kept_tokens = 0  # of the prompt, that were read before
        self.token_ids: list[int] = []
        self.log_probabilities: list[float] = []
        self.error: Exception | None = None
        self.stop_string = ""  # the string that ended the answer
        self.was_stopped = False  # by a person, before its end
        self.started: float | None = None  # time.perf_counter()
        self.first_token: float | None = None
        self.ended: float | None = None

    def run(self) -> None:
        """Decode to the end. Never raises: what goes wrong is `error`."""
        choice = TokenChoice(self.settings, self.prompt_ids.device)
        self.log_probabilities = choice.log_probabilities
        text = _Text(self)
        self.started = time.perf_counter()
        try:
            read = self._read_blocks()
            if self.stopped.is_set():
                return
            # read alone, so that others do not wait for a model that reads its prompt
            self.model.generate(
                input_ids=self.prompt_ids,
                **({"past_key_values": read.cache} if read else {}),
                attention_mask=torch.ones_like(self.prompt_ids),
                max_new_tokens=self.most,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.stop_ids,
                streamer=text,
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=[self._is_over],
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
            )
            if read is not None and self.prompts is not None:
                self.prompts.keep(self.prompt_ids[0, : read.tokens].tolist(), read.cache)
        except Exception as error:
            self.error = error
        finally:
            self.ended = time.perf_counter()
            self.was_stopped = self.stopped.is_set()
            text.flush()

    def _read_blocks(self) -> ReadPrompt | None:
        if self.prompts is None:
            return None
        read = prompt_cache.read(self.model, self.prompt_ids, self.prompts, self.stopped.is_set)
        self.kept_tokens = read.reused if read else 0
        return read

    @property
    def finish(self) -> str:
        """\"stop\" where it ended by itself, "stopped" by a person, else "length"."""
        if self.stop_string or (self.token_ids and self.token_ids[-1] in self.stop_ids):
            return "stop"
        return "stopped" if self.was_stopped else "length"

    @property
    def text(self) -> str:
        """The whole answer so far, without special tokens and without the stop string."""
        text: str = self.tokenizer.decode(self.token_ids, skip_special_tokens=True)
        return text.split(self.stop_string)[0] if self.stop_string else text

    def add(self, token: int) -> None:
        """Called with each token as it is chosen."""
        self.first_token = self.first_token or time.perf_counter()
        self.token_ids.append(token)
        if self.settings.stop:
            # of each token at least a byte is text, so that the tail holds a string that ends here
            longest = max(len(string.encode()) for string in self.settings.stop)
            tail = self.tokenizer.decode(self.token_ids[-longest - 4 :], skip_special_tokens=True)
            matches = [string for string in self.settings.stop if string in tail]
            if matches:
                self.stop_string = min(matches, key=tail.index)

    def _is_over(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        is_over = bool(self.stopped.is_set() or self.stop_string)
        if not is_over:
            together.wait_for_others()
        return torch.full((ids.shape[0],), is_over, dtype=torch.bool, device=ids.device)


class _Text(TextStreamer):
    """The tokens of `generate` as they come; words go to `on_text`, a stop string never does."""

    def __init__(self, decoding: Decoding) -> None:
        super().__init__(decoding.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.decoding = decoding
        self.pending = ""  # text that may be the beginning of a stop string
        self.is_cut = False  # behind a stop string nothing is shown

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.decoding.add(int(value.reshape(-1)[-1]))
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.is_cut:
            return
        self.pending += text
        strings = self.decoding.settings.stop
        starts = [self.pending.index(string) for string in strings if string in self.pending]
        self.is_cut = bool(starts)
        if starts:
            self.pending = self.pending[: min(starts)]
        is_whole = self.is_cut or stream_end or not strings
        held_back = 0 if is_whole else max(map(len, strings)) - 1  # may begin a stop string
        certain = self.pending[: max(0, len(self.pending) - held_back)]
        self.pending = self.pending[len(certain) :]
        if certain:
            self.decoding.on_text(certain)

    def flush(self) -> None:
        """What was held back, where `generate` failed before it could say that it ended."""
        if self.token_cache or self.pending:
            self.end()


@dataclass(frozen=True)
class Timing:
    """Seconds from the start of decoding."""

    to_first_token: float
    total: float


def timing(decoding: Decoding) -> Timing:
    now = time.perf_counter()
    started = decoding.started or now
    ended = decoding.ended or now
    return Timing((decoding.first_token or ended) - started, ended - started)
