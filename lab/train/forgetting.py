"""A probe for forgetting that needs no foreign data.

The base model answers a hundred general prompts once, sampled at temperature 1. The answers are
draws from the base's own distribution, so the mean rise of the loss on them is an estimate of
KL(base || tuned) without bias; the KL itself is computed token by token over the base's TOP
likeliest tokens and the rest as one, which can only underestimate it. Both in nats a token.

How far chance alone moves them is told by resampling the chats: a rise below its half interval is
no forgetting shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab import paths
from lab.atomic_files import write_atomic
from lab.data import chat_template, rendering, stop_tokens
from lab.data.batches import collate, single_rows
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.models import weights_hash
from lab.models.catalog import ModelSource
from lab.models.context_length import context_length
from lab.models.weights import evaluating
from lab.paths import ASSETS
from lab.train.behaviour import generate

PROMPTS = ASSETS / "general_prompts.json"
MAX_NEW_TOKENS = 64  # new tokens of an answer
SAMPLING_BATCH = 10  # answers sampled at once
SEED = 20_261
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
TOP_K = 64
MAX_LENGTH = 512  # tokens of a prompt and its answer
ROWS = 4  # in one forward pass: the whole logits are needed
RESAMPLES = 500

Tell = Callable[[int, int], None]


def prompts() -> list[str]:
    texts: list[str] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    return texts


def answers_file(source: ModelSource, tokenizer: Any) -> Path:
    """Where the answers of this base under this template are kept."""
    parts = [
        weights_hash.identify(source).weights,
        tokenizer.chat_template,
        prompts(),
        MAX_NEW_TOKENS,
        SEED,
        # where an answer stops, and what else the template reads, decide what is sampled
        stop_tokens.ids(tokenizer),
        rendering.settings_of(tokenizer).to_json(),
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return paths.home() / "cache" / "general" / f"{key}.jsonl"


def base_answers_file(
    source: ModelSource,
    tokenizer: Any,
    model: Callable[[], Any],
    tell: Tell = lambda done, total: None,
) -> Path:
    """The file of the base's answers, as chats; sampled on the first call. `model` gives the
    base, and is asked only then. The tokenizer has its template."""
    file = answers_file(source, tokenizer)
    if file.is_file():
        return file
    questions = prompts()
    base = model()
    lines = []
    for start in range(0, len(questions), SAMPLING_BATCH):
        tell(start, len(questions))
        group = questions[start : start + SAMPLING_BATCH]
        for prompt, answer in zip(group, _sample(base, tokenizer, group, start), strict=True):
            if answer:
                turns = [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": answer},
                ]
                lines.append(json.dumps({"messages": turns}))
    tell(len(questions), len(questions))
    paths.make_folder(file.parent)
    write_atomic(file, "".join(f"{line}\n" for line in lines))
    return file


def _sample(model: Any, tokenizer: Any, questions: list[str], seed: int) -> list[str]:
    """One answer to each prompt, drawn at temperature 1 from the whole vocabulary."""
    import torch

    length = context_length(getattr(model, "config", None))
    torch.manual_seed(SEED + seed)
    rows = generate(model, tokenizer, questions, MAX_NEW_TOKENS, length, "the base", SAMPLED)
    replies = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text.replace("\0", "").strip() for text in replies]


@dataclass(frozen=True)
class Likelihood:
    """Of the probe's counted tokens, in order: (N,) log-probability of each, and of the base's
    TOP likeliest tokens there, (N, TOP) ids and log-probabilities. `tokens`: how many of them each
    chat has."""

    log_probs: Any
    top: Any
    top_ids: Any
    tokens: tuple[int, ...] = ()

    def first(self, chats: int) -> Likelihood:
        """Of the first `chats` chats only."""
        count = sum(self.tokens[:chats])
        columns = (self.log_probs[:count], self.top[:count], self.top_ids[:count])
        return Likelihood(*columns, self.tokens[:chats])


def likelihood(
    model: Any,
    tokenizer: Any,
    file: Path,
    top_ids: Any = None,
    after_batch: Callable[[], object] = lambda: None,
    length: int | None = None,
    most: int | None = None,
) -> Likelihood:
    """How likely the model finds the answers of `file`; at `top_ids`, or at its own likeliest.

    `length` is the most tokens that are read of a chat: the same for the models that are compared.
    `most`: only the first so many chats.
    """
    import torch

    parts: list[tuple[Any, Any, Any]] = []
    sequences = _sequences(tokenizer, file, min(MAX_LENGTH, length or MAX_LENGTH))[:most]
    with evaluating(model), torch.inference_mode():
        for log, targets in _logits(model, tokenizer, sequences):
            start = sum(len(part[0]) for part in parts)
            if top_ids is None:
                best = log.topk(min(TOP_K, log.shape[1]), dim=1)
                there, ids = best.values, best.indices
            else:
                ids = top_ids[start : start + len(log)].to(log.device)
                there = log.gather(1, ids)
            likelihoods = log.gather(1, targets[:, None])[:, 0]
            parts.append((likelihoods.cpu(), there.cpu(), ids.cpu()))
            after_batch()
    log_probs, top, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    rows = single_rows(sequences)
    return Likelihood(log_probs, top, ids, tuple(rows[index].targets for index in range(len(rows))))


def _sequences(tokenizer: Any, file: Path, length: int) -> list[Any]:
    """The chats of `file` as tokens, those with an answer to score."""
    return [
        tokens
        for example in ExampleReader(file, ReadOptions(on_invalid_row="skip"))
        for tokens in chat_template.tokenize(example, tokenizer, "", "assistant", length)
        if tokens.num_loss_tokens
    ]


def _logits(model: Any, tokenizer: Any, sequences: list[Any]) -> Iterator[tuple[Any, Any]]:
    """(log-probabilities (n, V) in float32, targets (n,)) of the counted tokens, batch by batch."""
    import torch

    rows = single_rows(sequences)
    device = next(model.parameters()).device
    for start in range(0, len(rows), ROWS):
        batch = collate(rows[start : start + ROWS], tokenizer.pad_token_id)
        batch = {name: value.to(device) for name, value in batch.items()}
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        chosen = logits.flatten(0, 1)[batch["loss_index"]].float()
        yield torch.log_softmax(chosen, dim=1), batch["targets"]


def compare(base: Likelihood, tuned: Likelihood) -> dict[str, float]:
    """{"probe/loss", "probe/base_loss", "probe/rise", "probe/kl"} in nats a token; and, where the
    chats are known, their number and half of the 95 % intervals of rise and KL."""
    before, after = -float(base.log_probs.mean()), -float(tuned.log_probs.mean())
    divergence_N = _divergence(base, tuned)
    figures = {
        "probe/loss": after,
        "probe/base_loss": before,
        "probe/rise": after - before,
        "probe/kl": float(divergence_N.mean()),
    }
    if base.tokens:
        rises = _by_chat(base.log_probs - tuned.log_probs, base.tokens)
        figures["probe/rise_half"] = resampled_half(rises, base.tokens)
        figures["probe/kl_half"] = resampled_half(_by_chat(divergence_N, base.tokens), base.tokens)
        figures["probe/chats"] = len(base.tokens)
    return figures


def _divergence(base: Likelihood, tuned: Likelihood) -> Any:
    """(N,) KL of each token's distribution."""
    import torch

    p = base.top.exp()
    p_rest = (1 - p.sum(1)).clamp_min(1e-9)
    q_rest = (1 - tuned.top.exp().sum(1)).clamp_min(1e-9)
    return (p * (base.top - tuned.top)).sum(1) + p_rest * torch.log(p_rest / q_rest)


def _by_chat(values_N: Any, tokens: Sequence[int]) -> list[float]:
    """The sum over the tokens of each chat."""
    return [float(part.sum()) for part in values_N.split(list(tokens))]


def resampled_half(sums: Sequence[float], tokens: Sequence[int]) -> float:
    """Half of the width between the 2.5th and the 97.5th percentile of the mean over tokens, when
    the chats are drawn again with replacement RESAMPLES times. Always the same draws."""
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = np.asarray(sums, float)[drawn].sum(1) / np.asarray(tokens, float)[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(high - low) / 2


def most_lost(base: Likelihood, tuned: Likelihood, count: int) -> list[tuple[int, float]]:
    """(place, rise in nats a token) of the chats whose answers have become least likely."""
    rises = _by_chat(base.log_probs - tuned.log_probs, base.tokens)
    means = [(position, rise / base.tokens[position]) for position, rise in enumerate(rises)]
    return sorted(means, key=lambda item: -item[1])[:count]
