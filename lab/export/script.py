"""The same training as a plain transformers and peft script, to copy and run anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import methods, optimizers
from lab.data import catalog, chat_template, hub
from lab.data.readers import suffix_of
from lab.errors import LabError
from lab.export import plain_rows, plain_training
from lab.hub import repository
from lab.methods.parts import compatibility
from lab.spec import RunSpec

HAS_BFLOAT16 = "torch.cuda.is_available() and torch.cuda.is_bf16_supported()"
DTYPES = {
    "auto": f"torch.bfloat16 if {HAS_BFLOAT16} else torch.float32",
    "float32": "torch.float32",
    "mixed": "torch.float32",
    "bfloat16": "torch.bfloat16",
}
TEMPLATE = '''\
"""{title}: the training of this run in plain transformers{with_peft}.

Rows, order, seeds and steps are the lab's, so losses agree but for rounding.{left_out}
pip install torch transformers peft accelerate{with_datasets}
"""

import bisect
import functools
import json
import math
import os
import random
import re
from datetime import datetime

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

MODEL = {model}
{revision}DATA = {data}
SYSTEM = {system}
MAX_LENGTH = {max_length}
LOSS_ON = {loss_on}  # assistant: every answer; completion: the last one; all: every token
ARGUMENTS, DATE = {arguments}, {date}  # of the chat template
FORMAT = {form}
# what the lab reads of a row and of a turn, and this script does not
OTHER_FORMATS = {other_formats}
PAIRS = {pairs}  # formats in the order in which they are detected: columns of prompt, completion
OF_ROW = {of_row}
OF_TURN = {of_turn}
COUNTED, NOT_COUNTED = {counted}, {not_counted}  # marks that tell whether an answer is learned
SEED = {seed}
BATCH_SIZE, ACCUMULATION = {batch_size}, {accumulation}
LEARNING_RATE, SCHEDULE, WARMUP = {learning_rate}, {schedule!r}, {warmup}  # a fraction of the run
EPOCHS, MAX_STEPS = {epochs}, {max_steps}  # steps before epochs
WEIGHT_DECAY, MAX_GRAD_NORM = {weight_decay}, {max_grad_norm}
AUTOCAST = {autocast}
ROLES = {{"human": "user", "gpt": "assistant", "model": "assistant"}}



def make_optimizer(groups):
    {optimizer}


tokenizer = AutoTokenizer.from_pretrained(MODEL{at_revision})
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
{template}DTYPE = {dtype}
{load}
{method}

{rows}


{read}
records = list(records)[:{max_examples}]
if len({{format_of(row)[0] == "text" for row in records}}) > 1:
    refuse("chats and plain text in one file")
examples = [encode(row) for row in records]
shuffled, count = list(range(len(examples))), len(examples)
random.Random(f"finetune-lab held-out rows {{count}}").shuffle(shuffled)
num_held_out = min(count - 1, max(1, round(count * {eval_fraction}))) if {eval_fraction} else 0
held_out_indices = set(shuffled[:num_held_out])
rows, held_out = [], []
for index, parts in enumerate(examples):
    useful = [part for part in parts if any(label != -100 for label in part["labels"][1:])]
    (held_out if index in held_out_indices else rows).extend(useful)
{packed}
'''

OPEN = """\
import gzip

opener = gzip.open if DATA.endswith(".gz") else open
with opener(DATA, "rt", encoding="utf-8-sig", newline="") as file:  # line ends stay as they are
    text = file.read()
"""
TABLE = f"{OPEN}import csv\nimport io\n\n"
READ = {
    ".json": f"{OPEN}records = json.loads(text)",
    ".csv": f'{TABLE}records = csv.DictReader(io.StringIO(text, newline=""))',
    ".tsv": f'{TABLE}records = csv.DictReader(io.StringIO(text, newline=""), delimiter="\\t")',
    ".txt": f'{OPEN}records = [{{"text": text}}]',
    ".parquet": "import pyarrow.parquet\n\nrecords = pyarrow.parquet.read_table(DATA).to_pylist()",
}
HUB_READ = """\
from datasets import load_dataset

splits = load_dataset(DATA, CONFIG, revision=DATA_REVISION)
default = "train" if "train" in splits else next(iter(splits))
records = splits[SPLIT or default].to_list()"""
LINES = (
    f"{OPEN}lines = text.replace('\\r', '\\n').split('\\n')\n"
    "records = map(json.loads, filter(str.strip, lines))"
)


def script(spec: RunSpec, model: str, data: str, system_prompt: str) -> str:
    """The script for a spec. `model` and `data` are what the script itself can load: a folder or an
    id of the Hub, a file or the id of a set of the Hub, ids with the commit to be read (`#COMMIT`).

    Raises LabError for a method that no plain script can do.
    """
    method = methods.get(spec.method["name"])
    if not method.can_script:
        raise LabError(
            f"There is no plain script for {method.title}: "
            f"{compatibility.unsupported_reason(method.can_script)}"
        )
    if refused := _refused(spec):
        raise LabError(f"There is no plain script for a run with {', '.join(refused)}.")
    config = spec.method_config
    lines = method.script(config)
    name, revision = repository.split_id(model) if repository.is_id(model) else (model, "")
    at_revision = ["revision=REVISION"] if revision else []
    train = spec.train
    rate = method.default_lr if train.learning_rate == "auto" else float(train.learning_rate)
    is_packed = spec.data.packing == "on" or (
        spec.data.packing == "auto" and bool(method.can_pack) and spec.data.group_by_length == "off"
    )
    values: dict[str, Any] = {
        "title": method.title,
        "with_peft": "" if method.saves_whole_model else " and peft",
        "with_datasets": " datasets" if catalog.is_on_hub(data) else "",
        "model": repr(name),
        "revision": f"REVISION = {revision!r}  # of MODEL: as checked\n" if revision else "",
        "at_revision": ", revision=REVISION" if revision else "",
        "data": _data(data),
        "read": HUB_READ if catalog.is_on_hub(data) else READ.get(suffix_of(Path(data)), LINES),
        "system": repr(system_prompt),
        "form": repr(spec.data.format),
        "rows": plain_rows.ROWS,
        **plain_rows.unread(),
        "loss_on": repr(spec.data.loss_on),
        "max_examples": spec.data.max_examples,
        "left_out": _left_out(spec, is_packed),
        "arguments": repr(spec.data.template_args),
        "date": repr(spec.data.template_date or ""),
        "template": _template(spec),
        "max_length": spec.data.max_length,
        "seed": train.seed,
        "dtype": DTYPES[train.precision],
        "load": _load([*at_revision, *method.script_load(config)]),
        "method": "\n".join([plain_training.DEFAULTS, *lines, ""]),
        "eval_fraction": spec.data.eval_fraction,
        "packed": f"\n\n{plain_training.PACKED}" if is_packed else "",
        "batch_size": train.batch_size,
        "accumulation": train.gradient_accumulation_steps,
        "learning_rate": rate,
        "epochs": train.epochs,
        "max_steps": train.max_steps,
        "schedule": train.lr_scheduler_type,
        "warmup": train.warmup_ratio,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optimizer": "\n    ".join(optimizers.get(train.optimizer).script(train)),
        "autocast": HAS_BFLOAT16 if train.precision == "auto" else train.precision != "float32",
    }
    return TEMPLATE.format(**values) + plain_training.LOOP


def _data(data: str) -> str:
    """DATA, and for a set of the Hub also its config, split and commit."""
    if not catalog.is_on_hub(data):
        return repr(data)
    hub_id = hub.parse(data)
    return (
        f"{hub_id.name!r}\nCONFIG, SPLIT = {hub_id.config!r}, {hub_id.split!r}  # None: its only\n"
        f"DATA_REVISION = {hub_id.revision or None!r}  # of DATA: as checked"
    )


def _load(extra: list[str]) -> str:
    """The lines that load the base, with arguments of the method's own."""
    arguments = ["MODEL", "dtype=DTYPE", "use_safetensors=True", *extra]
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"model = AutoModelForCausalLM.from_pretrained(\n{lines})"


def _template(spec: RunSpec) -> str:
    """The lines that give the tokenizer the lab's chat template, where it takes it."""
    name = spec.data.template
    if name == "auto":
        plain = repr(chat_template.PLAIN_TEMPLATE)
        return f"tokenizer.chat_template = tokenizer.chat_template or {plain}\n"
    if name != "chatml":
        return f"tokenizer.chat_template = {chat_template.TEMPLATES[name]!r}\n"
    return (
        'if "<|im_end|>" in tokenizer.get_vocab():\n    tokenizer.eos_token = "<|im_end|>"\n'
        f"tokenizer.chat_template = {chat_template.CHATML_TEMPLATE!r}.replace(\n"
        '    "END", tokenizer.eos_token\n)\n'
    )


def _refused(spec: RunSpec) -> list[str]:
    """Settings under which the script would train something else."""
    data, train = spec.data, spec.train
    named = {
        "init_from_run": bool(spec.init_from_run),
        "data.columns": bool(data.columns),
        f"data.format {data.format}": data.format in ("multiple-choice", "preference", "tree"),
        "data.placeholders": bool(data.placeholders),
        "data.truncation left": data.truncation == "left",
        "data.eval_dataset": data.eval_dataset is not None,
        "data.group_by_length": data.group_by_length == "on",
        "data.general_fraction": data.general_fraction > 0,
        "train.max_tokens": train.max_tokens is not None,
        "train.max_seconds": train.max_seconds is not None,
        "train.max_flops": train.max_flops is not None,
    }
    return [name for name, is_set in named.items() if is_set]


def _left_out(spec: RunSpec, is_packed: bool) -> str:
    """What the script does otherwise, named in its docstring."""
    data, train = spec.data, spec.train
    named = {
        "on_invalid_row (a row that cannot be read ends the script)": data.on_invalid_row == "skip",
        "early_stopping": train.early_stopping is not None,
        "activation_checkpointing": train.activation_checkpointing == "on",
        "compile": train.compile == "on",
        "adapter_precision (adapters are float32)": train.adapter_precision == "bfloat16",
    }
    names = ", ".join(name for name, is_set in named.items() if is_set)
    text = f"\nLeft out: {names}." if names else ""
    if is_packed:
        text += (
            "\nRows are packed; where an architecture lets packed sequences attend to each "
            "other, the lab\ntrains single rows."
        )
    return text
