"""An adapter in the form of a LoRA: as it is, or by PEFT's `convert_to_lora`.

The update ΔW of every layer is cut down by its singular values: to a number of them, or to the
fewest that hold a share of its energy (the sum of their squares), so that each layer gets a rank of
its own.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

from lab import methods
from lab.atomic_files import part, read_object
from lab.errors import LabError, first_line
from lab.library_imports import import_peft
from lab.methods.parts import adapter_files
from lab.models import weights
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec

# PEFT's types whose updates add up: LoRA's own, and those that `convert_to_lora` takes
ADDITIVE = ("LORA", "LOHA", "LOKR", "VERA")
LEAST_ENERGY, MOST_ENERGY = 0.5, 0.9999
PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterForm:
    """One adapter as a LoRA. `fidelity` is the share of the update's length that the conversion
    keeps, 1 for what was a LoRA before."""

    run: RunDir
    config: Any
    tensors: dict[str, Any]
    fidelity: float = 1.0

    @property
    def rank(self) -> int:
        """The largest of any layer."""
        return int(max([self.config.r, *self.config.rank_pattern.values()]))

    @property
    def ranks(self) -> dict[str, int]:
        """By the name of the layer."""
        return {
            key.removeprefix(PREFIX).removesuffix(".lora_A.weight"): len(tensor)
            for key, tensor in self.tensors.items()
            if key.endswith(".lora_A.weight")
        }

    def put_on(self, model: Any, name: str) -> Any:
        """The PEFT model with this adapter under `name`: of a base a new one. Raises LabError for a
        tensor that has no place."""
        peft = import_peft()
        modules = {key.split(".lora_")[0].removeprefix(PREFIX) for key in self.tensors}
        settings = dataclasses.replace(self.config, target_modules=modules, layers_pattern=None)
        settings.layers_to_transform = None
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, settings)
        else:
            model = peft.get_peft_model(model, settings, adapter_name=name)
        outcome = peft.set_peft_model_state_dict(model, dict(self.tensors), adapter_name=name)
        if outcome.unexpected_keys:
            raise LabError(f"{self.run.id} holds {quote(outcome.unexpected_keys[0])}.", "Merge it.")
        return model


def why_not(run: RunDir) -> str:
    """Why the result of `run` has no form as a LoRA, in a sentence; empty where it may have."""
    config = read_object(run.artifact / adapter_files.CONFIG)
    method = methods.get(RunSpec.of_run(run).method["name"])
    if config is None:
        return f"{method.title} leaves no adapter of PEFT's that is the whole result."
    if config.get("peft_type") == "ADALORA":
        return "PEFT brings no AdaLoRA into the form of a LoRA."
    if config.get("peft_type") not in ADDITIVE:
        return "what it learns is not an update that is added to a weight."
    if config.get("use_dora"):
        return "the norms of DoRA do not add up."
    if config.get("modules_to_save") or config.get("bias", "none") != "none":
        return "it holds whole modules or biases beside its updates."
    return ""


def is_lora(run: RunDir) -> bool:
    return part(read_object(run.artifact / adapter_files.CONFIG)).get("peft_type") == "LORA"


def energy_problem(energy: float) -> str:
    """What is wrong with a share of the energy, in a sentence; empty where nothing is."""
    if LEAST_ENERGY <= energy <= MOST_ENERGY:
        return ""
    return f"The energy {energy:g} is not {LEAST_ENERGY:g} to {MOST_ENERGY:g}."


def form_of(run: RunDir, base: Any, rank: int | float) -> AdapterForm:
    """The adapter of `run` as it is if it is a LoRA; else converted, see `convert`. Raises
    LabError."""
    from safetensors.torch import load_file

    if is_lora(run):
        adapter_files.check(base, run.artifact, "LoraConfig")
        config = adapter_files.config_of(run.artifact, "LoraConfig", base)
        return AdapterForm(run, config, load_file(run.artifact / adapter_files.WEIGHTS))
    return convert(run, load(run, base), rank)


def load(run: RunDir, base: Any) -> Any:
    """The result of `run` over the tensors of `base`, which stays as it is."""
    spec = RunSpec.of_run(run)
    method = methods.get(spec.method["name"])
    is_changed = method.needs_separate_base(spec.method_config)
    twin = copy.deepcopy(base) if is_changed else weights.share_weights(base)
    return method.load_saved(twin, run.artifact)


def convert(run: RunDir, model: Any, rank: int | float) -> AdapterForm:
    """The adapter of `model`, the loaded result of `run`, as a LoRA whose layers have `rank` each,
    or, for a float, the fewest that hold this share of the layer's energy. Raises LabError."""
    from peft.tuners.lora import convert_to_lora

    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    if layers and isinstance(rank, int):
        rank = min(rank, *(min(module.base_layer.weight.shape) for module in layers.values()))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Converting a PEFT adapter to LoRA that is")
            config, tensors = convert_to_lora(model, rank=rank)
    except (TypeError, ValueError) as error:
        title = methods.get(RunSpec.of_run(run).method["name"]).title
        raise LabError(
            f"PEFT cannot bring {title} of {run.id} into the form of a LoRA: {first_line(error)}.",
            "Merge it instead.",
        ) from None
    lost = total = 0.0
    for name, module in layers.items():
        update = module.get_delta_weight("default").float()
        again = tensors[f"{name}.lora_B.weight"].float() @ tensors[f"{name}.lora_A.weight"].float()
        if getattr(
            module, "fan_in_fan_out", False
        ):  # GPT-2 stores its matrices the other way round
            again = again.T
        lost += float((update - again).square().sum())
        total += float(update.square().sum())
    config.task_type = "CAUSAL_LM"  # which PEFT leaves out, and no result goes without
    fidelity = math.sqrt(max(0.0, 1 - lost / total)) if total else 1.0
    return AdapterForm(run, config, {n: t.contiguous() for n, t in tensors.items()}, fidelity)
