"""A tracker of live storages: what CUDA's caching allocator would count, without a GPU.

A dispatch mode below autograd writes down every storage that an operation makes and, through a
finalizer, when it is gone; each is rounded up to 512 bytes as the allocator does. Only the log is
kept while the step runs. What was alive when, and of which kind, is read from it afterwards,
since a storage shows only later that it has become a gradient.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lab.forecast.trace.allocation_log import Event, Log
from lab.forecast.trace.fake_tensors import grouped_product
from lab.forecast.trace.reduction_buffers import REDUCTIONS, reduction_buffer
from lab.forecast.trace.repeated_operations import operations

ROUND = 512  # bytes, the smallest block of the CUDA caching allocator
# segments outside the layers; what a method adds to the loss for each layer's weights is in them
OUTSIDE = ("warm", "forward.before", "forward.after", "backward.after", "optimizer")
# Kernels that work on a copy of their input: logsumexp_out_impl of ATen/native/ReduceOps.cpp takes
# the largest away and the exponent in one.
INPUT_COPIED = ("logsumexp",)
NO_KERNEL = (
    *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "alias"),
    *("_local_scalar_dense", "_unsafe_view", "lift_fresh"),
)
KINDS = ("weights", "gradients", "optimizer", "activations", "loss", "workspace")


def rounded(size: int) -> int:
    return -(-size // ROUND) * ROUND


class AllocationTracker(TorchDispatchMode):
    """Logs storages while it is active. `segment` and `module` are set by the tracer's hooks."""

    def __init__(self, *, on_gpu: bool = False) -> None:
        super().__init__()
        self.on_gpu = on_gpu
        self.segment, self.module = "load", ""
        self.events: list[Event] = []
        self.kind_of: dict[int, str] = {}
        self.layer_of: dict[int, int] = {}  # of weights and what the optimizer makes for them
        # kernels by segment; outside the layers SEGMENT@LAYER for those on one layer's tensors
        self.launches: Counter[str] = Counter()
        self._known: dict[int, int] = {}  # address of a live storage → its number
        self._sizes: dict[int, int] = {}
        self._count = 0
        self._pending_sum: tuple[int, int] | None = (
            None  # a sum, and the summand that it may be put into
        )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs more than the tracker

    def register(
        self, tensors: Iterable[torch.Tensor], kind: str, layer: int | None = None
    ) -> None:
        """Count tensors that were there before, such as weights, as `kind`."""
        for tensor in tensors:
            storage = self._add(tensor, "given")
            self.kind_of[storage] = kind
            if layer is not None:
                self.layer_of[storage] = layer

    def tag(self, tensors: Iterable[torch.Tensor], kind: str, layer: int | None = None) -> None:
        """Say what storages that are already in the log have turned out to be."""
        for tensor in tensors:
            storage = self._known.get(tensor.untyped_storage()._cdata)
            if storage is not None:
                self.kind_of.setdefault(storage, kind)
                if layer is not None:
                    self.layer_of.setdefault(storage, layer)

    def log(self) -> Log:
        """What is written by now."""
        self._resolve_pending_sum()
        # copied, so that frees after the step are not included
        return Log(list(self.events), self.kind_of, self.layer_of, dict(self.launches))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # asked for more often than anything is computed
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            if args[0].dtype is torch.bool:
                return True  # "is this module not dropped now": the answer that takes more memory
        self._resolve_pending_sum()
        operation = func._schema.name.removeprefix("aten::")
        if operation in INPUT_COPIED:
            self.release(self.allocate(args[0].untyped_storage().nbytes(), operation))
        if self.on_gpu and operation in REDUCTIONS and len(args) > 1 and args[1]:
            self.release(self.allocate(reduction_buffer(args[0], args[1]), operation))
        if func is torch.ops.aten._grouped_mm.default and isinstance(args[0], FakeTensor):
            result = grouped_product(*args, **(kwargs or {}))
        else:
            result = operations.call(func, args, kwargs or {})
        if not func.is_view and operation not in NO_KERNEL:
            layer = self._layer_among(args) if self.segment in OUTSIDE else None
            self.launches[self.segment if layer is None else f"{self.segment}@{layer}"] += 1
        if isinstance(result, torch.Tensor):
            # The engine sums gradients in place where the first is no view (which holds the tensor
            # that it is of; what comes through `weight.t()` is one) and nobody else holds it: see
            # torch/csrc/autograd/input_buffer.cpp. It never does so for the tensor subclass that
            # fakes are. If the first dies with this sum, the real run has put the sum into it.
            is_in_backward = self.segment.startswith("backward") and not torch.is_grad_enabled()
            if operation == "add" and is_in_backward and not args[0]._is_view():
                first = self._known.get(args[0].untyped_storage()._cdata)
                if first is not None and result.untyped_storage()._cdata not in self._known:
                    self._inherit(self._add(result, operation, held_for=first), args)
                    return result
            self._inherit(self._add(result, operation), args)
        elif isinstance(result, (tuple, list)):
            several = args[0] if args and isinstance(args[0], (tuple, list)) else ()
            for index, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    storage = self._add(part, operation)
                    self._inherit(storage, several[index : index + 1])
        return result

    def _inherit(self, storage: int, made_from: Iterable[Any]) -> None:
        """Outside the passes through the layers, what is made from a layer's tensor is its too."""
        if self.segment in OUTSIDE and storage not in self.layer_of:
            layer = self._layer_among(made_from)
            if layer is not None:
                self.layer_of[storage] = layer

    def _layer_among(self, arguments: Iterable[Any]) -> int | None:
        """The layer of the first tensor that is known to be one's."""
        for tensor in arguments:
            if isinstance(tensor, torch.Tensor):
                source = self._known.get(tensor.untyped_storage()._cdata)
                if source is not None and source in self.layer_of:
                    return self.layer_of[source]
        return None

    def allocate(self, size: int, operation: str) -> int:
        """A buffer that a kernel takes from the allocator for itself; give it to `release`."""
        self._resolve_pending_sum()
        return self._appear(rounded(size), operation)

    def release(self, storage: int) -> None:
        self._gone(storage, None)

    def forget(self, tensor: torch.Tensor) -> None:
        """Count a tensor no longer that the allocator does not hold."""
        storage_id = self._known.get(tensor.untyped_storage()._cdata)
        size = self._sizes.pop(storage_id, 0) if storage_id is not None else 0
        if storage_id is not None and size:
            self.events.append(Event(self.segment, storage_id, -size, "", self.module))

    def _add(self, tensor: torch.Tensor, operation: str, held_for: int | None = None) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        storage_id = self._known.get(address)
        if storage_id is not None:
            return storage_id
        size = rounded(storage.nbytes())
        if held_for is None:
            storage_id = self._appear(size, operation)
        else:
            self._count += 1
            storage_id = self._count
            self._sizes[storage_id] = size
            self._pending_sum = (storage_id, held_for)
        self._known[address] = storage_id
        weakref.finalize(storage, self._gone, storage_id, address).atexit = False
        return storage_id

    def _appear(self, size: int, operation: str) -> int:
        self._count += 1
        self._sizes[self._count] = size
        if size:
            self.events.append(Event(self.segment, self._count, size, operation, self.module))
        return self._count

    def _gone(self, storage: int, address: int | None) -> None:
        if address is not None and self._known.get(address) == storage:
            del self._known[address]
        if self._pending_sum is not None and storage == self._pending_sum[1]:
            summed = self._pending_sum[0]
            self._pending_sum = None
            if self._sizes[summed] == self._sizes[storage] and summed in self._sizes:
                # in place: the sum takes over the block, under its own number
                self.events.append(
                    Event(self.segment, storage, -self._sizes.pop(storage), "add", self.module)
                )
                self.events.append(
                    Event(self.segment, summed, self._sizes[summed], "add", self.module)
                )
                return
            self._write(summed)
        if self._pending_sum is not None and self._pending_sum[0] == storage:
            self._pending_sum = None
            self._sizes.pop(storage, None)
            return
        size = self._sizes.pop(storage, 0)
        if size:
            self.events.append(Event(self.segment, storage, -size, "", self.module))

    def _resolve_pending_sum(self) -> None:
        """No summand has died: the sum has a block of its own."""
        if self._pending_sum is not None:
            summed, self._pending_sum = self._pending_sum[0], None
            self._write(summed)

    def _write(self, storage: int) -> None:
        size = self._sizes.get(storage, 0)
        if size:
            self.events.append(Event(self.segment, storage, size, "add", self.module))
