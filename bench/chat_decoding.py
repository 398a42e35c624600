"""Models of a chat: their memory, a switch between them, and what decoding together saves.

In each pair the same answers are decoded twice, one model after the other and all together, which
of them first by turns. All answers have as many tokens, so that what differs is the joining alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psutil

from bench.paired_stats import spread
from lab.chat import generate, models
from lab.chat.engine import together
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.models import ModelRef
from lab.chat.settings import GenerationSettings
from lab.errors import LabError

QUESTION = "Explain what a neural network is, step by step."
TOKENS = 64  # of each answer
SWITCHES = 20


@dataclass(frozen=True)
class ChatReport:
    """Times in seconds, memory in bytes."""

    base_bytes: int  # of the base's tensors
    file_bytes: int  # of the adapters' weights on the disk
    tensor_bytes: dict[str, int]  # beside the base's, by model
    growth_bytes: int  # of this process while the adapters were loaded, without libraries
    switch_s: dict[str, float | int | None]
    apart_s: list[float]
    together_s: list[float]
    apart_cpu_s: list[float]  # of this process: on one thread, what a busy machine does not change
    together_cpu_s: list[float]
    other_cores: list[float]  # that other processes kept busy during each pair
    equal_answers: int  # with the same tokens together as alone

    def to_json(self) -> dict[str, Any]:
        """With the memory as a share of base and adapters, and the time together as one of the
        time apart."""
        planned = self.base_bytes + self.file_bytes
        return asdict(self) | {
            "memory_share": (self.base_bytes + sum(self.tensor_bytes.values())) / planned,
            "resident_share": (self.base_bytes + self.growth_bytes) / planned,
            "time_share": _shares(self.together_s, self.apart_s),
            "cpu_share": _shares(self.together_cpu_s, self.apart_cpu_s),
        }


def chat(names: Sequence[str], pairs: int, tell: Callable[[str], object]) -> ChatReport:
    """Measure models of one base, which is loaded besides. Raises LabError for fewer than two."""
    named = [models.parse(name) for name in names]
    if len(named) < 2 or len({model.base for model in named}) != 1:
        raise LabError("The bench of chat needs two models or more of one base.", "--models A,B,C")
    process, loaded = psutil.Process(), LoadedModels()
    base = models.parse(f"base:{named[0].base}")
    loaded.get(base)
    import peft  # noqa: F401  # 40 MB of code, once for any number of models

    before = process.memory_info().rss
    for model in named:
        tell(f"loading {model.name}")
        loaded.get(model)
    growth, sizes = process.memory_info().rss - before, loaded.bytes_of()
    switches = [_seconds(partial(loaded.get, model)) for _ in range(SWITCHES) for model in named]
    _answers(loaded, named, all_at_once=True)  # warms up
    apart: list[tuple[float, float]] = []
    joined: list[tuple[float, float]] = []
    other, equal = [], 0
    for pair in range(pairs):
        busy, began = _busy_elsewhere(process), time.monotonic()
        order = (False, True) if pair % 2 else (True, False)
        results = {way: _answers(loaded, named, all_at_once=way) for way in order}
        other.append((_busy_elsewhere(process) - busy) / (time.monotonic() - began))
        apart.append(results[False][0])
        joined.append(results[True][0])
        equal += sum(a == b for a, b in zip(results[False][1], results[True][1], strict=True))
        tell(
            f"{joined[-1][0]:.2f} s together, {apart[-1][0]:.2f} s apart, "
            f"{other[-1]:.2f} cores busy with something else"
        )
    (apart_s, apart_cpu_s), (together_s, together_cpu_s) = (
        tuple(map(list, zip(*times, strict=True))) for times in (apart, joined)
    )
    return ChatReport(
        sizes.pop(base.name), sum(map(_weight_bytes, named)), sizes, growth, spread(switches),
        apart_s, together_s, apart_cpu_s, together_cpu_s, other, equal,
    )  # fmt: skip


def _shares(joined: Sequence[float], apart: Sequence[float]) -> dict[str, float | int | None]:
    return spread([beside / alone for beside, alone in zip(joined, apart, strict=True)])


def _answers(
    loaded: LoadedModels, named: Sequence[ModelRef], *, all_at_once: bool
) -> tuple[tuple[float, float], list[list[int]]]:
    """(seconds and processor seconds with the reading of the prompts, every model's tokens)."""
    settings = GenerationSettings(max_new_tokens=TOKENS, system_prompt="")
    conversation = [{"role": "user", "content": QUESTION}]
    decodings = []
    for model in models.with_shared_template(list(named)):
        answer = generate.prepare(loaded.get(model), model, conversation, settings)
        answer.decoding.stop_ids = []  # all answers are as long
        decodings.append(answer.decoding)
    tasks = [decoding.run for decoding in decodings]
    began, cpu_began = time.perf_counter(), time.process_time()
    for group in [tasks] if all_at_once else [[task] for task in tasks]:
        together.run_together(group)
    taken = time.perf_counter() - began, time.process_time() - cpu_began
    for decoding in decodings:
        if decoding.error is not None:
            raise decoding.error
    return taken, [decoding.token_ids for decoding in decodings]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _busy_elsewhere(process: psutil.Process) -> float:
    """Seconds of all cores that were not idle and not this process's."""
    times, own = psutil.cpu_times(), process.cpu_times()
    return float(sum(times) - times.idle - times.iowait - own.user - own.system)


def _weight_bytes(named: ModelRef) -> int:
    return sum(file.stat().st_size for file in named.weight_files)
