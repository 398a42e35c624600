"""What verbs of the command line fetch from the Hub, and say of it; the exported script's reading
of a set of the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.data import hub as dataset_hub
from lab.data import hub_fetch
from lab.export.script import script
from lab.runs import actions
from tests.answers import checked
from tests.conftest import attempt_here
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn
from tests.hub.test_unasked import ROWS, SET, bodies, both

__all__ = ["both"]  # a fixture
WEIGHTS = "model.safetensors"


def told_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a verb."""
    capsys.readouterr()
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_command_says_what_it_downloads(
    both: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["evaluate", f"base:{NAME}", "--dataset", "builtin:nothing"]
    assert cli.main(wrong) == 2 and bodies(both) == set(), (
        "nothing comes for a set that is not there"
    )
    ask = ["chat", f"base:{NAME}", "--prompt", "What is one?", "--max-new-tokens", "2"]
    code, _, told = told_of(capsys, *ask)
    assert code == 0, told
    assert re.search(rf"Downloading {NAME}: [\d.]+ kB to .*hub \.\.\.", told)
    assert f"Downloaded {NAME}." in told
    assert "Download" not in told_of(capsys, *ask)[2], "it is here now"


def test_gguf_and_a_receipt_say_what_they_download(
    both: StandIn,
    hub_spec: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = actions.create_run_dir(checked(hub_spec(train={"max_steps": 2, "save_steps": 0})))
    attempt_here(run)

    def forget() -> None:
        shutil.rmtree(tmp_path / "hf")
        both.clear()

    forget()
    taken = tmp_path / "taken.gguf"
    taken.write_bytes(b"mine")
    code, _, told = told_of(capsys, "gguf", run.id, str(taken))
    assert code == 2 and "exists" in told and not both.requests("GET", WEIGHTS)
    base = f"{NAME}#{both.refs['models', NAME]['main']}"
    code, _, told = told_of(capsys, "gguf", run.id, str(tmp_path / "new.gguf"))
    assert code == 0 and f"Downloading {base}: " in told and f"Downloaded {base}." in told
    ask = ["chat", f"run:{run.id}", "--prompt", "What is one?", "--max-new-tokens", "2", "--json"]
    (answer,) = json.loads(told_of(capsys, *ask)[1])["answers"]
    receipt = tmp_path / "receipt.json"
    record = {
        "receipt": answer["receipt"],
        "token_ids": answer["token_ids"],
        "messages": [{"role": "user", "content": "What is one?"}],
        "settings": {"max_tokens": 2, "seed": 0, "system_prompt": ""},
    }
    receipt.write_text(json.dumps(record))
    forget()
    code, out, told = told_of(capsys, "chat", "--receipt", str(receipt))
    assert code == 0 and "The same tokens." in out, (out, told)
    assert f"Downloading {base}: " in told and f"Downloaded {base}." in told


def test_the_scripts_lines_read_the_set_of_the_hub(
    both: StandIn, hub_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """In a process of its own, with the datasets library as anybody has it."""
    hub_fetch.fetch(dataset_hub.parse(SET))
    spec = checked(hub_spec(data={"dataset": SET})).spec
    lines = script(spec, spec.model, spec.data.dataset, "").splitlines()
    names = [line for line in lines if re.match(r"(DATA|CONFIG, SPLIT|DATA_REVISION) = ", line)]
    begin = lines.index("from datasets import load_dataset")
    end = next(i for i, line in enumerate(lines) if line.startswith("records = splits["))
    read = [*names, *lines[begin : end + 1], "import json", "print(json.dumps(records))"]
    moved = ROWS.replace(b"two", b"three")
    both.commit(SET, {"train.jsonl": moved}, "datasets")
    own = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "LAB_HUB_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment["HF_HOME"] = str(tmp_path / "another account's")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(read)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert rows == [json.loads(line) for line in ROWS.splitlines()], "at the commit of the check"
