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

from lab import background_job, dataclass_json, paths
from lab.atomic_files import part, read_object, size_of
from lab.chat import models as chat_models
from lab.errors import LabError, first_line
from lab.export import lora_form
from lab.export.new_result import Origin, write_result
from lab.formatting import quantity
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


@dataclass(frozen=True)
class Combination:
    """What is to be combined, and how. `weights` are one for each result; `density` is the share
    of numbers that TIES and DARE keep; `rank` is that of what is cut down, None: the largest.
    `energy`: an adapter that is no LoRA is converted at the fewest singular values of each layer
    that hold this share of its update, None: at `rank`."""

    results: tuple[str, ...]
    weights: tuple[float, ...]
    type: str = "cat"
    density: float = 0.5
    rank: int | None = None
    name: str = ""
    seed: int = 0
    energy: float | None = None

    def problems(self) -> list[str]:
        """Everything that is wrong with the numbers, in sentences."""
        count, problems = len(self.results), []
        if not 2 <= count <= MAX_RESULTS or len(set(self.results)) != count:
            problems.append(f"2 to {MAX_RESULTS} different results are combined, not {count}.")
        if len(self.weights) != count:
            problems.append(
                f"Each result needs a weight: {quantity(count, 'result')} and "
                f"{quantity(len(self.weights), 'weight')} were given."
            )
        for weight in self.weights:
            if not abs(weight) <= MAX_WEIGHT or weight == 0:
                problems.append(
                    f"The weight {weight:g} is not between -{MAX_WEIGHT:g} and "
                    f"{MAX_WEIGHT:g}, or is 0."
                )
        if self.type not in TYPES:
            problems.append(
                f"'{quote(self.type)}' is not a type. Choose one of {', '.join(TYPES)}."
            )
        if not 0 < self.density <= 1:
            problems.append(f"The density {self.density:g} is not above 0 and at most 1.")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            problems.append(f"The rank {self.rank} is not 1 to {MAX_RANK}.")
        if self.energy is not None and (problem := lora_form.energy_problem(self.energy)):
            problems.append(problem)
        return problems


def check(combination: Combination) -> list[RunDir]:
    """The runs, first to last. Raises LabError for what stands against it before anything loads."""
    if problems := combination.problems():
        raise LabError(" ".join(problems))
    runs = [paths.run_dir(run_id) for run_id in combination.results]
    for run in runs:
        if reason := lora_form.why_not(run):
            raise LabError(f"{run.id} cannot be combined: {reason}", "Merge it instead.")
    bases = {_base_of(run) for run in runs}
    if len(bases) > 1:
        raise LabError(
            f"The results were trained on {quantity(len(bases), 'different base')}.",
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


@dataclass(frozen=True)
class CombinedResult:
    """`run`: the id of the new result. `fidelity`: by run. `deviation`: from the weighted sum of
    the updates, as a share of its length."""

    run: str
    rank: int
    bytes: int
    proof: Mapping[str, Any]
    fidelity: Mapping[str, float]
    deviation: float
    note: str


def combine(
    combination: Combination, tell: Callable[[str], object] = lambda phase: None
) -> CombinedResult:
    """A new result of several. It is read back from the disk and must answer as in memory, or
    nothing is kept. Raises LabError."""
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
    rank_or_energy = combination.energy or combination.rank or CONVERTED_RANK
    forms = [lora_form.form_of(run, base, rank_or_energy) for run in runs]
    notes += [
        f"{form.run.id} was brought into a LoRA of rank {form.rank}"
        f"{' at most' if combination.energy else ''}, which keeps {100 * form.fidelity:.1f} % of "
        "the length of its update."
        for form in forms
        if form.fidelity < 1
    ]
    tell("combining")
    model, rank, deviation = _combined(base, forms, combination)
    tell("writing and proving")
    method = {"name": "lora", "rank": rank, "alpha": float(rank), "dropout": 0.0}
    targets = [name for name, layer in _layers(model).items() if "combined" in layer.lora_A]
    method["target_modules"] = sorted({name.rsplit(".", 1)[-1] for name in targets})
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
    return CombinedResult(
        run.id,
        rank,
        size_of(run.artifact),
        outcome.to_json(),
        {form.run.id: form.fidelity for form in forms},
        deviation,
        " ".join(filter(None, notes)),
    )


def job_file() -> Path:
    return paths.home() / "combine" / "job.json"


def start(combination: Combination) -> None:
    """Begin in the background. Raises LabError for what stands against it."""
    check(combination)
    request = dataclasses.asdict(combination)
    background_job.start(job_file(), ["lab.export", "combine"], request)


def make() -> int:
    """Combine in this process what the record asks for; the exit code."""

    def work(request: Mapping[str, Any], tell: Callable[[str], None]) -> CombinedResult:
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


def _combined(
    base: Any, forms: Sequence[lora_form.AdapterForm], combination: Combination
) -> tuple[Any, int, float]:
    """(the PEFT model with the one adapter "combined", its rank, how far its updates are from the
    weighted sum as a share of that). Raises LabError."""
    import torch

    names = [f"adapter{position}" for position in range(len(forms))]
    model = base
    for name, form in zip(names, forms, strict=True):
        model = form.put_on(model, name)
    ranks = {form.rank for form in forms}
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
