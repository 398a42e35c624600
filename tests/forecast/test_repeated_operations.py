"""What is repeated in a trace is what would be worked out again, with the same storages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lab.forecast.model_profile import profile_model
from lab.forecast.trace import repeated_operations
from lab.forecast.trace.allocation_log import Event
from lab.forecast.trace.repeated_operations import RepeatedOperations
from lab.forecast.trace.trace_step import Batch
from lab.forecast.trace.traced_step import TracedStep
from lab.spec import RunSpec
from tests.forecast.test_outline import llama, spec_of

aten = torch.ops.aten


@pytest.fixture
def tensor() -> Iterator[Callable[..., FakeTensor]]:
    """A maker of fakes on the CPU; its mode is the current one, as in a trace."""
    with FakeTensorMode():
        yield lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype)  # type: ignore[misc]


class Counted:
    """An operation that counts how often it is asked."""

    def __init__(self, operation: Any) -> None:
        self.operation, self._schema, self.calls = operation, operation._schema, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.operation(*args, **kwargs)


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage().nbytes()
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, storage


def test_a_second_result_is_like_the_first_and_has_a_storage_of_its_own(
    tensor: Callable[..., FakeTensor],
) -> None:
    operations, product = RepeatedOperations(), Counted(aten.mm.default)
    first, second = (operations.call(product, (tensor(3, 4), tensor(4, 5)), {}) for _ in range(2))
    assert product.calls == 1
    assert layout(first) == layout(second) and second.shape == (3, 5)
    assert type(second) is FakeTensor and second.device == torch.device("cpu")
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    other = operations.call(product, (tensor(3, 4), tensor(5, 4).t()), {})
    assert product.calls == 2, "other strides are another question"
    assert other.shape == (3, 5)


def test_a_view_is_one_of_the_argument_that_it_is_asked_for(
    tensor: Callable[..., FakeTensor],
) -> None:
    operations, part = RepeatedOperations(), Counted(aten.slice.Tensor)
    views = {}
    for source in (tensor(6, 2), tensor(6, 2)):
        view = operations.call(part, (source, 0, 2, 5), {})
        assert view.untyped_storage()._cdata == source.untyped_storage()._cdata
        views[id(source)] = layout(view)
        assert view.storage_offset() == 4 and view.shape == (3, 2)
    assert part.calls == 1 and len(set(views.values())) == 1
    of_a_view = operations.call(part, (tensor(8, 2)[2:], 0, 2, 5), {})
    assert part.calls == 2 and of_a_view.storage_offset() == 8


def test_what_is_changed_in_place_is_returned(tensor: Callable[..., FakeTensor]) -> None:
    operations, add = RepeatedOperations(), Counted(aten.add_.Tensor)
    for source in (tensor(3), tensor(3)):
        assert operations.call(add, (source, tensor(3)), {}) is source
    assert add.calls == 1


def test_equal_numbers_of_other_types_are_other_questions(
    tensor: Callable[..., FakeTensor],
) -> None:
    operations = RepeatedOperations()
    whole = torch.int64
    types = [
        operations.call(aten.mul.Tensor, (tensor(3, dtype=whole), factor), {}).dtype
        for factor in (1, 1.0, True)
    ]
    assert types == [torch.int64, torch.float32, torch.int64]
    options: list[dict[str, Any]] = [{}, {"dtype": torch.float16}, {"dtype": torch.float64}]
    sums = [
        operations.call(aten.sum.dim_IntList, (tensor(3, 2), [0]), option).dtype
        for option in options
    ]
    assert sums == [torch.float32, torch.float16, torch.float64]


def test_a_default_type_of_torch_is_another_question(tensor: Callable[..., FakeTensor]) -> None:
    operations = RepeatedOperations()

    def product() -> Any:
        return operations.call(aten.mul.Tensor, (tensor(3, dtype=torch.int64), 1.5), {}).dtype

    before, default = product(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert (before, product()) == (torch.float32, torch.float64)
    finally:
        torch.set_default_dtype(default)


def test_results_end_where_they_would_fill_the_memory(
    tensor: Callable[..., FakeTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_operations, "MAX_RESULTS", 3)
    operations = RepeatedOperations()
    for size in (*range(1, 9), 1):
        assert operations.call(aten.neg.default, (tensor(size),), {}).shape == (size,)
        assert 1 <= len(operations.results) <= 3


def test_numbers_and_tensors_in_lists_are_worked_out_each_time(
    tensor: Callable[..., FakeTensor],
) -> None:
    operations, join = RepeatedOperations(), Counted(aten.cat.default)
    for rows in (1, 2):
        joined = operations.call(join, ([tensor(rows, 2), tensor(3, 2)],), {})
        assert joined.shape == (rows + 3, 2)
    assert join.calls == 2
    operations.call(aten.neg.default, (tensor(),), {})
    numbers = [operations.call(aten.neg.default, (torch.tensor(n),), {}).item() for n in (2.0, 3.0)]
    assert numbers == [-2.0, -3.0], "what has a number gives a number"


def of_a_larger_storage(first: Any, second: Any) -> Any:
    return first.new_empty(10)[:3]


def of_the_second(first: Any, second: Any) -> Any:
    return second[:]  # as large as its storage


def moved(first: Any, second: Any) -> Any:
    return first.new_empty(3, device="meta")


@pytest.mark.parametrize("operation", [of_a_larger_storage, of_the_second, moved])
def test_what_a_key_does_not_say_is_worked_out_each_time(
    operation: Any, tensor: Callable[..., FakeTensor]
) -> None:
    operation._schema = aten.neg.default._schema
    operations, counted = RepeatedOperations(), Counted(operation)
    for _ in range(2):
        args = tensor(4), tensor(5)
        result, expected = operations.call(counted, args, {}), operation(*args)
        assert layout(result) == layout(expected) and result.device == expected.device
        of_second = args[1].untyped_storage()._cdata
        shares = [part.untyped_storage()._cdata == of_second for part in (result, expected)]
        assert shares[0] == shares[1]
    assert counted.calls == 2


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("adalora", {"activation_checkpointing": "on", "precision": "mixed"}),
        ("full", {"gradient_accumulation_steps": 2, "optimizer": "adamw8bit"}),
        ("lora8bit", {"loss_implementation": "plain"}),
    ],
)
def test_a_trace_is_the_same_as_without(
    method: str, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every storage, its size, what made it and when it went; in a process that has traced nothing
    yet, and in one that has traced the same."""
    spec = spec_of(method, 2, 128, **train)
    repeated_operations.operations.results.clear()
    first = trace(spec)
    known = len(repeated_operations.operations.results)
    assert trace(spec) == first
    assert len(repeated_operations.operations.results) == known > 100, "nothing is new in it"
    monkeypatch.setattr(RepeatedOperations, "call", lambda _, func, args, kw: func(*args, **kw))
    assert len(first["events"]) > 500
    assert first == trace(spec)


def trace(spec: RunSpec) -> dict[str, Any]:
    """The log; what goes at the same moment goes in no order of its own."""
    config = llama(2)
    layers, loss = profile_model(config, spec).layers, spec.train.loss_implementation
    log = TracedStep(config, layers, spec, Batch(2, 128), loss, on_gpu=True).log()
    events: list[Event] = []
    for is_end, group in itertools.groupby(log.events, key=lambda event: event.size < 0):
        stretch = list(group)
        events += sorted(stretch) if is_end else stretch
    return vars(log) | {"events": events}
