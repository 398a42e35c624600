"""Hand-written model files: safetensors of any header, and pickles that tell when they are read."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

# Every name under which a library of the lab's has looked for a pickle at some time.
PICKLES = (
    "pytorch_model.bin",
    "pytorch_model-00001-of-00001.bin",
    "adapter_model.bin",
    "model.bin",
    "weights.pt",
    "weights.pth",
    "model.ckpt",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "scaler.pt",
    "spk_dict.pt",
    "base_weights.bin",
    "tokenizer.pkl",
    "vocab.pkl",
    "model.pickle",
    "flax_model.msgpack",
    "tf_model.h5",
)


class Canary:
    """Unpickled, it makes the file that it names."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def plant(folder: Path, seen: Path) -> None:
    """Such a pickle under every name; `seen` appears if one of them is ever read."""
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Canary(seen)))


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file, with a length that may be a lie."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensors(entries: dict[str, Any], data: bytes = b"") -> bytes:
    return raw(json.dumps(entries).encode(), data)


def entry(
    dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(file: Path, **changes: Any) -> None:
    """Write a safetensors file anew, with tensors put in by name, or left out for None."""
    from safetensors.torch import load_file, save_file

    held = load_file(file)
    for name, value in changes.items():
        if value is None:
            del held[name]
        else:
            held[name] = value
    save_file(held, file, metadata={"format": "pt"})
