"""Results of operations on fakes that this process has seen before.

A step repeats a few operations on the same shapes in every layer, and the next trace of the same
model repeats most of them. What FakeTensorMode works out for one of them follows from the
operation, from the layouts of its tensors and from its other arguments. Its own cache asks for so
much more that its key takes a third of the time of a trace.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

VALUES = (int, float, bool, str, type(None))
MAX_RESULTS = 50_000  # a search of settings for a model of one kind of layer has about 3,000
SETTINGS = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class Kind(Enum):
    """What an operation returns."""

    NEW = "a tensor of its own"
    VIEW = "a view of its first argument"
    FIRST = "its first argument, changed in place"


class ResultLayout(NamedTuple):
    """`shape`, `stride` and `offset` in elements."""

    kind: Kind
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


class RepeatedOperations:
    """`call(func, args, kwargs)` returns what `func(*args, **kwargs)` does, a fake for fakes."""

    def __init__(self) -> None:
        # None: what depends on more than the key, and has to be worked out each time
        self.results: dict[Hashable, ResultLayout | None] = {}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0] if args else None
        key = _key(func, args, kwargs) if type(first) is FakeTensor else None
        if key is None:
            return func(*args, **kwargs)
        if key not in self.results:
            before = _layout(first)
            result = func(*args, **kwargs)
            if len(self.results) >= MAX_RESULTS:
                self.results.clear()
            self.results[key] = _remembered(func, args, result, before)
            return result
        known = self.results[key]
        return func(*args, **kwargs) if known is None else _repeat(known, first)


operations = RepeatedOperations()  # of all traces of this process


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
    """All that the result depends on; None where that may be more."""
    parts: list[Hashable] = [func, torch.get_default_dtype()]
    for value in (*args, *kwargs.items()):
        if type(value) is FakeTensor:
            if value.constant is not None:  # it has a number, from which results follow
                return None
            parts.append(_layout(value))
            continue
        several = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(each, VALUES + SETTINGS) for each in several):
            return None
        # 1, 1.0 and True are equal, and give results of different types
        parts.append(tuple((type(each), each) for each in several))
    return tuple(parts)


def _layout(tensor: Any) -> tuple[Hashable, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.fake_device


def _remembered(
    func: Any, args: tuple[Any, ...], result: Any, before: Hashable
) -> ResultLayout | None:
    """What to remember of `result`; `before`: the layout of the first argument before the call."""
    first = args[0]
    if type(result) is not FakeTensor or result.constant is not None:
        return None
    if result.is_conj() or result.is_neg() or result.fake_device != first.fake_device:
        return None
    storage = result.untyped_storage()
    sources = [value.untyped_storage()._cdata for value in args if isinstance(value, torch.Tensor)]
    is_mutable = func._schema.is_mutable
    if result is first and is_mutable and _layout(first) == before:
        kind = Kind.FIRST
    elif is_mutable or result is first:
        return None
    elif storage._cdata == sources[0]:
        kind = Kind.VIEW
    elif storage._cdata in sources or storage.nbytes() != _nbytes(result):
        return None
    else:
        kind = Kind.NEW
    return ResultLayout(kind, result.shape, result.stride(), result.storage_offset(), result.dtype)


def _nbytes(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last element of a tensor that begins its storage."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return int((1 + last) * tensor.element_size())


def _repeat(result: ResultLayout, first: FakeTensor) -> FakeTensor:
    """The result for another first argument of the same layout."""
    kind, shape, stride, offset, dtype = result
    if kind is Kind.FIRST:
        return first
    with in_kernel_invocation_manager(first.fake_mode):
        if kind is Kind.VIEW:
            tensor = torch.empty(0, dtype=dtype, device="meta")
            tensor.set_(first.untyped_storage(), offset, shape, stride)
        else:
            tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(first.fake_mode, tensor, first.fake_device)
