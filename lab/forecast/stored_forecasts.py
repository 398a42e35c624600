"""Memory forecasts on disk: a question that was answered once is not traced again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import lab
from lab import paths
from lab.atomic_files import read_object, write_json
from lab.forecast.memory_forecast import TraceOptions, batch_of, predict_memory
from lab.forecast.model_profile import contents, step_settings
from lab.forecasts import Forecast, MemoryForecast
from lab.spec import RunSpec

# What a forecast rests on: a stored one of other code is made again.
HASHED_SOURCES = ("forecast", "forecasts.py", "methods", "models", "train", "optimizers.py")


def memory_forecast(
    config: Any, spec: RunSpec, options: TraceOptions, memory_bytes: int | None = None
) -> MemoryForecast:
    """`predict_memory`, or its answer to the same question before."""
    file = paths.home() / "cache" / "memory" / f"{key(config, spec, options)}.json"
    stored = read_object(file)
    forecast = Forecast.from_json(stored)
    if forecast is not None and forecast.to_json() == stored:  # it is whole
        memory = forecast.memory
        return replace(memory, fits=memory.fits_into(memory_bytes))
    memory = predict_memory(config, spec, options, memory_bytes)
    try:
        paths.make_folder(file.parent)
        write_json(file, Forecast(memory).to_json(), durable=False)
    except OSError:
        return memory  # a full or read-only disk costs the cache, not the answer
    return memory


def key(config: Any, spec: RunSpec, options: TraceOptions) -> str:
    """Hash of all that a memory forecast depends on: contents, not names."""
    relevant = {
        "code": _code(),
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "bitsandbytes")
        },
        "config": contents(config),
        "method": spec.method,
        "train": step_settings(spec) | {"forgetting_probe": spec.train.forgetting_probe},
        "length": spec.data.max_length,
        "batch": asdict(batch_of(spec, options)),
        "options": [options.on_gpu, options.traced, options.whole],
    }
    text = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """Hash of the sources that make forecasts."""
    code = hashlib.sha256()
    for name in HASHED_SOURCES:
        source = Path(lab.__file__).parent / name
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            code.update(file.read_bytes())
    return code.hexdigest()
