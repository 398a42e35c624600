"""What CUDA does differently from a CPU, applied while fakes on the CPU are traced.

Three differences change what stays alive: attention kernels, the operations that autocast runs
in float32, and dropout. Each is put in place for the time of a trace and taken out again.
Legend: B rows, H query heads, G key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

# torch/include/ATen/autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE (2.13)
FLOAT32_OPERATIONS = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p"),
    *("reciprocal", "rsqrt", "sinh", "tan", "softplus", "layer_norm", "native_layer_norm"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "rms_norm", "group_norm"),
    *("cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("binary_cross_entropy_with_logits", "dist", "renorm", "logsumexp"),
)
FLOAT32_RESULTS = (
    *("softmax.int", "log_softmax.int", "cumprod", "cumsum"),
    *("linalg_vector_norm", "sum", "sum.dim_IntList"),
)
AUTOCAST_BF16_OPS = ("addmv", "addr", "mv", "prelu")
HALF_TYPES = (torch.bfloat16, torch.float16)
MAX_FLASH_HEAD_DIM = 256


@contextmanager
def emulate_cuda(*, packed: bool) -> Iterator[None]:
    """Within, operations on CPU fakes leave behind what they would on CUDA."""
    with ExitStack() as stack:
        stack.enter_context(_cuda_autocast())
        stack.enter_context(_masks(packed))
        stack.enter_context(_kernels())
        yield


@contextmanager
def _cuda_autocast() -> Iterator[None]:
    """CUDA's list of float32 operations in place of the CPU's shorter one."""
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    excluded = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def register(names: tuple[str, ...], dtype: Any, wraps_result: bool = False) -> None:
        for name in names:
            operation: Any = torch.ops.aten
            for part in name.split("."):
                operation = getattr(operation, part, None)
            if operation is None:
                continue  # not in this version of torch
            overload = operation if "." in name else operation.default
            if torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "AutocastCPU"):
                continue
            library.impl(name, _casting(overload, excluded, dtype, wraps_result))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        register(FLOAT32_OPERATIONS, torch.float32)
        register(FLOAT32_RESULTS, torch.float32, wraps_result=True)
        register(AUTOCAST_BF16_OPS, torch.bfloat16)
    try:
        yield
    finally:
        library._destroy()


def _casting(overload: Any, excluded: Any, dtype: Any, wraps_result: bool) -> Any:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            if wraps_result and kwargs.get("dtype") is not None:
                return overload(*args, **kwargs)
            return overload(*(_cast(value, dtype) for value in args), **kwargs)

    return kernel


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype:
        return value if value.dtype == torch.float64 else value.to(dtype)
    return value


@contextmanager
def _masks(packed: bool) -> Iterator[None]:
    """transformers looks into position ids for packed rows; a fake has nothing to look into."""
    from transformers import masking_utils

    with ExitStack() as stack:
        if hasattr(masking_utils, "is_tracing"):
            stack.enter_context(mock.patch.object(masking_utils, "is_tracing", lambda *_: packed))
        if not packed and hasattr(masking_utils, "find_packed_sequence_indices"):
            stack.enter_context(
                mock.patch.object(
                    masking_utils, "find_packed_sequence_indices", lambda *_, **__: None
                )
            )
        yield


@contextmanager
def _kernels() -> Iterator[None]:
    """Calls whose CUDA kernels keep other tensors than the CPU's. Models reach all of them as
    attributes of torch, so that no slow mode has to look at every call."""
    largest = torch.max

    def highest(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and args[0].dim() and not args[0].is_floating_point():
            # the highest position, which some rotary embeddings ask for
            return torch.tensor(args[0].shape[-1] - 1)
        return largest(*args, **kwargs)

    with ExitStack() as stack:
        for owner, name, replacement in (
            (functional, "dropout", _dropout),
            (torch, "dropout", _dropout),
            (functional, "scaled_dot_product_attention", _attention),
            (torch, "max", highest),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    if not training or p == 0:
        return input
    output: torch.Tensor = torch.native_dropout(input, p, True)[0]  # its mask: a byte an element
    return output


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The kernel that torch chooses on CUDA: flash for 16 bits without a mask, the
    memory-efficient one with a mask or in float32, the plain formula for what neither takes."""
    if torch.is_autocast_enabled("cpu"):
        narrow = torch.get_autocast_dtype("cpu")
        query, key, value = (_cast(tensor, narrow) for tensor in (query, key, value))
        attn_mask = _cast(attn_mask, narrow)
    same = query.shape[-1] == key.shape[-1] == value.shape[-1]
    fits = query.shape[-1] <= MAX_FLASH_HEAD_DIM
    with torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    ):
        if attn_mask is None and query.dtype in HALF_TYPES and same and fits:
            return Flash.apply(query, key, value)  # type: ignore[no-any-return]
        if not enable_gqa:
            bias = None
            if attn_mask is not None:
                bias = attn_mask
                if attn_mask.dtype == torch.bool:
                    bias = torch.empty_like(attn_mask, dtype=query.dtype)
            return Efficient.apply(query, key, value, bias)  # type: ignore[no-any-return]
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )[0]
        return output


class Flash(torch.autograd.Function):
    """FlashAttention 2: keeps q, k, v as given, the output (B, H, T, D) and one float32
    log-sum-exp a head and row. Its backward pass works in a float32 buffer of the size of q, and
    with grouped heads makes the gradients of k and v for every query head first."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        rows, heads, length, size = query.shape
        padded = -(-size // 8) * 8
        output = query.new_empty((rows, length, heads, padded))
        sums = query.new_empty((rows, heads, length), dtype=torch.float32)
        output = output[..., :size].transpose(1, 2)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, _output, sums = ctx.saved_tensors
        rows, heads, length, size = query.shape
        long = -(-length // 128) * 128
        wide = -(-size // 32) * 32 if size <= 192 else 256
        d_query = query.new_empty((rows, length, heads, size)).transpose(1, 2)
        d_key = key.new_empty((rows, length, key.shape[1], size)).transpose(1, 2)
        d_value = value.new_empty((rows, length, key.shape[1], size)).transpose(1, 2)
        work = [
            sums.new_empty((rows, heads, long)),
            sums.new_empty((rows, heads, long, wide)),
        ]
        if key.shape[1] != heads:
            work += [key.new_empty((rows, length, heads, size)) for _ in range(2)]
        del work
        return d_query, d_key, d_value


class Efficient(torch.autograd.Function):
    """The memory-efficient kernel: as flash, with the additive mask (expanded, not copied) kept
    too; k and v come with one head for each query head."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any) -> Any:
        rows, heads, length, _ = query.shape
        output = query.new_empty((rows, length, heads, value.shape[-1])).transpose(1, 2)
        long = -(-length // 32) * 32
        sums = query.new_empty((rows, heads, long), dtype=torch.float32)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(query, key, value, output, sums, *([bias] if ctx.has_bias else []))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, _output, sums = ctx.saved_tensors[:5]
        gradients = tuple(
            tensor.new_empty(
                (tensor.shape[0], tensor.shape[2], tensor.shape[1], tensor.shape[3])
            ).transpose(1, 2)
            for tensor in (query, key, value)
        )
        work = [torch.empty_like(sums)]
        if query.shape[-1] > 64 or query.dtype == torch.float32:
            # sums over blocks of keys are kept in float32 until the end
            work += [torch.empty_like(query, dtype=torch.float32)]
        del work
        return (*gradients, None)
