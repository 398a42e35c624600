"""What an attempt ran with is what it ran with."""

from __future__ import annotations

import os
from pathlib import Path

import accelerate
import numpy
import peft
import pytest
import safetensors
import tokenizers
import torch
import transformers

from lab.spec import RunSpec
from lab.train import environment


def test_versions_seed_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 37)
    spec = RunSpec.from_json({"train": {"seed": 11}})
    facts = environment.environment(spec, torch.device("cpu"))
    modules = (torch, transformers, peft, accelerate, safetensors, numpy, tokenizers)
    for module in modules:
        ours, theirs = facts["packages"][module.__name__], module.__version__
        assert ours.partition("+")[0] == theirs.partition("+")[0], module.__name__
    assert (facts["seed"], facts["threads"], facts["pid"]) == (11, 37, os.getpid())
    assert facts["cuda"] == torch.version.cuda and facts["device"]


def test_the_commit_is_read_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.git_revision() is None, "an exported copy has none"
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("abc123\n")
    assert environment.git_revision() == "abc123"
    (tmp_path / ".git" / "HEAD").write_text("def456\n")
    assert environment.git_revision() == "def456", "a commit that no branch points to"
