"""What a spec's data is, and what a person should know of it before the run starts."""

from __future__ import annotations

import re
import time
from typing import Any

from lab import methods
from lab.data import catalog as datasets
from lab.data import prepare, rows, template
from lab.errors import LabError
from lab.planner.stages import stage
from lab.spec import RunSpec

SAMPLE = 200  # examples that are rendered and tokenised here; the worker does all
SLOT = re.compile(r"\{\{\s*([\w ]{1,40}?)\s*\}\}")
READ_S = 4.0  # reading of rows beyond the sample


def facts_of(spec: RunSpec, tokenizer: Any) -> dict[str, Any]:
    """Whether the data can be used, and what it is. Rows are read for READ_S seconds at most, a
    sample is rendered; the worker reads all of them."""
    data = spec.data
    dataset = datasets.resolve(data.dataset)
    with stage("rows"):
        found = rows.Rows(dataset.path, prepare.reading_of(data, dataset))
        sample, is_whole = _read(found)
    prepare.check_objective(data, found.has_chats, dataset)
    if data.general_mix and data.general_set != "base":
        datasets.resolve(data.general_set)
    if data.held_out:
        datasets.resolve(data.held_out)
    system_prompt = prepare.system_prompt_of(spec, dataset)
    size = dataset.path.stat().st_size
    count = found.good if is_whole else round(found.good * size / max(1, found.done))
    facts = {
        "dataset": dataset.id,
        "system_prompt": system_prompt,
        "examples": count,
        "examples_read": found.good,
        "bytes": size,
        "warnings": _warnings(spec, found, sample),
    }
    if tokenizer is None:
        return facts
    with stage("template"):
        template.choose(tokenizer, data.template)
        pieces = [
            piece
            for example in sample
            for piece in template.tokenize(
                example, tokenizer, system_prompt, data.loss_on, data.max_length, data.truncation
            )
        ]
    if not any(piece.counted for piece in pieces):
        raise LabError(
            f"None of the first {len(sample)} rows of '{dataset.id}' has a token to learn from "
            f"within {data.max_length} tokens.",
            "Raise data.max_length, or set data.loss_on to all.",
        )
    facts["tokens_per_row"] = sum(len(piece.ids) for piece in pieces) / len(pieces)
    facts["sequences_per_example"] = len(pieces) / max(1, len(sample))
    facts["loss_tokens_per_row"] = sum(piece.counted for piece in pieces) / len(pieces)
    return facts


def _read(found: rows.Rows) -> tuple[list[rows.Example], bool]:
    """The first SAMPLE examples, and whether the file was read to its end in READ_S seconds."""
    sample: list[rows.Example] = []
    end = time.monotonic() + READ_S
    for example in found:
        if len(sample) < SAMPLE:
            sample.append(example)
        elif time.monotonic() > end:
            if found.bad and found.reading.bad_rows == "refuse":
                found.finish()
            return sample, False
    return sample, True


def _warnings(spec: RunSpec, found: rows.Rows, sample: list[rows.Example]) -> list[str]:
    """What a person should know before the run starts, and may well want."""
    told = []
    if found.bad:
        told.append(f"{found.bad} rows cannot be used and are skipped: {found.told()}.")
    open_slots = _open_slots(sample)
    if open_slots:
        told.append(
            f"Rows hold slots such as {{{{{open_slots[0]}}}}}. Fill them in data.slots, unless the "
            "model is to write them."
        )
    method = methods.get(spec.method["name"])
    if not found.has_chats and not method.saves_whole_model:
        told.append(
            f"{method.title} for continued pretraining: a small update takes up little new "
            "knowledge (claim C25). Full fine-tuning learns raw text better, if it fits."
        )
    if not found.has_chats and not spec.data.general_mix:
        told.append(
            "Continued pretraining without general text: the model may forget (claim C14). Set "
            "data.general_mix to 0.05 or 0.1."
        )
    return told


def _open_slots(sample: list[rows.Example]) -> list[str]:
    """Names of {{slots}} that stand in a tenth of the answers or more."""
    answers = [example.messages[-1]["content"] for example in sample if example.messages]
    found = [SLOT.findall(answer) for answer in answers]
    if sum(map(bool, found)) < max(1, len(answers) / 10):
        return []
    return sorted({name for names in found for name in names})
