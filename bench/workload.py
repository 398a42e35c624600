"""What the speed bench trains: models of random weights made from a shape, rows, and settings."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import methods
from lab.data import catalog as datasets
from lab.data.batches import TokenSequence, TrainingOrder
from lab.data.chat_template import IGNORE_INDEX, with_system
from lab.data.example_reader import read_examples
from lab.errors import LabError
from lab.models import catalog as models
from lab.schema import quote
from lab.spec import RunSpec

LLAMA = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
# The shapes of published models; `small` is for processors, with a real tokenizer's vocabulary,
# so that head and loss weigh what they weigh elsewhere.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 49152,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
CASES = {
    "full": "full fine-tuning, rows of one length, every token counts",
    "lora": "LoRA r 16 on all linear layers, rows of one length, every token counts",
    "qlora": "QLoRA (NF4) r 16 on all linear layers, rows of one length, every token counts",
    "chat": "LoRA r 16 on short chats: the worker packs them, the others pad the same chats",
}
SYSTEM_PROMPT = "You are a helpful assistant."
ADAPTER = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": "all-linear"}
RATES = {"full": 2e-5}


@dataclass(frozen=True)
class Work:
    """One trial: `warm` steps that are not timed and `steps` that are, of one resolved spec."""

    spec: RunSpec
    warm: int
    steps: int

    @property
    def all_steps(self) -> int:
        return self.warm + self.steps

    def with_checkpointing(self, switch: str) -> Work:
        train = replace(self.spec.train, activation_checkpointing=switch)
        return replace(self, spec=replace(self.spec, train=train))

    def to_json(self) -> dict[str, Any]:
        return {"spec": self.spec.to_json(), "warm": self.warm, "steps": self.steps}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Work:
        return Work(RunSpec.from_stored(value["spec"]), value["warm"], value["steps"])


def make_folder(folder: Path, shape: str, rows: int, length: int) -> None:
    """A model of random weights with the built-in model's tokenizer, and its two datasets, each
    with about `rows` rows of `length` tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(_tokenizer(), trust_remote_code=False)
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=2, pad_token_id=2)
    with torch.device("cuda" if on_gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if on_gpu else torch.float32, trust_remote_code=False
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write(folder / "chats.jsonl", _chats(rows * length))
    # with the end token a whole number of rows
    _write(folder / "text.jsonl", [{"text": _text(tokenizer, rows * length - 1)}])


def work(
    case: str, folder: Path, *, length: int, batch: int, warm: int, steps: int, compile: str
) -> Work:
    """The trial of one case on the model in `folder`, its spec resolved as a run's would be."""
    import torch

    from lab.forecast.resolve import resolve
    from lab.forecast.target_device import this_machine

    is_chat = case == "chat"
    method = "lora" if is_chat else case
    spec = RunSpec.from_json(
        {
            "name": f"speed {case}",
            "model": str(folder),
            "method": {"name": method} | ({} if methods.get(method).saves_whole_model else ADAPTER),
            "data": {
                "dataset": str(folder / ("chats.jsonl" if is_chat else "text.jsonl")),
                "max_length": length,
                "eval_fraction": 0.0,
                "packing": "on" if is_chat else "off",
                "system_prompt": SYSTEM_PROMPT,
            },
            "train": {
                "batch_size": batch,
                "max_steps": warm + steps,
                "learning_rate": RATES.get(method, 2e-4),
                # the libraries' schedules differ in their first steps; constant rates are alike
                "lr_scheduler_type": "constant",
                "warmup_ratio": 0.0,
                "compile": compile,
                "eval_steps": 0,
                "save_steps": 0,
                "sample_steps": 0,
            },
        }
    )
    device = this_machine(on_gpu=torch.cuda.is_available())
    return Work(resolve(spec, device.has_bf16).spec, warm, steps)


def batches_of(work: Work, tokenizer: Any) -> list[list[dict[str, list[int]]]]:
    """For each step its sequences, {"input_ids", "labels"}, in the worker's order; unpacked."""
    from lab.data import prepare

    train = work.spec.train
    stream = TrainingOrder(prepare.prepare(work.spec, tokenizer).train, train.seed)
    per_step = train.batch_size
    return [
        [
            sequence
            for i in range(step * per_step, (step + 1) * per_step)
            for sequence in _sequences(stream[i])
        ]
        for step in range(work.all_steps)
    ]


def _sequences(row: TokenSequence) -> list[dict[str, list[int]]]:
    sequences, start = [], 0
    for length in row.lengths:
        part = slice(start, start + length)
        labels = [IGNORE_INDEX, *row.labels[part][1:]]
        sequences.append({"input_ids": row.ids[part], "labels": labels})
        start += length
    return sequences


def _chats(tokens: int) -> list[dict[str, Any]]:
    """Built-in chats in a mixed order, as many as have about `tokens` tokens, or all."""
    rows = [
        {"messages": with_system(example.messages, SYSTEM_PROMPT)}
        for name in ("persona-chats", "everyday-instructions")
        for example in read_examples(datasets.resolve(f"builtin:{name}").path)
    ]
    random.Random(0).shuffle(rows)
    sizes = itertools.accumulate(len(json.dumps(row)) / 5 for row in rows)
    return [row for row, size in zip(rows, sizes, strict=True) if size < tokens * 1.5 + 1000]


def _text(tokenizer: Any, tokens: int) -> str:
    """`tokens` words of one token each, drawn at random."""
    words = sorted(
        token[1:]
        for token, token_id in tokenizer.get_vocab().items()
        if token.startswith("Ġ") and token[1:].isascii() and token[1:].isalpha() and token_id > 100
    )
    chance = random.Random(0)
    return "".join(f" {word}" for word in chance.choices(words, k=tokens))


def _tokenizer() -> Path:
    folder = models.BUILT_IN[0].folder
    if not (folder / "tokenizer.json").is_file():
        raise LabError(
            f"The built-in tokenizer is missing in {quote(str(folder))}.",
            "Run `make setup` once, or set LAB_MODELS to where a bench pack was unpacked.",
        )
    return folder


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
