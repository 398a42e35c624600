"""RunSpec: everything that defines a run, checked as far as it can be without loading anything.

`RunSpec.from_json` raises SpecError with all problems at once. What needs a model or data
(do the targets exist, is there a row with text) is checked by the planner process.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import json_text, methods, schema
from lab.errors import LabError, Problem, SpecError
from lab.files import load_json
from lab.optimizers import OPTIMIZERS
from lab.schema import option, show

VERSION = 1
LARGEST_SPEC = 5_000_000  # bytes of its file
MOST_SECTIONS = 3  # in front of a key: data.columns.prompt has two
SWITCH = ("auto", "on", "off")
FORMATS = (
    "auto", "messages", "alpaca", "prompt-completion", "question-answer", "text", "labels",
    "multiple-choice", "tree",
)  # fmt: skip
TEMPLATES = ("auto", "chatml", "zephyr", "alpaca", "plain")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    dataset: str = option(
        "builtin:persona-chats",
        "What to learn from: builtin:NAME, upload:NAME, a hub id such as org/name (also "
        "org/name:config@split), or a .jsonl .json .csv .tsv .parquet .txt file, also gzipped.",
        max_characters=4096,
    )
    format: str = option("auto", "The shape of a row; auto looks at its keys.", choices=FORMATS)
    columns: dict[str, str] = option(
        {},
        "Which columns hold what, where their names say it not: prompt, input, completion, "
        "system, text, messages, choices. A name with dots goes into nested values.",
        keys=("prompt", "input", "completion", "system", "text", "messages", "choices"),
    )
    slots: dict[str, str] = option({}, "Text that replaces {{name}} in the rows.")
    bad_rows: str = option(
        "refuse",
        "What a row that cannot be used does: refuse the file, or be skipped and counted.",
        choices=("refuse", "skip"),
    )
    objective: str = option(
        "auto",
        "chat learns answers under a chat template; pretraining goes on with raw text, joined "
        "and cut into pieces of max_length. auto: pretraining where the rows are plain text.",
        choices=("auto", "chat", "pretraining"),
    )
    template: str = option(
        "auto",
        "Chat template. auto: the tokenizer's own, or plain for a base model without one.",
        choices=TEMPLATES,
    )
    system_prompt: str | None = option(
        None,
        "System turn put before chats that have none. null takes the one on the dataset's card; "
        "empty text leaves it to the chat template, which may inject its own.",
        multiline=True,
        max_characters=20_000,
    )
    max_examples: int | None = option(
        None, "Use only the first N rows. null uses all.", min=1, max=10**9
    )
    eval_fraction: float = option(
        0.05,
        "Share of the rows held out to measure the evaluation loss. The same rows for every "
        "method and seed.",
        min=0.0,
        max=0.9,
    )
    held_out: str | None = option(
        None,
        "A dataset that measures the evaluation loss instead of a share of the rows, such as "
        "builtin:made-up-facts@held-out.",
        max_characters=4096,
    )
    max_length: int = option(512, "Longest row in tokens; longer ones are cut.", min=8, max=1 << 20)
    truncation: str = option(
        "right",
        "The side at which a longer chat is cut: right loses its end, left its beginning.",
        choices=("right", "left"),
    )
    packing: str = option(
        "auto",
        "Put several short rows into one of max_length tokens, without letting them see each "
        "other. Saves the compute that padding wastes; makes fewer, fuller steps. auto: where the "
        "method and the model can; the model is tried first.",
        choices=SWITCH,
    )
    loss_on: str = option(
        "assistant",
        "Which tokens count: every assistant turn, only the last one (completion), or all.",
        choices=("assistant", "completion", "all"),
    )
    bucketing: str = option(
        "off",
        "Where rows are not packed, put rows of similar length into one batch: less padding, and "
        "batches that are a little less mixed.",
        choices=("off", "on"),
    )
    general_mix: float = option(
        0.0,
        "Share of the training rows that is general text, against forgetting (claim C14: 5 to "
        "10 %).",
        min=0.0,
        max=0.9,
    )
    general_set: str = option(
        "base",
        "Where general text comes from: base takes the base model's own answers to a hundred "
        "general prompts, sampled once and kept; or a dataset.",
        max_characters=4096,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    batch_size: int = option(4, "Rows in one forward pass.", min=1, max=65_536)
    accumulation: int = option(
        1, "Forward passes summed into one optimizer step.", min=1, max=65_536
    )
    learning_rate: float | str = option(
        "auto",
        "Peak step size. auto takes the method's own default.",
        words=("auto",),
        above=0.0,
        max=1.0,
    )
    epochs: float = option(
        1.0, "Passes over the data. Ignored where a budget is set.", above=0.0, max=10_000
    )
    max_steps: int | None = option(None, "Budget: optimizer steps.", min=1, max=100_000_000)
    max_tokens: int | None = option(None, "Budget: tokens through the model.", min=1, max=10**15)
    max_seconds: float | None = option(
        None,
        "Budget: seconds of training. Such a run cannot be resumed bit for bit.",
        above=0.0,
        max=1e9,
    )
    max_flops: float | None = option(
        None, "Budget: floating-point operations.", above=0.0, max=1e30
    )
    schedule: str = option(
        "cosine",
        "How the learning rate falls after the warm-up.",
        choices=("cosine", "linear", "constant"),
    )
    warmup: float = option(0.03, "Share of the run in which the rate rises.", min=0.0, max=0.9)
    optimizer: str = option("adamw", "The update rule.", choices=tuple(OPTIMIZERS))
    momentum: float = option(
        0.0,
        "Share of the last step that SGD goes on with. The others ignore it.",
        min=0.0,
        max=0.999,
    )
    weight_decay: float = option(
        0.0, "Weight decay: decoupled in all rules but SGD's.", min=0.0, max=1.0
    )
    max_grad_norm: float = option(
        1.0, "Gradients are clipped to this norm; 0 never.", min=0.0, max=1e9
    )
    precision: str = option(
        "auto",
        "float32; mixed (fp32 weights, bf16 compute); bfloat16 (bf16 weights). auto: bfloat16 "
        "on a GPU that can, float32 on a CPU.",
        choices=("auto", "float32", "mixed", "bfloat16"),
    )
    adapter_precision: str = option(
        "auto",
        "Type of adapter weights. bfloat16 saves the casts in every layer; the optimizer keeps "
        "float32 copies, so that small updates count. auto: bfloat16 where the base's weights are.",
        choices=("auto", "float32", "bfloat16"),
    )
    loss: str = option(
        "fused",
        "fused never builds the whole logits tensor; plain does, as most recipes do.",
        choices=("fused", "plain"),
    )
    activation_checkpointing: str = option(
        "auto",
        "Recompute activations in the backward pass: less memory, 25 to 45 % slower.",
        choices=SWITCH,
    )
    checkpointed_layers: int | None = option(
        None,
        "With activation checkpointing: only the first N layers recompute, the others keep theirs: "
        "some of the memory for less of the time. null: all; auto takes the fewest that fit.",
        min=1,
        max=10_000,
    )
    compile: str = option(
        "auto",
        "Compile the decoder layers. auto: on a GPU, where the run is long enough to pay for it.",
        choices=SWITCH,
    )
    seed: int = option(0, "Seed of data order, dropout and adapter starts.", min=0, max=2**32 - 1)
    eval_every: int | None = option(
        None,
        "Steps between evaluations. null: ten times in a run; 0: only at the end.",
        min=0,
        max=100_000_000,
    )
    save_every: int | None = option(
        None,
        "Steps between checkpoints. null: five times in a run; 0: none.",
        min=0,
        max=100_000_000,
    )
    early_stopping: int | None = option(
        None,
        "End the run when the evaluation loss has not improved for this many evaluations. null: "
        "never.",
        min=1,
        max=10_000,
    )
    sample_every: int | None = option(
        None,
        "Steps between samples of what the model answers. null: at the start, in the middle and "
        "at the end; 0: none.",
        min=0,
        max=100_000_000,
    )
    probe: str = option(
        "off",
        "Measure forgetting at the end: the rise of the loss on the base model's own answers to "
        "a hundred general prompts, and the KL divergence from the base.",
        choices=("off", "on"),
    )
    keep_best: int = option(3, "Checkpoints kept for their evaluation loss.", min=0, max=1000)
    keep_last: int = option(2, "Newest checkpoints kept.", min=1, max=1000)


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    devices: int = option(1, "GPUs to use.", min=1, max=1)
    strategy: str = option("single", "How devices share the work.", choices=("single",))
    ignore_memory: bool = option(
        False, "Start although the prediction says that the run will not fit into memory."
    )


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    name: str = option(
        "", "What you call the run; free text on one line.", max_characters=120, forbid="/\\"
    )
    model: str = option(
        "builtin:smollm2-135m-instruct",
        "builtin:NAME, a hub id such as org/name, or a folder with config.json and safetensors.",
        max_characters=4096,
    )
    start_from: str = option(
        "",
        "run:ID begins with that run's result instead of the untouched base; model and method "
        "must be the same. Empty begins with the base.",
        max_characters=200,
    )
    method: dict[str, Any] = option({"name": "lora"}, "How to train: a name and its options.")
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    hardware: HardwareSpec = field(default_factory=HardwareSpec)

    @property
    def method_config(self) -> Any:
        """The method's own frozen config dataclass, filled from `method`."""
        options = {key: value for key, value in self.method.items() if key != "name"}
        return methods.get(self.method["name"]).config(**options)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Any) -> RunSpec:
        """A complete spec from parsed JSON. Raises SpecError with every problem found."""
        problems: list[Problem] = []
        spec = RunSpec.parse(value, problems)
        if problems:
            raise SpecError(problems)
        return spec

    @staticmethod
    def parse(value: Any, problems: list[Problem]) -> RunSpec:
        """As `from_json`, but problems are added to the list and their fields keep defaults."""
        return _read(value, problems)

    @staticmethod
    def stored(value: dict[str, Any]) -> RunSpec:
        """A spec as a run directory keeps it: keys that a later version added are passed over."""
        return _read(_known(value), [])


PLAIN = ("name", "model", "start_from")
SECTIONS: dict[str, type] = {"data": DataSpec, "train": TrainSpec, "hardware": HardwareSpec}


def _read(value: Any, problems: list[Problem]) -> RunSpec:
    if not isinstance(value, dict):
        problems.append(Problem("spec", f"must be a JSON object, is {show(value)}."))
        return RunSpec()
    known = [entry.name for entry in dataclasses.fields(RunSpec)]
    problems += [
        Problem(show(key), schema.unknown_key(key, known)) for key in value if key not in known
    ]
    top = {key: value[key] for key in PLAIN if key in value}
    plain = schema.read(RunSpec, top, "", problems)
    parts: dict[str, Any] = {
        name: schema.read(kind, value[name], name, problems)
        for name, kind in SECTIONS.items()
        if name in value
    }
    spec = dataclasses.replace(plain, **parts)
    if "method" in value:
        spec = dataclasses.replace(spec, method=_read_method(value["method"], problems))
    else:
        spec = dataclasses.replace(spec, method=_read_method({"name": "lora"}, problems))
    return spec


def _read_method(value: Any, problems: list[Problem]) -> dict[str, Any]:
    fallback = {"name": "lora"}
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        problems.append(
            Problem("method", f'must be an object such as {{"name": "lora"}}, is {show(value)}.')
        )
        return fallback
    try:
        method = methods.get(value["name"])
    except LabError as error:
        problems.append(Problem("method.name", str(error)))
        return fallback
    options = {key: item for key, item in value.items() if key != "name"}
    config: Any = schema.read(method.config, options, "method", problems)
    return {"name": method.name, **dataclasses.asdict(config)}


def _known(value: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {key: value[key] for key in PLAIN if key in value}
    for name, kind in SECTIONS.items():
        fields = {entry.name for entry in dataclasses.fields(kind)}
        part = value.get(name)
        if isinstance(part, dict):
            kept[name] = {key: item for key, item in part.items() if key in fields}
    part = value.get("method")
    if isinstance(part, dict) and part.get("name") in methods.names():
        fields = {entry.name for entry in dataclasses.fields(methods.get(part["name"]).config)}
        kept["method"] = {key: item for key, item in part.items() if key in fields | {"name"}}
    return kept


def load(path: Path) -> dict[str, Any]:
    """The JSON of a spec file. Raises LabError that says where it stops being JSON."""
    value = load_json(path, LARGEST_SPEC)
    if not isinstance(value, dict):
        raise LabError(f"'{show(str(path))}' holds {show(value)}.", "A spec is a JSON object.")
    return value


def override(value: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """A copy of `value` with `section.key=value` settings applied; values are JSON or text."""
    changed = copy.deepcopy(value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise LabError(f"--set '{show(setting)}' is not of the form section.key=value.")
        *sections, last = key.strip().split(".")
        if len(sections) > MOST_SECTIONS:
            raise LabError(f"--set '{show(setting)}' is not of the form section.key=value.")
        try:
            parsed = json_text.value_or_text(text)
        except json_text.BadJson as error:
            raise LabError(f"--set '{show(setting)}': {error}.", "Give a plain value.") from None
        target = changed
        for section in sections:
            inner = target.setdefault(section, {})
            if isinstance(inner, str) and section == "method":
                inner = target[section] = {"name": inner}
            if not isinstance(inner, dict):
                raise LabError(f"--set '{show(setting)}': '{show(section)}' is not a section.")
            target = inner
        target[last] = parsed
    return changed
