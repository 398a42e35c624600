"""The case that advice is given for: read from JSON, with every problem at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab import formatting, gpu_table, host, schema
from lab.errors import LabError, Problem, SpecError
from lab.gpu_table import Gpu
from lab.models import catalog, shipped_configs
from lab.preflight.client import planner
from lab.schema import option

GOALS = ("behaviour", "knowledge", "narrow task", "new tokens", "continued pretraining")
DISTANCES = ("near", "far")
COMPLEXITIES = ("simple", "moderate", "complex")
PRICES_IN_WORDS = ("low", "medium", "high")
DEFAULT_PARAMETERS = 7e9  # where neither a model nor a size is named
MIN_PARAMETERS, MAX_PARAMETERS = 1e6, 1e13  # parameters
NO_ADVICE = "No advice can be given"
MAX_BILLIONS = 10_000  # a smaller number of parameters is one of billions
BILLIONS = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmbt])?\s*", re.IGNORECASE)
SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}

# Other words for the same thing. Keys are in lower case, with spaces for "-" and "_".
SYNONYMS: dict[str, dict[str, Any]] = {
    "goal": {
        "behavior": "behaviour",
        "style": "behaviour",
        "format": "behaviour",
        "persona": "behaviour",
        "tone": "behaviour",
        "instruction following": "behaviour",
        "instructions": "behaviour",
        "domain knowledge": "knowledge",
        "facts": "knowledge",
        "task": "narrow task",
        "narrow": "narrow task",
        "classification": "narrow task",
        "tokens": "new tokens",
        "pretraining": "continued pretraining",
        "cpt": "continued pretraining",
    },
    "domain_shift": dict.fromkeys(("none", "small", "low", "little", "moderate", "medium"), "near")
    | dict.fromkeys(("large", "big", "high", "radical"), "far"),
    "error_price": {"none": None, "unknown": None, "not known": None},
    "complexity": {"low": "simple", "medium": "moderate", "high": "complex"},
    "tasks": {"single": 1, "one": 1, "several": 2, "many": 2, "multiple": 2},
}


@dataclass(frozen=True, kw_only=True)
class AdviceCase:
    """What a person wants, has and fears. `parameters`: of the base model; 0 until `sized`."""

    goal: str = option(
        "behaviour",
        "Goal",
        "What the model is to learn: behaviour (tone, format, persona), knowledge (new facts), a "
        "narrow task such as classification, new tokens, or continued pretraining.",
        choices=GOALS,
    )
    model: str = option(
        "",
        "Model",
        "A shipped config (config:Llama-3.1-8B), a built-in model, a Hub ID or a folder.",
        max_characters=4096,
    )
    parameters: float | None = option(
        None,
        "Parameters",
        'Of the base model: 7e9, "7B" or 7 (billions). The nearest shipped config stands for it.',
        min=MIN_PARAMETERS,
        max=MAX_PARAMETERS,
    )
    examples: int = option(
        1000, "Examples", "Training examples that you have.", min=1, max=10_000_000_000
    )
    tokens_per_example: int = option(
        250, "Tokens per example", "On average; it decides time and cost.", min=1, max=1 << 20
    )
    domain_shift: str = option(
        "near",
        "Domain distance",
        "far: another language, notation or subject than the model was trained on.",
        choices=DISTANCES,
    )
    gpu: str = option(
        "",
        "Hardware",
        "A card of the table, such as RTX 4090 24GB. Neither this nor gpu_gb: this machine.",
        max_characters=100,
    )
    gpu_gb: float | None = option(
        None, "GPU memory (GB)", "Of all cards together, as the box says.", above=0.0, max=1e6
    )
    budget_usd: float | None = option(
        None, "Budget (USD)", "For one training run. Not set: no limit.", min=0.0, max=1e12
    )
    variants: int = option(
        1, "Variants", "Models to be served from this base.", min=1, max=1_000_000
    )
    keeps_general: bool = option(
        False, "Keep general ability", "What the base can do must not be forgotten."
    )
    error_price: float | str | None = option(
        None,
        "Price of an error",
        "low, medium, high (legal, medical), or what two points of accuracy are worth in USD.",
        words=PRICES_IN_WORDS,
        min=0.0,
        max=1e12,
    )
    complexity: str = option(
        "moderate", "Complexity", "How hard the task is to learn.", choices=COMPLEXITIES
    )
    tasks: int = option(
        1, "Tasks", "Different tasks that one base has to serve.", min=1, max=1_000_000
    )

    @property
    def billions(self) -> float:
        return (self.parameters or DEFAULT_PARAMETERS) / 1e9

    @property
    def size_in_words(self) -> str:
        """ "7.0 B" or "134.5 M" parameters."""
        return f"{formatting.count(self.parameters or DEFAULT_PARAMETERS)} parameters"

    @property
    def memory_gb(self) -> float:
        """GB as articles speak of them: what the box says, of this machine if no card is named."""
        if self.gpu_gb is not None:
            return self.gpu_gb
        if self.gpu:
            return gpu_table.get(self.gpu).label_gb
        return own_memory_gb()

    @property
    def is_here(self) -> bool:
        """Whether the hardware is this machine's."""
        return not self.gpu and self.gpu_gb is None

    @property
    def tokens(self) -> int:
        """In one pass over the data."""
        return self.examples * self.tokens_per_example


def own_memory_gb() -> float:
    """The largest GPU of this machine, else its memory, in GB."""
    cards = host.gpus()
    if cards:
        known = gpu_table.known(host.largest(cards).name)
        return known.label_gb if known else round(host.largest(cards).memory_bytes / 1e9)
    return float(round(host.describe().memory_bytes / 1e9, 1))


def parse(value: Any) -> AdviceCase:
    """The case in parsed JSON. Raises SpecError with every problem found."""
    problems: list[Problem] = []
    if not isinstance(value, dict):
        problems.append(Problem("case", f"must be an object, is {schema.quote(value)}."))
        raise SpecError(problems, NO_ADVICE, "the case")
    value = {key: _in_our_words(key, item) for key, item in value.items()}
    case = schema.parse(AdviceCase, value, "", problems)
    if case.model and case.parameters is not None:
        problems.append(Problem("parameters", "is given beside model. Give one of them."))
    if case.gpu and case.gpu_gb is not None:
        problems.append(Problem("gpu_gb", "is given beside gpu. Give one of them."))
    if case.gpu.strip().lower() in ("this machine", "here", "local"):
        case = dataclasses.replace(case, gpu="")
    elif case.gpu:
        case = _with(case, "gpu", lambda: _card(case.gpu).name, problems)
    if case.model:
        case = _with(case, "model", lambda: known_model(case.model), problems)
    if problems:
        raise SpecError(problems, NO_ADVICE, "the case")
    return case


def _card(name: str) -> Gpu:
    """By its name, with its memory or without: "RTX 4090". Raises LabError."""
    try:
        return gpu_table.get(name)
    except LabError:
        known = gpu_table.known(name)
        if known is None:
            raise
        return known


def _with(
    case: AdviceCase, name: str, find: Callable[[], str], problems: list[Problem]
) -> AdviceCase:
    try:
        changes: dict[str, Any] = {name: find()}
        return dataclasses.replace(case, **changes)
    except LabError as error:
        problems.append(Problem(name, str(error)))
        return case


def _in_our_words(key: str, item: Any) -> Any:
    """A value by the word that the fields take: "Behavior" → "behaviour", "7B" → 7e9."""
    if key == "parameters" and isinstance(item, str):
        match = BILLIONS.fullmatch(item)
        if match is None:
            return item
        if match[2]:
            return float(match[1]) * SCALES[match[2].lower()]
        item = float(match[1])  # as the number would be taken
    is_number = isinstance(item, (int, float)) and not isinstance(item, bool)
    if key == "parameters" and is_number and 0 < item < MAX_BILLIONS:
        return item * 1e9  # nobody means a model of seven parameters
    if key == "tasks" and isinstance(item, list):
        return max(len(item), 1)
    if key == "tasks" and isinstance(item, bool):
        return 2 if item else 1
    if key == "domain_shift" and isinstance(item, bool):
        return DISTANCES[item]
    if key == "domain_shift" and isinstance(item, (int, float)) and 0 <= item <= 1:
        return DISTANCES[item >= 0.5]
    if not isinstance(item, str) or len(item) > 100:
        return item
    word = " ".join(re.sub("[-_]", " ", item).lower().split())
    if key in ("goal", "domain_shift", "complexity", "error_price", "tasks"):
        return SYNONYMS.get(key, {}).get(word, word)
    return item


def known_model(name: str) -> str:
    """The id of a model in whatever way it is named: "Llama-3.1-8B" is config:Llama-3.1-8B, and
    the Hub id of the weights of a shipped config is that config. Raises LabError."""
    kind, _, rest = name.strip().partition(":")
    if kind.lower() == "config":
        return shipped_configs.get(rest).id
    if kind.lower() == "builtin":
        return f"builtin:{catalog.built_in(rest).name}"
    for config in shipped_configs.shipped():
        if name.strip().lower() in (config.name.lower(), config.hub_id.lower()):
            return config.id
    return catalog.resolve_config(name.strip()).id


def sized(case: AdviceCase) -> AdviceCase:
    """The case with the number of parameters of its model. A model that is neither shipped nor
    built in is read by the planner. Raises LabError."""
    if case.parameters is not None:
        return case
    if not case.model:
        return dataclasses.replace(case, parameters=DEFAULT_PARAMETERS)
    return dataclasses.replace(case, parameters=float(_parameters_of(case.model)))


def _parameters_of(model: str) -> int:
    known = parameters_of(model)
    if known is not None:
        return known
    spec = {"model": model, "method": {"name": "full"}, "data": {"max_length": 128}}
    return planner.estimate(spec, {"kind": "cuda"}, shadow=False).memory.parameters


def parameters_of(model: str) -> int | None:
    """Of a shipped config or a built-in model; None for any other."""
    kind, _, name = model.partition(":")
    try:
        if kind == "config":
            return shipped_configs.get(name).parameters
        return catalog.built_in(name).parameters if kind == "builtin" else None
    except LabError:
        return None


def model_of(case: AdviceCase) -> str:
    """The id that stands for the case's model in a forecast: the shipped config that is nearest
    in size where only that is known."""
    return case.model or nearest_config(case.parameters or DEFAULT_PARAMETERS).id


def nearest_config(parameters: float) -> shipped_configs.ShippedConfig:
    """By the ratio of their parameters."""

    def ratio(config: shipped_configs.ShippedConfig) -> float:
        return max(config.parameters / parameters, parameters / config.parameters)

    return min(shipped_configs.shipped(), key=ratio)


def card_of(case: AdviceCase) -> Gpu | None:
    """The card whose speed counts: the one that is named, else the fastest of those with
    the nearest memory; None for this machine."""
    if case.gpu:
        return gpu_table.get(case.gpu)
    if case.gpu_gb is None:
        return None
    size = case.gpu_gb
    nearest = min(gpu_table.GPUS, key=lambda gpu: abs(gpu.label_gb - size)).label_gb
    return max((gpu for gpu in gpu_table.GPUS if gpu.label_gb == nearest), key=lambda g: g.flops)


def device_of(case: AdviceCase) -> dict[str, Any]:
    """The device as the planner takes it."""
    card = card_of(case)
    if card is None:
        return {"kind": "cuda" if host.gpus() else "cpu"}
    if case.gpu_gb is None or case.gpu_gb == card.label_gb:
        return {"gpu": card.name}
    return {"gpu": card.name, "memory_bytes": int(case.gpu_gb * 1e9)}


def device_in_words(case: AdviceCase) -> str:
    if case.gpu:
        return case.gpu
    if case.gpu_gb is not None:
        return f"{case.gpu_gb:g} GB"
    cards = host.gpus()
    return host.largest(cards).name if cards else "this machine's processor"
