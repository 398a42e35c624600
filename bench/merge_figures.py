"""How far merged models are from the results that they are made of: every method that can be
merged, on bases of each type, and the GGUF file of one.

Each method trains a few steps in a home of its own, on a small model of random weights or on the
one that is named. The figures are those of the proof that every merge makes, from the disk, on
held-out rows.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from bench.fault_injection import home_at
from bench.small_model import make_model
from lab import methods, process
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.export import gguf_file, merge
from lab.models import catalog, weights
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.runs import actions
from lab.spec import RunSpec

STEPS, RATE_TIMES = 3, 10.0  # few steps: a higher rate, so that there is something to merge
TYPES = ("float32", "bfloat16")  # of the base, and of the weights that are written


def merges(names: Sequence[str], model: str, tell: Callable[[str], object]) -> list[dict[str, Any]]:
    """{"method", "base", "written", and MergeProof's figures} of each; all that can be merged
    where no method is named, the small model where none is. Raises LabError."""
    known = [method.name for method in methods.all_methods() if method.can_merge]
    if unknown := set(names) - set(known):
        raise LabError(f"{', '.join(sorted(unknown))} cannot be merged.", f"Of {', '.join(known)}.")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lab-merges-") as folder, home_at(Path(folder)):
        if not model:
            model = str(Path(folder) / "small")
            make_model(Path(model), width=64)
        for name in names or known:
            tell(f"training {name}")
            run = _trained(name, model)
            for kind in TYPES:
                with _base_of_type(run, kind):
                    rows.append(_merged(run, Path(folder) / "merged", kind, tell))
            if name == methods.DEFAULT:
                rows += [_gguf(run, Path(folder), kind, tell) for kind in gguf_file.QUANTISATIONS]
            shutil.rmtree(run.path)
    return rows


def _trained(name: str, model: str) -> RunDir:
    from lab.train.worker import work

    method = methods.get(name)
    spec = {
        "model": model,
        "method": {"name": name},
        "data": {
            "dataset": "builtin:persona-chats",
            "max_examples": 40,
            "eval_fraction": 0.2,
            "packing": "off",
        },
        "train": {
            "batch_size": 2,
            "max_steps": STEPS,
            "learning_rate": min(1.0, RATE_TIMES * method.default_lr),
            "eval_steps": 0,
            "save_steps": 0,
            "sample_steps": 0,
        },
    }
    run = actions.create_run_dir(planner.check(spec))
    process.register(run, os.getpid())
    with run.log.open("a") as log, contextlib.redirect_stdout(log):
        if work(run):
            raise LabError(f"The run of {name} failed.", run.log.read_text()[-500:])
    return run


@contextlib.contextmanager
def _base_of_type(run: RunDir, kind: str) -> Iterator[None]:
    """Results stand on a base of this type, as those on a GPU stand on bfloat16."""
    import torch

    named = chat_models.parse(f"run:{run.id}")
    base = weights.load_model(catalog.resolve(named.base), getattr(torch, kind))
    load = functools.partial(chat_models.load, base=base)
    with mock.patch.object(merge.chat_models, "load", load):
        yield


def _merged(
    run: RunDir, target: Path, written: str, tell: Callable[[str], object]
) -> dict[str, Any]:
    proof = merge.merge(run, target, written).proof
    shutil.rmtree(target)
    tell(f"{proof['base']}, written as {written}: {proof['sentence']}")
    return {"method": RunSpec.of_run(run).method["name"], "written": written, **proof}


def _gguf(run: RunDir, folder: Path, kind: str, tell: Callable[[str], object]) -> dict[str, Any]:
    file = folder / f"{kind}.gguf"
    proof = gguf_file.of_run(run, file, kind).proof
    file.unlink()
    tell(f"GGUF {kind}: {proof['sentence']}")
    row = {"method": RunSpec.of_run(run).method["name"], "written": f"GGUF {kind}", **proof}
    return row | {"base": proof["merge"]["base"]}
