"""What a process of the lab imports before it works: not torch's compiler, and nothing that starts
CUDA before the planner forks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lab.library_imports import COMPILER_OFF, import_peft

PLANNER_AND_WORKER = """
import os, sys
from lab import host
from lab.library_imports import import_peft
from lab.preflight import worker

cards, host.gpus = host.gpus, lambda: ["a card"]
worker.load_libraries()
import lab.train.attempt
assert not {"peft", "bitsandbytes"} & set(sys.modules), "CUDA is initialised before the fork"
host.gpus = lambda: []
worker.load_libraries()
assert {"peft", "bitsandbytes"} <= set(sys.modules), "each request would import them again"
import_peft()
import lab.chat.server
assert "torch._inductor.compile_fx" not in sys.modules, "Inductor is imported"
assert "TORCHDYNAMO_DISABLE" not in os.environ, "runs would not be compiled"
"""


def test_planner_worker_and_chat_start_without_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANNER_AND_WORKER], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("before", [None, "0"])
def test_what_a_person_has_set_for_the_compiler_stays(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMPILER_OFF, raising=False)
    if before is not None:
        monkeypatch.setenv(COMPILER_OFF, before)
    import_peft()
    monkeypatch.delitem(sys.modules, "bitsandbytes")  # as if it had not been imported yet
    seen = []
    real = __import__

    def watched(name: str, *args: object, **kwargs: object) -> object:
        if name == "bitsandbytes":
            seen.append(os.environ[COMPILER_OFF])
            return None
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("builtins.__import__", watched)
    assert import_peft().__name__ == "peft"
    assert seen == ["1"], "the compiler is off while bitsandbytes is imported"
    assert os.environ.get(COMPILER_OFF) == before


def test_a_model_is_loaded_with_the_libraries_imported_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So every process that answers or scores starts as quickly as one that trains."""
    from lab.chat import models

    class Imported(Exception):
        pass

    def note() -> None:
        raise Imported

    monkeypatch.setattr(models, "import_libraries", note)
    with pytest.raises(Imported):
        models.load(models.parse("base:builtin:smollm2-135m-instruct"))
