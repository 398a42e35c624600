"""The same training as a plain transformers and peft script, to copy and run anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import methods, optimizers
from lab.data import chat_template
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
import os
import re
from datetime import datetime

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

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
ROLES = {{"human": "user", "gpt": "assistant", "model": "assistant"}}

set_seed({seed})
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
{template}model = AutoModelForCausalLM.from_pretrained(MODEL, dtype={dtype}, use_safetensors=True)
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
    asked, answered = next((p for p in [*pairs, ("text", "label")] if p[0] in row and p[1] in row))
    question = "\\n\\n".join(filter(None, [row[asked], row.get("input")]))
    return [
        {{"role": "user", "content": question}},
        {{"role": "assistant", "content": row[answered]}},
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
        found = []
        while match := CONTROL.match(behind.lstrip()):
            found, behind = [*found, match[0]], behind.lstrip()[match.end() :]
        if found:
            special = {{t.content for t in tokenizer.added_tokens_decoder.values() if t.special}}
            taught = ([t for t in found if t in special] or found)[-1]
            return known if known & set(found) else known | {{taught}}
    return known


def squeezed(text):
    return "".join(str(text or "").split())


def answer_of(messages, place):
    """(text, where the answer begins and ends, whether the end token is added) of one answer under
    the prompt of asking."""
    prompt, text = render(messages[:place], prompt=True), render(messages[: place + 1])
    words = [squeezed(part) for part in re.split("</?think>", messages[place]["content"])]
    asked = [squeezed(turn["content"]) for turn in messages[:place] if turn["role"] != "assistant"]
    answer = text[len(prompt) :]
    if (
        not text.startswith(prompt)
        or any(part not in squeezed(answer) for part in words)
        or any(part not in squeezed(prompt) for part in asked)
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
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = found["input_ids"], []
    special = set(tokenizer.all_special_ids)
    for token, (start, end) in zip(ids, found["offset_mapping"]):
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
rows = [part for row in list(found)[:{max_examples}] for part in encode(row)]
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
        "arguments": _arguments(spec),
        "template": _template(spec),
        "max_length": spec.data.max_length,
        "seed": train.seed,
        "dtype": DTYPES[train.precision],
        "method": "\n".join(["", *lines, ""]) if lines else "",
        "eval_fraction": spec.data.eval_fraction,
        "batch_size": train.batch_size,
        "accumulation": train.gradient_accumulation_steps,
        "learning_rate": rate,
        "length": f"max_steps={train.max_steps}"
        if train.max_steps
        else f"num_train_epochs={train.epochs}",
        "schedule": train.lr_scheduler_type,
        "warmup": train.warmup_ratio,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": optimizers.get(train.optimizer).trainer_name or "adamw_torch_fused",
        "bf16": "torch.cuda.is_available()"
        if train.precision == "auto"
        else train.precision in ("mixed", "bfloat16"),
    }
    return TEMPLATE.format(**values)


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


def _left_out(spec: RunSpec) -> str:
    """What the script does not do, named in its docstring."""
    train = spec.train
    named = {
        "start_from": bool(spec.init_from_run),
        "packing": spec.data.packing == "on",
        "columns": bool(spec.data.columns),
        "format": spec.data.format in ("multiple-choice", "preference", "tree"),
        "slots": bool(spec.data.placeholders),
        "bad_rows": spec.data.on_invalid_row == "skip",
        "truncation": spec.data.truncation == "left",
        "held_out": spec.data.eval_dataset is not None,
        "bucketing": spec.data.group_by_length == "on",
        "general_mix": spec.data.general_fraction > 0,
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
