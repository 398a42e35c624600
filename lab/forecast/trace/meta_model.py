"""Builds the model on the meta device as the worker does: base, quantisation, method."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lab.methods import Context, Method
from lab.models.empty_model import meta_model
from lab.models.stub_tokenizer import StubTokenizer
from lab.spec import RunSpec
from lab.train.activation_checkpointing import checkpoint_activations

# Bytes a weight, with what scales its blocks: NF4 has an absmax for 64 weights, in float32
# (4 / 64), or in 8 bits with a float32 for 256 of them (1 / 64 + 4 / 16384).
NF4 = 0.5 + 4 / 64
NF4_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)
LISTS_OF_LAYERS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")
PLACES_OF_LAYERS = ("attn_layer_indices",)  # lists of which layers are of a kind


@dataclass(frozen=True)
class Quantised:
    """How the linear layers of the base are stored; the rest of it stays in 16 bits."""

    bits: int
    bytes_per_weight: float
    threshold: float = 0.0  # of 8 bits: inputs above it are outliers, which are looked for

    @staticmethod
    def of(settings: Any) -> Quantised | None:
        """From the `quantization_config` that a method loads with; None without one."""
        if settings is None:
            return None
        if getattr(settings, "load_in_4bit", False):
            double = getattr(settings, "bnb_4bit_use_double_quant", False)
            return Quantised(4, NF4_DOUBLE if double else NF4)
        if getattr(settings, "load_in_8bit", False):
            return Quantised(8, 1.0, float(getattr(settings, "llm_int8_threshold", 0.0)))
        return None


@dataclass(frozen=True)
class Base:
    """What the base holds before the method is applied; its weights in `bytes`."""

    parameters: int
    bytes: int


def build(
    config: Any, spec: RunSpec, method: Method, tokenizer: Any = None
) -> tuple[Any, Quantised | None, Base]:
    """(the model to train on the meta device, how its base is quantised, what the base holds)."""
    dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32
    options = spec.method_config
    settings = method.load_kwargs(options).get("quantization_config")
    quantised = Quantised.of(settings)
    model = meta_model(config).to(dtype)
    parameters = sum(weight.numel() for weight in model.parameters())
    if tokenizer is None:
        tokenizer = StubTokenizer(config)
        method.extend_tokenizer(tokenizer, options)
    context = Context(spec, tokenizer)
    with torch.device("meta"):
        if quantised is not None:
            _quantise(model, settings, quantised)
        base = Base(parameters, sum(stored_bytes(each, quantised) for each in model.parameters()))
        method.prepare(model, options, context)
        model = method.apply(model, options, context)
        method.unfreeze_all(model, options)
    if spec.train.activation_checkpointing == "on":
        checkpoint_activations(model, spec.train.checkpointed_layers)
    return model, quantised, base


def _quantise(model: Any, settings: Any, quantised: Quantised) -> None:
    """Linear layers but the head as bitsandbytes' own, so that adapters know them."""
    import bitsandbytes

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if not isinstance(module, (torch.nn.Linear, Conv1D)) or module is head:
            continue
        if isinstance(module, Conv1D):
            wide, out = module.weight.shape
        else:
            out, wide = module.weight.shape
        has_bias = module.bias is not None
        layer: Any
        if quantised.bits == 4:
            layer = bitsandbytes.nn.Linear4bit(
                wide,
                out,
                bias=has_bias,
                compute_dtype=getattr(settings, "bnb_4bit_compute_dtype", torch.bfloat16),
                compress_statistics=getattr(settings, "bnb_4bit_use_double_quant", False),
                quant_type=getattr(settings, "bnb_4bit_quant_type", "nf4"),
                device="meta",
            )
        else:
            layer = bitsandbytes.nn.Linear8bitLt(
                wide,
                out,
                bias=has_bias,
                has_fp16_weights=False,
                threshold=quantised.threshold,
                device="meta",
            )
        layer.requires_grad_(False)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner) if owner else model, last, layer)
    model.is_quantized = True
    setattr(model, f"is_loaded_in_{quantised.bits}bit", True)


def is_quantised(weight: Any) -> bool:
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def stored_bytes(weight: Any, quantised: Quantised | None) -> int:
    """Bytes of a weight on the device."""
    if quantised is not None and is_quantised(weight):
        rows = 4 * weight.shape[0] if quantised.bits == 8 else 0  # a float32 scale for each row
        return int(weight.numel() * quantised.bytes_per_weight) + rows
    return int(weight.numel() * weight.element_size())


def with_layers(config: Any, chosen: Sequence[int]) -> Any:
    """The config with the `chosen` of its decoder layers, per-layer lists cut to match."""
    short = copy.deepcopy(config)
    total = config.num_hidden_layers
    for name in LISTS_OF_LAYERS:
        values = getattr(config, name, None)
        is_given = name in config.__dict__  # not worked out from the number of layers
        if is_given and isinstance(values, (list, tuple)) and len(values) == total:
            setattr(short, name, [values[index] for index in chosen])
    position = {index: short for short, index in enumerate(chosen)}
    for name in PLACES_OF_LAYERS:
        indices = config.__dict__.get(name)
        if isinstance(indices, (list, tuple)):
            setattr(short, name, [position[index] for index in indices if index in position])
    short.num_hidden_layers = len(chosen)
    return short


def signatures(layers: list[Any]) -> list[tuple[Any, ...]]:
    """What each layer is made of: equal layers have equal signatures."""
    return [
        tuple(
            (name, tuple(weight.shape), weight.dtype, weight.requires_grad)
            for name, weight in layer.named_parameters()
        )
        for layer in layers
    ]
