"""Tensors that hold memory in place of those on the meta device, to check predictions with."""

from __future__ import annotations

from typing import Any

import torch

from lab.forecast.trace.meta_model import is_quantised

SPREAD = 0.02  # deviation of random weights, as most architectures begin with


def materialise(model: Any, device: torch.device | str, *, random: bool) -> None:
    """Give `model` (on the meta device, method applied) memory on `device`.

    Weights are random or whatever stands there, buffers and plain attributes zeros: some are
    indices, and what is in fresh memory would be out of bounds. Tied tensors stay tied. Weights
    of a quantised base are made and quantised matrix by matrix, so that no more than one of them
    ever lies there in 16 bits.
    """
    done: dict[int, torch.Tensor] = {}

    def real(tensor: torch.Tensor, *, is_weight: bool) -> torch.Tensor:
        if id(tensor) not in done:
            values = torch.empty_like(tensor, device=device, requires_grad=False)
            if not is_weight:
                values.zero_()
            elif random:
                values.normal_(0, SPREAD)
            if isinstance(tensor, torch.nn.Parameter):
                values = torch.nn.Parameter(values, requires_grad=tensor.requires_grad)
            done[id(tensor)] = values
        return done[id(tensor)]

    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and is_quantised(weight):
                module._parameters[name] = _quantised(module, weight, device)
            elif weight is not None:
                module._parameters[name] = real(weight, is_weight=True)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = real(buffer, is_weight=False)
        dicts = [value for value in vars(module).values() if type(value) is dict]
        for holder in (vars(module), *dicts):
            for name, value in holder.items():
                if isinstance(value, torch.Tensor) and value.is_meta:
                    holder[name] = real(value, is_weight=False)


def _quantised(module: Any, weight: Any, device: torch.device | str) -> Any:
    """A random weight (out, in) in the bits of `weight`, made on `device`."""
    import bitsandbytes

    data = torch.empty(tuple(weight.shape), dtype=torch.bfloat16, device=device)
    data.normal_(0, SPREAD)
    if type(weight).__name__ == "Params4bit":
        packed = bitsandbytes.nn.Params4bit(
            data,
            requires_grad=False,
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
            module=module,
        )
    else:
        packed = bitsandbytes.nn.Int8Params(data, requires_grad=False, has_fp16_weights=False)
    return packed.to(device)
