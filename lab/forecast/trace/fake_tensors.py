"""Tensors with shapes and types and no data, in place of a model's own."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)

from lab.forecast.trace.meta_model import Quantised, is_quantised, stored_bytes


def become_fake(model: Any, mode: FakeTensorMode, quantised: Quantised | None = None) -> None:
    """Swap every parameter and buffer for a fake on the CPU; tied ones stay tied. A quantised
    weight becomes as many bytes as it takes, and its layer one that unpacks it when it runs."""
    done: dict[int, Any] = {}
    device = torch.device("cpu")
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if quantised is not None and is_quantised(weight):
                size = stored_bytes(weight, quantised)
                if quantised.bits == 8:  # the scales of the rows are a tensor of their own
                    size = weight.numel()
                    scales = torch.empty(weight.shape[0], dtype=torch.float32)
                    module._buffers["scales"] = done[id(scales)] = scales
                fake = torch.empty(size, dtype=torch.uint8)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
                module.forward = _unpacking(module, tuple(weight.shape), quantised)
                continue
            if id(weight) not in done:
                fake = FakeTensor(mode, _on_meta(weight), device)
                done[id(weight)] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
            module._parameters[name] = done[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if id(buffer) not in done:
                done[id(buffer)] = FakeTensor(mode, _on_meta(buffer), device)
            module._buffers[name] = done[id(buffer)]
        for name, value in vars(module).items():  # plain attributes, as in rotary embeddings
            if isinstance(value, torch.Tensor) and value.is_meta:
                module.__dict__[name] = FakeTensor(mode, value.detach(), device)


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    with unset_fake_temporarily():  # a tensor of the meta device, not a fake of one
        return tensor.detach().to("meta")


def _unpacking(module: Any, shape: tuple[int, ...], quantised: Quantised) -> Any:
    """The forward of a quantised layer of `shape` (out, in)."""

    def forward(input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor
        if quantised.bits == 8:
            output = Int8Product.apply(input, module.weight, shape, quantised.threshold)
            return output  # a bias is added in place
        output = Unpacked.apply(input, module.weight, shape)
        return output if module.bias is None else output + module.bias.to(output.dtype)

    return forward


class Unpacked(torch.autograd.Function):
    """y = x W^T with W unpacked to 16 bits for the time of the product, forward and backward.
    x is not kept: W does not train."""

    @staticmethod
    def forward(ctx: Any, input: Any, packed: Any, shape: Any) -> Any:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, input.dtype
        narrow = input.to(torch.bfloat16)
        return (narrow @ narrow.new_empty(shape).t()).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        narrow = grads[0].to(torch.bfloat16)
        return (narrow @ narrow.new_empty(ctx.shape)).to(ctx.dtype), None, None


class Int8Product(torch.autograd.Function):
    """y = x W^T in 8 bits, as bitsandbytes computes it on a GPU: x in float16 and in 8 bits, sums
    of 32 bits, the output in float16. Backward, W is unpacked to the type of x, which is not kept
    (see `lab.methods.parts.int8_products`)."""

    @staticmethod
    def forward(ctx: Any, input: Any, packed: Any, shape: Any, threshold: float) -> Any:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, input.dtype
        half = input.reshape(-1, shape[1]).to(torch.float16)
        row_stats = half.new_empty(half.shape[0], dtype=torch.float32)
        narrow = torch.empty_like(half, dtype=torch.int8)
        if threshold:
            (half.abs() >= threshold).any(dim=0)
        del half
        sums = narrow.new_empty((narrow.shape[0], shape[0]), dtype=torch.int32)
        output = torch.empty_like(sums, dtype=torch.float16).to(input.dtype)
        del row_stats, sums
        return output.reshape(*input.shape[:-1], shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0].to(ctx.dtype)
        return grad @ grad.new_empty(ctx.shape), None, None, None


def grouped_product(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A fake of torch's product of experts, whose own knows 16 bits only where the kernels take
    float32 too. Groups are rows of `a` (R, K) with `b` (G, K, N), columns of `b`, or, with two
    matrices, the dimension that they share."""
    if a.dim() == b.dim() == 2:
        assert offs is not None
        shape = [offs.shape[0], a.shape[0], b.shape[1]]
    elif a.dim() == 2 or b.dim() == 2:
        shape = [a.shape[-2], b.shape[-1]]
    else:
        shape = [a.shape[0], a.shape[1], b.shape[2]]
    return a.new_empty(shape, dtype=out_dtype or a.dtype)
