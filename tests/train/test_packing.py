"""Packed sequences must not see each other; where an architecture lets them, nothing is packed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.small_model import make_model
from lab.atomic_files import read_object
from lab.models import catalog, weights
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status
from lab.train.step import isolates_packed_sequences
from tests.conftest import attempt_again, run_here
from tests.methods import tiny


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random state-space model: what comes before in the row is in its state."""
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "mamba"
    make_model(folder)  # for the tokenizer
    rows = weights.load_config(catalog.resolve(str(folder))).vocab_size
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    shape = {"vocab_size": rows, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    MambaForCausalLM(MambaConfig(**shape, **ends)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_attention_keeps_packed_sequences_apart(kind: str) -> None:
    assert isolates_packed_sequences(tiny.make_model(kind), precision="float32")
    assert isolates_packed_sequences(tiny.make_model(kind), precision="bfloat16")


def run_of(mamba: Path, chats: Path, packing: str) -> RunDir:
    train = {"max_steps": 4, "batch_size": 2, "save_steps": 2, "sample_steps": 0, "eval_steps": 0}
    data = {"dataset": str(chats), "max_length": 64, "packing": packing}
    return run_here(
        {"model": str(mamba), "method": "full", "data": data, "train": train | {"seed": 1}}
    )


def losses(run: RunDir) -> list[float]:
    assert status(run).state == "done", status(run)
    return [record["train/loss"] for record in record_reader.metrics(run, "train")]


def test_a_model_that_sees_over_the_border_is_trained_on_single_rows(
    mamba: Path, chats: Path
) -> None:
    plain, packed = run_of(mamba, chats, "off"), run_of(mamba, chats, "auto")
    assert (read_object(packed.spec) or {})["data"]["packing"] == "on", "as the planner took it"
    warned = [event["message"] for event in record_reader.events(packed, "warning")]
    assert any("Packed sequences would attend to each other" in message for message in warned)
    assert losses(packed) == losses(plain)
    assert attempt_again(packed) == 0, "a later attempt goes on with single rows"
    assert [event["packing"] for event in record_reader.events(packed, "packing")] == ["off"]


def test_a_worker_killed_while_it_unpacks_goes_on(mamba: Path, chats: Path) -> None:
    """Its last word on the data was of packed rows."""
    run = run_of(mamba, chats, "auto")
    before = losses(run)
    lines = run.events.read_text().splitlines(keepends=True)
    settled = next(place for place, line in enumerate(lines) if '"kind": "packing"' in line)
    run.events.write_text("".join(lines[: settled + 1]))
    shutil.rmtree(run.checkpoints)
    run.metrics.unlink()
    assert attempt_again(run) == 0, status(run)
    assert losses(run) == before


def test_packing_that_was_asked_for_is_refused(mamba: Path, chats: Path) -> None:
    run: Any = run_of(mamba, chats, "on")
    now = status(run)
    assert now.state == "failed" and "lets packed sequences attend to each other" in now.message
    assert "Set data.packing to off or auto" in now.hint
