"""The tabs of the Results page: how to use a result, and what it consists of."""

from __future__ import annotations

import re
import shlex
from typing import Any

import streamlit as st

from lab import formatting
from lab.atomic_files import part, read_object
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.export import exports, gguf_file
from lab.models import catalog
from lab.paths import RunDir
from lab.ui import cards
from lab.ui.markdown_safety import escape_markdown, plain
from lab.visible import visible

PYTHON = re.compile(r"```python\n(.*?)\n```", re.DOTALL)


def use(run: RunDir) -> None:
    """Lines and commands for programs of the field, for what is here."""
    st.caption("Paths are those of this machine; replace them after a download.")
    with st.container(border=True):
        st.markdown("**Transformers and PEFT**")
        lines = python_lines(run)
        if lines:
            st.code(lines, language=None, wrap_lines=True)
        else:
            st.caption(
                "PEFT and transformers cannot express this method; the lab loads it: "
                f"`python -m lab chat run:{run.id} --prompt TEXT`, or the Chat page."
            )
    merged = _made(run, "merged")
    adapter = part(read_object(run.artifact / "adapter_config.json"))
    with st.container(border=True):
        st.markdown("**vLLM**")
        if merged:
            st.code(f"vllm serve {shlex.quote(str(merged))}", language=None, wrap_lines=True)
        elif adapter.get("peft_type") == "LORA":
            base, folder = shlex.quote(_base(run)), shlex.quote(str(run.artifact))
            st.code(
                f"vllm serve {base} --enable-lora --max-lora-rank {adapter.get('r', 16)} "
                f"--lora-modules {run.id}={folder}",
                language=None,
                wrap_lines=True,
            )
        else:
            st.caption("Merge it above: vLLM loads whole models and LoRA adapters.")
    file = _made(run, "gguf")
    for program, command in (gguf_file.commands(file) if file else {}).items():
        with st.container(border=True):
            st.markdown(f"**{program}**")
            st.code(command, language=None, wrap_lines=True)
    if not file:
        with st.container(border=True):
            st.markdown("**llama.cpp, Ollama**")
            reason, way_out = exports.why_not(run, "gguf")
            if reason:
                st.caption(escape_markdown(f"GGUF is not possible: {reason} {way_out}"))
            else:
                st.caption("Convert it to GGUF above to see the commands here.")


def python_lines(run: RunDir) -> str:
    """The lines of the model card that load the result, which were tried when it was written."""
    try:
        card = (run.artifact / "README.md").read_text(encoding="utf-8")[:100_000]
    except (OSError, UnicodeDecodeError):
        return ""
    lines = PYTHON.search(card)
    if lines is None:
        return ""
    return visible(
        lines[1].replace('RESULT = "."  # this folder', f"RESULT = {str(run.artifact)!r}")
    )


def _base(run: RunDir) -> str:
    try:
        return catalog.resolve(chat_models.parse(f"run:{run.id}").base).location
    except LabError:
        return "BASE"


def _made(run: RunDir, kind: str) -> Any:
    """The newest finished export of a kind, as a path."""
    done = []
    for weight_type in exports.TYPES[kind]:
        job = exports.record(run, kind, weight_type)
        if job is not None and job.finish == "done":
            done.append((job.ended, exports.output(run, kind, weight_type)))
    return max(done)[1] if done else None


def files(run: RunDir) -> None:
    """Every file of the result with its size and hash, and the receipt."""
    receipt = read_object(run.artifact / "receipt.json") or {}
    known = {**part(receipt, "weights"), **part(receipt, "tokenizer_files")}
    rows = [
        {
            "File": path.relative_to(run.artifact).as_posix(),
            "Size": formatting.size(path.lstat().st_size),
            "sha256": str(known.get(path.relative_to(run.artifact).as_posix(), "–")),
        }
        for path in sorted(run.artifact.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    st.dataframe(plain(rows), hide_index=True, key=f"results.files.{run.id}")
    base = part(receipt, "base")
    if base.get("weights"):
        st.caption(
            f"Base {escape_markdown(base.get('model'))}, hash of its weights "
            f"{escape_markdown(base['weights'])}."
        )
    st.caption("Check a download with `sha256sum`. The receipt, as saved with the weights:")
    cards.json_code(receipt)
