"""Settings that change how a step is computed, not what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status
from tests.conftest import SHARED_MODELS, run_here


def losses(run: RunDir) -> list[float]:
    assert status(run).state == "done", status(run)
    return [record["train/loss"] for record in record_reader.metrics(run, "train")]


PLAIN = {"batch_size": 4, "max_steps": 6, "save_steps": 0}


@pytest.fixture(scope="module")
def plain_run(
    make_spec: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(tmp_path_factory.mktemp("plain") / "home"))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        return losses(run_here(make_spec("full", train=PLAIN)))


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"loss_implementation": "plain"}, 1e-5),
        ({"activation_checkpointing": "on"}, 1e-5),
        ({"activation_checkpointing": "on", "checkpointed_layers": 1}, 1e-5),
        ({"precision": "mixed"}, 2e-2),
        ({"precision": "bfloat16"}, 5e-2),
    ],
)
def test_the_losses_stay(
    work_here: Callable[..., RunDir],
    plain_run: list[float],
    settings: dict[str, Any],
    tolerance: float,
) -> None:
    run = work_here("full", train=PLAIN | settings)
    assert losses(run) == pytest.approx(plain_run, rel=tolerance)


def test_lora_trains_under_activation_checkpointing(work_here: Callable[..., RunDir]) -> None:
    settings = {"max_steps": 4, "save_steps": 0}
    plain = losses(work_here("lora", train=settings))
    recomputed = losses(work_here("lora", train={**settings, "activation_checkpointing": "on"}))
    # dropout draws again in the recomputation, from the same state
    assert recomputed == pytest.approx(plain, rel=1e-5)


def test_a_budget_of_seconds_ends_by_the_clock(work_here: Callable[..., RunDir]) -> None:
    run = work_here("lora", train={"max_steps": None, "max_seconds": 1.0, "eval_steps": 0})
    records = record_reader.metrics(run, "train")
    assert status(run).state == "done"
    assert records[-2]["seconds"] < 1.0 <= records[-1]["seconds"]
    assert records[-1]["train/learning_rate"] < records[len(records) // 3]["train/learning_rate"]


def test_text_trains_on_every_token(work_here: Callable[..., RunDir], tmp_path: Any) -> None:
    from tests.conftest import write_rows

    file = tmp_path / "text.jsonl"
    write_rows(file, [{"text": f"The {n}th line of a story about a fox. " * 6} for n in range(12)])
    run = work_here("full", data={"dataset": str(file), "packing": "on"}, train={"max_steps": 4})
    data = record_reader.last_event(run, "data")
    assert losses(run) and data["train_tokens"] - data["train_loss_tokens"] <= 40
    assert (read_object(run.result) or {})["summary"]["packing"] == "on"


def test_layers_that_cannot_be_compiled_train_as_they_are(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails at its first call: a warning, and the very losses of a plain run."""
    import torch

    from lab.train import loop

    settings = {"batch_size": 4, "max_steps": 3, "save_steps": 0}
    plain = losses(work_here("full", train=settings))

    def broken(layer: Any) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("no C++ compiler")

        layer._compiled_call_impl = fail

    summed, widths = loop.summed_loss, set()

    def note_width(model: Any, batch: Any, **how: Any) -> Any:
        if type(batch["input_ids"]) is torch.Tensor:  # the forecast traces the same step on fakes
            widths.add(batch["input_ids"].shape[1])
        return summed(model, batch, **how)

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    monkeypatch.setattr(loop, "summed_loss", note_width)
    run = work_here("full", train={**settings, "compile": "on"})
    assert widths == {64}, "every row is as long as data.max_length, for which they are compiled"
    assert losses(run) == pytest.approx(plain, rel=1e-6)
    events = record_reader.events(run)
    assert "compiling" in [event.get("phase") for event in events]
    warned = [event["message"] for event in events if event["kind"] == "warning"]
    assert any("no C++ compiler" in message for message in warned)


def test_evaluations_and_samples_leave_compiled_layers_as_they_are() -> None:
    """Each length of a row would be compiled anew; within, nothing is, and the plain code runs."""
    import torch

    from lab.train.step import uncompiled

    torch._dynamo.reset()
    calls: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        calls.append(1)
        return graph

    class Layer(torch.nn.Module):
        def forward(self, hidden: Any) -> Any:
            return hidden * 2 + 1

    layer = Layer()
    layer.compile(backend=backend)
    layer(torch.ones(2, 4))
    assert len(calls) == 1
    with uncompiled():
        for rows in (3, 5, 7):
            assert layer(torch.ones(rows, 4)).shape == (rows, 4)
    assert len(calls) == 1
    layer(torch.ones(2, 4))
    assert len(calls) == 1, "what was compiled is there again"
