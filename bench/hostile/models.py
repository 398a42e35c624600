"""Model folders and configs that cannot be what they say."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hostile.case import ODD, Case, damaged, filled
from lab.errors import LabError
from lab.preflight.client import planner

SHARE = 0.08
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 100,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
BAD: tuple[tuple[str, Any], ...] = (
    ("model_type", None), ("model_type", 5), ("model_type", "unheard-of"), ("model_type", []),
    ("model_type", "../../llama"), ("model_type", "t5"), ("auto_map", {"AutoModel": "x.Y"}),
    ("vocab_size", 0), ("vocab_size", -1), ("vocab_size", "many"), ("vocab_size", 10**12),
    ("hidden_size", 0), ("hidden_size", -32), ("hidden_size", "wide"), ("hidden_size", 10**9),
    ("hidden_size", 1.5), ("intermediate_size", 0), ("intermediate_size", -5),
    ("num_hidden_layers", 0), ("num_hidden_layers", -1), ("num_hidden_layers", 10**6),
    ("num_hidden_layers", 2.5), ("num_attention_heads", 0), ("num_attention_heads", 7),
    ("num_key_value_heads", 0), ("num_key_value_heads", 3), ("hidden_act", "none"),
    ("max_position_embeddings", 0), ("max_position_embeddings", "long"),
    ("num_labels", 10**8), ("rope_scaling", 5),
    ("attn_implementation", "evil/kernel"),
)  # fmt: skip
TEXTS = (b"", b"{", b"[]", b"null", b'"llama"', b"\xff", b"[" * 700 + b"]" * 700,
         b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}")  # fmt: skip


@contextmanager
def prepared(folder: Path, chance: random.Random, count: int) -> Iterator[list[Case]]:
    def estimated(model: Path) -> None:
        spec = {"model": str(model), "method": {"name": "lora"}}
        with _fresh_after_a_hang():
            planner.estimate(spec, {"kind": "cuda"}, shadow=False)

    def config(name: str, content: bytes, expected: str = "refused") -> Case:
        def act() -> None:
            file = folder / "config.json"
            file.write_bytes(content)
            estimated(file)

        return Case("config", name, act, expected, ready=planner.warm)

    def folder_with(name: str, files: dict[str, bytes]) -> Case:
        def act() -> None:
            model = folder / "model"
            shutil.rmtree(model, ignore_errors=True)
            model.mkdir()
            for file, content in files.items():
                (model / file).write_bytes(content)
            with _fresh_after_a_hang():
                planner.check({"model": str(model), "data": {"dataset": "builtin:persona-chats"}})

        return Case("model folder", name, act, ready=planner.warm)

    good = json.dumps(CONFIG).encode()
    written = [config("a good one", good, "accepted")]
    written += [config(repr(content[:30]), content) for content in TEXTS]
    written += [
        config(f"{key}={str(value)[:20]}", json.dumps(CONFIG | {key: value}).encode())
        for key, value in BAD
    ]
    pointer = json.dumps({"weight_map": {"a": "pytorch_model.bin"}}).encode()
    outside = json.dumps({"weight_map": {"a": "../other.safetensors"}}).encode()
    written += [
        folder_with(name, files)
        for name, files in (
            ("empty", {}),
            ("no weights", {"config.json": good}),
            ("weights of another kind", {"config.json": good, "pytorch_model.bin": b"x"}),
            ("empty weights", {"config.json": good, "model.safetensors": b""}),
            ("weights without a header", {"config.json": good, "model.safetensors": b"\xff" * 64}),
            ("a header of 2^60 bytes",
             {"config.json": good, "model.safetensors": (2**60).to_bytes(8, "little")}),
            ("an index that points to weights of another kind", {
                "config.json": good, "x.safetensors": b"",
                "model.safetensors.index.json": pointer, "pytorch_model.bin": b"x"}),
            ("an index that points outside", {
                "config.json": good, "x.safetensors": b"",
                "model.safetensors.index.json": outside}),
            *((f"tokenizer_config.json: {content[:20]!r}", {
                "config.json": good, "model.safetensors": b"", "tokenizer_config.json": content})
              for content in (b"[]", b"{", b'{"eos_token": 5}')),
        )
    ]  # fmt: skip

    def more(i: int) -> Case:
        if i % 2:
            key = chance.choice(list(CONFIG))
            odd = chance.choice(ODD[:-2])
            return config(f"{key}={str(odd)[:20]!r}", json.dumps(CONFIG | {key: odd}).encode(),
                          "either")  # fmt: skip
        return config(f"damaged {i}", damaged(chance, good), "either")

    try:
        yield filled(chance, written, count, more)
    finally:
        planner.close()


@contextmanager
def _fresh_after_a_hang() -> Iterator[None]:
    """A planner that one case has brought down or held is not the next case's."""
    try:
        yield
    except (LabError, RuntimeError):
        raise
    except BaseException:
        planner.close()
        raise
