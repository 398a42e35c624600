"""What the structure of a model with its method says, whatever rows it is given."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from lab import methods
from lab.forecast import formula
from lab.models.decoder_structure import layers_if_any
from lab.models.stub_tokenizer import StubTokenizer
from lab.recent import Recent
from lab.spec import RunSpec

# Settings of `train` that change the structure or what can be counted of it.
PROFILE_KEYS = ("precision", "adapter_precision", "optimizer", "momentum")
# Those that change the step, beside the structure. Any other may change, and what was traced holds.
STEP_KEYS = (
    *("batch_size", "gradient_accumulation_steps", "loss_implementation", "max_grad_norm"),
    *("activation_checkpointing", "checkpointed_layers", "weight_decay"),
)
FOLDER_KEYS = ("_name_or_path", "_model_name_or_path")  # where a config was read from
CHANGED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "logits_soft_cap")


@dataclass(frozen=True)
class ModelProfile:
    """A model with its method in place. `costs`: floating-point operations by the kind of loss."""

    sizes: formula.ModelSizes
    layers: tuple[Any, ...]  # a signature for each decoder layer
    bits: int  # of the base's linear layers
    base_parameters: int
    costs: dict[str, Any]
    loss: str  # that the worker will use
    head_is_plain: bool  # the fused loss works on such a head only
    assumes_tokens: bool = False  # what only the tokenizer knows was taken from the config


_profiles: Recent[str, ModelProfile] = Recent(256)


def profile_model(config: Any, spec: RunSpec, tokenizer: Any = None) -> ModelProfile:
    """The profile for `spec`, built on the meta device the first time that it is asked for. Raises
    ValueError where a library refuses the method."""
    settings = [getattr(spec.train, name) for name in PROFILE_KEYS]
    tokens = tokenizer and [len(tokenizer), sorted(tokenizer.all_special_ids)]
    parts = (contents(config), spec.method, settings, tokens)
    name = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    profile = _profiles.get(name)
    if profile is None:
        profile = _profiles.put(name, _profile(config, spec, tokenizer))
    return replace(profile, loss=loss_kind(config, spec))


def contents(config: Any) -> dict[str, Any]:
    """What `config` says of the model, wherever it lies: a copy in another folder is the same."""
    return {name: value for name, value in config.to_dict().items() if name not in FOLDER_KEYS}


def _profile(config: Any, spec: RunSpec, tokenizer: Any) -> ModelProfile:
    from lab.forecast.trace.meta_model import build, signatures
    from lab.train import flops
    from lab.train.loss import is_plain

    method = methods.get(spec.method["name"])
    if tokenizer is None:
        tokenizer = StubTokenizer(config)
        method.extend_tokenizer(tokenizer, spec.method_config)
    plain = replace(spec, train=replace(spec.train, activation_checkpointing="off"))
    model, quantised, base = build(config, plain, method, tokenizer)
    virtual = method.virtual_tokens(spec.method_config)
    return ModelProfile(
        sizes=replace(formula.sizes(model, spec, quantised), loaded=base.bytes),
        layers=tuple(signatures(layers_if_any(model))),
        bits=quantised.bits if quantised else 16,
        base_parameters=base.parameters,
        costs={kind: flops.count(model, kind, virtual) for kind in ("fused", "plain")},
        loss="",
        head_is_plain=is_plain(model.get_output_embeddings()),
        assumes_tokens=getattr(tokenizer, "was_asked", False),
    )


def step_settings(spec: RunSpec) -> dict[str, Any]:
    """The settings of `train` that a traced step depends on."""
    return {name: getattr(spec.train, name) for name in (*PROFILE_KEYS, *STEP_KEYS)}


def loss_kind(config: Any, spec: RunSpec) -> str:
    """The loss that the worker will use: plain where the logits are changed after the head."""
    changes = any(getattr(config, name, None) not in (None, 1, 1.0) for name in CHANGED_LOGITS)
    return "plain" if changes else spec.train.loss_implementation
