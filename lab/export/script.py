"""The same training as a plain transformers and peft script, to copy and run anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import methods, optimizers
from lab.data import chat_template
from lab.data.readers import suffix_of
from lab.errors import LabError
from lab.export import plain_training
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
pip install torch transformers peft accelerate
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
DATA = {data}
SYSTEM = {system}
MAX_LENGTH = {max_length}
LOSS_ON = {loss_on}  # assistant: every answer; completion: the last one; all: every token
ARGUMENTS = {arguments}  # of the chat template
UNUSED = {{
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("weight", "train", "masked", "loss", "learn"),
}}  # of a message: what the lab reads, and this script would leave out
SEED = {seed}
BATCH_SIZE, ACCUMULATION = {batch_size}, {accumulation}
LEARNING_RATE, SCHEDULE, WARMUP = {learning_rate}, {schedule!r}, {warmup}  # a fraction of the run
EPOCHS, MAX_STEPS = {epochs}, {max_steps}  # steps before epochs
WEIGHT_DECAY, MAX_GRAD_NORM = {weight_decay}, {max_grad_norm}
AUTOCAST = {autocast}
ROLES = {{"human": "user", "gpt": "assistant", "model": "assistant"}}



def make_optimizer(groups):
    {optimizer}


tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
{template}DTYPE = {dtype}
{load}
{method}

def messages_of(row):
    turns = row.get("messages", row.get("conversations"))
    if turns:
        named = [(turn.get("role", turn.get("from")), turn) for turn in turns]
        for key in sorted(UNUSED & {{key for turn in turns for key in turn}}):
            raise SystemExit(f"This script does not read {{key!r}} of a message. Train in the lab.")
        return [
            {{"role": ROLES.get(role, role), "content": turn.get("content", turn.get("value"))}}
            for role, turn in named
        ]
    pairs = [("instruction", "output"), ("prompt", "completion"), ("question", "answer")]
    pairs.append(("text", "label"))
    question_key, answer_key = next(pair for pair in pairs if pair[0] in row and pair[1] in row)
    question = "\\n\\n".join(filter(None, [row[question_key], row.get("input")]))
    return [
        {{"role": "user", "content": question}},
        {{"role": "assistant", "content": row[answer_key]}},
    ]


def render(messages, prompt=False):
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, **ARGUMENTS
    )


def stop_tokens():
    """The tokens at which generation stops: the model's, the tokenizer's, and the one that the
    template writes behind an answer where it is neither."""
    ids = model.generation_config.eos_token_id
    known = {{*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id}}
    known = {{tokenizer.convert_ids_to_tokens(i) for i in known if i is not None}}
    turns = [
        {{"role": ("user", "assistant")[i % 2], "content": f"\ue000{{i}}\ue001"}} for i in range(4)
    ]
    last = render([turns[0], turns[3]]).partition(turns[3]["content"])[2]
    longer = render(turns).partition(turns[1]["content"])[2]
    for behind in (os.path.commonprefix([last, longer]), last):
        tokens = []
        while match := CONTROL.match(behind.lstrip()):
            tokens, behind = [*tokens, match[0]], behind.lstrip()[match.end() :]
        if tokens:
            special = {{t.content for t in tokenizer.added_tokens_decoder.values() if t.special}}
            taught = ([t for t in tokens if t in special] or tokens)[-1]
            return known if known & set(tokens) else known | {{taught}}
    return known


def squeezed(text):
    return "".join(str(text or "").split())


def answer_of(messages, place):
    """(text, where the answer begins and ends, whether the end token is added) of one answer under
    the prompt of asking."""
    prompt, text = render(messages[:place], prompt=True), render(messages[: place + 1])
    words = [squeezed(part) for part in re.split("</?think>", messages[place]["content"])]
    others = [turn for turn in messages[:place] if turn["role"] != "assistant"]
    prompts = [squeezed(turn["content"]) for turn in others]
    answer = text[len(prompt) :]
    if (
        not text.startswith(prompt)
        or any(part not in squeezed(answer) for part in words)
        or any(part not in squeezed(prompt) for part in prompts)
    ):
        raise SystemExit(
            "This script cannot count what the lab counts: the chat template writes an answer "
            f"otherwise than it asks for it. Train in the lab. {{messages[place]}}"
        )
    for match in CONTROL.finditer(text, len(prompt)):
        before = squeezed(text[len(prompt) : match.start()])
        if match[0] in STOPS and all(part in before for part in words):
            return text, len(prompt), match.end(), False
    end = len(text.rstrip())
    return text[:end], len(prompt), end, True


def encode(row):
    """[{{token ids, labels}}] of a row: labels count what the assistant says, and its end."""
    if "text" in row and "label" not in row:
        ids = tokenizer(row["text"] + tokenizer.eos_token)["input_ids"][:MAX_LENGTH]
        return [{{"input_ids": ids, "labels": ids}}]
    messages = messages_of(row)
    if SYSTEM and messages[0]["role"] != "system":
        messages = [{{"role": "system", "content": SYSTEM}}, *messages]
    places = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    if LOSS_ON == "completion":
        places = places[-1:]
    answers = [answer_of(messages, place) for place in places]
    whole = render(messages)
    is_one = all(
        whole.startswith(text[:end] + added * tokenizer.eos_token)
        or (whole.startswith(text[:end]) and place == len(messages) - 1)
        for place, (text, _, end, added) in zip(places, answers)
    )
    if len(answers) == 1 and places[-1] == len(messages) - 1:
        text, start, end, added = answers[0]
        return [coded(text, [(start, end)], added)]
    if not is_one:  # the template treats the last turn apart: each answer under its own prompt
        return [coded(text, [(start, end)], added) for text, start, end, added in answers]
    eos, last = tokenizer.eos_token, answers[-1]
    spans = [
        (start, end + (len(eos) if added and whole.startswith(eos, end) else 0))
        for _, start, end, added in answers
    ]
    is_added = last[3] and spans[-1][1] == last[2]
    return [coded(whole[: last[2]] if is_added else whole, spans, is_added)]


def coded(text, spans, added):
    """A token that overlaps a span is counted."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = encoding["input_ids"], []
    special = set(tokenizer.all_special_ids)
    for token, (start, end) in zip(ids, encoding["offset_mapping"]):
        counts = any(
            begin <= start < stop or (start < begin < end and token not in special)
            for begin, stop in spans
        )
        labels.append(token if counts or LOSS_ON == "all" else -100)
    if added:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return {{"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}}


control = sorted({{*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}}, key=len)
CONTROL = re.compile("|".join(re.escape(t) for t in reversed(control) if t.strip()) or "(?!)")
STOPS = stop_tokens()


{read}
examples = [encode(row) for row in list(records)[:{max_examples}]]
places = list(range(len(examples)))
random.Random(f"finetune-lab held-out rows {{len(places)}}").shuffle(places)
held = min(len(places) - 1, max(1, round(len(places) * {eval_fraction}))) if {eval_fraction} else 0
held_places = set(places[:held])
rows, held_out = [], []
for place, parts in enumerate(examples):
    useful = [part for part in parts if any(label != -100 for label in part["labels"][1:])]
    (held_out if place in held_places else rows).extend(useful)
{packed}
'''

OPEN = """\
import gzip

with (gzip.open if DATA.endswith(".gz") else open)(DATA, "rt", encoding="utf-8-sig") as file:
    text = file.read()
"""
READ = {
    ".json": f"{OPEN}records = json.loads(text)",
    ".csv": f"{OPEN}import csv\n\nrecords = csv.DictReader(text.splitlines(keepends=True))",
    ".tsv": f"{OPEN}import csv\n\n"
    'records = csv.DictReader(text.splitlines(keepends=True), delimiter="\\t")',
    ".txt": f'{OPEN}records = [{{"text": text}}]',
    ".parquet": "import pyarrow.parquet\n\nrecords = pyarrow.parquet.read_table(DATA).to_pylist()",
}
LINES = f"{OPEN}records = map(json.loads, filter(str.strip, text.splitlines()))"


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
    if refused := _refused(spec):
        raise LabError(f"There is no plain script for a run with {', '.join(refused)}.")
    config = spec.method_config
    lines = method.script(config)
    train = spec.train
    rate = method.default_lr if train.learning_rate == "auto" else float(train.learning_rate)
    is_packed = spec.data.packing == "on" or (
        spec.data.packing == "auto" and bool(method.can_pack) and spec.data.group_by_length == "off"
    )
    values: dict[str, Any] = {
        "title": method.title,
        "with_peft": "" if method.saves_whole_model else " and peft",
        "model": repr(model),
        "data": repr(data),
        "read": READ.get(suffix_of(Path(data)), LINES),
        "system": repr(system_prompt),
        "loss_on": repr(spec.data.loss_on),
        "max_examples": spec.data.max_examples,
        "left_out": _left_out(spec, is_packed),
        "arguments": _arguments(spec),
        "template": _template(spec),
        "max_length": spec.data.max_length,
        "seed": train.seed,
        "dtype": DTYPES[train.precision],
        "load": _load(method.script_load(config)),
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


def _load(extra: list[str]) -> str:
    """The lines that load the base, with arguments of the method's own."""
    arguments = ["MODEL", "dtype=DTYPE", "use_safetensors=True", *extra]
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"model = AutoModelForCausalLM.from_pretrained(\n{lines})"


def _arguments(spec: RunSpec) -> str:
    """What the chat template reads beside the messages, as a dict to evaluate."""
    items = [f"{name!r}: {value!r}" for name, value in spec.data.template_args.items()]
    if spec.data.template_date:
        items.append(
            f'"strftime_now": datetime.fromisoformat({spec.data.template_date!r}).strftime'
        )
    return "{" + ", ".join(items) + "}"


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
            "\nRows are packed; where an architecture lets packed sequences see each other, the "
            "lab trains\nsingle rows."
        )
    return text
