"""Prepare the built-in model: GGUF from its package to safetensors, once.

`python -m lab.models.built_in` is what `make setup` runs. Converting takes about 36 s and 2 GB
of memory; the result loads in a second.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab import paths
from lab.atomic_files import sync_tree, write_json
from lab.errors import LabError
from lab.models.catalog import BUILT_IN, BuiltIn


def prepare(model: BuiltIn, tell: Callable[[str], object]) -> Path:
    """The folder of the converted model; converts it on the first call. Raises LabError."""
    if model.is_ready:
        return model.folder
    gguf = _package_file(model)
    aside = model.folder.with_name(f".tmp-{model.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    paths.make_folder(aside.parent)
    aside.mkdir()
    started = time.monotonic()
    try:
        tell(f"Preparing {model.title} (once, about a minute) ...")
        _convert(gguf, aside, tell)
        write_json(
            aside / "origin.json",
            {"package": model.package, "file": gguf.name, "license": model.license},
        )
        sync_tree(aside)
        if not model.is_ready:  # another process may have been faster
            os.rename(aside, model.folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    tell(f"{model.title} is ready in {model.folder} ({time.monotonic() - started:.0f} s).")
    return model.folder


def _package_file(model: BuiltIn) -> Path:
    spec = importlib.util.find_spec(model.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise LabError(
            f"The package {model.package}, which carries {model.title}, is not installed.",
            "Run 'make setup'.",
        )
    return files[0]


def _convert(gguf: Path, folder: Path, tell: Callable[[str], object]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without `dequantize` transformers marks the model as quantised: not trainable, not savable.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
    )
    tell("  2/3 reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    tell("  3/3 writing safetensors")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    try:
        for model in BUILT_IN:
            prepare(model, lambda text: print(text, flush=True))
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
