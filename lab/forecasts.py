"""What is predicted of a run, before it starts: figures with their units, and their JSON.

Sizes are bytes as integers, times seconds as floats. Everything can be read from a file that is
older, newer or damaged (`lab/dataclass_json.py`): what is missing is 0, "" or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from lab.dataclass_json import read
from lab.formatting import quantity
from lab.hub.progress import DownloadForecast


class How(StrEnum):
    """How a memory figure was obtained; all but FORMULA know what the layers keep."""

    FORMULA = "formula"  # weights, gradients and state are counted; the step was not traced
    OUTLINE = "outline"  # first, last and one layer of each kind traced, the rest added up
    REPEATED_LAYERS = "repeated layers"  # layers that are alike were traced once
    EVERY_LAYER = "every layer"

    @property
    def is_traced(self) -> bool:
        """Whether the layers were traced, all of them or one of each kind."""
        return self is not How.FORMULA

    @property
    def is_exact(self) -> bool:
        """Whether the whole step was traced."""
        return self in (How.REPEATED_LAYERS, How.EVERY_LAYER)

    @property
    def in_words(self) -> str:
        if self.is_exact:
            return "traced step"
        if self is How.OUTLINE:
            return "outline of the step"
        return "counted in part: the step cannot be traced"

    def to_json(self) -> dict[str, str | None]:
        return {
            "source": "shadow" if self.is_exact else self.value,
            "traced_layers": self.value.split()[0] if self.is_exact else None,
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> How:
        """Of a stored figure; before `traced_layers` was written, a note told it."""
        if stored.get("source") != "shadow":
            return How.OUTLINE if stored.get("source") == "outline" else How.FORMULA
        notes = stored.get("notes")
        notes = notes if isinstance(notes, list) else []
        is_repeated = any("layer extension" in note for note in notes if isinstance(note, str))
        if stored.get("traced_layers", "repeated" if is_repeated else "") == "repeated":
            return How.REPEATED_LAYERS
        return How.EVERY_LAYER


@dataclass(frozen=True)
class Parts:
    """What memory holds, in bytes."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    loss: int = 0
    workspace: int = 0

    def get(self, name: str) -> int:
        size: int = getattr(self, name)
        return size


RENAMED = {"largest": "bytes", "runtime": "pace", "has_margin": "is_bound"}  # by stored keys
PARTS = tuple(entry.name for entry in fields(Parts))


@dataclass(frozen=True)
class Phases:
    """The peak of each phase of a run, in bytes."""

    load: int = 0
    forward: int = 0
    backward: int = 0
    optimizer: int = 0
    evaluate: int = 0
    save: int = 0
    resume: int = 0


@dataclass(frozen=True)
class MemoryForecast:
    """`largest`: each part when it is largest, which need not be at the same moment; `at_peak`: the
    parts at the peak, which add up to `peak_bytes`. `fits`: None where no size is known, or where
    the step could not be traced. `operation`, `module`: what runs at the peak."""

    parameters: int = 0
    trainable: int = 0
    largest: Parts | None = None
    at_peak: Parts | None = None
    phases: Phases | None = None
    peak_bytes: int = 0
    peak_phase: str = ""
    fits: bool | None = None
    how: How = How.FORMULA
    trace_error: str = ""
    has_margin: bool = False  # on a CPU: a share for what the process holds beside tensors
    operation: str = ""
    module: str = ""
    reserved_bytes: int | None = None
    launches: int = 0  # kernels of a micro-batch and the update; 0 where nothing was traced

    @property
    def needed_bytes(self) -> int:
        """The peak, or what CUDA's allocator reserves for it where that is known."""
        return max(self.peak_bytes, self.reserved_bytes or 0)

    def fits_into(self, memory_bytes: int | None) -> bool | None:
        """Whether the peak fits, and what the allocator reserves for it. None where no size is
        known, or where the step could not be traced: what was counted may be too much, but that
        it is enough cannot be said."""
        if memory_bytes is None:
            return None
        if self.needed_bytes > memory_bytes:
            return False
        return True if self.how.is_traced else None


@dataclass(frozen=True)
class DiskForecast:
    """Bytes on disk: the result, one checkpoint, and all that the run may hold at once."""

    artifact: int = 0
    checkpoint: int = 0
    total: int = 0


@dataclass(frozen=True)
class RuntimeForecast:
    """`seconds` are of training alone; `energy_wh` needs a device of known power. Everybody shows
    `whole_s`: all phases, from the start of the worker to its end."""

    steps: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    seconds: float = 0.0
    evaluating_s: float = 0.0
    energy_wh: float | None = None
    is_measured: bool = False  # whether finished runs of this machine say so
    rate: float = 0.0  # floating-point operations a second that it takes the device to reach
    launch_s: float = 0.0  # fixed overhead per token (kernel launches)
    packing: str = ""
    loading_s: float = 0.0  # imports, data, weights
    sampling_s: float = 0.0
    saving_s: float = 0.0  # checkpoints and the result
    probing_s: float = 0.0  # the forgetting probe
    launching: float = 1.0  # what this machine's runs said of launches
    beside: float = 1.0  # and of what is no training

    @property
    def whole_s(self) -> float:
        beside = self.loading_s + self.sampling_s + self.saving_s + self.probing_s
        return self.seconds + self.evaluating_s + beside

    @property
    def is_complete(self) -> bool:
        """Whether a finished run can be held against it; what is stored may lack anything."""
        return min(self.rate, self.launch_s, self.tokens_per_s) > 0 and self.packing != ""


@dataclass(frozen=True)
class Speed:
    """With rows full of tokens."""

    tokens_per_s: float | None = None
    wh_per_million_tokens: float | None = None


@dataclass(frozen=True)
class StepSettings:
    """The settings that a memory figure rests on. `longest_row`: tokens of the longest row of a
    pass, if the data was read whole (`knows_rows`), else those that a row may have."""

    batch_size: int = 0
    max_length: int = 0
    longest_row: int = 0
    knows_rows: bool = False
    gradient_accumulation_steps: int = 1
    precision: str = ""
    adapter_precision: str = ""
    activation_checkpointing: str = ""
    checkpointed_layers: int | None = None
    loss: str = ""
    optimizer: str = ""
    packed: bool = False


def rows_in_words(settings: StepSettings | None) -> str:
    """Which rows a memory figure rests on; "" where it was stored without."""
    if settings is None or not settings.longest_row:
        return ""
    tokens = quantity(settings.longest_row, "token")
    if settings.knows_rows:
        return f"longest {'packed ' if settings.packed else ''}row of the dataset: {tokens}"
    return f"rows of max_length, {tokens}: the dataset is not read"


def checkpointed_layers(settings: StepSettings | Candidate | None) -> str:
    """How many layers recompute their activations: "none", "7" or "all"."""
    if settings is None or settings.activation_checkpointing != "on":
        return "none"
    return str(settings.checkpointed_layers or "all")


@dataclass(frozen=True)
class Forecast:
    """All that is predicted of one run on one device; `notes` are for people only.

    `speed` and `device_bytes` where the question was about a device rather than a run; `runtime`
    where the data is known. `seconds`: how long the forecast took.
    """

    memory: MemoryForecast = MemoryForecast()
    disk: DiskForecast | None = None
    runtime: RuntimeForecast | None = None
    speed: Speed | None = None
    settings: StepSettings | None = None
    device: str = "cpu"
    device_bytes: int | None = None
    context_bytes: int | None = None
    rules: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    download: DownloadForecast | None = None  # of a model of the hub

    def to_json(self) -> dict[str, Any]:
        stored = asdict(self.memory)
        for name, key in (("largest", "bytes"), ("at_peak", "at_peak"), ("phases", "phases")):
            stored[key] = stored.pop(name) or {}
        del stored["how"]
        stored |= {
            **self.memory.how.to_json(),
            "v": 1,
            "disk": asdict(self.disk) if self.disk else {},
            "pace": asdict(self.runtime) if self.runtime else None,
            "settings": asdict(self.settings) if self.settings else {},
            "device": self.device,
            "context_bytes": self.context_bytes,
            "rules": dict(self.rules),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "download": asdict(self.download) if self.download else None,
        }
        if self.speed is not None:
            stored |= asdict(self.speed) | {"device_bytes": self.device_bytes}
        return stored

    @staticmethod
    def from_json(stored: Any, damaged: list[str] | None = None) -> Forecast | None:
        """From its JSON; None if that is no object. See `dataclass_json.read`."""
        if not isinstance(stored, Mapping):
            return None
        flat = {key: value for key, value in stored.items() if value != {}}
        settings = flat.get("settings")
        if isinstance(settings, Mapping) and "accumulation" in settings:  # of an older lab
            flat["settings"] = {"gradient_accumulation_steps": settings["accumulation"], **settings}
        flat |= {name: flat[key] for name, key in RENAMED.items() if key in flat}
        how = How.from_json(stored)
        names: list[str] = []
        forecast = read(
            Forecast,
            flat
            | {
                "memory": flat | {"how": how},
                "speed": flat if "tokens_per_s" in flat else None,
            },
            names,
        )
        if damaged is not None:
            damaged += [RENAMED[name] if RENAMED.get(name) in stored else name for name in names]
        return forecast


@dataclass(frozen=True)
class DatasetStats:
    """What the data of a run is. The last four are None where no tokenizer is at hand. `padding`:
    times its tokens that a row takes in a pass, where rows are not packed."""

    dataset: str = ""
    system_prompt: str = ""
    examples: int = 0
    examples_read: int = 0
    bytes: int = 0
    has_chats: bool | None = None  # else its rows are plain text
    warnings: tuple[str, ...] = ()
    tokens_per_row: float | None = None
    sequences_per_example: float | None = None
    loss_tokens_per_row: float | None = None
    padding: float | None = None

    def to_json(self) -> dict[str, Any]:
        stored = asdict(self) | {"warnings": list(self.warnings)}
        return {name: value for name, value in stored.items() if value is not None}

    @staticmethod
    def from_json(stored: Any, damaged: list[str] | None = None) -> DatasetStats | None:
        return read(DatasetStats, stored, damaged)


@dataclass(frozen=True)
class Candidate:
    """Settings for the same training, with what they need and how fast they should be."""

    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    activation_checkpointing: str = "off"
    loss_implementation: str = ""
    optimizer: str = ""
    compile: str = ""
    peak_bytes: int = 0
    tokens_per_s: float = 0.0
    how: How = How.FORMULA
    fits: bool = False
    is_requested_optimizer: bool = True
    why: str = ""
    checkpointed_layers: int | None = None
    reserved_bytes: int | None = None  # by CUDA's allocator, where the step was traced

    @property
    def needed_bytes(self) -> int:
        return max(self.peak_bytes, self.reserved_bytes or 0)

    def changes(self) -> dict[str, Any]:
        """The settings by their dotted keys."""
        return {
            "train.batch_size": self.batch_size,
            "train.gradient_accumulation_steps": self.gradient_accumulation_steps,
            "train.activation_checkpointing": self.activation_checkpointing,
            "train.checkpointed_layers": self.checkpointed_layers,
            "train.loss_implementation": self.loss_implementation,
            "train.optimizer": self.optimizer,
            "train.compile": self.compile,
        }

    def to_json(self) -> dict[str, Any]:
        # ranked by the whole figure, or slow devices would make everything a tie
        stored = asdict(self) | {"tokens_per_s": round(self.tokens_per_s, 1)}
        del stored["how"]
        return {**stored, **self.how.to_json(), "changes": self.changes()}


@dataclass(frozen=True)
class SettingsSearch:
    """The candidates for a device, the best first; of its memory the share `reserve` stays free.

    `reached`: the share of the device's peak rate that the speeds take; `is_measured`: whether
    finished runs of this machine say so. `compile`: whether compiling pays, in words. `rows`: those
    that the figures rest on.
    """

    candidates: tuple[Candidate, ...] = ()
    reserve: float = 0.0
    reached: float = 0.0
    is_measured: bool = False
    compile: str = ""
    energy_wh_per_million_tokens: float | None = None
    device_bytes: int = 0
    rows: str = ""

    def to_json(self) -> dict[str, Any]:
        stored = asdict(self)
        del stored["candidates"]
        return {"choices": [candidate.to_json() for candidate in self.candidates], **stored}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> SettingsSearch:
        choices = [{**choice, "how": How.from_json(choice)} for choice in stored["choices"]]
        return read(SettingsSearch, {**stored, "candidates": choices}) or SettingsSearch()
