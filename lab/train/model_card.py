"""README.md of a result: base, data, method, figures, and the lines that load it."""

from __future__ import annotations

import json
from typing import Any

from lab.formatting import quantity
from lab.methods import Method
from lab.spec import RunSpec
from lab.train.proof import ResultProof
from lab.visible import visible

LAB_ONLY = (
    "PEFT and transformers cannot express this method, and find no adapter of theirs here. The lab "
    "loads it: `python -m lab chat run:RUN`, or its Chat page."
)


def card(
    method: Method,
    spec: RunSpec,
    receipt: dict[str, Any],
    figures: dict[str, Any],
    lines: list[str],
    proof: ResultProof | None,
    licence: str = "",
) -> str:
    """The text of the card. `figures`: losses and counts of the run, by name."""
    base = receipt.get("base") or {}
    options = {key: value for key, value in spec.method.items() if key != "name"}
    defaults = vars(method.config())
    changed = {key: value for key, value in options.items() if value != defaults.get(key)}
    header = {
        "base_model": spec.model,
        "library_name": "peft" if any("PeftModel" in line for line in lines) else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["finetune-lab", method.name],
    }
    if not lines:
        header["library_name"] = "finetune-lab"
    table = {
        "Base": f"`{_plain(spec.model)}`",
        "Commit of the base": base.get("commit"),
        "Hash of the base's weights": base.get("weights"),
        "Method": f"{method.title} ({method.source})",
        "Options": ", ".join(f"{key} {_plain(value)}" for key, value in changed.items())
        or "defaults",
        "Data": f"`{_plain(spec.data.dataset)}`",
        "Hash of the training rows": receipt.get("train_hash"),
        "System prompt": _plain(receipt.get("system_prompt") or "") or None,
        "Loss on": spec.data.loss_on,
        "Seed": spec.train.seed,
        **{name: _number(value) for name, value in figures.items()},
    }
    rows = [f"| {name} | {value} |" for name, value in table.items() if value not in (None, "")]
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
            "---",
            "",
            f"# {_plain(spec.name) or method.title}",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "## Loading",
            "",
            *_loading(spec, lines, proof),
            "",
            "## Licence",
            "",
            f"The base's licence holds for what was made of it{f': {licence}' if licence else ''}. "
            "The data's may, too.",
            "",
        ]
    )


def _loading(spec: RunSpec, lines: list[str], proof: ResultProof | None) -> list[str]:
    if not lines:
        text = [LAB_ONLY]
    else:
        text = [
            "```python",
            f"BASE = {spec.model.removeprefix('builtin:')!r}  # the base's folder or id",
            'RESULT = "."  # this folder',
            *lines,
            "```",
        ]
    if proof is None:
        return text
    if proof.problem:
        return [*text, "", f"**{proof.problem}**"]
    return [
        *text,
        "",
        f"Tried with {proof.loaded_with} when it was written: the logits of "
        f"{quantity(proof.rows, 'row')} ({quantity(proof.tokens, 'token')}) are those of the "
        f"trained model within {proof.largest_difference:.1e} of their spread.",
    ]


def _plain(value: Any) -> str:
    """On one line, and without what a table or a heading would read as marks."""
    text = " ".join(visible(str(value)).split())
    return text.replace("|", "\\|").replace("`", "'").replace("<", "&lt;")[:500]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
