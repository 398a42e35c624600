"""Bad input: exit code 2, a message with the value and the way out, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lab import cli, paths
from lab.preflight import disk_check
from tests.answers import check
from tests.conftest import write_rows

Spec = dict[str, Any]


@pytest.fixture
def refuse(
    tmp_path: Path, lab_home: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Start a spec that must be refused; the message."""

    def run(spec: Spec | str, *settings: str) -> str:
        file = tmp_path / "spec.json"
        file.write_text(spec if isinstance(spec, str) else json.dumps(spec))
        options = [part for setting in settings for part in ("--set", setting)]
        assert cli.main(["start", str(file), *options]) == 2
        assert not paths.runs().exists() or not list(paths.runs().iterdir()), "nothing is written"
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model=builtin:gpt5", "Unknown model 'builtin:gpt5'. Choose one of: builtin:smollm2"),
        ("model=config:Llama-3.2-1B", "no weights"),
        ("model=no/such-model", "the Hub cannot be reached (HF_HUB_OFFLINE is set)"),
        ("model=./no-such-folder", "does not exist"),
        ("model=a b", "Unknown model 'a b'"),
        ("data.dataset=builtin:none", "Unknown dataset 'builtin:none'. Choose one of: "),
        ("data.dataset=/no/file.jsonl", "'/no/file.jsonl' does not exist"),
        ("train.learning_rate=0", "is 0; it must be above 0"),
        ("train.learning_rate=5", "is 5; it must be at most 1"),
        ("train.learning_rate=NaN", "is nan"),
        ("train.batch_size=-1", "is -1; it must be at least 1"),
        ("train.max_steps=0", "is 0; it must be at least 1"),
        ("method.rank=0", "is 0; it must be at least 1"),
        (
            'method.target_modules=["q_proj","c_attn"]',
            "'c_attn' names no linear layer of this model",
        ),
        ("method.target_modules=re:.*(", "is not a valid regular expression"),
        ("method.target_modules=.*_proj", "write 're:.*_proj'"),
        ("method.target_modules=nothing", "'nothing' names no linear layer of this model"),
        ("method.name=lorra", "Unknown method 'lorra'. Choose one of: full,"),
        ("method.rnak=4", "Did you mean 'rank'?"),
        ("train.lr=4", "unknown key 'lr'"),
        ("name=a/b", "the characters / are not allowed"),
        ("name=a\0b", "control characters are not allowed"),
        ("data.max_length=4096", "is 4,096; the model reads at most 512"),
        ("data.general_fraction=0.95", "is 0.95; it must be at most 0.9"),
        ('data.columns={"promt": "x"}', "unknown key 'promt'. Did you mean 'prompt'?"),
        ('data.columns={"prompt": 5}', "'prompt' must be text, is 5"),
        ("data.columns=5", "must be object, is 5"),
        ("data.objective=pretraining", "holds chats, and data.objective is pretraining"),
        ("data.dataset=upload:../x.jsonl", "There is no uploaded dataset '../x.jsonl'"),
        ("data.dataset=org/name", "the Hub cannot be reached (HF_HUB_OFFLINE is set)"),
        ("data.dataset=org/../name", "Unknown dataset"),
        ("data.dataset=~nosuch/x.jsonl", "does not exist"),
        ("data.dataset=/" + "x" * 300 + ".jsonl", "does not exist"),
        ("model=" + "x" * 300, "Unknown model"),
        ("model=~nosuch/x", "does not exist"),
        ("train.max_grad_norm=" + "9" * 400, "is inf"),
        ('method.target_modules=["q_proj","lm_head"]', "the fused loss works on a plain head"),
        ("train.batch_size", "not of the form section.key=value"),
    ],
)
def test_one_bad_value(
    refuse: Callable[..., str], make_spec: Callable[..., Spec], setting: str, says: str
) -> None:
    assert says in refuse(make_spec(), setting)


def test_model_folders_that_are_none(
    refuse: Callable[..., str], make_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    spec = make_spec() | {"model": str(folder)}
    assert "has no readable config.json" in refuse(spec)
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {}}')
    assert "needs code of its own" in refuse(spec)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "no *.safetensors" in refuse(spec)
    (folder / "model.safetensors").write_bytes(b"x")
    assert "is not a readable safetensors file" in refuse(spec)
    save_file({"weight": np.zeros(2, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    message = refuse(spec)
    assert "unheard-of" in message and "has no code for it" in message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b'{"text": ""}\n', "row 1: 'text' has no text"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\n', "no assistant turn"),
        (b'{"text": "\xe9\xe8"}\n', "is not UTF-8"),
        (b"not json\n", "row 1: not JSON"),
    ],
)
def test_bad_datasets(
    refuse: Callable[..., str],
    make_spec: Callable[..., Spec],
    tmp_path: Path,
    data: bytes,
    says: str,
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(data)
    assert says in refuse(make_spec(data={"dataset": str(file)}))


def test_rows_whose_answers_lie_beyond_the_cut(
    refuse: Callable[..., str], make_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    file = tmp_path / "long.jsonl"
    write_rows(file, [{"prompt": "word " * 200, "completion": "x"}])
    assert "token to learn from within 64 tokens" in refuse(make_spec(data={"dataset": str(file)}))


@pytest.mark.parametrize("text", ["{", "[]", "null", "", '{"a": 1', "\x00"])
def test_garbage_json(refuse: Callable[..., str], text: str) -> None:
    assert "is not JSON" in (message := refuse(text)) or "A spec is a JSON object" in message


def test_all_problems_at_once(refuse: Callable[..., str], make_spec: Callable[..., Spec]) -> None:
    message = refuse(
        make_spec(),
        "model=builtin:nothing",
        "data.dataset=builtin:nothing",
        "train.batch_size=0",
        "method.rank=-4",
        "name=a/b",
    )
    assert "the spec has 5 problems" in message
    for field in ("model:", "data.dataset:", "train.batch_size:", "method.rank:", "name:"):
        assert field in message


def test_one_problem_hides_no_other_of_its_section(
    refuse: Callable[..., str], make_spec: Callable[..., Spec]
) -> None:
    message = refuse(make_spec(), "data.max_length=4", "data.dataset=builtin:none", "method.rank=0")
    for field in ("data.max_length:", "data.dataset:", "method.rank:"):
        assert field in message


def test_models_that_cannot_train(
    refuse: Callable[..., str], make_spec: Callable[..., Spec], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised already"),
        ({"vocab_size": 100}, "but the model only 100 embeddings"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, and must be from 1 to"),
        ({"hidden_size": "wide"}, "hidden_size is wide, and must be a whole number"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert says in refuse(make_spec() | {"model": str(folder)}), change


def test_not_enough_disk(make_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    free = disk_check.DISK_RESERVE + 1_000_000
    usage = disk_check.shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(disk_check.shutil, "disk_usage", lambda path: usage)
    (problem,) = check(make_spec("full"))["problems"]
    assert "not enough disk" in problem["message"] and "0.00 GB are free" in problem["message"]
    assert check(make_spec("lora", train={"save_steps": 0}))["problems"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "../../etc/passwd"], "is not a run id"),
        (["stop", "20260101-000000-lora-abcd"], "There is no run"),
        (["compare", "x"], "is not a run id"),
        (["chat", "run:x", "--prompt", "hi"], "is not a run id"),
        (["chat", "nobody", "--prompt", "hi"], "Write base:ID, run:ID, run:ID@STEP or adapter:ID"),
        (["chat", "base:builtin:x", "--prompt", "hi"], "Choose one of"),
        (["start", "/no/such/spec.json"], "There is no file"),
    ],
)
def test_other_verbs(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert cli.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_an_unknown_verb_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["fly"])
    assert caught.value.code == 2 and "invalid choice: 'fly'" in capsys.readouterr().err
