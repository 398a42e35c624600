"""A model that has learned an end stops there: in chat, in samples, and in plain `generate`.

The chat template closes its turns with a token that neither the tokenizer nor the model calls its
end, as the base models of some families do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.settings import GenerationSettings
from lab.data import chat_template, stop_tokens
from lab.export.merge import merge
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.runs import record_reader
from tests.conftest import SHARED_MODELS, run_here, write_rows
from tests.methods import tiny

CLOSE = "w93"
ANSWER = "w40 w41 w42"


@pytest.fixture(scope="module")
def closing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "closing"
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [tiny.TURN, CLOSE]})
    tokenizer.chat_template = tiny.TEMPLATE.replace("<|end|>", CLOSE)
    tiny.make_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def closing_home(closing_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a full and a LoRA run that have learned one answer and its end."""
    home = tmp_path_factory.mktemp("closing") / "home"
    file = home.parent / "chats.jsonl"
    turns = [[("user", f"w{i} w9"), ("assistant", ANSWER)] for i in range(1, 25)]
    write_rows(file, [{"messages": [{"role": r, "content": c} for r, c in row]} for row in turns])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(home))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        for method, rate in (("full", 3e-3), ("lora", 2e-2)):
            run_here(
                {
                    "name": method,
                    "model": str(closing_model),
                    "method": {"name": method},
                    "data": {"dataset": str(file), "eval_fraction": 0.1, "max_length": 32},
                    "train": {"batch_size": 8, "max_steps": 60, "learning_rate": rate,
                              "save_steps": 0, "eval_steps": 0},
                }
            )  # fmt: skip
    return home


@pytest.fixture
def closing_runs(closing_home: Path, lab_home: Path) -> dict[str, paths.RunDir]:
    shutil.copytree(closing_home, lab_home, dirs_exist_ok=True)
    return dict(zip(("full", "lora"), paths.all_runs()[::-1], strict=True))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_learned_end_ends_the_answer(
    closing_runs: dict[str, paths.RunDir], closing_model: Path, tmp_path: Path, method: str
) -> None:
    run = closing_runs[method]
    named = chat_models.parse(f"run:{run.id}")
    loaded = chat_models.load(named)
    tokenizer = loaded.tokenizer
    close = tokenizer.convert_tokens_to_ids(CLOSE)
    ask = [{"role": "user", "content": "w30 w9"}]
    answer = generate.answer(loaded, named, ask, GenerationSettings(max_new_tokens=20))
    assert (answer.text, answer.finish) == (ANSWER, "stop")
    assert answer.token_ids[-1] == close, "It ends with the end that the labels taught."
    short = generate.answer(loaded, named, ask, GenerationSettings(max_new_tokens=2))
    assert short.finish == "length", "It did not stop by itself."
    sample = record_reader.last_event(run, "sample")
    assert sample["text"] == ANSWER, "A sample ends there, too."

    merged = tmp_path / "merged"
    if method == "lora":
        merge(run, merged)
    for folder in (run.artifact, *([merged] if method == "lora" else [])):
        config = read_object(folder / "generation_config.json")
        assert config is not None and config["eos_token_id"] == [0, close], folder
    assert (read_object(run.artifact / "receipt.json") or {})["stop_tokens"] == [0, close]
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(run.artifact if method == "full" else merged)
    prompt = chat_template.render(tokenizer, ask, to_answer=True)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        ids = plain.generate(input_ids=inputs["input_ids"], max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(ids[inputs["input_ids"].shape[1] :]) == f"{ANSWER} {CLOSE}"
    # the base is asked with the same end
    base = weights.load_tokenizer(ModelSource("b", str(closing_model), local_only=True))
    assert stop_tokens.ids(base) == [0, close]


def test_the_date_of_a_run_is_the_day_when_it_was_made(
    small_spec: Callable[..., dict[str, Any]], small_model: Path, tmp_path: Path
) -> None:
    """It resumes with the same tokens after a change of date and with the cache gone."""
    from tests.answers import check

    dated = tmp_path / "dated"
    shutil.copytree(small_model, dated)
    template = "{{ 'w1' if strftime_now('%Y') == '2031' else 'w2' }} " + tiny.TEMPLATE
    (dated / "chat_template.jinja").write_text(template)
    spec = {**small_spec(), "model": str(dated)}
    resolved = check(spec)["spec"]["data"]["template_date"]
    assert resolved is not None and len(resolved) == 10, "It is written into the spec."
    assert check(small_spec())["spec"]["data"]["template_date"] is None
    spec["data"]["template_date"] = "2031-05-06"
    run = run_here(spec)
    assert (read_object(run.artifact / "receipt.json") or {})["lock"][
        "template_date"
    ] == "2031-05-06"
    loaded = chat_models.load(chat_models.parse(f"run:{run.id}"))
    answer = generate.answer(
        loaded, chat_models.parse(f"run:{run.id}"), [{"role": "user", "content": "w5"}],
        GenerationSettings(max_new_tokens=1),
    )  # fmt: skip
    assert answer.receipt.prompt.startswith("w1 "), "Chat writes the date of the run."


def test_named_templates_travel_with_the_result(
    small_spec: Callable[..., dict[str, Any]], small_model: Path, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    shutil.copytree(small_model, named)
    (named / "chat_template.jinja").unlink()
    config = read_object(named / "tokenizer_config.json") or {}
    config["chat_template"] = [
        {"name": "default", "template": tiny.TEMPLATE},
        {"name": "tool_use", "template": "w1 " + tiny.TEMPLATE},
    ]
    write_json(named / "tokenizer_config.json", config)
    run = run_here({**small_spec("lora", train={"max_steps": 2}), "model": str(named)})
    merge(run, tmp_path / "merged")
    for folder in (run.artifact, tmp_path / "merged"):
        loaded = weights.load_tokenizer(ModelSource("n", str(folder), local_only=True))
        assert set(loaded.chat_template) == {"default", "tool_use"}, folder
    answer = generate.answer(
        chat_models.load(chat_models.parse(f"run:{run.id}")), chat_models.parse(f"run:{run.id}"),
        [{"role": "user", "content": "w5"}], GenerationSettings(max_new_tokens=1),
    )  # fmt: skip
    assert answer.receipt.prompt == "<|turn|> w5 <|end|> <|turn|> "


def test_template_arguments_are_checked_and_kept(
    small_spec: Callable[..., dict[str, Any]],
) -> None:
    from tests.answers import check

    spec = small_spec(data={"template_args": {"enable_thinking": False, "n": 2, "s": "x"}})
    assert check(spec)["spec"]["data"]["template_args"] == {
        "enable_thinking": False, "n": 2, "s": "x",
    }  # fmt: skip
    for args, message in (
        ({"messages": []}, "must be text, a number, true, false or null"),
        ({"messages": "x"}, "cannot be set"),
        ({"n": float("nan")}, "not a number"),
    ):
        problems = check(small_spec(data={"template_args": args}))["problems"]
        assert [p["field"] for p in problems] == ["data.template_args"] and message in str(problems)
    problems = check(small_spec(data={"template_date": "soon"}))["problems"]
    assert "is not a date" in str(problems)
