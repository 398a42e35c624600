"""The sections of a run spec: data, training and hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.optimizers import OPTIMIZERS
from lab.schema import option

AUTO_ON_OFF = ("auto", "on", "off")
FORMATS = (
    "auto",
    "messages",
    "alpaca",
    "prompt-completion",
    "question-answer",
    "text",
    "labels",
    "multiple-choice",
    "preference",
    "tree",
)


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
TEMPLATES = ("auto", "chatml", "zephyr", "alpaca", "plain")
DATASET = {"max_characters": 4096, "filled": True}  # of a field that names one


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    dataset: str = option(
        "builtin:persona-chats",
        "Dataset",
        "Training data: builtin:NAME, upload:NAME, a Hub ID (org/name, org/name:config@split, "
        "#revision) or a .jsonl, .json, .csv, .tsv, .parquet or .txt file (gzip allowed).",
        **DATASET,
    )
    format: str = option(
        "auto",
        "Example format",
        "How an example is structured; auto detects it from the column names. preference learns "
        "the chosen answers of comparisons.",
        choices=FORMATS,
    )
    columns: dict[str, str] = option(
        {},
        "Column mapping",
        "Which columns hold prompt, input, completion, thought, system, history, tools, text, "
        "messages or choices when their names are not recognised; dots reach nested values "
        "(answers.0.text).",
        keys=(
            "prompt",
            "input",
            "completion",
            "thought",
            "system",
            "history",
            "tools",
            "text",
            "messages",
            "choices",
        ),
    )
    placeholders: dict[str, str] = option(
        {},
        "Placeholders",
        "Values for {{name}} placeholders in the examples.",
        formerly="slots",
    )
    on_invalid_row: str = option(
        "refuse",
        "Invalid rows",
        "What to do with a row that cannot be used: refuse stops with an error; skip drops and "
        "counts it.",
        choices=("refuse", "skip"),
        formerly="bad_rows",
    )
    objective: str = option(
        "auto",
        "Training objective",
        "chat: supervised fine-tuning on the answers of conversations; pretraining: next-token "
        "prediction on raw text, split at the sequence length. auto: pretraining if the dataset "
        "is plain text.",
        choices=("auto", "chat", "pretraining"),
    )
    template: str = option(
        "auto",
        "Chat template",
        "How messages become text. auto: the tokenizer's own template, or plain if it has none.",
        choices=TEMPLATES,
    )
    template_args: dict[str, Any] = option(
        {},
        "Chat template arguments",
        "Variables that the chat template reads, such as enable_thinking=false: text, numbers, "
        "true or false. Used wherever a chat is rendered, and kept with the result.",
        scalars=True,
        max_items=20,
    )
    template_date: str | None = option(
        None,
        "Chat template date",
        "The date that the chat template writes, as 2026-01-31. Not set: the day when the run is "
        "created, if the template reads the clock. It stays the same when the run is resumed and "
        "in its chat.",
        max_characters=40,
    )
    system_prompt: str | None = option(
        None,
        "System prompt",
        "Added to conversations that have none. Not set: the dataset's default. Empty: left to "
        "the chat template, which may insert its own.",
        multiline=True,
        max_characters=20_000,
    )
    max_examples: int | None = option(
        None, "Max examples", "Use only the first N examples. Not set: all.", min=1, max=10**9
    )
    eval_fraction: float = option(
        0.05,
        "Held-out fraction",
        "Fraction of the examples kept out of training to measure the evaluation loss; the same "
        "ones for every method and seed.",
        min=0.0,
        max=0.9,
    )
    eval_dataset: str | None = option(
        None,
        "Evaluation dataset",
        "A separate dataset for the evaluation loss instead of a held-out fraction, e.g. "
        "builtin:made-up-facts@held-out.",
        **DATASET,
        formerly="held_out",
    )
    max_length: int = option(
        512,
        "Sequence length",
        "Maximum tokens per sequence; longer examples are truncated.",
        min=8,
        max=1 << 20,
    )
    truncation: str = option(
        "right",
        "Truncation side",
        "Which end of a long conversation is dropped: right drops its end, left its beginning.",
        choices=("right", "left"),
    )
    packing: str = option(
        "auto",
        "Packing",
        "Combine short examples into full-length sequences that cannot attend to each other. "
        "Less padding, fewer and fuller steps. auto: on where method and model support it, unless "
        "examples are grouped by length.",
        choices=AUTO_ON_OFF,
    )
    loss_on: str = option(
        "assistant",
        "Train on",
        "Which tokens count in the loss: all assistant turns, only the last one (completion), or"
        " every token (all).",
        choices=("assistant", "completion", "all"),
    )
    group_by_length: str = option(
        "off",
        "Group by length",
        "Without packing: batch examples of similar length. Less padding, slightly less random "
        "batches.",
        choices=("off", "on"),
        formerly="bucketing",
    )
    general_fraction: float = option(
        0.0,
        "General data fraction",
        "Fraction of general examples mixed into training against catastrophic forgetting; 0.05 "
        "to 0.1 is usual.",
        min=0.0,
        max=0.9,
        formerly="general_mix",
    )
    general_dataset: str = option(
        "base",
        "General dataset",
        "Source of the general examples. base: the base model's own answers to 100 general "
        "prompts (sampled once, cached); or a dataset.",
        **DATASET,
        formerly="general_set",
    )

    @property
    def held_out_fraction(self) -> float:
        """The share of its own rows that a run does not train on: none where it measures others."""
        return 0.0 if self.eval_dataset else self.eval_fraction


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    batch_size: int = option(
        4,
        "Batch size",
        "Sequences per forward pass. Effective batch size = batch size × gradient accumulation.",
        min=1,
        max=65_536,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Gradient accumulation",
        "Forward and backward passes per optimizer step.",
        min=1,
        max=65_536,
        formerly="accumulation",
    )
    learning_rate: float | str = option(
        "auto",
        "Learning rate",
        "Peak learning rate. auto: the method's default.",
        words=("auto",),
        above=0.0,
        max=1.0,
    )
    epochs: float = option(
        1.0,
        "Epochs",
        "Passes over the training data; ignored if a limit (steps, tokens, time, FLOPs) is set.",
        above=0.0,
        max=10_000,
    )
    max_steps: int | None = option(
        None, "Max steps", "Stop after this many optimizer steps.", min=1, max=100_000_000
    )
    max_tokens: int | None = option(
        None, "Max tokens", "Stop after this many tokens (padding not counted).", min=1, max=10**15
    )
    max_seconds: float | None = option(
        None,
        "Max training time (s)",
        "Stop after this many seconds of training. Such a run cannot be resumed bit for bit.",
        above=0.0,
        max=1e9,
    )
    max_flops: float | None = option(
        None, "Max FLOPs", "Stop after this many floating-point operations.", above=0.0, max=1e30
    )
    lr_scheduler_type: str = option(
        "cosine",
        "Learning rate schedule",
        "How the learning rate decays after warm-up.",
        choices=("cosine", "linear", "constant"),
        formerly="schedule",
    )
    warmup_ratio: float = option(
        0.03,
        "Warm-up fraction",
        "Fraction of the run in which the learning rate rises linearly to its peak.",
        min=0.0,
        max=0.9,
        formerly="warmup",
    )
    optimizer: str = option(
        "adamw", "Optimizer", "The algorithm that updates the weights.", choices=tuple(OPTIMIZERS)
    )
    momentum: float = option(
        0.0,
        "SGD momentum",
        "Momentum of SGD; other optimizers ignore it.",
        min=0.0,
        max=0.999,
    )
    weight_decay: float = option(
        0.0,
        "Weight decay",
        "Decoupled weight decay (for SGD: an L2 penalty) of matrices; biases, norms and vectors "
        "are left alone.",
        min=0.0,
        max=1.0,
    )
    max_grad_norm: float = option(
        1.0, "Max gradient norm", "Clip gradients to this norm; 0: no clipping.", min=0.0, max=1e9
    )
    precision: str = option(
        "auto",
        "Precision",
        "float32; mixed (float32 weights, bfloat16 autocast); bfloat16 (bfloat16 weights). auto:"
        " bfloat16 if the GPU supports it, else float32.",
        choices=("auto", "float32", "mixed", "bfloat16"),
    )
    adapter_precision: str = option(
        "auto",
        "Adapter precision",
        "Data type of the adapter weights. With bfloat16 the optimizer keeps float32 master "
        "weights, so small updates are not lost. auto: as the base weights.",
        choices=("auto", "float32", "bfloat16"),
    )
    loss_implementation: str = option(
        "fused",
        "Loss implementation",
        "fused computes the cross-entropy in chunks and never stores all logits; plain stores "
        "them.",
        choices=("fused", "plain"),
        formerly="loss",
    )
    activation_checkpointing: str = option(
        "auto",
        "Activation checkpointing",
        "Recompute activations in the backward pass instead of storing them: less memory, 25 to "
        "45 % slower.",
        choices=AUTO_ON_OFF,
    )
    checkpointed_layers: int | None = option(
        None,
        "Checkpointed layers",
        "Recompute only the first N layers. Not set: all layers, or with auto as few as needed "
        "to fit.",
        min=1,
        max=10_000,
    )
    compile: str = option(
        "auto",
        "Compile layers",
        "Speed up the decoder layers with torch.compile. auto: on a GPU, if the run is long "
        "enough to pay for the compilation.",
        choices=AUTO_ON_OFF,
    )
    seed: int = option(
        0, "Seed", "Seed for data order, dropout and adapter initialisation.", min=0, max=2**32 - 1
    )
    eval_steps: int | None = option(
        None,
        "Evaluate every (steps)",
        "Not set: ten times per run. 0: only at the end.",
        min=0,
        max=100_000_000,
        formerly="eval_every",
    )
    save_steps: int | None = option(
        None,
        "Save every (steps)",
        "Steps between checkpoints. Not set: five times per run. 0: never.",
        min=0,
        max=100_000_000,
        formerly="save_every",
    )
    early_stopping: int | None = option(
        None,
        "Early-stopping patience",
        "Stop when the evaluation loss has not improved for this many evaluations. Not set: never.",
        min=1,
        max=10_000,
    )
    sample_steps: int | None = option(
        None,
        "Sample every (steps)",
        "Steps between sample answers. Not set: at the start, middle and end. 0: never.",
        min=0,
        max=100_000_000,
        formerly="sample_every",
    )
    forgetting_probe: str = option(
        "off",
        "Forgetting probe",
        "At each evaluation and at the end, measure how much the loss on the base model's own "
        "answers to general prompts has risen, the KL divergence, questions of common knowledge, "
        "and whether answers to six prompts end by themselves. Each time takes about as long as "
        "3,000 tokens of evaluation and 40 of generation, the end 12,000 and 90.",
        choices=("off", "on"),
        formerly="probe",
    )
    keep_best: int = option(
        3,
        "Best checkpoints kept",
        "How many checkpoints with the lowest evaluation loss to keep.",
        min=0,
        max=1000,
    )
    keep_last: int = option(
        2, "Latest checkpoints kept", "How many of the newest checkpoints to keep.", min=1, max=1000
    )
    report_to: list[str] = option(
        [],
        "Report to",
        "Other trackers that get the metrics and settings too. Each writes into LAB_HOME/trackers "
        "and contacts nobody, unless its own variables (WANDB_MODE, MLFLOW_TRACKING_URI, "
        "TRACKIO_SERVER_URL) say otherwise.",
        names=True,
        members=TRACKERS,
    )


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    devices: int = option(1, "GPUs", "Number of GPUs.", min=1, max=1)
    strategy: str = option(
        "single", "Parallelism", "How the work is split over devices.", choices=("single",)
    )
    ignore_memory: bool = option(
        False, "Ignore memory estimate", "Start even if the estimate says the run will not fit."
    )
