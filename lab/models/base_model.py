"""A base model as checks and forecasts see it: its config, its structure, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import LabError
from lab.formatting import quantity
from lab.models import catalog, fit, hub, weights
from lab.models.empty_model import meta_model
from lab.recent import Recent
from lab.schema import quote
from lab.stages import stage


@dataclass(frozen=True)
class BaseModel:
    """`model` is on the meta device, and is only looked at. `tokenizer`: None where only the config
    was read."""

    config: Any
    model: Any
    tokenizer: Any = None


_models: Recent[str, Any] = Recent(32)


def read_config(model_id: str) -> BaseModel:
    """What the config alone says; the weights need not be here. Raises LabError."""
    with stage("model"):
        config = weights.load_config(catalog.resolve_config(model_id))
    name = config.to_json_string(use_diff=False)
    model = _models.get(name)
    if model is None:
        with stage("model"):
            model = _models.put(name, meta_model(config))
    return BaseModel(config, model)


def load_base(model_id: str) -> BaseModel:
    """A model that can be trained, whose config, weights and tokenizer belong together. Raises
    LabError."""
    source = catalog.resolve(model_id)
    with stage("model"):
        config = weights.load_config(source)
    if any(getattr(c, "quantization_config", None) for c in (config, config.get_text_config())):
        raise LabError(
            f"The weights of '{model_id}' are quantised already{_quantised_by(config)}, and "
            "cannot be trained as they are.",
            "Choose the original model: the page of a quantised one names it as its base. QLoRA "
            "and the 8-bit base quantise it as it is loaded.",
        )
    with stage("model"):
        model = meta_model(config)
    with stage("tokenizer"):
        tokenizer = weights.load_tokenizer(source)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise LabError(
            f"The tokenizer of '{model_id}' has {quantity(len(tokenizer), 'token')}, but the "
            "model only "
            f"{quantity(rows, 'embedding')}.",
            "They do not belong together; check the folder.",
        )
    fit.check(config, hub.stored_tensors(source), source.id)
    return BaseModel(config, model, tokenizer)


def _quantised_by(config: Any) -> str:
    stored = getattr(config.get_text_config(), "quantization_config", None)
    stored = stored or getattr(config, "quantization_config", None)
    kind = stored.get("quant_method") if isinstance(stored, dict) else None
    return f" ({quote(kind)})" if isinstance(kind, str) else ""
