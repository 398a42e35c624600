"""The probe for forgetting: whose answers are kept, and divergences worked out by hand."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lab.atomic_files import read_object
from lab.models.catalog import ModelSource
from lab.runs import actions, record_reader
from lab.runs.status import status
from lab.train import behaviour, forgetting, forgetting_probe
from lab.train.forgetting import Likelihood
from lab.train.telemetry import Telemetry
from tests.conftest import write_rows


def source_of(folder: Path) -> ModelSource:
    return ModelSource("a base", str(folder), local_only=True)


class Speaker:
    """A base that says a word of its own to every prompt, and remembers how it was asked."""

    def __init__(self, tokenizer: Any, word: str) -> None:
        self.ids = tokenizer(word)["input_ids"]
        self.training = True
        self.asked: list[dict[str, Any]] = []

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def eval(self) -> None:
        self.train(False)

    def train(self, mode: bool) -> None:
        self.training = mode

    def generate(self, input_ids: Any, **how: Any) -> Any:
        assert not self.training, "Answers are drawn without dropout."
        self.asked.append({"input_ids": input_ids, **how})
        tensor = torch.tensor([self.ids] * len(input_ids))
        return torch.cat([input_ids, tensor], dim=1)


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    few = ["Hi", "Name three large rivers of Europe, please.", "Why?"]
    monkeypatch.setattr(forgetting, "prompts", lambda: few)
    return few


def said_by(file: Path) -> set[str]:
    return {json.loads(line)["messages"][-1]["content"] for line in file.read_text().splitlines()}


def test_each_base_and_template_has_answers_of_its_own(
    tokenizer: Any, tiny_model: Path, tmp_path: Path, few_prompts: list[str]
) -> None:
    """Two folders with the same files but other weights, by one bit."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_model, first)
    shutil.copytree(tiny_model, second)
    sampled = []

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    change(second)

    def ask(folder: Path, word: str, speaker: Any = tokenizer) -> set[str]:
        def base() -> Speaker:
            sampled.append(word)
            return Speaker(tokenizer, word)

        return said_by(forgetting.base_answers_file(source_of(folder), speaker, base))

    assert ask(first, "one") == {"one"}
    assert ask(second, "two") == {"two"}, "Another base's answers are not taken as this one's."
    assert ask(first, "never") == {"one"} and ask(second, "never") == {"two"}
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("<|im_end|>", "<|im_end|>!")
    assert ask(first, "three", other) == {"three"}, "Another template is another question."
    change(first)
    assert ask(first, "never") == {"two"}, "They are the second one's weights now."
    change(first)
    (second / "model.safetensors").write_bytes((second / "model.safetensors").read_bytes())
    assert ask(second, "never") == {"two"}, "The same weights, written anew, are the same base."
    assert sampled == ["one", "two", "three"], "Each base is asked once."
    few_prompts.append("Name a river.")
    assert ask(first, "four") == {"four"}, "Other prompts are other questions."


def test_prompts_of_all_lengths_end_where_the_answer_begins(
    tokenizer: Any, tiny_model: Path, few_prompts: list[str]
) -> None:
    from lab.data import chat_template

    base = Speaker(tokenizer, "yes")
    forgetting.base_answers_file(source_of(tiny_model), tokenizer, lambda: base)
    (request,) = base.asked
    assert request["do_sample"] and request["temperature"] == 1.0, "Draws from the base's own."
    assert request["top_p"] == 1.0 and not request["top_k"], "From the whole vocabulary."
    assert base.training, "The model is left as it was."
    for prompt, ids, mask in zip(
        few_prompts, request["input_ids"], request["attention_mask"], strict=True
    ):
        text = chat_template.render(
            tokenizer, [{"role": "user", "content": prompt}], to_answer=True
        )
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[-len(own) :].tolist() == own, f"'{prompt}' stands at the end of its row."
        assert mask.tolist() == [0] * (len(ids) - len(own)) + [1] * len(own)


def test_each_batch_of_prompts_has_a_seed_of_its_own_and_keeps_it(
    tokenizer: Any, tiny_model: Path, few_prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the answers of all batches would be drawn with the same numbers."""
    monkeypatch.setattr(forgetting, "SAMPLING_BATCH", 1)
    seeds: list[int] = []

    class Listening(Speaker):
        def generate(self, input_ids: Any, **how: Any) -> Any:
            seeds.append(torch.initial_seed())
            return super().generate(input_ids, **how)

    for _ in range(2):
        base = Listening(tokenizer, "yes")
        file = forgetting.base_answers_file(source_of(tiny_model), tokenizer, lambda b=base: b)
        file.unlink()
    assert len(set(seeds[:3])) == 3 and seeds[:3] == seeds[3:]


def test_answers_of_nothing_are_left_out(
    tokenizer: Any, tiny_model: Path, few_prompts: list[str]
) -> None:
    base = Speaker(tokenizer, "  ")
    file = forgetting.base_answers_file(source_of(tiny_model), tokenizer, lambda: base)
    assert file.read_text() == ""


def likely(
    probabilities: list[list[float]], top: int, own: list[int], ids: Any = None
) -> Likelihood:
    log = torch.tensor(probabilities).log()
    chosen = log.topk(top, dim=1).indices if ids is None else ids
    return Likelihood(
        log.gather(1, torch.tensor(own)[:, None])[:, 0], log.gather(1, chosen), chosen
    )


P = [[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.6, 0.1]]
Q = [[0.25, 0.25, 0.25, 0.25], [0.3, 0.1, 0.4, 0.2]]


def test_the_divergence_is_that_of_the_likeliest_tokens_and_the_rest() -> None:
    base = likely(P, 2, [0, 2])
    tuned = likely(Q, 2, [0, 2], base.top_ids)
    first = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.2 / 0.5)
    second = 0.6 * math.log(1.5) + 0.2 * math.log(2) + 0.2 * math.log(0.2 / 0.5)
    divergence = forgetting.compare(base, tuned)
    assert divergence["probe/kl"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert divergence["probe/base_loss"] == pytest.approx(-math.log(0.5 * 0.6) / 2, rel=1e-5)
    assert divergence["probe/loss"] == pytest.approx(-math.log(0.25 * 0.4) / 2, rel=1e-5)
    assert divergence["probe/rise"] == pytest.approx(math.log(0.3 / 0.1) / 2, rel=1e-5)
    assert forgetting.compare(base, base)["probe/kl"] == pytest.approx(0.0, abs=1e-6)


def test_over_the_whole_vocabulary_it_is_torchs_divergence() -> None:
    from torch.distributions import Categorical, kl_divergence

    base = likely(P, 4, [0, 0])
    tuned = likely(Q, 4, [0, 0], base.top_ids)
    exact = kl_divergence(Categorical(torch.tensor(P)), Categorical(torch.tensor(Q))).mean()
    assert forgetting.compare(base, tuned)["probe/kl"] == pytest.approx(float(exact), abs=1e-5)


def test_likelihoods_are_those_of_the_answers_tokens(
    tiny_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Held against the model's own logits, row by row; dropout is off, and the mode comes back."""
    from transformers import AutoModelForCausalLM

    from lab.data import chat_template

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    file = tmp_path / "answers.jsonl"
    chats = [
        {"messages": [{"role": "user", "content": f"Say {text}."},
                      {"role": "assistant", "content": text}]}
        for text in ("yes", "a longer answer than that", "no", "maybe not", "well")
    ]  # fmt: skip
    write_rows(file, chats)
    model.eval()
    rows = []
    for chat in chats:
        prompt = chat_template.render(tokenizer, chat["messages"][:1], to_answer=True)
        whole = chat_template.render(tokenizer, chat["messages"]).rstrip()
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        # the template's own system turn stands before both
        with torch.no_grad():
            log = torch.log_softmax(model(ids).logits[0], dim=-1)
        rows.append(log[before - 1 : -1].gather(1, ids[0, before:, None])[:, 0])
    expected = torch.cat(rows)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    likelihood = forgetting.likelihood(model, tokenizer, file)
    assert model.training, "The model is put back into its mode."
    assert torch.allclose(likelihood.log_probs, expected, atol=1e-5)
    assert likelihood.top.shape == likelihood.top_ids.shape == (len(expected), forgetting.TOP_K)
    assert (likelihood.top[:, :-1] >= likelihood.top[:, 1:]).all(), "The likeliest first."
    first = forgetting.likelihood(model, tokenizer, file, most=2)
    assert first.tokens == likelihood.tokens[:2] and len(first.log_probs) == sum(first.tokens)
    width = len(tokenizer(whole, add_special_tokens=False)["input_ids"])  # of the last chat
    short = forgetting.likelihood(model, tokenizer, file, length=width)
    assert len(short.log_probs) < len(expected), "no more of a chat than the model reads"
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(50.0)
    tuned = forgetting.likelihood(model, tokenizer, file, likelihood.top_ids)
    assert torch.equal(tuned.top_ids, likelihood.top_ids), "Both are read at the base's tokens."
    assert not (tuned.top[:, :-1] >= tuned.top[:, 1:]).all(), (
        "There the tuned model has an order of its own."
    )
    assert forgetting.compare(likelihood, tuned)["probe/kl"] > 0


def test_intervals_are_those_of_drawing_the_chats_again() -> None:
    tokens = (3, 1, 2)
    draw = np.random.default_rng(forgetting.SEED).integers(3, size=(forgetting.RESAMPLES, 3))
    sums = [3.0, -1.0, 4.0]
    means = [sum(sums[i] for i in row) / sum(tokens[i] for i in row) for row in draw]
    low, high = np.percentile(means, [2.5, 97.5])
    assert forgetting.resampled_half(sums, tokens) == pytest.approx((high - low) / 2)
    assert forgetting.resampled_half([2.0, 4.0], (1, 2)) == 0, "The same a token in every chat."


def test_a_part_of_the_chats_and_those_that_lost_most() -> None:
    own = torch.tensor([-1.0, -1.0, -2.0, -3.0, -1.0])
    top = torch.full((5, 2), 0.5).log()
    base = Likelihood(own, top, torch.zeros(5, 2, dtype=torch.long), (2, 1, 2))
    tuned = Likelihood(own - torch.tensor([0.1, 0.3, 2.0, 0.0, 0.4]), top, base.top_ids, (2, 1, 2))
    assert [(index, round(rise, 3)) for index, rise in forgetting.most_lost(base, tuned, 2)] == [
        (1, 2.0), (0, 0.2),
    ]  # fmt: skip
    figures = forgetting.compare(base, tuned)
    assert figures["probe/rise"] == pytest.approx(2.8 / 5) and figures["probe/chats"] == 3
    assert figures["probe/rise_half"] > 0 and figures["probe/kl_half"] == 0
    part = base.first(2)
    assert part.tokens == (2, 1) and part.log_probs.tolist() == [-1.0, -1.0, -2.0]
    assert forgetting.compare(part, tuned.first(2))["probe/rise"] == pytest.approx(2.4 / 3)


def test_a_run_measures_it_at_each_evaluation_and_says_what_was_lost(
    work_here: Any, few_prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting_probe, "LIVE_CHATS", 2)
    spec = {"max_steps": 4, "eval_steps": 2, "save_steps": 0, "learning_rate": 1e-1}
    run = work_here("lora", train={**spec, "forgetting_probe": "on"})
    records = record_reader.metrics(run, "probe")
    assert [(record["step"], record["probe/chats"]) for record in records] == [
        (2, 2), (4, 2), (4, 3),
    ]  # fmt: skip
    for record in records:
        assert record["probe/rise"] == pytest.approx(
            record["probe/loss"] - record["probe/base_loss"]
        )
        assert -1 <= record["probe/choices"] <= 1 and record["flops"] > 0
        assert 0 <= record["probe/ended"] <= 1 and record["probe/seconds"] > 0
        assert 0 <= record["probe/answer_tokens"] <= behaviour.MAX_NEW_TOKENS
        assert record["probe/base_answer_tokens"] == records[0]["probe/base_answer_tokens"]
    assert records[1]["probe/kl"] > records[0]["probe/kl"] > 1e-4, "It moves away from the base."
    (event,) = record_reader.events(run, "forgotten")
    assert {example["prompt"] for example in event["examples"]} == set(few_prompts)
    rises = [example["rise"] for example in event["examples"]]
    assert rises == sorted(rises, reverse=True)
    measured = {key: value for key, value in records[-1].items() if key.startswith("probe/")}
    summary = (read_object(run.result) or {})["summary"]
    assert {key: summary.get(key) for key in measured} == measured, "those of the end"


def test_a_stopped_run_with_the_probe_goes_on_to_the_bit(
    small_run: Any, queue_here: None, few_prompts: list[str], lab_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped after step 3 and resumed, with the base's answers sampled once more: the same losses,
    weights and figures as a run that was not stopped, and as one without the probe. Dropout draws
    at every step."""
    monkeypatch.setattr(forgetting_probe, "LIVE_CHATS", 2)
    train = {"max_steps": 6, "eval_steps": 2, "save_steps": 0, "learning_rate": 3e-2}
    options = {"name": "lora", "dropout": 0.3}
    plain = small_run(options, train=train)
    probed = train | {"forgetting_probe": "on"}
    whole = small_run(options, train=probed)
    write = Telemetry.metric

    def metric(self: Telemetry, kind: str, **values: Any) -> None:
        write(self, kind, **values)
        if kind == "train" and values["step"] == 3:
            self.run.commands.mkdir(exist_ok=True)
            (self.run.commands / "stop").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "metric", metric)
        stopped = small_run(options, train=probed)
    assert status(stopped).state == "stopped"
    shutil.rmtree(lab_home / "cache" / "general")
    actions.resume(stopped)
    assert record_reader.last_event(stopped, "plan")["resumed_at"] == 3
    tensors = load_file(plain.artifact / "adapter_model.safetensors")
    for run in (whole, stopped):
        assert status(run).state == "done"
        for kind, key in (("train", "train/loss"), ("train", "train/grad_norm")):
            values = [[r[key] for r in record_reader.metrics(each, kind)] for each in (plain, run)]
            assert values[0] == values[1] and len(values[0]) == 6, key
        losses = [
            {r["step"]: r["eval/loss"] for r in record_reader.metrics(each, "eval")}
            for each in (plain, run)
        ]
        assert losses[1] == losses[0] | ({3: losses[1][3]} if run is stopped else {})
        ours = load_file(run.artifact / "adapter_model.safetensors")
        assert all(torch.equal(tensor, ours[name]) for name, tensor in tensors.items())
    figures = [
        [
            {key: value for key, value in r.items() if key.startswith("probe/")}
            | {"probe/seconds": 0.0, "step": r["step"]}
            for r in record_reader.metrics(run, "probe")
            if r["step"] != 3
        ]
        for run in (whole, stopped)
    ]
    assert [record["step"] for record in figures[0]] == [2, 4, 6, 6]
    assert figures[0] == figures[1] and figures[0][-1]["probe/kl"] > 0
