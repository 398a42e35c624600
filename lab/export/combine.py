"""Adapters of one base as one new LoRA, through PEFT's `add_weighted_adapter`.

The weighted sum of updates is Δ = Σ wᵢ Δᵢ, with Δᵢ = sᵢ Bᵢ Aᵢ. `cat` stacks the factors, which is Δ
exactly; `svd` cuts Δ down to a rank; `linear`, TIES (arXiv:2306.01708) and DARE (arXiv:2311.03099)
work on the factors, their `_svd` forms on the updates themselves. An adapter of another family is
first brought into the form of a LoRA (`peft.tuners.lora.convert_to_lora`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import background_job, dataclass_json, methods, paths
from lab.atomic_files import part, read_object, size_of
from lab.chat import models as chat_models
from lab.errors import LabError, first_line
from lab.export.new_result import Origin, write_result
from lab.methods.parts import adapter_files
from lab.models import catalog, weights, weights_hash
from lab.paths import RunDir
from lab.runs import index
from lab.schema import quote
from lab.spec import RunSpec

TYPES = {
    "cat": "The weighted sum of the updates, exactly. The ranks add up.",
    "svd": "The weighted sum of the updates, cut down to one rank.",
    "linear": "The weighted sums of A and of B. Rough; the ranks must be equal.",
    "ties": "TIES: keeps the largest numbers, and of those the sign that outweighs the other.",
    "ties_svd": "TIES on the updates, cut down to one rank.",
    "dare_linear": "DARE: drops numbers at random and scales up the rest.",
    "dare_linear_svd": "DARE on the updates, cut down to one rank.",
    "dare_ties": "DARE's random choice, then the signs of TIES.",
    "dare_ties_svd": "DARE and TIES on the updates, cut down to one rank.",
}
SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties")
MAX_RESULTS, MAX_WEIGHT, MAX_RANK = 8, 10.0, 1024
MAX_NAME_CHARS = 120  # characters, as of any run
CONVERTED_RANK = 32  # of an adapter that is no LoRA, unless a rank is given
# PEFT's types whose updates add up: LoRA's own, and those that `convert_to_lora` takes
ADDITIVE = ("LORA", "LOHA", "LOKR", "VERA")


@dataclass(frozen=True)
class Combination:
    """What is to be combined, and how. `weights` are one for each result; `density` is the share
    of numbers that TIES and DARE keep; `rank` is that of what is cut down, None: the largest."""

    results: tuple[str, ...]
    weights: tuple[float, ...]
    type: str = "cat"
    density: float = 0.5
    rank: int | None = None
    name: str = ""
    seed: int = 0

    def problems(self) -> list[str]:
        """Everything that is wrong with the numbers, in sentences."""
        count, problems = len(self.results), []
        if not 2 <= count <= MAX_RESULTS or len(set(self.results)) != count:
            problems.append(f"2 to {MAX_RESULTS} different results are combined, not {count}.")
        if len(self.weights) != count:
            problems.append(f"There are {count} results and {len(self.weights)} weights.")
        for weight in self.weights:
            if not abs(weight) <= MAX_WEIGHT or weight == 0:
                problems.append(
                    f"The weight {weight:g} is not between -{MAX_WEIGHT:g} and "
                    f"{MAX_WEIGHT:g}, or is 0."
                )
        if self.type not in TYPES:
            problems.append(f"'{quote(self.type)}' is no type. Choose one of {', '.join(TYPES)}.")
        if not 0 < self.density <= 1:
            problems.append(f"The density {self.density:g} is not above 0 and at most 1.")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            problems.append(f"The rank {self.rank} is not 1 to {MAX_RANK}.")
        return problems


@dataclass(frozen=True)
class AdapterForm:
    """One adapter as a LoRA. `fidelity` is the share of the update's length that the conversion
    keeps, 1 for what was a LoRA before."""

    run: RunDir
    config: Any
    tensors: dict[str, Any]
    fidelity: float = 1.0


def check(combination: Combination) -> list[RunDir]:
    """The runs, first to last. Raises LabError for what stands against it before anything loads."""
    if problems := combination.problems():
        raise LabError(" ".join(problems))
    runs = [paths.run_dir(run_id) for run_id in combination.results]
    for run in runs:
        if reason := why_not(run):
            raise LabError(f"{run.id} cannot be combined: {reason}", "Merge it instead.")
    bases = {_base_of(run) for run in runs}
    if len(bases) > 1:
        raise LabError(
            f"The results were trained on {len(bases)} different bases.",
            "Combine results of one base.",
        )
    locks = [part(_receipt(run), "lock") for run in runs]
    if len({(lock.get("template"), lock.get("end_token")) for lock in locks}) > 1:
        raise LabError(
            "The results were trained with different chat templates.",
            "Combine results of one template: the new one could only have one of them.",
        )
    return runs


def default_name(runs: Sequence[RunDir]) -> str:
    """ "wren lora + wren ia3"."""
    names = [index.entry(run).name or RunSpec.of_run(run).method["name"] for run in runs]
    return " + ".join(names)[:MAX_NAME_CHARS]


def why_not(run: RunDir) -> str:
    """Why the result of `run` cannot be combined, in a sentence; empty where it may be."""
    config = read_object(run.artifact / adapter_files.CONFIG)
    if config is None:
        method = methods.get(RunSpec.of_run(run).method["name"])
        return f"{method.title} leaves no adapter of PEFT's that is the whole result."
    if config.get("peft_type") not in ADDITIVE:
        return "what it learns is no update that is added to a weight."
    if config.get("use_dora"):
        return "the norms of DoRA do not add up."
    if config.get("modules_to_save") or config.get("bias", "none") != "none":
        return "it holds whole modules or biases beside its updates."
    return ""


def combine(
    combination: Combination, tell: Callable[[str], object] = lambda phase: None
) -> dict[str, Any]:
    """A new result of several. Returns {"run", "rank", "bytes", "proof", "fidelity" (by run),
    "deviation" (from the weighted sum of the updates, as a share of its length), "note"}. It is
    read back from the disk and must answer as in memory, or nothing is kept. Raises LabError."""
    runs = check(combination)
    import torch

    spec = RunSpec.of_run(runs[0])
    source = catalog.resolve(chat_models.parse(f"run:{runs[0].id}").base)
    is_narrow = spec.train.precision == "bfloat16"
    tell("loading the base")
    notes = [
        weights_hash.check(_receipt(run).get("base"), weights_hash.identify(source), run.id)
        for run in runs
    ]
    base = weights.load_model(source, torch.bfloat16 if is_narrow else torch.float32)
    tell("reading the adapters")
    forms = [_form(run, base, combination) for run in runs]
    notes += [
        f"{form.run.id} was brought into a LoRA of rank {form.config.r}, which keeps "
        f"{100 * form.fidelity:.1f} % of its update."
        for form in forms
        if form.fidelity < 1
    ]
    tell("combining")
    model, rank, deviation = _combined(base, forms, combination)
    tell("writing and proving")
    method = {"name": "lora", "rank": rank, "alpha": float(rank), "dropout": 0.0}
    method["target_modules"] = sorted({name.rsplit(".", 1)[-1] for name in _targets(model)})
    name = combination.name.strip() or default_name(runs)
    train = replace(spec.train, adapter_precision="float32")
    spec = replace(spec, name=name, method=method, train=train, init_from_run="")
    origin = dataclasses.asdict(combination) | {"results": [run.id for run in runs]}
    factors = ", ".join(f"{weight:g}" for weight in combination.weights)
    figures = {
        "Combined from": ", ".join(origin["results"]),
        "Combination": f"{combination.type}, weights {factors}",
    }
    made_by = Origin("combined", runs[0], origin, figures, "Choose another type.")
    run, outcome = write_result(model, "combined", spec, source, made_by)
    return {
        "run": run.id,
        "rank": rank,
        "bytes": size_of(run.artifact),
        "proof": outcome.to_json(),
        "fidelity": {form.run.id: form.fidelity for form in forms},
        "deviation": deviation,
        "note": " ".join(filter(None, notes)),
    }


def job_file() -> Path:
    return paths.home() / "combine" / "job.json"


def start(combination: Combination) -> None:
    """Begin in the background. Raises LabError for what stands against it."""
    check(combination)
    request = dataclasses.asdict(combination)
    background_job.start(job_file(), ["lab.export", "combine"], request)


def make() -> int:
    """Combine in this process what the record asks for; the exit code."""

    def work(request: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
        combination = dataclass_json.read(Combination, request)
        assert combination is not None
        return combine(combination, tell)

    return background_job.work(job_file(), work)


def _receipt(run: RunDir) -> dict[str, Any]:
    return read_object(run.artifact / "receipt.json") or {}


def _base_of(run: RunDir) -> str:
    """The hash of the base's weights, or its name where none was recorded."""
    known = part(_receipt(run), "base").get("weights")
    return str(known or chat_models.parse(f"run:{run.id}").base)


def _form(run: RunDir, base: Any, combination: Combination) -> AdapterForm:
    """The adapter of `run` as a LoRA. Raises LabError."""
    from peft.tuners.lora import convert_to_lora
    from safetensors.torch import load_file

    stored = part(read_object(run.artifact / adapter_files.CONFIG))
    if stored.get("peft_type") == "LORA":
        adapter_files.check(base, run.artifact, "LoraConfig")
        config = adapter_files.config_of(run.artifact, "LoraConfig", base)
        return AdapterForm(run, config, load_file(run.artifact / adapter_files.WEIGHTS))
    spec = RunSpec.of_run(run)
    method = methods.get(spec.method["name"])
    model = method.load_saved(weights.share_weights(base), run.artifact)
    rank = combination.rank or CONVERTED_RANK
    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    if layers:
        rank = min(rank, *(min(module.base_layer.weight.shape) for module in layers.values()))
    try:
        config, tensors = convert_to_lora(model, rank=rank)
    except (TypeError, ValueError) as error:
        raise LabError(
            f"{run.id} cannot be combined: PEFT cannot bring {method.title} into the form of a "
            f"LoRA ({first_line(error)}).",
            "Merge it instead.",
        ) from None
    lost = total = 0.0
    for name, module in layers.items():
        update = module.get_delta_weight("default").float()
        again = tensors[f"{name}.lora_B.weight"].float() @ tensors[f"{name}.lora_A.weight"].float()
        lost += float((update - again).square().sum())
        total += float(update.square().sum())
    fidelity = math.sqrt(max(0.0, 1 - lost / total)) if total else 1.0
    return AdapterForm(run, config, {n: t.contiguous() for n, t in tensors.items()}, fidelity)


def _combined(
    base: Any, forms: Sequence[AdapterForm], combination: Combination
) -> tuple[Any, int, float]:
    """(the PEFT model with the one adapter "combined", its rank, how far its updates are from the
    weighted sum as a share of that). Raises LabError."""
    import peft
    import torch

    names = [f"adapter{number}" for number in range(len(forms))]
    model: Any = None
    for name, form in zip(names, forms, strict=True):
        modules = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in form.tensors}
        settings = dataclasses.replace(form.config, target_modules=modules, layers_pattern=None)
        settings.layers_to_transform = None
        if model is None:
            model = peft.get_peft_model(base, settings, adapter_name=name)
        else:
            model.add_adapter(name, settings)
        outcome = peft.set_peft_model_state_dict(model, dict(form.tensors), adapter_name=name)
        if outcome.unexpected_keys:
            raise LabError(f"{form.run.id} holds {quote(outcome.unexpected_keys[0])}.", "Merge it.")
    ranks = {settings.r for settings in model.peft_config.values()}
    if combination.type in SAME_RANK and len(ranks) > 1:
        raise LabError(
            f"'{combination.type}' needs equal ranks, and they are "
            f"{', '.join(map(str, sorted(ranks)))}.",
            f"Choose cat, svd or {combination.type.removesuffix('_svd')}_svd."
            if combination.type != "linear"
            else "Choose cat or svd.",
        )
    # PEFT makes the new config of the first one's, and scales by what it says there
    model.peft_config[names[0]].use_rslora = False
    layers = _layers(model)
    rank = combination.rank or max(ranks)
    smallest = min(min(layer.get_base_layer().weight.shape) for layer in layers.values())
    torch.manual_seed(combination.seed)  # DARE draws
    try:
        model.add_weighted_adapter(
            names,
            list(combination.weights),
            "combined",
            combination_type=combination.type,
            svd_rank=min(rank, smallest),
            density=combination.density,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise LabError(
            f"PEFT cannot combine them so: {first_line(error)}.", "Choose cat or svd."
        ) from None
    apart = length = 0.0
    with torch.no_grad():
        for layer in layers.values():
            total = sum(
                weight * layer.get_delta_weight(name).float()
                for name, weight in zip(names, combination.weights, strict=True)
                if name in layer.lora_A
            )
            apart += float((layer.get_delta_weight("combined").float() - total).square().sum())
            length += float(total.square().sum())
    model.set_adapter("combined")
    for name in names:
        model.delete_adapter(name)
    return model, int(model.peft_config["combined"].r), math.sqrt(apart / length) if length else 0.0


def _layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _targets(model: Any) -> list[str]:
    return [name for name, layer in _layers(model).items() if "combined" in layer.lora_A]
