"""The plain script learns what a run learns: the losses of three steps are those of the lab's loop,
for every method that has a script, with every option away from its default at least once."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, set_seed

from lab import methods
from lab.data import batches, prepare
from lab.errors import LabError
from lab.export.script import script
from lab.methods import Context
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.spec import RunSpec
from lab.train import budget, flops
from lab.train.loop import StepConfig, StepResult, TrainingLoop
from lab.train.loss import is_plain
from lab.train.optimizer import make_optimizer
from lab.train.step_batches import StepBatches
from tests.conftest import write_rows
from tests.methods import tiny

STEPS = 3
LORA = {"rank": 4, "alpha": 6.0, "dropout": 0.3}
RAMP = {"rank": 4, "last_rank": 8, "last_alpha": 3.0, "loraplus_lr_ratio": 4.0}
LISTS = {"layer_ranks": [3, 6], "layer_alphas": [2.0, 9.0]}
# method, options, architecture (llama unless said): few runs that move every option
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("full", {}, "llama"),
    ("full", {"train_layers": "last 1", "freeze": ["norms", "q_proj", "re:.*up_proj.*"]}, "llama"),
    ("full", {"train_layers": "0-1", "freeze": ["biases", "head"]}, "neox"),
    ("full", {"freeze": ["embeddings", "mlp"]}, "gpt2"),
    ("lora", LORA | {"target_modules": "q_proj,down_proj", "use_rslora": True,
     "use_dora": True}, "llama"),
    (
        "lora",
        RAMP | {"target_modules": ["re:.*attention.*", "dense_h_to_4h"], "bias": "all"},
        "neox",
    ),
    ("lora", LISTS | {"init_lora_weights": "gaussian", "modules_to_save": ["head",
     "re:.*input_.*norm"]}, "llama"),
    ("lora", {"modules_to_save": ["embeddings", "norm"], "init_lora_weights": "orthogonal"},
     "qwen3"),
    ("lora", {"init_lora_weights": "pissa", "rank": 4, "last_rank": 2}, "llama"),
    ("lora", {"init_lora_weights": "olora", "rank": 4, "use_rslora": True}, "neox"),
    ("lora", {"rank": 4, "bias": "lora_only"}, "gpt2"),
    ("lora", {"target_modules": "c_attn", "last_alpha": 2.0}, "gpt2"),
    ("qlora", LORA | {"target_modules": "q_proj", "use_rslora": True, "use_dora": True,
     "quant_type": "fp4"}, "llama"),
    ("qlora", RAMP | {"double_quantisation": False, "compute_dtype": "bfloat16",
     "prepare_kbit": True}, "llama"),
    ("qlora", LISTS | {"init_lora_weights": "gaussian", "modules_to_save": "head"}, "llama"),
    ("lora8bit", LORA | {"target_modules": "q_proj", "use_rslora": True, "threshold": 0.5},
     "llama"),
    ("lora8bit", RAMP | {"init_lora_weights": "gaussian", "prepare_kbit": True}, "llama"),
    ("lora8bit", LISTS | {"modules_to_save": "head"}, "llama"),
    (
        "adalora",
        {"rank": 4, "target_rank": 2, "alpha": 9.0, "dropout": 0.2,
        "target_modules": "q_proj,v_proj",
         "tinit_ratio": 0.0, "tfinal_ratio": 0.2, "every": 2, "smoothing": 0.5,
         "orthogonality": 0.9},
        "llama",
    ),
    ("adalora", {"orthogonality": 0.0, "rank": 3, "target_rank": 2}, "gpt2"),
    ("vera", {"rank": 8, "dropout": 0.2, "d_initial": 0.5, "target_modules": "up_proj",
     "seed": 3}, "llama"),
    (
        "loha",
        {"rank": 3, "alpha": 5.0, "rank_dropout": 0.3, "module_dropout": 0.1,
         "target_modules": "q_proj,up_proj"},
        "llama",
    ),
    (
        "lokr",
        {"rank": 1, "alpha": 5.0, "rank_dropout": 0.3, "module_dropout": 0.1,
         "target_modules": "q_proj,up_proj",
         "factor": 4, "decompose_both": True},
        "llama",
    ),
    ("oft", {"block_size": 8, "block_share": True, "target_modules": "q_proj,v_proj"}, "llama"),
    ("ia3", {}, "llama"),
    ("ia3", {}, "gpt2"),
    ("ia3", {"attention": "q_proj", "feed_forward": "up_proj,re:.*down_proj"}, "llama"),
    ("ln_tuning", {}, "qwen3"),
    ("ln_tuning", {"target_modules": "input_layernorm,norm"}, "llama"),
    ("prefix", {"num_virtual_tokens": 3}, "llama"),
    ("prefix", {"num_virtual_tokens": 5, "init": "text", "text": "w1 w2"}, "qwen3"),
    ("prefix", {"init": "random", "projection": True, "projection_width": 8}, "llama"),
    ("prefix", {"init": "random"}, "llama"),
    ("prompt", {"num_virtual_tokens": 3}, "llama"),
    ("prompt", {"num_virtual_tokens": 5, "init": "text", "text": "w1 w2"}, "llama"),
    ("prompt", {"init": "random"}, "llama"),
    ("ptuning", {"num_virtual_tokens": 3, "width": 16}, "llama"),
    ("ptuning", {"encoder": "lstm", "layers": 3, "dropout": 0.3}, "llama"),
    ("trainable_tokens", {}, "llama"),
    ("trainable_tokens", {"tokens": ["w3", "<|end|>"]}, "qwen3"),
]  # fmt: skip
# what a method's check refuses with a reason
REFUSED = {("qlora", "bias"), ("lora8bit", "bias"), ("lora8bit", "use_dora")}
TRAIN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "full",
        {"optimizer": "sgd", "momentum": 0.9, "lr_scheduler_type": "linear", "warmup_ratio": 0.5},
        {},
    ),
    ("full", {"optimizer": "adafactor", "lr_scheduler_type": "constant", "seed": 5}, {}),
    ("full", {"optimizer": "adamw_in_backward", "max_grad_norm": 0.0, "weight_decay": 0.3}, {}),
    ("ia3", {"optimizer": "sgd_in_backward", "max_grad_norm": 0.0, "weight_decay": 0.9}, {}),
    (
        "lora",
        {"optimizer": "adamw8bit", "gradient_accumulation_steps": 3, "max_grad_norm": 0.01},
        {},
    ),
    ("vera", {"weight_decay": 0.9, "learning_rate": 0.3}, {"loss_on": "all"}),
    ("lora", {"max_steps": None, "epochs": 0.7, "batch_size": 3}, {"eval_fraction": 0.3}),
    ("lora", {"batch_size": 1}, {"packing": "on", "max_length": 40}),
    ("lora", {"precision": "mixed"}, {"loss_on": "completion"}),
    ("full", {"precision": "bfloat16"}, {"packing": "auto", "max_length": 48}),
]


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models with a chat tokenizer; wide ones for bases of fewer bits."""
    folders = {}
    for name, width in [*((kind, 32) for kind in tiny.KINDS), ("llama", 64)]:
        folder = tmp_path_factory.mktemp("script") / f"{name}-{width}"
        tiny.make_model(name, width).save_pretrained(folder)
        tiny.make_chat_tokenizer().save_pretrained(folder)
        folders[f"{name}-{width}"] = folder
    return folders


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen chats of several lengths, some of two turns."""
    file = tmp_path_factory.mktemp("rows") / "chats.jsonl"

    def words(first: int, count: int) -> str:
        return " ".join(f"w{(first + 3 * place) % 90}" for place in range(count))

    write_rows(
        file,
        [
            {
                "messages": [
                    turn
                    for part in range(1 + number % 2)
                    for turn in (
                        {"role": "user", "content": words(number + part, 2)},
                        {"role": "assistant", "content": words(5 * number + part, 3 + number % 5)},
                    )
                ]
            }
            for number in range(13)
        ],
    )
    return file


def spec_of(
    method: str, options: dict[str, Any], rows: Path, train: dict[str, Any], data: dict[str, Any]
) -> RunSpec:
    """A spec as the check resolves it for this machine."""
    return RunSpec.from_json(
        {
            "method": {"name": method, **options},
            "data": {"dataset": str(rows), "packing": "off", "eval_fraction": 0.0,
                     "max_length": 64, **data},
            "train": {"batch_size": 2, "max_steps": STEPS, "learning_rate": 2e-2,
            "warmup_ratio": 0.4,
                      "precision": "float32", "adapter_precision": "float32",
                      "loss_implementation": "plain",
                      **train},
        }
    )  # fmt: skip


class Recorder:
    """The losses of a loop's steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_begin(self, loop: TrainingLoop) -> None: ...

    def on_step_end(self, loop: TrainingLoop, result: StepResult) -> None:
        self.losses.append(float(result.losses.sum()))

    def on_train_end(self, loop: TrainingLoop) -> None: ...


def lab_run(spec: RunSpec, folder: Path) -> tuple[list[float], Any]:
    """(losses of the run's own loop, its model), as `lab/train/attempt.py` sets them up."""
    method, config = methods.get(spec.method["name"]), spec.method_config
    source = ModelSource("tiny", str(folder), local_only=True)
    tokenizer = weights.load_tokenizer(source)
    method.extend_tokenizer(tokenizer, config)
    data = prepare.prepare(spec, tokenizer)
    dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32
    model = weights.load_model(source, dtype, **method.load_kwargs(config))
    set_seed(spec.train.seed)
    context = Context(spec, tokenizer)
    method.prepare(model, config, context)
    set_seed(spec.train.seed)
    model = method.apply(model, config, context)
    loss = "fused" if is_plain(model.get_output_embeddings()) else "plain"
    costs = flops.count(model, "plain", method.virtual_tokens(config))
    stream = batches.TrainingOrder(data.train, spec.train.seed)
    plan = budget.training_budget(spec.train, stream, costs)
    method.set_total_steps(model, config, plan.steps)
    recorder = Recorder()
    TrainingLoop(
        Accelerator(cpu=True),
        model,
        make_optimizer(model, method, spec),
        spec.train,
        StepConfig.of(method, config, spec.train, loss),
        StepBatches(
            stream, plan, budget.BudgetUsed(), costs, spec.train.batch_size,
            spec.train.gradient_accumulation_steps, tokenizer.pad_token_id,
        ),
        callbacks=[recorder],
    ).run()  # fmt: skip
    return recorder.losses, model


def script_run(spec: RunSpec, folder: Path, rows: Path, place: Path) -> dict[str, Any]:
    """What the script has at its end."""
    file = place / "train.py"
    file.write_text(script(spec, str(folder), str(rows), ""))
    return runpy.run_path(str(file))


def compare(
    spec: RunSpec, kind: str, model_folders: dict[str, Path], rows: Path, place: Path
) -> dict[str, Any]:
    width = 64 if methods.get(spec.method["name"]).load_kwargs(spec.method_config) else 32
    folder = model_folders[f"{kind}-{width}"]
    expected, model = lab_run(spec, folder)
    result = script_run(spec, folder, rows, place)
    tolerance = 1e-5 if width == 32 else 1e-3  # rounding grows where weights have few bits
    assert result["losses"] == pytest.approx(expected, rel=tolerance), spec.method
    trains = {name for name, weight in model.named_parameters() if weight.requires_grad}
    own = {name for name, weight in result["model"].named_parameters() if weight.requires_grad}
    assert own == trains
    return result | {"lab": model, "folder": folder}


@pytest.mark.parametrize(
    ("method", "options", "kind"), CASES, ids=[f"{m}-{k}-{'+'.join(o)}" for m, o, k in CASES]
)
def test_a_script_learns_what_the_run_learns(
    method: str, options: dict[str, Any], kind: str, model_folders: dict[str, Path], rows: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    compare(spec_of(method, options, rows, {}, {}), kind, model_folders, rows, tmp_path)


@pytest.mark.parametrize(("method", "train", "data"), TRAIN)
def test_settings_of_training_and_data_are_the_runs(
    method: str, train: dict[str, Any], data: dict[str, Any], model_folders: dict[str, Path],
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    spec = spec_of(method, {}, rows, train, data)
    resolved = spec
    if spec.data.packing == "auto":  # as the check resolves it
        resolved = dataclasses.replace(spec, data=dataclasses.replace(spec.data, packing="on"))
    folder = model_folders["llama-32"]
    expected, _ = lab_run(resolved, folder)
    result = script_run(spec, folder, rows, tmp_path)
    tolerance = 1e-5 if spec.train.precision == "float32" else 1e-2
    assert result["losses"] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_a_script_saves_of_a_decomposed_base_belongs_to_the_base(
    start: str, model_folders: dict[str, Path], rows: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import peft

    monkeypatch.chdir(tmp_path)
    spec = spec_of("lora", {"init_lora_weights": start, "rank": 4}, rows, {}, {})
    folder = model_folders["llama-32"]
    result = script_run(spec, folder, rows, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(plain, "output").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        answers, trained = loaded(ids).logits, result["model"].eval()(ids).logits
    assert torch.allclose(answers, trained, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"bias": "all"}, {"use_rslora": True, "last_rank": 2}, {"modules_to_save": ["norm"]}],
)
def test_a_decomposed_base_that_peft_cannot_convert_has_no_script(options: dict[str, Any]) -> None:
    value = {"method": {"name": "lora", "init_lora_weights": "pissa", **options}}
    with pytest.raises(LabError, match="no plain script for init_lora_weights pissa with"):
        script(RunSpec.from_json(value), "m", "d.jsonl", "")


@pytest.mark.every_method
def test_every_option_of_every_scripted_method_is_moved() -> None:
    still = []
    for method in methods.all_methods():
        if not method.can_script:
            continue
        for field in dataclasses.fields(method.config):  # type: ignore[arg-type]
            default = getattr(method.config(), field.name)
            moved = any(
                name == method.name and options.get(field.name, default) != default
                for name, options, _ in CASES
            )
            if not moved and (method.name, field.name) not in REFUSED:
                still.append(f"{method.name}.{field.name}")
    assert still == [], "CASES has to train a script with another value of these options"


@pytest.mark.parametrize(
    ("section", "setting", "name"),
    [
        ("data", {"truncation": "left"}, "data.truncation"),
        ("data", {"group_by_length": "on"}, "data.group_by_length"),
        ("data", {"general_fraction": 0.1}, "data.general_fraction"),
        ("data", {"eval_dataset": "builtin:x"}, "data.eval_dataset"),
        ("data", {"slots": {"a": "b"}}, "data.placeholders"),
        ("data", {"columns": {"prompt": "q"}}, "data.columns"),
        ("data", {"format": "preference"}, "data.format preference"),
        ("train", {"max_tokens": 5}, "train.max_tokens"),
        ("train", {"max_seconds": 5.0}, "train.max_seconds"),
        ("train", {"max_flops": 5.0}, "train.max_flops"),
    ],
)
def test_what_would_train_something_else_is_refused(
    section: str, setting: dict[str, Any], name: str
) -> None:
    with pytest.raises(LabError, match=f"no plain script for a run with {name}"):
        script(RunSpec.from_json({"method": "full", section: setting}), "m", "d.jsonl", "")
    with pytest.raises(LabError, match="init_from_run"):
        script(RunSpec.from_json({"method": "full", "init_from_run": "run:x"}), "m", "d.jsonl", "")
