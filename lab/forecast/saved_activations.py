"""Activation bytes that one decoder layer saves for backward, derived from its modules.

Bytes a token under bf16 autocast; h hidden, f feed-forward, a query width, k key/value width, and
"in" and "out" of an adapted matrix:

- each norm 4h for the float32 copy of its input (2h more if it trains): the residual stream itself
  is not kept;
- flash attention 4a + 4k + 4 a head; with a prefix before the keys 4a + 2k more;
- a gated feed-forward 6f, a plain one 2f, one by GPT-2's gelu 14f; dropout masks a byte an element;
- 2 in for the input of a trained matrix, once for all matrices that read the same;
- LoRA 2 r, OFT and LoKr 2 in each; LoRA too in float32, or with dropout and its mask of one in; in
  16 bits it reads what is kept already; VeRA 2 out; (IA)^3 2 out, or 4 in where
  it stands before a matrix; a bottleneck adapter 2h + 8 times its size.

Whatever the number of tokens: the 16-bit copies of float32 adapters, and 2 in x out for each matrix
that LoHa or LoKr make anew. Each was read from the ledger of a traced step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lab.spec import RunSpec

AFTER_ATTENTION = ("o_proj", "attn.c_proj", "out_proj")  # what they read, attention has kept


@dataclass
class Parts:
    """The modules of a layer by what they keep."""

    linear: list[tuple[str, int, int, bool]] = field(default_factory=list)  # name, in, out, trains
    # name, whether the mean is taken off (it saves its input alone, then), trains
    norms: list[tuple[str, bool, bool]] = field(default_factory=list)
    lora: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes of a weight, rank
    own_input: dict[str, int] = field(default_factory=dict)  # as `lora`, of OFT and LoKr: bytes
    remade: set[str] = field(default_factory=set)  # matrices whose update is made as a whole
    # by (IA)^3: whether before the matrix, bytes of the scale's type
    scaled: dict[str, tuple[bool, int]] = field(default_factory=dict)
    vera: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes, rank
    turned: dict[str, tuple[int, int]] = field(default_factory=dict)  # by OFT: bytes, size of R
    bottlenecks: list[int] = field(default_factory=list)  # their sizes


def kept(layer: Any, config: Any, spec: RunSpec, *, has_prefix: bool) -> float:
    """Bytes a token that one decoder layer keeps for its backward pass."""
    width = 4 if spec.train.precision == "float32" else 2
    residual = 2 if spec.train.precision == "bfloat16" else 4
    dropout = float(spec.method.get("dropout") or 0.0)
    hidden: int = config.hidden_size
    if layer is None or not getattr(config, "num_attention_heads", None):
        return float(width * (12 * hidden + 4 * 4 * hidden))
    query, key, heads = _attention(config)
    parts = _parts(layer)
    widths = {"q_norm": query, "k_norm": key}
    total = 0.0
    for name, is_centred, trains in parts.norms:
        last = name.rsplit(".", 1)[-1]
        wide = widths.get(last, hidden)
        total += (4 + (residual if trains and not is_centred else 0)) * wide
        # what each mean and deviation is of: a token, or a head of it
        total += 8 if is_centred else 4 * wide * heads // query if last in widths else 4
    total += width * (2 * query + 2 * key) + 4 * heads
    if has_prefix:
        total += width * (2 * query + key)
    total += _feed_forward(parts, config, width, query)
    seen: set[str] = set()  # of trained matrices, and 16-bit adapters, those that read the same
    for name, wide, out, trains in parts.linear:
        # its input as it is, which others may keep too
        reads = trains or (name in parts.remade and name not in parts.own_input)
        if name in parts.lora:
            bytes_each, rank = parts.lora[name]
            total += (wide if dropout > 0 else 0) + width * rank
            if bytes_each == 4 or dropout > 0:
                total += width * wide
            else:
                reads = True
        elif name in parts.own_input:
            if parts.own_input[name] == 4:
                total += width * wide
            else:
                reads = True
        elif name in parts.scaled:
            is_before, bytes_each = parts.scaled[name]
            total += bytes_each * wide if is_before else 2 * out
        elif name in parts.vera:
            total += width * (out + parts.vera[name][1])
        if reads and _reader(name) not in seen:
            seen.add(_reader(name))
            if not name.endswith(AFTER_ATTENTION):
                total += width * wide
    total += sum(width * hidden + 2 * width * size for size in parts.bottlenecks)
    if float(getattr(config, "resid_pdrop", 0.0) or 0.0) > 0:
        total += 2 * hidden
    return total


def copies(layers: list[Any], spec: RunSpec) -> int:
    """Bytes of 16-bit copies that are kept whatever the tokens, all layers: of float32 matrices by
    the products that they are in, and of updates that are made as whole matrices."""
    if spec.train.precision == "float32":
        return 0
    found = 0
    for layer in layers:
        parts = _parts(layer)
        found += sum(2 * wide * out for name, wide, out, _ in parts.linear if name in parts.remade)
        # the rotation and the steps that lead to it
        found += sum((14 if size == 4 else 8) * count for size, count in parts.turned.values())
        found += sum(
            2 * parts.vera[name][1] * (wide + out)
            for name, wide, out, _ in parts.linear
            if parts.vera.get(name, (2, 0))[0] == 4
        )
        for name, weight in layer.named_parameters():
            is_mixed = spec.train.precision == "mixed" and "lora_" not in name
            is_adapter = weight.requires_grad and weight.element_size() == 4
            is_plain = not (parts.remade or parts.turned or parts.vera)
            if weight.dim() == 2 and (is_mixed or (is_adapter and is_plain)):
                found += 2 * weight.numel()
    return found


def _attention(config: Any) -> tuple[int, int, int]:
    """(query width, key width, heads)."""
    heads: int = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * size, groups * size, heads


def _feed_forward(parts: Parts, config: Any, width: int, query: int) -> float:
    hidden: int = config.hidden_size
    activation = str(
        getattr(config, "hidden_act", None)
        or getattr(config, "hidden_activation", None)
        or getattr(config, "activation_function", "")
    )
    wide_out = [wide for _, wide, out, _ in parts.linear if out == hidden and wide != query]
    feed = wide_out[-1] if wide_out else max((out for *_, out, _ in parts.linear), default=0)
    feed = feed or 4 * hidden
    into = [out for _, wide, out, _ in parts.linear if wide == hidden]
    gated = sum(out for out in into if out >= feed) >= 2 * feed
    if activation in ("gelu_new", "gelu_fast") or (activation == "gelu_pytorch_tanh" and not gated):
        return (14 if width == 2 else 24) * feed  # float32 operations on CUDA
    return width * (3 if gated else 1) * feed


def _parts(layer: Any) -> Parts:
    import torch
    from transformers.pytorch_utils import Conv1D

    found = Parts()
    for name, module in layer.named_modules():
        matrix = name.removesuffix(".base_layer")
        if hasattr(module, "base_layer"):  # one of PEFT's layers, around the matrix
            _note_adapter(found, name, module)
            continue
        if hasattr(module, "down") and hasattr(module, "up") and hasattr(module, "is_parallel"):
            found.bottlenecks.append(int(module.down.out_features))
        if any(part in name for part in (".lora_", ".bottleneck.", ".oft_R", "original_module")):
            continue
        kind = type(module).__name__
        if isinstance(module, (torch.nn.Linear, Conv1D)) or kind.startswith(("Linear4", "Linear8")):
            out, wide = module.weight.shape[-2:]
            if isinstance(module, Conv1D):
                wide, out = out, wide
            found.linear.append((matrix, int(wide), int(out), bool(module.weight.requires_grad)))
        elif "Norm" in kind and getattr(module, "weight", None) is not None:
            if not name.endswith(".base_layer"):  # else the trained copy stands in for it
                place = name.split(".ln_tuning_layers")[0]
                trains = bool(module.weight.requires_grad)
                found.norms.append((place, "LayerNorm" in kind, trains))
    return found


def _note_adapter(found: Parts, name: str, module: Any) -> None:
    names = set(getattr(module, "adapter_layer_names", ()))
    own = [
        one
        for part, one in module.named_parameters()
        if one.requires_grad and not part.startswith("base_layer")
    ]
    if not own:
        return
    size = own[0].element_size()
    if "lora_A" in names:
        found.lora[name] = size, min(own[0].shape)
    elif "vera_lambda_b" in names:
        found.vera[name] = size, min(one.numel() for one in own)
    elif "ia3_l" in names:
        found.scaled[name] = bool(getattr(module, "is_feedforward", False)), size
    elif "oft_R" in names:
        found.own_input[name] = size
        # a triangle of each block trains: b (b - 1) / 2 numbers of b^2
        blocks, half = own[0].shape
        side = (1 + math.isqrt(1 + 8 * half)) // 2
        found.turned[name] = size, blocks * side * side
    elif "lokr_w1" in names:
        found.own_input[name] = size
        found.remade.add(name)
    elif "hada_w1_a" in names:
        found.remade.add(name)


def _reader(name: str) -> str:
    """Matrices that read the same input have the same reader."""
    last = name.rsplit(".", 1)[-1]
    if last in ("q_proj", "k_proj", "v_proj"):
        return "attention"
    if last in ("gate_proj", "up_proj"):
        return "feed"
    return name
