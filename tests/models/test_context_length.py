"""How much a model reads, and that prompts, answers, samples and the probe keep to it."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lab import cli, methods
from lab.chat import generate, server
from lab.chat import models as chat_models
from lab.chat.models import ModelRef
from lab.chat.settings import GenerationSettings
from lab.data.catalog import Dataset
from lab.data.formats import Example
from lab.data.prepare import DataFigures, PreparedData
from lab.errors import LabError
from lab.models import catalog
from lab.models.context_length import PromptTooLong, context_length, room_for_answer, text_length
from lab.train import forgetting
from lab.train.sample_outputs import SampleGenerator
from tests.conftest import write_rows

POSITIONS = 64


@pytest.mark.parametrize(
    ("model_type", "values", "length"),
    [
        ("gpt2", {"n_positions": 128}, 128),
        ("llama", {"max_position_embeddings": 777}, 777),
        ("mpt", {"max_seq_len": 96}, 96),
        ("bloom", {}, None),
        ("mamba", {}, None),
        ("gemma3", {"text_config": {"max_position_embeddings": 321}}, 321),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 4 * 2048),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 2 * 2048),
        (
            "qwen2",
            {
                "max_position_embeddings": 32_768,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32_768,
                },
            },
            131_072,
        ),
        (  # its length is the stretched one already
            "qwen2",
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32_768,
                },
            },
            131_072,
        ),
        (  # longer than what it was stretched to
            "qwen2",
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 32_768,
                },
            },
            131_072,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131_072,
        ),
    ],
)
def test_the_length_is_what_the_config_says(
    model_type: str, values: dict[str, Any], length: int | None
) -> None:
    assert context_length(AutoConfig.for_model(model_type, **values)) == length


def test_virtual_tokens_are_taken_off() -> None:
    config = AutoConfig.for_model("gpt2", n_positions=128)
    for name, tokens in (("prompt", 100), ("prefix", 30), ("ptuning", 200), ("lora", None)):
        method = methods.get(name)
        options = method.config() if tokens is None else method.config(num_virtual_tokens=tokens)
        assert text_length(config, method, options) == max(128 - (tokens or 0), 0), name
    assert text_length(AutoConfig.for_model("bloom"), method, options) is None


def test_an_answer_has_the_room_that_the_prompt_leaves() -> None:
    assert room_for_answer(127, 128, "m") == 1
    assert room_for_answer(10, None, "m") > 1_000_000
    for tokens in (128, 300):
        with pytest.raises(PromptTooLong) as refused:
            room_for_answer(tokens, 128, "base:m", virtual=20)
        assert all(part in refused.value.message for part in (str(tokens), "128", "20", "base:m"))


@pytest.fixture(scope="module")
def short_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A GPT-2 of 64 positions: one more is an IndexError."""
    folder = tmp_path_factory.mktemp("models") / "short"
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=POSITIONS,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "one " * words}]


def test_an_answer_ends_where_the_context_does(short_model: Path) -> None:
    ref = chat_models.parse(f"base:{short_model}")
    loaded = chat_models.load(ref)
    assert loaded.length == POSITIONS
    settings = GenerationSettings(max_new_tokens=400, system_prompt="Be brief.")
    answer = generate.answer(loaded, ref, chat(3), settings)
    assert answer.finish == "length" and answer.is_at_context_end
    assert answer.receipt.prompt_tokens + len(answer.token_ids) == POSITIONS
    few = GenerationSettings(max_new_tokens=4, system_prompt="Be brief.")
    short = generate.answer(loaded, ref, chat(3), few)
    assert (len(short.token_ids), short.is_at_context_end) == (4, False)
    with pytest.raises(PromptTooLong, match="64"):
        generate.answer(loaded, ref, chat(200), settings)


def test_the_command_line_refuses_with_both_numbers(
    short_model: Path, capsys: pytest.CaptureFixture[str], tokenizer: Any, tiny_model: Path
) -> None:
    prompt = "one " * 200
    models = [f"base:{tiny_model}", f"base:{short_model}"]
    assert cli.main(["chat", *models, "--prompt", prompt]) == 2
    said = " ".join(capsys.readouterr().err.split())
    text = generate.render(tokenizer, chat(200), GenerationSettings())
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert f"{count} tokens" in said and "reads 64" in said, said


def asked(short_model: Path, messages: list[dict[str, str]]) -> bytes:
    return json.dumps({"model": f"base:{short_model}", "messages": messages}).encode()


def over_http(received: list[dict[str, Any]]) -> tuple[int, Any]:
    """(status, JSON) that the chat process answers to a request that arrives in these pieces."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return received.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"authorization", b"Bearer secret")], "http_version": "1.1",
    }  # fmt: skip
    application: Any = server.application("secret")
    # in a thread: a browser of this process may have left an event loop that runs
    thread = threading.Thread(target=lambda: asyncio.run(application(scope, receive, send)))
    thread.start()
    thread.join()
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if body else None


def test_the_chat_process_refuses_in_openais_words(short_model: Path) -> None:
    body = {"type": "http.request", "body": asked(short_model, chat(200))}
    status, reply = over_http([body])
    assert status == 400 and reply["error"]["code"] == "context_length_exceeded"
    assert reply["error"]["type"] == "invalid_request_error"
    assert reply["error"]["param"] == "messages" and "64" in reply["error"]["message"]


def test_a_client_that_closes_inside_its_body_leaves_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces = [
        {"type": "http.request", "body": b'{"model": "ba', "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert over_http(pieces)[0] == 400
    assert "Traceback" not in capsys.readouterr().err


class Log:
    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.phases: list[str] = []

    def event(self, kind: str, **values: Any) -> None:
        self.samples.append(values)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def enter_phase(self, phase: str) -> None:
        self.phases.append(phase)

    def writing(self, done: int, most: int, text: str) -> None:
        assert 0 < done <= most < POSITIONS


@pytest.mark.parametrize(("words", "samples"), [(3, 1), (200, 0)])
def test_samples_keep_to_the_context(
    short_model: Path, tokenizer: Any, words: int, samples: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(short_model)
    log: Any = Log()
    turns = (*chat(words), {"role": "assistant", "content": "two"})
    data = PreparedData([], [], "", Example(1, messages=turns), DataFigures())
    where = Dataset("x", Path("x"), {})
    made = SampleGenerator(tokenizer, where, data, log, "float32", length=POSITIONS)
    made.sample(model, 1)
    made.sample(model, 2)
    assert len(log.samples) == 2 * samples
    assert log.phases == ["sampling"] * 2 * samples
    assert len(log.warnings) == 1 - samples, "It is said once."


def test_the_probe_keeps_to_the_context(
    short_model: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "prompts", lambda: ["Tell me all.", "one two three " * 3])
    ref = chat_models.parse(f"base:{short_model}")
    loaded = chat_models.load(ref)
    source = catalog.resolve(str(short_model))
    file = forgetting.base_answers_file(source, loaded.tokenizer, lambda: loaded.model)
    own = forgetting.likelihood(loaded.model, tokenizer, file, length=POSITIONS).log_probs
    short = forgetting.likelihood(loaded.model, tokenizer, file, length=POSITIONS - 8).log_probs
    assert 0 < len(short) < len(own), "Less is read where virtual tokens stand before the text."


def test_rows_longer_than_a_model_reads_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, short_model: Path, tmp_path: Path
) -> None:
    from lab.evals.held_out import evaluate

    rows = tmp_path / "short.jsonl"
    write_rows(rows, [{"prompt": "Hi", "response": "no"}] * 3)
    ref = chat_models.parse(f"base:{short_model}")
    loaded = chat_models.load(ref)
    assert evaluate([ref], str(rows))[0].rows == 3
    monkeypatch.setattr(chat_models, "load", lambda named: replace(loaded, length=8))
    with pytest.raises(LabError, match="reads 8"):
        evaluate([ModelRef(ref.name, ref.base)], str(rows))
