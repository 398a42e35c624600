"""The same training as a plain transformers and peft script, to copy and run anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import methods, optimizers
from lab.data.readers import suffix_of
from lab.errors import LabError
from lab.methods.parts import compatibility
from lab.spec import RunSpec

DTYPES = {
    "auto": "torch.bfloat16 if torch.cuda.is_available() else torch.float32",
    "float32": "torch.float32",
    "mixed": "torch.float32",
    "bfloat16": "torch.bfloat16",
}
TEMPLATE = '''\
"""{title}: the training of this run in plain transformers{with_peft}.

The order of the rows and the split differ from the lab's, so losses agree in the trend, not
digit for digit.{left_out} pip install torch transformers peft accelerate
"""

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

MODEL = {model}
DATA = {data}
SYSTEM = {system}
MAX_LENGTH = {max_length}
LOSS_ON = {loss_on}  # assistant: every answer; completion: the last one; all: every token
ROLES = {{"human": "user", "gpt": "assistant", "model": "assistant"}}

set_seed({seed})
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype={dtype}, use_safetensors=True)
{method}

def messages_of(row):
    turns = row.get("messages", row.get("conversations"))
    if turns:
        named = [(turn.get("role", turn.get("from")), turn) for turn in turns]
        return [
            {{"role": ROLES.get(role, role), "content": turn.get("content", turn.get("value"))}}
            for role, turn in named
        ]
    pairs = [("instruction", "output"), ("prompt", "completion"), ("question", "answer")]
    asked, answered = next((p for p in [*pairs, ("text", "label")] if p[0] in row and p[1] in row))
    question = "\\n\\n".join(filter(None, [row[asked], row.get("input")]))
    return [
        {{"role": "user", "content": question}},
        {{"role": "assistant", "content": row[answered]}},
    ]


def encode(row):
    """Token ids, and labels that count what the assistant says."""
    if "text" in row and "label" not in row:
        ids = tokenizer(row["text"] + tokenizer.eos_token)["input_ids"][:MAX_LENGTH]
        return {{"input_ids": ids, "labels": ids}}
    messages = messages_of(row)
    if SYSTEM and messages[0]["role"] != "system":
        messages = [{{"role": "system", "content": SYSTEM}}, *messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if LOSS_ON == "all":
        ids = coded["input_ids"][:MAX_LENGTH]
        return {{"input_ids": ids, "labels": ids}}
    labels = [-100] * len(coded["input_ids"])
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or (LOSS_ON == "completion" and place != last):
            continue
        before = tokenizer.apply_chat_template(
            messages[:place], tokenize=False, add_generation_prompt=True
        )
        after = tokenizer.apply_chat_template(messages[: place + 1], tokenize=False).rstrip()
        for number, (start, _) in enumerate(coded["offset_mapping"]):
            if len(before) <= start < len(after):
                labels[number] = coded["input_ids"][number]
    return {{"input_ids": coded["input_ids"][:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}}


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    pad = {{"input_ids": tokenizer.pad_token_id, "labels": -100}}
    batch = {{
        key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])
        for key, fill in pad.items()
    }}
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    return batch | {{"attention_mask": (torch.arange(width) < lengths).long()}}


{read}
rows = [encode(row) for row in list(found)[:{max_examples}]]
rows = [row for row in rows if any(label != -100 for label in row["labels"])]
held_out = rows[: round(len(rows) * {eval_fraction})]
rows = rows[len(held_out) :]

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="output",
        per_device_train_batch_size={batch_size},
        gradient_accumulation_steps={accumulation},
        learning_rate={learning_rate},
        {length},
        lr_scheduler_type="{schedule}",
        warmup_steps={warmup},
        weight_decay={weight_decay},
        max_grad_norm={max_grad_norm},
        optim="{optim}",
        bf16={bf16},
        use_cpu=not torch.cuda.is_available(),
        seed={seed},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
    ),
    train_dataset=rows,
    eval_dataset=held_out or None,
    data_collator=collate,
)
if held_out:
    print("before:", trainer.evaluate()["eval_loss"])
trainer.train()
if held_out:
    print("after:", trainer.evaluate()["eval_loss"])
model.save_pretrained("output")
tokenizer.save_pretrained("output")
'''

OPEN = """\
import gzip

with (gzip.open if DATA.endswith(".gz") else open)(DATA, "rt", encoding="utf-8-sig") as file:
    text = file.read()
"""
READ = {
    ".json": f"{OPEN}found = json.loads(text)",
    ".csv": f"{OPEN}import csv\n\nfound = csv.DictReader(text.splitlines(keepends=True))",
    ".tsv": f"{OPEN}import csv\n\n"
    'found = csv.DictReader(text.splitlines(keepends=True), delimiter="\\t")',
    ".txt": f'{OPEN}found = [{{"text": text}}]',
    ".parquet": "import pyarrow.parquet\n\nfound = pyarrow.parquet.read_table(DATA).to_pylist()",
}
LINES = f"{OPEN}found = map(json.loads, filter(str.strip, text.splitlines()))"


def script(spec: RunSpec, model: str, data: str, system_prompt: str) -> str:
    """The script for a spec. `model` and `data` are what the script itself can load.

    Raises LabError for a method that no plain script can do.
    """
    method = methods.get(spec.method["name"])
    if not method.can_script:
        raise LabError(
            f"There is no plain script for {method.title}: "
            f"{compatibility.unsupported_reason(method.can_script)}"
        )
    lines = method.script(spec.method_config)
    train = spec.train
    rate = method.default_lr if train.learning_rate == "auto" else float(train.learning_rate)
    values: dict[str, Any] = {
        "title": method.title,
        "with_peft": " and peft" if lines else "",
        "model": repr(model),
        "data": repr(data),
        "read": READ.get(suffix_of(Path(data)), LINES),
        "system": repr(system_prompt),
        "loss_on": repr(spec.data.loss_on),
        "max_examples": spec.data.max_examples,
        "left_out": _left_out(spec),
        "max_length": spec.data.max_length,
        "seed": train.seed,
        "dtype": DTYPES[train.precision],
        "method": "\n".join(["", *lines, ""]) if lines else "",
        "eval_fraction": spec.data.eval_fraction,
        "batch_size": train.batch_size,
        "accumulation": train.accumulation,
        "learning_rate": rate,
        "length": f"max_steps={train.max_steps}"
        if train.max_steps
        else f"num_train_epochs={train.epochs}",
        "schedule": train.schedule,
        "warmup": train.warmup,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": optimizers.get(train.optimizer).trainer_name or "adamw_torch_fused",
        "bf16": "torch.cuda.is_available()"
        if train.precision == "auto"
        else train.precision in ("mixed", "bfloat16"),
    }
    return TEMPLATE.format(**values)


def _left_out(spec: RunSpec) -> str:
    """What the script does not do, named in its docstring."""
    train = spec.train
    named = {
        "start_from": bool(spec.start_from),
        "packing": spec.data.packing == "on",
        "columns": bool(spec.data.columns),
        "format": spec.data.format in ("multiple-choice", "preference", "tree"),
        "slots": bool(spec.data.slots),
        "bad_rows": spec.data.bad_rows == "skip",
        "template": spec.data.template != "auto",
        "truncation": spec.data.truncation == "left",
        "held_out": spec.data.held_out is not None,
        "bucketing": spec.data.bucketing == "on",
        "general_mix": spec.data.general_mix > 0,
        "max_tokens": train.max_tokens is not None,
        "max_seconds": train.max_seconds is not None,
        "max_flops": train.max_flops is not None,
        f"optimizer {train.optimizer} (AdamW instead)": not optimizers.get(
            train.optimizer
        ).trainer_name,
        "momentum": train.momentum > 0 and train.optimizer == "sgd",
        "early_stopping": train.early_stopping is not None,
        "activation_checkpointing": train.activation_checkpointing == "on",
        "compile": train.compile == "on",
    }
    names = ", ".join(name for name, is_set in named.items() if is_set)
    return f" Left out: {names}." if names else ""
